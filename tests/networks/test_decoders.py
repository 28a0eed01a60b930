"""Every decoder brings every encoder to full size; the first one is that of earlier model files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import CheckpointError
from cellseg_cli.networks import passes
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.beside import ConvolveBeside
from cellseg_cli.networks.checkpoint import (
    ModelHeader,
    find_model,
    load_model,
    read_header,
    save_model,
)
from cellseg_cli.networks.decoders import DECODERS, DecoderName, _max_pooled
from cellseg_cli.networks.passes import Network
from cellseg_cli.training.loop import architecture_of

NAMES = sorted(DECODERS)
CPU = torch.device("cpu")


def network(decoder: DecoderName, encoder: str = "resnet18", **changes: object) -> Embedder:
    """A network whose batch norms do something."""
    torch.manual_seed(0)
    given = {"encoder": encoder, "decoder": decoder, "decoder_channels": 4, **changes}
    model = Embedder(Architecture(**given)).eval()  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def changed_header(path: Path, change: dict[str, object], *, without: str = "") -> None:
    """Change the architecture inside a model file, or take one of its keys out."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + length])
    inner = json.loads(outer["__metadata__"]["cellseg"])
    inner["architecture"] = inner["architecture"] | change
    inner["architecture"].pop(without, None)
    outer["__metadata__"]["cellseg"] = json.dumps(inner)
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize("decoder", NAMES)
def test_training_makes_the_network_that_is_asked_for(decoder: DecoderName) -> None:
    assert architecture_of(TrainSettings(decoder=decoder)).decoder == decoder
    assert architecture_of(TrainSettings()) == Architecture()


def test_the_table_holds_every_name() -> None:
    assert set(DECODERS) == set(get_args(DecoderName)) == {"unet", "refinenet", "upscale"}


# ------------------------------------------------------------------ every encoder


@pytest.mark.parametrize("decoder", NAMES)
@pytest.mark.parametrize(
    ("encoder", "channels"),
    [("resnet18", 1), ("resnet50", 3), ("tf_efficientnetv2_b0", 3)],
)
def test_one_step_of_training_reaches_every_weight(
    decoder: DecoderName, encoder: str, channels: int
) -> None:
    model = network(decoder, encoder, in_channels=channels).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    # as 16-bit images come: normalised, with some values beyond one
    images = 1.2 * torch.rand(2, channels, 64, 96)
    output = model(images)
    assert output.embedding.shape == (2, 4, 64, 96)
    assert output.classes is not None and output.classes.shape == (2, 3, 64, 96)
    (output.embedding.square().mean() + output.classes.square().mean()).backward()
    optimizer.step()
    for name, one in model.named_parameters():
        assert one.grad is not None and torch.isfinite(one.grad).all(), name
    moved = [name for name, one in model.named_parameters() if not torch.equal(one, before[name])]
    # convolutions before a batch norm have gradients near 0, but the decoder's weights all move
    assert {name for name in before if name.startswith("decoder.")} <= set(moved)


@pytest.mark.parametrize(
    ("decoder", "encoder", "least"),
    [
        ("unet", "tf_efficientnetv2_m", 50e6),
        ("refinenet", "efficientnetv2_rw_m", 50e6),
        ("upscale", "efficientnet_b0", 3e6),
    ],
)
def test_large_encoders_can_be_had(decoder: DecoderName, encoder: str, least: float) -> None:
    """On a device without numbers: their weights take 200 MB."""
    architecture = Architecture(encoder=encoder, decoder=decoder, levels=5, in_channels=1)
    with torch.device("meta"):
        model = Embedder(architecture).eval()
        assert model(torch.empty(1, 1, 64, 32)).embedding.shape == (1, 4, 64, 32)
    assert sum(one.numel() for one in model.encoder.parameters()) > least
    assert architecture.stride == 32


@pytest.mark.parametrize("decoder", NAMES)
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_any_number_of_levels(decoder: DecoderName, levels: int) -> None:
    model = network(decoder, "resnet10t", levels=levels)
    side = 2 * model.architecture.stride
    assert model(torch.rand(1, 3, side, 2 * side)).embedding.shape == (1, 4, side, 2 * side)


@pytest.mark.parametrize("decoder", NAMES)
def test_widths_double_up_to_a_limit(decoder: DecoderName) -> None:
    with torch.device("meta"):
        made = DECODERS[decoder]([8, 16, 24], 3, 200)
    features = [
        torch.empty(1, width, 32 // 2**i, 32 // 2**i, device="meta")
        for i, width in enumerate([8, 16, 24])
    ]
    assert made(torch.empty(1, 3, 64, 64, device="meta"), features).shape == (1, 200, 64, 64)
    widths = {m.out_channels for m in made.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {200, 256}


# ------------------------------------------------------------------ what tiles need


@pytest.mark.parametrize("decoder", NAMES)
def test_a_shift_by_the_stride_shifts_the_output(decoder: DecoderName) -> None:
    """Two levels reach less than 64 px far, so that what lies further from the rims is equal."""
    model = network(decoder, "resnet10t", levels=2)
    image = torch.rand(1, 3, 32, 320)
    with torch.inference_mode():
        whole, part = model(image).embedding, model(image[..., 96:]).embedding
    torch.testing.assert_close(whole[..., 96 + 80 : -80], part[..., 80:-80], rtol=1e-4, atol=1e-4)


def test_pooling_takes_the_largest_of_a_square() -> None:
    features = torch.randn(2, 3, 9, 13)
    assert torch.equal(_max_pooled(features), functional.max_pool2d(features, 5, 1, 2))


@pytest.mark.parametrize("decoder", NAMES)
def test_a_pass_folds_batch_norms_and_keeps_the_output(
    decoder: DecoderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "computes_bf16", lambda _: False)
    model = network(decoder)
    folded = Network(model, CPU)
    unprepared = (nn.BatchNorm2d, ConvolveBeside)
    left = (m for m in folded._model.decoder.modules() if isinstance(m, unprepared))  # type: ignore[union-attr]
    assert not list(left)
    images = torch.rand(1, 3, 64, 32)
    with torch.inference_mode():
        expected = model(images).embedding
    values = folded(images).values.float()
    torch.testing.assert_close(values, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("decoder", NAMES)
def test_weights_rounded_once_are_those_that_autocast_rounds(
    decoder: DecoderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "computes_bf16", lambda _: True)
    model, images = network(decoder), torch.rand(1, 3, 32, 32)
    once = Network(model, CPU)
    monkeypatch.setattr(passes, "_round_convolutions", lambda _: None)
    assert torch.equal(once(images).values, Network(model, CPU)(images).values)


# ------------------------------------------------------------------ model files


def unet_by_hand(model: Embedder, images: Tensor) -> Tensor:
    """The first release's decoder, one operation after the other on the weights by name."""
    state = model.state_dict()

    def convolved(values: Tensor, name: str) -> Tensor:
        values = functional.conv2d(values, state[f"{name}.0.weight"], padding=1)
        norm = [state[f"{name}.1.{part}"] for part in ("running_mean", "running_var")]
        scaling = [state[f"{name}.1.{part}"] for part in ("weight", "bias")]
        return functional.relu(functional.batch_norm(values, *norm, *scaling))

    features = model.encoder(images)
    skips = [convolved(images, "decoder.stem"), *features[:-1]]
    below = features[-1]
    for number, skip in enumerate(reversed(skips)):
        below = below.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        below = torch.cat([below, skip], dim=1)
        for part in (0, 1):
            below = convolved(below, f"decoder.stages.{number}.{part}")
    return below


def test_the_bundled_model_is_computed_as_before() -> None:
    """But for the order of sums (:mod:`cellseg_cli.networks.beside`): float32 against float64."""
    path = find_model("nuclei")
    model, header = load_model(path)
    assert header.architecture.decoder == "unet"
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        features = model.decoder(images, model.encoder(images))
        exact = unet_by_hand(model.double(), images.double())
    torch.testing.assert_close(features.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", NAMES)
def test_a_model_file_remembers_its_decoder(decoder: DecoderName, tmp_path: Path) -> None:
    model, path = network(decoder, "resnet18"), tmp_path / "m.safetensors"
    save_model(path, model, ModelHeader("m", model.architecture))
    loaded, header = load_model(path)
    assert header.architecture.decoder == decoder
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images).embedding, model(images).embedding)


def test_a_file_without_the_key_has_a_unet(tmp_path: Path) -> None:
    model, path = network("unet"), tmp_path / "old.safetensors"
    save_model(path, model, ModelHeader("old", model.architecture))
    changed_header(path, {}, without="decoder")
    loaded, header = load_model(path)
    assert header.architecture == model.architecture
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images).embedding, model(images).embedding)


def test_a_file_with_another_decoder_is_refused(tmp_path: Path) -> None:
    model, path = network("unet"), tmp_path / "m.safetensors"
    save_model(path, model, ModelHeader("m", model.architecture))
    changed_header(path, {"decoder": "os.system"})
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert str(error.value) == (
        f"{path} has a damaged header: architecture.decoder: "
        "Input should be 'unet', 'refinenet' or 'upscale'"
    )
    changed_header(path, {"decoder": "refinenet"})
    with pytest.raises(CheckpointError, match=r"do not fit its header: \d+ tensors differ, such"):
        load_model(path)
