"""Tiles of many fields, put together to full passes of an accelerator.

Threads submit tiles and wait for them.  Each thread copies its tile into a slot of a batch of
tiles of equal shape; a batch that is full is queued on the device, so that one pass computes
while the next is copied up and the one before down.  A batch that is not full goes when the
device has nothing else to do, after ``LINGER_S``, or when it has waited for ``STARVE_S`` while
others kept the device busy.

What a result depends on: every pass of one window shape has the same number of images, the
missing ones being zeros, since the algorithms that cuDNN chooses, and with them the last bits,
depend on that number.  So a tile's result depends neither on which tiles shared its pass nor on
how many there were.  It does depend on the length of a pass: on the setting ``batch_size``, or by
default on the window's shape alone, unless the device has too little memory for it or runs out
of it in the middle, which halves the length from then on and is counted in
``DeviceUse.halvings``.

A pass that fails is tried again tile by tile, so that an error stays with its tile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.errors import DeviceError, LimitError
from cellseg_cli.networks.lanes import Lane, Started, Wanted
from cellseg_cli.networks.passes import Meter, Rounded

#: By default a pass has about this many pixels: 16 tiles of 520×704, 8 of 1024×1024.  Enough
#: that queueing some 200 kernels (1 to 2 ms) takes less time than they run; more would only
#: take longer to fill, and memory.
PASS_PX = 8 << 20

#: Most tiles of a pass by default, so that small tiles do not wait for a crowd.
MAX_TILES = 64

#: Passes on the device at the same time: one computes, one is copied.
DEPTH = 2

#: Full batches that wait for the device, beyond which submitting waits.
WAITING = 2

#: How long an idle device waits for more tiles.
LINGER_S = 0.002

#: How long a batch that does not fill waits while other shapes keep the device busy.
STARVE_S = 0.1

Shape: TypeAlias = tuple[int, int, int]

#: The pass of a tile and its row in it; or its error, and 0.
Part: TypeAlias = tuple[Started | Exception, int]


class _Batch:
    """Tiles of one shape (C, H, W) that share a pass."""

    def __init__(self, images: Tensor) -> None:
        self.images = images  # (B, C, H, W), a slot for each tile
        self.opened = time.monotonic()
        self.taken = 0  # slots given to threads
        self.filled = 0  # slots that these threads have filled
        self.wanted = Wanted()  # of all tiles together
        self.over = threading.Event()
        self.parts: list[Part] = []  # of each tile

    @property
    def full(self) -> bool:
        return self.taken == len(self.images)

    @property
    def settled(self) -> bool:
        return 0 < self.taken == self.filled

    def finish(self, parts: list[Part]) -> None:
        """Say what came of each tile, and wake those who wait."""
        self.parts = parts
        self.images = torch.empty(0)  # the memory is free for the next batch
        self.over.set()


@dataclass(frozen=True)
class Ticket:
    """The promise of one tile's result."""

    _batch: _Batch
    _slot: int
    _keep: bool
    _lane: Lane

    def result(self) -> Rounded:
        """Wait for values (E, H, W) and classes (3, H, W): in host memory, or kept on the device.

        Raises
        ------
        LimitError
            The device has not enough memory for this tile alone.
        DeviceError
            The pool was closed.
        Exception
            What the network raised for this tile.
        """
        self._batch.over.wait()
        result, row = self._batch.parts[self._slot]
        if isinstance(result, Exception):
            raise result
        rounded = result.kept if self._keep else result.host
        assert rounded is not None
        if self._keep:
            self._lane.hand_over(rounded)
        classes = None if rounded.classes is None else rounded.classes[row]
        return Rounded(rounded.values[row], classes)


class Pool:
    """Shares the passes of one device among threads.

    Parameters
    ----------
    lane
        The way to the device.
    meter
        Told of every pass.
    batch_size
        Tiles per pass; 0: ``PASS_PX`` pixels, or what the memory holds.
    largest
        Channels, height and width of the largest tile, with which memory is measured.
    pass_px
        Pixels of a pass whose length was not set.
    """

    def __init__(
        self,
        lane: Lane,
        meter: Meter,
        batch_size: int,
        largest: Shape,
        pass_px: int = PASS_PX,
    ) -> None:
        self._lane, self._meter, self._batch_size = lane, meter, batch_size
        self._pass_px = pass_px
        self._room_px = float("inf") if batch_size else lane.room_px(largest)
        self._lengths: dict[Shape, int] = {}
        self._changed = threading.Condition()
        self._open: dict[Shape, _Batch] = {}
        self._full: deque[_Batch] = deque()
        self._started: deque[tuple[_Batch, list[Part]] | None] = deque()
        self._running = 0
        self._busy_since = 0.0
        self._closed = False
        self._threads = [
            threading.Thread(target=work, name=f"pool-{work.__name__}", daemon=True)
            for work in (self._launch, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def length(self, shape: Shape) -> int:
        """Tiles in a pass of tiles (C, H, W): a power of two unless it was set."""
        with self._changed:
            return self._length(shape)

    def _length(self, shape: Shape) -> int:
        if shape not in self._lengths:
            room = min(self._pass_px, self._room_px) // (shape[1] * shape[2])
            most = max(1, min(MAX_TILES, int(room)))
            self._lengths[shape] = self._batch_size or 1 << (most.bit_length() - 1)
        return self._lengths[shape]

    def submit(self, crop: NDArray[np.float32], *, keep: bool = False) -> Ticket:
        """Hand over a tile, (C, H, W); waits while enough batches wait for the device.

        Parameters
        ----------
        keep
            The result stays on the device.

        Raises
        ------
        DeviceError
            The pool is closed.
        """
        batch, slot, image = self._slot(crop.shape, keep)
        try:
            image.copy_(torch.from_numpy(crop))
        finally:  # an interrupted thread must not hold up the others
            with self._changed:
                batch.filled += 1
                self._changed.notify_all()
        return Ticket(batch, slot, keep, self._lane)

    def _slot(self, shape: Shape, keep: bool) -> tuple[_Batch, int, Tensor]:
        with self._changed:
            while not self._closed and shape not in self._open and len(self._full) >= WAITING:
                self._changed.wait()
            if self._closed:
                raise DeviceError("the device was closed while fields were on their way to it")
            if shape not in self._open:
                self._open[shape] = _Batch(self._lane.staging((self._length(shape), *shape)))
            batch = self._open[shape]
            slot = batch.taken
            batch.taken += 1
            batch.wanted = Wanted(batch.wanted.host or not keep, batch.wanted.kept or keep)
            if batch.full:
                self._full.append(self._open.pop(shape))
            return batch, slot, batch.images[slot]

    def close(self) -> None:
        """End the threads of the pool; tiles that are not on the device yet fail."""
        with self._changed:
            self._closed = True
            waiting = [*self._full, *self._open.values()]
            self._full.clear()
            self._open.clear()
            self._changed.notify_all()
        for batch in waiting:
            error = DeviceError("the device was closed while fields were on their way to it")
            batch.finish([(error, 0)] * batch.taken)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _launch(self) -> None:
        """Queue batches on the device, until the pool is closed."""
        while (batch := self._next()) is not None:
            try:
                parts = self._begun(batch)
            except Exception as error:  # noqa: BLE001 - raised in the threads that wait for it
                parts = [(error, 0)] * batch.taken
            with self._changed:
                self._started.append((batch, parts))
                self._changed.notify_all()
        with self._changed:
            self._started.append(None)
            self._changed.notify_all()

    def _next(self) -> _Batch | None:
        with self._changed:
            while not self._closed:
                if self._running < DEPTH and (batch := self._chosen()) is not None:
                    if self._running == 0:
                        self._busy_since = time.perf_counter()
                    self._running += 1
                    self._changed.notify_all()
                    return batch
                self._changed.wait(self._patience())
        return None

    def _chosen(self) -> _Batch | None:
        """The batch that goes next: a starving one, a full one, or any for an idle device."""
        now = time.monotonic()
        for shape, batch in self._open.items():  # in the order in which they were opened
            if batch.settled and now - batch.opened >= self._linger():
                return self._open.pop(shape)
        for batch in self._full:
            if batch.settled:
                self._full.remove(batch)
                return batch
        return None

    def _patience(self) -> float | None:
        """Seconds until an open batch may go though nothing else happens."""
        settled = [batch.opened for batch in self._open.values() if batch.settled]
        if self._running >= DEPTH or not settled:
            return None
        return max(min(settled) + self._linger() - time.monotonic(), 0.0)

    def _linger(self) -> float:
        """Seconds that a batch stays open for more tiles."""
        return LINGER_S if self._running == 0 and not self._full else STARVE_S

    def _begun(self, batch: _Batch) -> list[Part]:
        """Queue the passes of a batch; for each tile its pass and its row in it, or its error."""
        tiles: list[Part] = []
        count, shape = batch.taken, tuple(batch.images.shape[1:])
        assert len(shape) == 3
        while len(tiles) < count:
            length = self._lengths[shape]
            images = batch.images[len(tiles) : min(len(tiles) + length, count)]
            try:
                started = self._lane.start(images, length, batch.wanted)
            except torch.OutOfMemoryError as error:
                if not self._may_retry(shape, tiles):
                    refused = _too_large(shape)
                    refused.__cause__ = error
                    tiles += [(refused, 0)] * len(images)
                continue
            except Exception as error:  # noqa: BLE001 - raised in the thread that waits for it
                tiles += self._one_by_one(images, length, batch.wanted, error)
                continue
            self._meter.add(0.0, [len(images)], images[0, 0].numel())
            tiles += [(started, row) for row in range(len(images))]
        return tiles

    def _one_by_one(
        self, images: Tensor, length: int, wanted: Wanted, error: Exception
    ) -> list[Part]:
        """Each image alone in its pass, so that only those fail that cause an error."""
        if len(images) == 1:
            return [(error, 0)]
        tiles: list[Part] = []
        for image in images:
            try:
                tiles.append((self._lane.start(image[None], length, wanted), 0))
                self._meter.add(0.0, [1], image[0].numel())
            except Exception as own:  # noqa: BLE001 - raised in the thread that waits for it
                tiles.append((own, 0))
        return tiles

    def _may_retry(self, shape: Shape, begun: list[Part]) -> bool:
        """Make room after a pass found no memory; False where it was one tile, and alone.

        The length is halved only if no other pass was under way, so that it does not depend on
        what happened to run.
        """
        with self._changed:
            alone = self._running == 1
            self._changed.wait_for(lambda: self._running == 1)
        for started, _ in begun:
            _waited(started)
        self._lane.release()
        if not alone:
            return True
        with self._changed:
            if self._lengths[shape] == 1:
                return False
            self._lengths[shape] //= 2
        self._meter.halved()
        return True

    def _watch(self) -> None:
        """Wait for passes in their order, and hand out what they gave."""
        while (running := self._next_started()) is not None:
            batch, tiles = running
            results = [(_waited(result), row) for result, row in tiles]
            now = time.perf_counter()
            with self._changed:
                busy_s, self._busy_since = now - self._busy_since, now
                self._running -= 1
                self._changed.notify_all()
            self._meter.add(busy_s)
            batch.finish(results)

    def _next_started(self) -> tuple[_Batch, list[Part]] | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._started))
            return self._started.popleft()


def _waited(result: Started | Exception) -> Started | Exception:
    if isinstance(result, Started):
        try:
            result.wait()
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits for it
            return error
    return result


def _too_large(shape: Shape) -> LimitError:
    return LimitError(
        f"the device has not enough memory for one tile of {shape[1]}×{shape[2]} px; "
        "choose a smaller tile_px, or --device cpu"
    )
