"""What a run will need, before it begins: memory and bytes to write, as arithmetic on integers.

A run takes in each process what it has loaded, and in each thread what one field needs, or one
slab of a field that is done slab by slab; nothing grows with the number of fields or, beyond a
slab, with their size.  So the most is known from the largest field.  What is computed here is
an upper bound; ``tests/pipeline/test_budget.py`` holds it against the measured peak of real
runs.  Nothing is read or measured here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TypeAlias

import numpy as np

from cellseg_cli.arrays import SHARD_PX
from cellseg_cli.config import EmbedSettings
from cellseg_cli.engine.memory import shown
from cellseg_cli.errors import ConfigError
from cellseg_cli.rows import FieldRow
from cellseg_cli.tiling import tiles

# Measured with ``tests/benchmarks/memory.py``, two cores, 64-bit Linux, PyTorch 2.14 with CUDA's
# libraries beside it; megabytes at the peak, and what is projected of it:
#   embed     1 × 256²        1 channel,  1 thread       844    1.07×
#             4 × 520×704     1 channel,  1, 4 threads   903, 1194    1.17×, 1.43×
#             3 × 2048²       1 channel,  1 thread      1274    1.21×
#             2 × 4096²       1 channel,  2 threads     2372    1.38×
#             1 × 8192²       1 channel,  2 threads     2238    1.24×
#   segment   2 × 520×704     1 channel,  1 thread      1008    1.20×
#             4 × 2048²       1 channel,  1, 2 threads  1442, 1856    1.17×, 1.29×
#             1 × 8192²       1 channel,  1 thread      1835    1.07×
#   cluster   1 × 256²        1 thread, kernels compiled, from the cache    375, 262
#             4096²           seeds, 1, 2 threads       1115, 1894    1.17×, 1.15×
#             4096²           grid, 1, 2 threads        1672, 2757    1.38×, 1.52×
#             4096²           watershed, 1, 2 threads   1157, 1961    1.19×, 1.19×
# In float32, on a CPU without bfloat16, and with a network of fewer tensors than those above: embed
# of 256² 1.1×, of 520×704 1.02× to 1.1× (the peak scatters by 90 MB), of 2048² 1.2×.
# Those of 4096² and 8192² px and of segment at 2048² px were measured when a run loaded some
# modules more, about 130.  One channel or three makes no difference that can be measured.

#: Of a process that has loaded PyTorch, zarr and dask; without the weights.
NETWORK_PROCESS_BYTES = 830_000_000
#: Of a process that clusters: NumPy, SciPy, zarr, dask and numba, whose compiler runs once.
CLUSTER_PROCESS_BYTES = 430_000_000
#: What of that a process has to load that has PyTorch already.
CLUSTER_MODULES_BYTES = 150_000_000
#: Of the process that only hands out work: it has read the model's header by PyTorch.
PARENT_BYTES = 700_000_000
#: On top, of a process that uses an accelerator: what CUDA and cuDNN load.  Not measured.
ACCELERATOR_BYTES = 2_500_000_000
#: What a thread takes besides the arrays of its field: its stack and what libraries keep.
THREAD_BYTES = 25_000_000
#: The allocator keeps freed blocks that do not fit the next request.
FRAGMENTS = 1.2
#: Most values of a channel that the scale is measured on, and bytes for each (float64, and
#: the copy that is partitioned).
SAMPLE_PX, SAMPLE_BYTES = 1 << 22, 16
#: Pixels of a pass on an accelerator, and passes that are filled, queued or on their way.
PASS_PX, PASSES = 8 << 20, 6
#: Bytes per pixel that clustering takes besides its input, at the peak; `grid` with half of the
#: pixels foreground.
CLUSTER_BYTES_PER_PX = {"seeds": 15, "grid": 65, "watershed": 19, "linkage": 10}

_LABEL_BYTES = 4  # uint32
#: Files that are decoded whole even where a region is asked for.
_WHOLE = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class NetworkNeeds:
    """What a network takes.

    Attributes
    ----------
    loaded_bytes
        Of the weights, and of what only this network loads.
    bytes_per_px
        Of a pass at its peak, per pixel of its windows.
    in_channels, components
        Channels that it takes; components of its embedding, float16.
    classes
        Classes, uint8; 0 without that head.
    """

    loaded_bytes: int
    bytes_per_px: float
    in_channels: int
    components: int
    classes: int = 0

    @property
    def result_bytes(self) -> int:
        """Of what is stored for a pixel, before compression."""
        return 2 * self.components + self.classes


@dataclass(frozen=True)
class Carrying:
    """By whom the work is done on this machine.

    Attributes
    ----------
    threads
        In each process.
    processes
        That do the work.
    apart
        Whether these are other processes than the one that hands it out.
    accelerator
        Whether the network is not on the CPU.
    passes
        Of the network at a time on the CPU of each process; None: one for each thread.
    """

    threads: int
    processes: int = 1
    apart: bool = False
    accelerator: bool = False
    passes: int | None = None

    @property
    def at_once(self) -> int:
        """Threads that are in the network at the same time."""
        return min(self.threads, self.passes or self.threads)


@dataclass(frozen=True)
class Budget:
    """What a stage needs at most.

    Attributes
    ----------
    stage
        ``embed``, ``cluster`` or ``segment``.
    carrying
        By whom it is done.
    process_bytes
        Of a process before the first field.
    pass_bytes
        On top, of a process whose network is on an accelerator: the passes under way.
    thread_bytes
        Of each thread, without the window that is in the network.
    window_bytes, window_px
        Of that window, and its pixels; 0 where the network is not on the CPU.
    helpers
        Windows of a process beyond one for each thread: where fields or slabs are fewer than the
        threads that were asked for, several tiles of one are in the network at a time.  Below 0
        where there are more threads than passes at a time.
    tile_px, halo_px
        The largest side of a window, and its rim; 0 for a stage without a network.
    batch_size
        Of passes on an accelerator; 0 is chosen by the device.
    bytes_to_write
        In all, before compression.
    tiles, network_px
        Tiles that go through the network, and their pixels with their halos.
    """

    stage: str
    carrying: Carrying
    process_bytes: int
    thread_bytes: int
    bytes_to_write: int
    pass_bytes: int = 0
    window_bytes: int = 0
    window_px: int = 0
    helpers: int = 0
    tile_px: int = 0
    halo_px: int = 0
    batch_size: int = 0
    tiles: int = 0
    network_px: int = 0

    @property
    def bytes_per_thread(self) -> int:
        """What one more thread takes."""
        return self.thread_bytes + self.window_bytes

    @property
    def bytes_per_worker(self) -> int:
        """What one process with its threads takes."""
        threads = self.carrying.threads * self.bytes_per_thread + self.helpers * self.window_bytes
        return self.process_bytes + self.pass_bytes + threads

    @property
    def bytes_total(self) -> int:
        """What all processes on this machine take."""
        parent = PARENT_BYTES if self.carrying.apart else 0
        return parent + self.carrying.processes * self.bytes_per_worker

    def check(self, memory_bytes: int) -> None:
        """Refuse a run that does not fit into what the user allows.

        Raises
        ------
        ConfigError
            Says what it needs, and which number to change.
        """
        if self.bytes_total > memory_bytes:
            raise ConfigError(self.refusal(memory_bytes, f"--memory {shown(memory_bytes)}"))

    def refusal(self, memory_bytes: int, limit: str) -> str:
        """What does not fit into a limit that is called so, and what would."""
        carrying = self.carrying
        each = f"{shown(self.process_bytes + self.pass_bytes)} and {shown(self.bytes_per_thread)}"
        many = f" in each of {carrying.processes} processes" if carrying.processes > 1 else ""
        return (
            f"{self.stage} needs {shown(self.bytes_total)} with {_counted(carrying.threads)}{many} "
            f"({each} per thread); {limit} {self._advice(memory_bytes)}"
        )

    def _advice(self, memory_bytes: int) -> str:
        carrying = self.carrying
        parent = PARENT_BYTES if carrying.apart else 0
        base = self.process_bytes + self.pass_bytes
        for processes in range(carrying.processes, 0, -1):
            room = (memory_bytes - parent) // processes - base
            if (threads := room // self.bytes_per_thread) < 1:
                continue
            fewer = f"--workers {processes} " if processes < carrying.processes else ""
            number = min(threads, carrying.threads)
            return f"allows {_counted(number)}: set {fewer}--threads {number}"
        return self._smaller(memory_bytes - parent)

    def _smaller(self, memory_bytes: int) -> str:
        """What to do where not even one thread fits."""
        base = self.process_bytes + self.pass_bytes
        parent = PARENT_BYTES if self.carrying.apart else 0
        least = shown(parent + base + self.bytes_per_thread)
        advice = f"--memory {least.replace(' ', '')}"  # to be typed as it stands
        room = memory_bytes - base - self.bytes_per_thread
        one = "--workers 1 --threads 1" if self.carrying.processes > 1 else "--threads 1"
        if self.pass_bytes and (batch := self._batch(room + self.pass_bytes)):
            return f"does not hold the passes of the device: set {one} --batch-size {batch}"
        if self.window_bytes and (tile_px := self._tile(room + self.window_bytes)):
            return (
                f"does not hold one: set {one} --tile {tile_px} (other tiles, other embeddings), "
                f"or {one} {advice}"
            )
        return f"does not hold one: set {one} {advice}"

    def _batch(self, room: int) -> int:
        """The longest pass that fits into so many bytes; 0 if none is shorter than now."""
        length = self.batch_size or max(1, PASS_PX // max(1, self.tile_px**2))
        fits = room * length // self.pass_bytes
        return fits if 0 < fits < length else 0

    def _tile(self, room: int) -> int:
        """The largest side of a window that fits into so many bytes; 0 if none can."""
        fits = int((max(0, room) * self.window_px / self.window_bytes) ** 0.5) // 64 * 64
        return fits if 2 * self.halo_px < fits < self.tile_px else 0


@dataclass(frozen=True)
class AtOnce:
    """What of a field is clustered at once.

    Attributes
    ----------
    method
        ``seeds``, ``grid``, ``linkage`` or ``watershed``.
    px
        The whole field, or the largest window that a larger one is cut into.
    """

    method: str
    px: int


Clusters: TypeAlias = Callable[[FieldRow], AtOnce]


def embedding_budget(
    rows: Sequence[FieldRow], needs: NetworkNeeds, settings: EmbedSettings, carrying: Carrying
) -> Budget:
    """What ``embed`` needs for the fields of ``rows``."""
    most = max((_embed_bytes(row, needs) for row in _largest(rows)), default=0)
    budget = _with_network("embed", rows, needs, settings, carrying)
    return replace(
        budget,
        thread_bytes=_thread_bytes(most),
        bytes_to_write=_pixels(rows) * needs.result_bytes,
    )


def segmenting_budget(
    rows: Sequence[FieldRow],
    needs: NetworkNeeds,
    settings: EmbedSettings,
    carrying: Carrying,
    clusters: Clusters,
) -> Budget:
    """What ``segment`` needs: fields are clustered where they were embedded.

    ``bytes_to_write`` counts the embedding of the largest field that is done slab by slab,
    which is on the disk while it is clustered, once for each process.
    """
    most = max((_embed_bytes(row, needs) for row in _largest(rows)), default=0)
    clustered = _most_clustered(rows, needs, clusters)
    budget = _with_network("segment", rows, needs, settings, carrying)
    # the window in the network is there before the field is clustered, and not after
    room = _thread_bytes(most) + budget.window_bytes
    kept = max((row.pixels for row in rows if _is_large(row)), default=0) * needs.result_bytes
    return replace(
        budget,
        process_bytes=budget.process_bytes + CLUSTER_MODULES_BYTES,
        thread_bytes=max(_thread_bytes(clustered), room) - budget.window_bytes,
        bytes_to_write=_pixels(rows) * _LABEL_BYTES + kept * carrying.processes,
    )


def clustering_budget(
    rows: Sequence[FieldRow], needs: NetworkNeeds, carrying: Carrying, clusters: Clusters
) -> Budget:
    """What ``cluster`` needs; of ``needs`` only what a pixel of the embedding takes."""
    on_device = NETWORK_PROCESS_BYTES + CLUSTER_MODULES_BYTES + ACCELERATOR_BYTES
    return Budget(
        "cluster",
        _busy(carrying, len(rows)),
        on_device if carrying.accelerator else CLUSTER_PROCESS_BYTES,
        _thread_bytes(_most_clustered(rows, needs, clusters)),
        _pixels(rows) * _LABEL_BYTES,
    )


def _busy(carrying: Carrying, tasks: int) -> Carrying:
    """No more threads than there is to do at the same time."""
    threads = ceil(tasks / carrying.processes)
    return replace(carrying, threads=max(1, min(carrying.threads, threads)))


def _slabs(shape: tuple[int, int]) -> int:
    return prod(ceil(side / SHARD_PX) for side in shape)


def _with_network(
    stage: str,
    rows: Sequence[FieldRow],
    needs: NetworkNeeds,
    settings: EmbedSettings,
    carrying: Carrying,
) -> Budget:
    """What the network takes: in each thread on the CPU, in each process on an accelerator."""
    tile_px, halo_px, batch = settings.tile_px, settings.halo_px, settings.batch_size
    shapes = Counter((row.height or 1, row.width or 1) for row in rows)
    window_px = max((min(h, tile_px) * min(w, tile_px) for h, w in shapes), default=0)
    plans = [
        (tiles(shape, tile_px=tile_px, halo_px=halo_px), count) for shape, count in shapes.items()
    ]
    tiles_each = _busy(carrying, sum(count * len(plan) for plan, count in plans)).at_once
    carrying = _busy(carrying, sum(count * _slabs(shape) for shape, count in shapes.items()))
    # image as it is cut out, and as the network takes it; what it gives, in float32 and rounded
    crop = 8 * needs.in_channels + 6 * needs.components + 5 * needs.classes
    process = NETWORK_PROCESS_BYTES + needs.loaded_bytes
    budget = Budget(
        stage,
        carrying,
        process,
        0,
        0,
        tile_px=tile_px,
        halo_px=halo_px,
        batch_size=batch,
        tiles=sum(count * len(plan) for plan, count in plans),
        network_px=sum(count * sum(prod(tile.shape) for tile in plan) for plan, count in plans),
    )
    if carrying.accelerator:
        length = batch or max(1, PASS_PX // max(1, window_px))
        return replace(
            budget,
            process_bytes=process + ACCELERATOR_BYTES,
            pass_bytes=PASSES * length * window_px * crop,
        )
    window = int(FRAGMENTS * window_px * (needs.bytes_per_px + crop))
    helpers = tiles_each - carrying.threads
    return replace(budget, window_bytes=window, window_px=window_px, helpers=helpers)


def _embed_bytes(row: FieldRow, needs: NetworkNeeds) -> int:
    """The arrays of one field, or of one of its slabs, without the window in the network."""
    stored = row.pixels * (row.channels or 1) * np.dtype(row.dtype or "uint8").itemsize
    sample = min(row.pixels, SAMPLE_PX) * SAMPLE_BYTES
    if _is_large(row):
        held = stored if row.source.lower().endswith(_WHOLE) else 0
        slab_px = min(row.height or 0, SHARD_PX) * min(row.width or 0, SHARD_PX)
        return held + max(sample, _written(slab_px, needs))
    scaled = row.pixels * needs.in_channels * 4
    fitted = 0 if row.channels == needs.in_channels else stored * needs.in_channels
    read = stored + fitted // (row.channels or 1) + max(scaled, sample)
    return max(read, scaled + _written(row.pixels, needs))


def _written(px: int, needs: NetworkNeeds) -> int:
    """A result, and the shards that are made of it."""
    return 2 * px * needs.result_bytes


def _most_clustered(rows: Sequence[FieldRow], needs: NetworkNeeds, clusters: Clusters) -> int:
    """The arrays of the field that takes most: its embedding as stored and in float32, the rest."""
    most = 0
    for row in rows:
        at_once = clusters(row)
        per_px = needs.result_bytes + 4 * needs.components + CLUSTER_BYTES_PER_PX[at_once.method]
        most = max(most, min(row.pixels, at_once.px) * per_px)
    return most


def _largest(rows: Sequence[FieldRow]) -> Iterable[FieldRow]:
    """One row for each kind of image: what the arrays depend on."""
    kinds = {(row.height, row.width, row.channels, row.dtype, row.source[-5:]): row for row in rows}
    return kinds.values()


def _is_large(row: FieldRow) -> bool:
    """Whether a field is done slab by slab."""
    return max(row.height or 0, row.width or 0) > SHARD_PX


def _thread_bytes(arrays: int) -> int:
    return THREAD_BYTES + int(FRAGMENTS * arrays)


def _pixels(rows: Sequence[FieldRow]) -> int:
    return sum(row.pixels for row in rows)


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' * (threads != 1)}"
