"""A field's embedding depends on the field alone."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cellseg_cli.errors import ConfigError, DeviceError, InputError, LimitError
from cellseg_cli.networks import predict
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, save_model
from cellseg_cli.networks.passes import Rounded
from cellseg_cli.networks.predict import Predictor

ARCHITECTURE = Architecture(encoder="resnet10t", decoder_channels=4)


def predictor(device: str = "cpu", **settings: int | bool) -> Predictor:
    torch.manual_seed(0)
    header = ModelHeader(name="tiny", architecture=ARCHITECTURE)
    return Predictor(Embedder(ARCHITECTURE), header, device=device, **settings)  # type: ignore[arg-type]


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


def test_tiles_side_by_side_give_what_they_give_one_by_one() -> None:
    tiling = {"tile_px": 96, "halo_px": 32}
    fields = [field(), field(200, 210), field(60, 70), field(96, 300)]
    expected = [predictor(**tiling).embed(each) for each in fields]
    for cores in (2, 5):
        one = predictor(**tiling, cores=cores)
        with ThreadPoolExecutor(3) as pool:
            made = list(pool.map(one.embed, fields))
        for each, other in zip(made, expected, strict=True):
            np.testing.assert_array_equal(each.values, other.values)
            np.testing.assert_array_equal(each.classes, other.classes)


def test_there_are_never_more_passes_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    one = predictor(tile_px=96, halo_px=32, cores=2)
    real, lock = one._network, threading.Lock()
    at_once = [0, 0]  # now, at most

    def watched(images: torch.Tensor) -> Rounded:
        with lock:
            at_once[0] += 1
            at_once[1] = max(at_once)
        time.sleep(0.002)
        try:
            return real(images)
        finally:
            with lock:
                at_once[0] -= 1

    monkeypatch.setattr(one, "_network", watched)
    one.embed(field(200, 210))
    assert at_once == [0, 2]  # the tiles of one field
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one.embed, [field(64, 64), field(200, 210)] * 3))
    assert at_once == [0, 2]


def test_an_error_of_one_tile_ends_its_field_and_leaves_the_cores() -> None:
    one = predictor(tile_px=96, halo_px=32, cores=2)

    def unreadable(rows: slice, columns: slice) -> np.ndarray:
        if rows.start > 0:
            raise OSError("gone")
        return field(200, 210)[:, rows, columns]

    for _ in range(3):  # more often than there are cores
        with pytest.raises(OSError, match="gone"):
            one.embed_region(unreadable, (200, 210), (slice(0, 200), slice(0, 210)))
    assert np.isfinite(one.embed(field(200, 210)).values).all()


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


def test_slabs_of_a_large_field_are_those_of_the_whole() -> None:
    one = predictor(tile_px=512, halo_px=32)
    image = field(70, 4200)
    whole = one.embed(image)
    assert whole.classes is not None
    seen = []

    def read(rows: slice, columns: slice) -> np.ndarray:
        seen.append((rows, columns))
        return image[:, rows, columns]

    for columns in (slice(0, 4096), slice(4096, 4200)):
        part = one.embed_region(read, (70, 4200), (slice(0, 70), columns))
        np.testing.assert_array_equal(part.values, whole.values[:, :, columns])
        np.testing.assert_array_equal(part.classes, whole.classes[:, :, columns])
    # cores have at most 512 − 2 × 32 = 448 px, of which 4096 need 10, and 104 are one
    assert len(seen) == 11
    assert max(columns.stop - columns.start for _, columns in seen) <= 512
    # as wide as the others, 416 + 2 × 32, to a multiple of 32
    assert seen[-1] == (slice(0, 70), slice(3744, 4200))


def test_a_region_that_cuts_a_core_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        predictor().embed_region(lambda y, x: field()[:, y, x], (96, 150), (slice(0, 90),) * 2)


def test_use_adds_up_what_went_through() -> None:
    one = predictor(tile_px=96, halo_px=32)
    assert (one.use().passes, one.use().busy_s) == (0, 0)
    one.embed(field(96, 96))
    first = one.use()
    assert (first.passes, first.tiles, first.pixels, first.batch_size) == (1, 1, 96 * 96, 1)
    one.embed(field(40, 150))  # columns 0…96, 32…128, 64…150; rows and columns to whole strides
    second = one.use()
    assert (second.passes, second.pixels) == (4, 96 * 96 + 48 * (96 + 96 + 96))
    assert second.busy_s > first.busy_s > 0


def test_on_the_device_there_are_the_same_numbers() -> None:
    for pooled in (False, True):
        one = predictor(pooled=pooled, tile_px=96, halo_px=32, batch_size=2)
        expected = one.embed(field())
        kept = one.embed_on_device(field())
        assert kept.classes is not None
        assert (kept.values.dtype, kept.classes.dtype) == (torch.float16, torch.uint8)
        there = kept.on_host()
        np.testing.assert_array_equal(there.values, expected.values)
        np.testing.assert_array_equal(there.classes, expected.classes)
        one.close()


def test_pooled_tiles_give_what_tiles_alone_give() -> None:
    """Lengths of passes may round otherwise: float16 has 11 bits."""
    fields = [
        np.random.default_rng(i).random((3, *shape), dtype=np.float32)
        for i, shape in enumerate([(64, 80), (200, 64), (64, 80), (33, 40), (64, 80), (64, 80)])
    ]
    alone = predictor(tile_px=96, halo_px=32)
    pooled = predictor(tile_px=96, halo_px=32, batch_size=3, pooled=True)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(pooled.embed, fields))
        again = list(threads.map(pooled.embed, reversed(fields)))[::-1]
    for image, one, other in zip(fields, together, again, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.classes, other.classes)
        expected = alone.embed(image)
        np.testing.assert_allclose(one.values, expected.values, rtol=2e-3, atol=2e-3)
        assert one.classes is not None
        assert expected.classes is not None
        assert np.abs(one.classes.astype(int) - expected.classes.astype(int)).max() <= 1
    pooled.close()


def test_how_many_fields_fill_the_device() -> None:
    assert predictor().fields_at_once((520, 704)) == 1
    one = predictor(pooled=True)
    assert one.fields_at_once((520, 704)) == 2 * 16  # two passes of 16 × 528 × 704 px < 2**23
    assert one.fields_at_once((2000, 2000)) == 2 * 8 / 4  # four windows of 1024², eight a pass
    assert one.fields_at_once((9000, 9000)) == 1
    one.close()


def test_an_error_in_a_pooled_field_is_its_own() -> None:
    one = predictor(batch_size=4, pooled=True)
    bad = field(64, 64)
    bad[:] = np.nan
    good = [field(64, 64) for _ in range(3)]
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(one.embed, image) for image in (good[0], bad, *good[1:])]
    with pytest.raises(InputError) as error:
        futures[1].result()
    assert str(error.value) == ("the model tiny gives values that are not finite for this image")
    for index in (0, 2, 3):
        assert futures[index].result().values.shape == (4, 64, 64)
    one.close()


def test_a_process_has_one_predictor_for_equal_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "_resident", {})
    path = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save_model(path, Embedder(ARCHITECTURE), ModelHeader(name="tiny", architecture=ARCHITECTURE))
    loads = []
    load = Predictor.load

    def counted(*arguments: object) -> Predictor:
        loads.append(arguments)
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "load", counted)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: Predictor.resident(path, "cpu", 512, 64), range(8)))
    assert len(loads) == 1
    assert all(each is found[0] for each in found)
    assert Predictor.resident(path, "cpu", 256, 64) is not found[0]
    os.utime(path, ns=(0, 0))  # another file of that name
    assert Predictor.resident(path, "cpu", 512, 64) is not found[0]


def test_a_batch_size_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        predictor(batch_size=-1)
    assert str(error.value) == ("batch_size=-1 must be at least 0 (0: what the device holds)")


def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda:0")


@pytest.mark.gpu
def test_cuda_agrees_with_cpu() -> None:
    """bf16 keeps 8 bits; offsets of some pixels then agree to a tenth of a pixel."""
    image = field(256, 256)
    on_cuda = predictor(device=str(cuda())).embed(image).values.astype(float)
    on_cpu = predictor().embed(image).values.astype(float)
    assert np.abs(on_cpu - on_cuda).max() < 0.1


@pytest.mark.gpu
def test_on_cuda_a_field_does_not_depend_on_its_company() -> None:
    one = predictor(device=str(cuda()), tile_px=96, halo_px=32)
    fields = [np.random.default_rng(i).random((3, 64, 80), dtype=np.float32) for i in range(40)]
    alone = [one.embed(image) for image in fields]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(one.embed, fields))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first.values, second.values)
        np.testing.assert_array_equal(first.classes, second.classes)


@pytest.mark.gpu
def test_what_stays_on_cuda_is_what_is_copied_back() -> None:
    one = predictor(device=str(cuda()), tile_px=96, halo_px=32)
    expected = one.embed(field())
    kept = one.embed_on_device(field())
    assert kept.values.device == cuda()
    np.testing.assert_array_equal(kept.on_host().values, expected.values)
    np.testing.assert_array_equal(kept.on_host().classes, expected.classes)


@pytest.mark.gpu
def test_cuda_is_busy_while_threads_bring_fields() -> None:
    one = predictor(device=str(cuda()), tile_px=512, halo_px=64)
    image = field(512, 512)
    one.embed(image)
    with ThreadPoolExecutor(64) as threads:
        before, started = one.use(), time.perf_counter()
        list(threads.map(lambda _: one.embed(image), range(1000)))
        elapsed_s = time.perf_counter() - started
    use = one.use()
    assert use.tiles - before.tiles == 1000
    assert use.busy_s - before.busy_s <= elapsed_s
    assert use.busy_s - before.busy_s >= 0.7 * elapsed_s


@pytest.mark.gpu
def test_cuda_without_memory_takes_shorter_passes() -> None:
    device = cuda()
    image = field(512, 512)
    expected = predictor(device=str(device)).embed(image)
    one = predictor(device=str(device), batch_size=256)  # 67 Mpx; some 200 bytes each
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (4 << 30) / total), device)
    try:
        result = one.embed(image)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert one.use().halvings > 0
    assert np.abs(result.values.astype(float) - expected.values.astype(float)).max() < 0.1
