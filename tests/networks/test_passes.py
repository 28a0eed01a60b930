"""What a pass gives is the network's output, rounded as it is stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cellseg_cli.networks import passes
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.passes import Meter, Network

CPU = torch.device("cpu")


def trained(encoder: str) -> Embedder:
    """A network whose batch norms do something."""
    torch.manual_seed(0)
    architecture = Architecture(encoder=encoder, decoder_channels=4)
    model = Embedder(architecture, trained=True).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model


def test_a_pass_rounds_what_the_network_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "computes_bf16", lambda _: False)
    for encoder in ("resnet18", "resnet10t"):
        model = trained(encoder)
        images = torch.rand(2, 3, 64, 32)
        with torch.inference_mode():
            embedding, logits = model(images)
        network = Network(model, CPU)
        values, classes = network(images)
        assert (values.dtype, values.shape) == (torch.float16, (2, 4, 64, 32))
        torch.testing.assert_close(values.float(), embedding, rtol=2e-3, atol=2e-3)
        assert classes is not None
        assert logits is not None
        probabilities = 255 * torch.softmax(logits, 1)
        assert (classes.float() - probabilities).abs().max() <= 0.51


def test_the_usual_network_has_no_batch_norm_left_and_the_model_all_of_its() -> None:
    model = trained("resnet18")
    network = Network(model, CPU)
    norms = [
        sum(isinstance(m, nn.BatchNorm2d) for m in each.modules())
        for each in (model, network._model)
    ]
    # stem and 3 stages of 2 blocks of 2, two with a shortcut; decoder: stem and 4 × 2
    assert norms == [1 + 3 * 2 * 2 + 2 + 1 + 4 * 2, 0]


def test_rounding_weights_once_is_what_autocast_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoder in ("resnet18", "resnet10t"):
        model, images = trained(encoder), torch.rand(1, 3, 32, 32)
        monkeypatch.setattr(passes, "computes_bf16", lambda _: True)
        once = Network(model, CPU)
        assert once.input_dtype == torch.bfloat16
        monkeypatch.setattr(passes, "_round_convolutions", lambda _: None)
        each_time = Network(model, CPU)
        monkeypatch.undo()
        assert torch.equal(once(images).values, each_time(images).values)
        # a first layer that is a convolution rounds its input itself
        assert torch.equal(once(images).values, once(images.bfloat16()).values)


def test_the_meter_adds_passes_of_several_sizes() -> None:
    meter = Meter()
    meter.add(0.5, [3, 1], px=100)
    meter.add(0.25)
    meter.halved()
    use = meter.use
    assert (use.busy_s, use.passes, use.tiles, use.pixels) == (0.75, 2, 4, 400)
    assert (use.batch_size, use.halvings) == (3, 1)
