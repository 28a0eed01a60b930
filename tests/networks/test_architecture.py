"""The network keeps its input's size and its promises on every component."""

from __future__ import annotations

import pytest
import torch

from cellseg_cli.errors import ConfigError
from cellseg_cli.networks.architecture import Architecture, Embedder


def small(**changes: object) -> Architecture:
    return Architecture(**{"encoder": "resnet10t", "decoder_channels": 4, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_output_has_the_size_of_the_input_for_any_channel_count(channels: int) -> None:
    model = Embedder(small(in_channels=channels)).eval()
    output = model(torch.rand(2, channels, 32, 64))
    assert output.embedding.shape == (2, 4, 32, 64)
    assert output.classes is not None
    assert output.classes.shape == (2, 3, 32, 64)


def test_spatial_bandwidth_is_positive_and_seed_a_share() -> None:
    embedding = Embedder(small()).eval()(10 * torch.randn(1, 3, 32, 32)).embedding
    assert (embedding[:, 2] > 0).all()
    assert ((embedding[:, 3] > 0) & (embedding[:, 3] < 1)).all()


def test_contrastive_vectors_have_length_one() -> None:
    model = Embedder(small(kind="contrastive", embedding_dim=6)).eval()
    embedding = model(torch.randn(1, 3, 32, 32)).embedding
    assert embedding.shape[1] == 6
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(1, 32, 32))


def test_without_classes_head_there_are_no_classes() -> None:
    assert Embedder(small(classes_head=False)).eval()(torch.rand(1, 3, 32, 32)).classes is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "no_such_net"}, "timm knows no encoder named 'no_such_net'"),
        (
            {"encoder": "inception_v3", "levels": 3},
            r"inception_v3 gives of 40×40 px no stages of 20, 10, 5 px, but \[\(17, 17\), ",
        ),
        (
            {"encoder": "test_maxvit", "levels": 3},
            r"test_maxvit gives of 48×48 px no .*, but height \(12\) must be divisible by window",
        ),
        ({"levels": 9}, "levels=9 is not in 1..6"),
        ({"encoder": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224"),
    ],
)
def test_impossible_architectures_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Embedder(small(**changes))
