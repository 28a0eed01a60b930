"""The encoders without timm are timm's, to the last bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.resnet import BLOCKS


@pytest.mark.parametrize("encoder", sorted(BLOCKS))
@pytest.mark.parametrize(("levels", "channels"), [(1, 3), (4, 1), (5, 3)])
def test_the_same_weights_give_the_same_output_as_timm(
    encoder: str, levels: int, channels: int
) -> None:
    torch.manual_seed(0)
    architecture = Architecture(
        encoder=encoder, levels=levels, decoder_channels=4, in_channels=channels
    )
    ours, timms = Embedder(architecture, trained=True), Embedder(architecture)
    assert type(ours.encoder) is not type(timms.encoder)
    # running statistics other than 0 and 1, so that the norms take part
    state = {
        name: tensor.abs() + 0.1 * torch.rand_like(tensor) if "running" in name else tensor
        for name, tensor in timms.state_dict().items()
    }
    assert list(ours.state_dict()) == list(state)
    for model in (ours, timms):
        model.load_state_dict(state)
        model.eval()
    images = torch.rand(2, channels, 64, 96)
    with torch.inference_mode():
        one, other = ours(images), timms(images)
    assert torch.equal(one.embedding, other.embedding)
    assert one.classes is not None
    assert torch.equal(one.classes, other.classes)


def test_the_usual_model_is_loaded_without_timm() -> None:
    code = (
        "import sys; from cellseg_cli.networks.predict import Predictor; "
        "Predictor.load('nuclei', device='cpu'); "
        "print({'timm', 'torchvision', 'torch._dynamo'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
