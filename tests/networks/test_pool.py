"""Tiles that share passes come out as if each had been alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cellseg_cli.errors import DeviceError, LimitError
from cellseg_cli.networks import pool as pool_module
from cellseg_cli.networks.architecture import Output
from cellseg_cli.networks.lanes import HostLane
from cellseg_cli.networks.passes import Meter, Network
from cellseg_cli.networks.pool import MAX_TILES, PASS_PX, Pool

BAD = 99.0


class Doubling(nn.Module):
    """Gives 2 × the first channel, and remembers the lengths of its passes.

    Finds no memory for more than ``most`` images, and refuses a pass with a BAD pixel.
    """

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.most = most
        self.lengths: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __deepcopy__(self, memo: dict[int, object]) -> Doubling:
        return self  # what the copy sees is what the test looks at

    def forward(self, images: Tensor) -> Output:
        self.gate.wait(10)
        self.lengths.append(len(images))
        self.shapes.append(tuple(images.shape[2:]))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("no memory")
        if (images == BAD).any():
            raise ValueError("a bad pixel")
        return Output(2 * images[:, :1], None)


class Pooled:
    def __init__(self, model: Doubling, batch_size: int) -> None:
        # small integers are exact in bfloat16 too
        network = Network(model, torch.device("cpu"))  # type: ignore[arg-type]
        self.model, self.meter = model, Meter()
        self.pool = Pool(HostLane(network), self.meter, batch_size, (1, 64, 64))

    def run(self, crop: np.ndarray) -> np.ndarray:
        values: np.ndarray = self.pool.submit(crop).result().values.numpy()
        return values


@pytest.fixture
def pooled() -> Iterator[type[Pooled]]:
    """Makes pools that are closed in the end, and threads of them that are gone by then."""
    made: list[Pooled] = []

    class Tracked(Pooled):
        def __init__(self, model: Doubling, batch_size: int) -> None:
            super().__init__(model, batch_size)
            made.append(self)

    before = threading.active_count()
    yield Tracked
    for each in made:
        each.model.gate.set()
        each.pool.close()
    assert threading.active_count() == before


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches wait until they are full, however slowly tiles come."""
    monkeypatch.setattr(pool_module, "LINGER_S", 60)


def crops(count: int, shape: tuple[int, int] = (4, 5)) -> list[np.ndarray]:
    return [np.full((1, *shape), i, np.float32) for i in range(count)]


@pytest.mark.usefixtures("patient")
def test_each_tile_gets_its_own_result_from_full_passes(pooled: type[Pooled]) -> None:
    one = pooled(Doubling(), 4)
    tickets = [one.pool.submit(crop) for crop in crops(8)]
    for i, ticket in enumerate(tickets):
        np.testing.assert_array_equal(ticket.result().values, np.full((1, 4, 5), 2 * i))
    assert one.model.lengths == [4, 4]
    use = one.meter.use
    assert (use.passes, use.tiles, use.pixels, use.batch_size) == (2, 8, 8 * 20, 4)
    assert use.busy_s > 0


def test_many_threads_and_shapes(pooled: type[Pooled]) -> None:
    one = pooled(Doubling(), 4)
    given = [crop for size in (4, 5, 6) for crop in crops(30, (size, 7))]
    with ThreadPoolExecutor(8) as threads:
        for crop, result in zip(given, threads.map(one.run, given), strict=True):
            np.testing.assert_array_equal(result, 2 * crop)
    assert one.meter.use.tiles == 90
    # missing images are zeros: results do not depend on how many there were
    assert set(one.model.lengths) == {4}


def test_a_lone_tile_does_not_wait_for_others(pooled: type[Pooled]) -> None:
    one = pooled(Doubling(), 64)
    np.testing.assert_array_equal(one.run(crops(1)[0] + 3), np.full((1, 4, 5), 6))
    assert one.meter.use.tiles == 1


def test_a_rare_shape_does_not_starve(
    pooled: type[Pooled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads keep the device busy with full passes until the rare tile is back."""
    monkeypatch.setattr(pool_module, "STARVE_S", 0.02)
    one = pooled(Doubling(), 2)
    back = threading.Event()

    def keep_busy() -> None:
        end = time.monotonic() + 20
        while not back.is_set() and time.monotonic() < end:
            for ticket in [one.pool.submit(crop) for crop in crops(4)]:
                ticket.result()

    with ThreadPoolExecutor(2) as threads:
        busy = [threads.submit(keep_busy) for _ in range(2)]
        one.run(crops(1, (9, 9))[0])
        rest_was_running = not any(each.done() for each in busy)
        back.set()
    assert rest_was_running


@pytest.mark.usefixtures("patient")
def test_an_error_stays_with_the_tile_that_caused_it(pooled: type[Pooled]) -> None:
    one = pooled(Doubling(), 4)
    given = crops(4)
    given[2][0, 0, 0] = BAD
    tickets = [one.pool.submit(crop) for crop in given]
    with pytest.raises(ValueError, match="a bad pixel"):
        tickets[2].result()
    for i in (0, 1, 3):
        np.testing.assert_array_equal(tickets[i].result().values, 2 * given[i])


@pytest.mark.usefixtures("patient")
def test_a_pass_that_finds_no_memory_is_halved(pooled: type[Pooled]) -> None:
    one = pooled(Doubling(most=2), 8)
    tickets = [one.pool.submit(crop) for crop in crops(8)]
    for i, ticket in enumerate(tickets):
        np.testing.assert_array_equal(ticket.result().values, np.full((1, 4, 5), 2 * i))
    assert one.model.lengths == [8, 4, 2, 2, 2, 2]
    assert one.pool.length((1, 4, 5)) == 2
    assert (one.meter.use.batch_size, one.meter.use.halvings) == (2, 2)


def test_a_tile_that_does_not_fit_alone_is_an_error_of_its_field(pooled: type[Pooled]) -> None:
    one = pooled(Doubling(most=0), 2)
    with pytest.raises(LimitError) as error:
        one.run(crops(1)[0])
    assert str(error.value) == (
        "the device has not enough memory for one tile of 4×5 px; "
        "choose a smaller tile_px, or --device cpu"
    )
    one.model.most = 1
    np.testing.assert_array_equal(one.run(crops(1)[0]), np.zeros((1, 4, 5)))


def test_a_device_that_breaks_for_good_fails_its_tiles_and_hangs_nobody(
    pooled: type[Pooled], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: HostLane) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(HostLane, "release", broken)
    one = pooled(Doubling(most=0), 2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the device is gone"):
            one.run(crops(1)[0])


def test_closing_ends_what_waits(pooled: type[Pooled]) -> None:
    one = pooled(Doubling(), 2)
    one.model.gate.clear()
    running = [one.pool.submit(crop) for crop in crops(2)]
    waiting = one.pool.submit(crops(1, (9, 9))[0])
    closing = threading.Thread(target=one.pool.close)
    closing.start()
    with pytest.raises(DeviceError) as error:
        waiting.result()
    assert str(error.value) == "the device was closed while fields were on their way to it"
    one.model.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    del running  # on the device or not when the pool was closed: either may be
    with pytest.raises(DeviceError):
        one.pool.submit(crops(1)[0])


def test_the_length_of_a_pass_follows_from_the_shape(pooled: type[Pooled]) -> None:
    one = pooled(Doubling(), 0)
    assert one.pool.length((3, 520, 704)) == 16
    assert one.pool.length((3, 1024, 1024)) == 8
    assert one.pool.length((3, 32, 32)) == MAX_TILES
    assert one.pool.length((3, 8192, 8192)) == 1
    assert PASS_PX // (520 * 704) == 22  # 16 is the power of two below


def test_memory_bounds_the_length_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostLane, "room_px", lambda *_: 3.5 * 64 * 64)
    one = Pooled(Doubling(), 0)
    try:
        assert one.pool.length((1, 64, 64)) == 2
        assert one.pool.length((1, 128, 128)) == 1
    finally:
        one.pool.close()
