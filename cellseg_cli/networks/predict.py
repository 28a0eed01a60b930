"""A trained network over one field of any size, tile by tile.

A field goes through in tiles that overlap by twice the halo; of each tile only
the core is kept, so every pixel comes from exactly one tile.  The halo is
context: input only, thrown away.

Determinism: on the CPU one tile is one pass on one thread, so the embedding of
a field depends neither on the batch size nor on the number of workers nor on
what else runs; tiles of one field may be passed side by side
(:mod:`cellseg_cli.networks.crew`).  On an accelerator tiles of all fields share passes; see
:mod:`cellseg_cli.networks.pool` for what their results depend on.
``tests/networks/test_predict.py`` holds them to 0.1 of the CPU's.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.errors import ConfigError, InputError, LimitError
from cellseg_cli.networks.allocator import Litter
from cellseg_cli.networks.architecture import Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, find_model, fingerprint, load_model
from cellseg_cli.networks.crew import Crew
from cellseg_cli.networks.devices import resolve_device
from cellseg_cli.networks.lanes import CudaLane, HostLane
from cellseg_cli.networks.passes import DeviceUse, Meter, Network, Rounded
from cellseg_cli.networks.pool import DEPTH, PASS_PX, Pool, Ticket
from cellseg_cli.networks.scaled import period_px
from cellseg_cli.networks.views import View
from cellseg_cli.tiling import Tile, tiles

#: Embeddings are assembled in memory; a field whose embedding would need more
#: than this is refused before any memory is taken.
MAX_EMBEDDING_BYTES = 16 << 30

#: Rows and columns of a field.
Region: TypeAlias = tuple[slice, slice]

#: (rows, columns) -> normalised pixels (C, y, x) float32 of that part of a field.
Read: TypeAlias = Callable[[slice, slice], NDArray[np.float32]]


@dataclass(frozen=True)
class Embedding:
    """What is known of every pixel of one field.

    Attributes
    ----------
    values
        (E, Y, X) float16; the meaning of E stands in the model's header.
    classes
        (3, Y, X) uint8 probabilities × 255 of background, interior, border;
        None for a model without that head.
    """

    values: NDArray[np.float16]
    classes: NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False)
class DeviceEmbedding:
    """An :class:`Embedding` that lies on the device which made it.

    Attributes
    ----------
    values
        (E, Y, X) float16.
    classes
        (3, Y, X) uint8, or None for a model without that head.
    """

    values: Tensor
    classes: Tensor | None

    def on_host(self) -> Embedding:
        """A copy in host memory."""
        classes = None if self.classes is None else self.classes.cpu().numpy()
        return Embedding(self.values.cpu().numpy(), classes)


def check_tiling(
    stride: int, tile_px: int, halo_px: int, batch_size: int, scale: float = 1.0
) -> None:
    """Raise ConfigError unless tiles and halos fit a network's stride and leave a core.

    Both are multiples of the stride, or of what corresponds to it at another working scale
    (:func:`cellseg_cli.networks.scaled.period_px`).
    """
    period = period_px(stride, scale)
    if tile_px % period or halo_px % period or tile_px <= 2 * halo_px or halo_px < 0:
        why = "" if scale == 1 else f" (at scale={scale:g} of a network of stride {stride})"
        raise ConfigError(
            f"tile_px={tile_px} and halo_px={halo_px} must be multiples of {period}{why} "
            "with tile_px > 2 × halo_px ≥ 0"
        )
    if batch_size < 0:
        raise ConfigError(f"batch_size={batch_size} must be at least 0 (0: what the device holds)")


class Predictor:
    """A network on its device.

    Parameters
    ----------
    model
        In evaluation mode.
    header
        Of that model.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:I``.
    tile_px, halo_px
        Side of a tile and width of its discarded rim, pixels of the field; see
        :func:`check_tiling`.
    batch_size
        Tiles per pass on an accelerator; 0: as many as pay and as its memory holds.
    model_fingerprint
        SHA-256 of the model file.
    pooled
        Whether tiles of several threads share passes; None: on accelerators only.
    cores
        Passes at a time on the CPU, all of them for the tiles of a field that is alone; None:
        every thread passes the tiles that it brings, one by one.
    view
        At which scale, and how often, the network looks at each tile.
    """

    def __init__(
        self,
        model: Embedder,
        header: ModelHeader,
        *,
        device: str = "auto",
        tile_px: int = 1024,
        halo_px: int = 64,
        batch_size: int = 0,
        model_fingerprint: str = "",
        pooled: bool | None = None,
        cores: int | None = None,
        view: View = View(),
    ) -> None:
        view = view.of(header.scale)
        stride = header.architecture.stride
        check_tiling(stride, tile_px, halo_px, batch_size, view.factor)
        target = resolve_device(device)
        self._network = Network(model, target, view)
        self._tile_px, self._halo_px = tile_px, halo_px
        self._period_px, self._work = period_px(stride, view.factor), view.work
        self._meter, self._litter = Meter(), Litter()
        self._crew = Crew(cores) if cores else None
        self._pool: Pool | None = None
        if target.type != "cpu" if pooled is None else pooled:
            lane = HostLane(self._network) if target.type == "cpu" else CudaLane(self._network)
            largest = (header.in_channels, tile_px, tile_px)
            pass_px = int(PASS_PX / max(1.0, view.factor**2))
            self._pool = Pool(lane, self._meter, batch_size, largest, pass_px)
            weakref.finalize(self, self._pool.close)  # at the latest when Python ends
        self.header = header
        self.device = str(target)
        self.fingerprint = model_fingerprint

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str = "auto",
        tile_px: int = 1024,
        halo_px: int = 64,
        batch_size: int = 0,
        cores: int | None = None,
        view: View = View(),
    ) -> Predictor:
        """Return the predictor of a bundled model's name or a model file."""
        path = find_model(model)
        network, header = load_model(path)
        return cls(
            network,
            header,
            device=device,
            tile_px=tile_px,
            halo_px=halo_px,
            batch_size=batch_size,
            model_fingerprint=fingerprint(path),
            cores=cores,
            view=view,
        )

    @classmethod
    def resident(
        cls,
        model: str | Path,
        device: str = "auto",
        tile_px: int = 1024,
        halo_px: int = 64,
        batch_size: int = 0,
        cores: int | None = None,
        view: View = View(),
    ) -> Predictor:
        """Return the one predictor of this process for these arguments; safe for threads.

        A model file that has changed since is loaded anew.
        """
        path = find_model(model)
        version = path.stat()
        key = (
            os.fspath(path.resolve()),
            *(version.st_size, version.st_mtime_ns),
            *(device, tile_px, halo_px, batch_size, cores, view),
        )
        with _resident_lock:  # the first caller loads, others wait for it
            if key not in _resident:
                _resident[key] = cls.load(path, device, tile_px, halo_px, batch_size, cores, view)
            return _resident[key]

    def close(self) -> None:
        """End the threads that serve an accelerator; fields that are on their way fail."""
        if self._pool is not None:
            self._pool.close()

    def use(self) -> DeviceUse:
        """What the device has done for this predictor so far."""
        return self._meter.use

    def fields_at_once(self, shape: tuple[int, int]) -> int:
        """How many fields (Y, X) threads must embed at the same time to fill the device.

        On the CPU 1: each thread computes its own.  On an accelerator missing tiles of a pass
        are computed as zeros, so fewer fields at once are a share of its rate.
        """
        if self._pool is None:
            return 1
        found = tiles(shape, tile_px=self._tile_px, halo_px=self._halo_px)
        counts = Counter(tile.shape for tile in found)
        height, width = max(counts, key=lambda one: counts[one] * one[0] * one[1])  # most of it
        padded = (height + -height % self._period_px, width + -width % self._period_px)
        length = self._pool.length((self.header.in_channels, *padded))
        return math.ceil(DEPTH * length / counts[height, width])

    def embed(self, image: NDArray[np.float32]) -> Embedding:
        """Return the embedding of one normalised field.

        Parameters
        ----------
        image
            (C, Y, X) float32 with C = ``header.in_channels``.

        Raises
        ------
        InputError
            The number of channels differs, or the network's output is not finite.
        LimitError
            The embedding would exceed ``MAX_EMBEDDING_BYTES``.
        """
        _, height, width = image.shape
        whole = (slice(0, height), slice(0, width))
        return self.embed_region(
            lambda rows, columns: image[:, rows, columns], (height, width), whole
        )

    def embed_region(self, read: Read, shape: tuple[int, int], region: Region) -> Embedding:
        """Return the embedding of one part of a field that is too large to hold.

        On the CPU equal, bit for bit, to the same part of :meth:`embed` of the whole field.
        Memory: the result, and the windows that are under way.

        Parameters
        ----------
        read
            Called with rows and columns of the field on the calling thread, once for each tile,
            row by row; the parts overlap by twice the halo or more and reach beyond the region.
        shape
            Height and width of the whole field, pixels.
        region
            Rows and columns whose borders are borders of tile cores: those of the field, and
            along a side longer than 4096 px multiples of 4096.

        Raises
        ------
        InputError
            The number of channels differs, or the network's output is not finite.
        LimitError
            The embedding would exceed ``MAX_EMBEDDING_BYTES``.
        """
        rows, columns = region
        height, width = rows.stop - rows.start, columns.stop - columns.start
        self._check_size(height, width)
        values = np.empty((len(self.header.channels), height, width), np.float16)
        has_classes = self.header.architecture.classes_head
        classes = np.empty((3, height, width), np.uint8) if has_classes else None
        finite = True
        for tile, rounded in self._embedded(read, self._plan(shape, region), keep=False):
            place, core = _place(tile, region), (slice(None), *tile.core_in_window)
            values[place] = rounded.values.numpy()[core]
            finite = finite and _is_finite(rounded.values)
            if classes is not None and rounded.classes is not None:
                classes[place] = rounded.classes.numpy()[core]
        self._check_finite(finite)
        return Embedding(values, classes)

    def embed_on_device(self, image: NDArray[np.float32]) -> DeviceEmbedding:
        """Return the embedding of one normalised field, without copying it to host memory.

        Numbers and errors are those of :meth:`embed`.  To be used on the calling thread's
        current stream.
        """
        _, height, width = image.shape
        self._check_size(height, width)
        device, whole = self._network.target, (slice(0, height), slice(0, width))
        components = len(self.header.channels)
        values = torch.empty((components, height, width), dtype=torch.float16, device=device)
        classes = None
        if self.header.architecture.classes_head:
            classes = torch.empty((3, height, width), dtype=torch.uint8, device=device)
        plan = self._plan((height, width), whole)
        for tile, rounded in self._embedded(lambda y, x: image[:, y, x], plan, keep=True):
            place, core = _place(tile, whole), (slice(None), *tile.core_in_window)
            values[place] = rounded.values[core]
            if classes is not None and rounded.classes is not None:
                classes[place] = rounded.classes[core]
        self._check_finite(bool(torch.isfinite(values).all()))
        return DeviceEmbedding(values, classes)

    def _check_finite(self, finite: bool) -> None:
        if not finite:
            raise InputError(
                f"the model {self.header.name} gives values that are not finite for this image"
            )

    def _check_size(self, height: int, width: int) -> None:
        needed = height * width * (2 * len(self.header.channels) + 3)
        if needed > MAX_EMBEDDING_BYTES:
            raise LimitError(
                f"{height}×{width} px need {needed / 2**30:.1f} GiB of embedding, "
                f"the limit is {MAX_EMBEDDING_BYTES >> 30} GiB; cut the field into parts"
            )

    def _plan(self, shape: tuple[int, int], region: Region) -> list[Tile]:
        """The tiles whose cores make up the region, row by row."""
        found = tiles(shape, tile_px=self._tile_px, halo_px=self._halo_px)
        plan = [tile for tile in found if _meet(tile.core, region)]
        for tile in plan:
            for core, side in zip(tile.core, region, strict=True):
                assert side.start <= core.start < core.stop <= side.stop, (tile.core, region)
        return plan

    def _crop(self, read: Read, tile: Tile) -> NDArray[np.float32]:
        crop = read(*tile.window)
        if len(crop) != self.header.in_channels:
            raise InputError(
                f"got {len(crop)} channels, the model {self.header.name} takes "
                f"{self.header.in_channels}; choose with --channel"
            )
        return _padded(crop, self._period_px)

    def _embedded(
        self, read: Read, plan: list[Tile], *, keep: bool
    ) -> Iterator[tuple[Tile, Rounded]]:
        """Each tile with values (E, y, x) and classes (3, y, x) of its window."""
        if self._pool is None:
            yield from self._side_by_side(read, plan)
            return
        waiting: deque[tuple[Tile, Ticket]] = deque()
        for tile in plan:
            crop = self._crop(read, tile)
            # enough for one thread alone to keep two passes under way
            if len(waiting) >= 2 * self._pool.length(crop.shape):
                first, ticket = waiting.popleft()
                yield first, ticket.result()
            waiting.append((tile, self._pool.submit(crop, keep=keep)))
        while waiting:
            first, ticket = waiting.popleft()
            yield first, ticket.result()

    def _side_by_side(self, read: Read, plan: list[Tile]) -> Iterator[tuple[Tile, Rounded]]:
        """As :meth:`_embedded` where each tile is a pass."""
        if self._crew is None:
            for tile in plan:
                yield tile, self._alone(self._crop(read, tile))
            return
        if len(plan) == 1:
            crop = self._crop(read, plan[0])
            yield plan[0], self._crew.here(partial(self._alone, crop))
            return
        waiting: deque[tuple[Tile, Future[Rounded]]] = deque()
        for tile in plan:
            crop = self._crop(read, tile)
            waiting.append((tile, self._crew.there(partial(self._alone, crop))))
            while waiting[0][1].done() and len(waiting) > 1:
                first, future = waiting.popleft()
                yield first, future.result()
        for last, future in waiting:
            yield last, future.result()

    def _alone(self, crop: NDArray[np.float32]) -> Rounded:
        """One pass of one tile on the calling thread."""
        started = time.perf_counter()
        with _single_thread():
            values, classes = self._network(torch.from_numpy(crop)[None])
        self._meter.add(time.perf_counter() - started, [1], crop[0].size)
        self._litter.after_pass(int(crop[0].size * self._work))
        return Rounded(values[0], None if classes is None else classes[0])


_resident: dict[tuple[object, ...], Predictor] = {}
_resident_lock = threading.Lock()


def _is_finite(values: Tensor) -> bool:
    """Whether all of (…) float16 are finite; on their bits, a tenth of the time of isfinite()."""
    exponent = 0x7C00
    return bool(values.view(torch.int16).bitwise_and(0x7FFF).max() < exponent)


def _meet(core: Region, region: Region) -> bool:
    return all(
        one.start < other.stop and other.start < one.stop
        for one, other in zip(core, region, strict=True)
    )


def _place(tile: Tile, region: Region) -> tuple[slice, slice, slice]:
    """Where the core of a tile lies in an array (C, Y, X) of the region."""
    rows, columns = (
        slice(core.start - side.start, core.stop - side.start)
        for core, side in zip(tile.core, region, strict=True)
    )
    return slice(None), rows, columns


def _padded(crop: NDArray[np.float32], period_px: int) -> NDArray[np.float32]:
    """Return `crop` (C, Y, X) continued to multiples of `period_px` at the lower and right end.

    Mirrored where the crop is large enough, since a hard edge looks like the
    rim of a cell; else by its edge values.
    """
    _, height, width = crop.shape
    below, right = -height % period_px, -width % period_px
    if not (below or right):
        return np.ascontiguousarray(crop, np.float32)
    mode = "reflect" if below < height and right < width else "edge"
    padded = np.pad(crop, ((0, 0), (0, below), (0, right)), mode=mode)  # type: ignore[call-overload]
    return np.ascontiguousarray(padded, np.float32)


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """Compute on the calling thread alone, so that sums run in one order."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
