"""A field's embedding depends on the field alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cellseg_cli.errors import ConfigError, DeviceError, InputError, LimitError
from cellseg_cli.networks import predict
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader
from cellseg_cli.networks.predict import Predictor

ARCHITECTURE = Architecture(encoder="resnet10t", decoder_channels=4)


def predictor(device: str = "cpu", **settings: int) -> Predictor:
    torch.manual_seed(0)
    header = ModelHeader(name="tiny", architecture=ARCHITECTURE)
    return Predictor(Embedder(ARCHITECTURE), header, device=device, **settings)


def field(height: int = 96, width: int = 150) -> np.ndarray:
    return np.random.default_rng(0).random((3, height, width), dtype=np.float32)


@pytest.mark.parametrize("shape", [(8, 8), (9, 33), (8, 700), (64, 64), (97, 150)])
def test_any_size_gives_an_embedding_of_that_size(shape: tuple[int, int]) -> None:
    embedding = predictor().embed(field(*shape))
    assert embedding.values.shape == (4, *shape)
    assert embedding.classes is not None
    assert embedding.classes.shape == (3, *shape)
    # three roundings of a probability × 255
    assert np.abs(embedding.classes.astype(int).sum(0) - 255).max() <= 2


def test_embedding_does_not_depend_on_the_batch_size() -> None:
    first, second = (
        predictor(tile_px=96, halo_px=32, batch_size=size).embed(field()) for size in (1, 5)
    )
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.classes, second.classes)


def test_embedding_does_not_depend_on_how_many_threads_embed() -> None:
    one = predictor()
    fields = [np.random.default_rng(i).random((3, 64, 80), dtype=np.float32) for i in range(8)]
    alone = [one.embed(each).values for each in fields]
    with ThreadPoolExecutor(4) as pool:
        together = [result.values for result in pool.map(one.embed, fields)]
    np.testing.assert_array_equal(alone, together)


def test_tiles_agree_with_the_whole_field_away_from_their_rims() -> None:
    """The receptive field of the tiny network fits the halo, so tiling changes rounding only."""
    image = field(64, 512)
    whole = predictor(tile_px=1024, halo_px=64).embed(image).values.astype(float)
    tiled = predictor(tile_px=512 - 64, halo_px=192).embed(image).values.astype(float)
    assert np.abs(whole - tiled).max() < 0.05


def test_wrong_channel_count_is_refused() -> None:
    with pytest.raises(InputError) as error:
        predictor().embed(field()[:2])
    assert str(error.value) == "got 2 channels, the model tiny takes 3; choose with --channel"


def test_a_field_beyond_the_limit_is_refused_before_memory_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict, "MAX_EMBEDDING_BYTES", 1000)
    with pytest.raises(LimitError, match="96×150 px need"):
        predictor().embed(field())


def test_tiles_that_do_not_fit_the_stride_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be multiples of 16"):
        predictor(tile_px=100)


def test_a_device_that_is_not_there_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(DeviceError) as error:
        predictor(device="cuda")
    assert str(error.value) == (
        "--device cuda: PyTorch sees 0 CUDA devices; use --device cpu or auto"
    )
    with pytest.raises(ConfigError, match="'gpu' is none of auto, cpu, cuda, cuda:I"):
        predictor(device="gpu")


@pytest.mark.gpu
def test_cuda_agrees_with_cpu() -> None:
    """bf16 keeps 8 bits; offsets of some pixels then agree to a tenth of a pixel."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = field(256, 256)
    cpu, cuda = (predictor(device=device).embed(image).values for device in ("cpu", "cuda"))
    assert np.abs(cpu.astype(float) - cuda.astype(float)).max() < 0.1
