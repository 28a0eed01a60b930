"""One field of any size through ``cellseg cluster``: memory, time, and cells at tile borders.

    python tests/benchmarks/large_field.py [SIDE] [FOLDER]

Writes the spatial embedding of a made-up field of SIDE × SIDE px (default 16384: 200 704 touching
cells) into a store in a new folder below FOLDER (default: the system's), slab by slab and without
a network, runs ``cellseg cluster`` on it in a process of its own, and counts every cell of the
known truth that was found, cut or doubled.  Takes up to 14 bytes of disk a pixel for the time of
the run (3.8 GB by default).
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from cellseg_cli.arrays import Region, slabs
from cellseg_cli.clustering.seams import Grid
from cellseg_cli.pipeline.plan import field_fingerprint
from cellseg_cli.store import FieldRow, Store

FIELD = "field"
CELLS_PER_16384 = 448  # in a row: a pitch of 36.6 px
BYTES_PER_PX = 14  # embedding 8 before compression, scratch 4, labels below 1, and room
TILE_PX, OVERLAP_PX = 2048, 128  # the defaults, which decide what "crosses a border" means


@numba.njit(cache=True)
def random_number(number: int, salt: int) -> float:
    """From 0 to 1, the same for the same numbers."""
    bits = np.uint64(number) * np.uint64(8) + np.uint64(salt)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)) / 2.0**53


@numba.njit(cache=True)
def painted(
    origin: tuple[int, int], shape: tuple[int, int], cells: int, side: int, with_values: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Truth (y, x) int32 and embedding (4, y, x) float32 of a region, whatever its borders.

    Cells are ellipses with half axes of 8 to 20 px around jittered points of a grid; where they
    overlap, a pixel belongs to the one in which it lies deepest.
    """
    pitch = side / cells
    truth = np.zeros(shape, np.int32)
    values = np.zeros((4, shape[0], shape[1]) if with_values else (4, 1, 1), np.float32)
    for row in range(shape[0]):
        y = origin[0] + row
        for column in range(shape[1]):
            x = origin[1] + column
            depth, best = 1.0, 0
            to_y = to_x = size = 0.0
            for i in range(max(int(y / pitch) - 1, 0), min(int(y / pitch) + 2, cells)):
                for j in range(max(int(x / pitch) - 1, 0), min(int(x / pitch) + 2, cells)):
                    cell = i * cells + j + 1
                    down = (i + 0.35 + 0.3 * random_number(cell, 0)) * pitch - y
                    across = (j + 0.35 + 0.3 * random_number(cell, 1)) * pitch - x
                    turn = np.pi * random_number(cell, 2)
                    long, short = 12 + 8 * random_number(cell, 3), 8 + 6 * random_number(cell, 4)
                    u = (down * np.cos(turn) + across * np.sin(turn)) / long
                    v = (across * np.cos(turn) - down * np.sin(turn)) / short
                    if u * u + v * v < depth:
                        depth, best = u * u + v * v, cell
                        to_y, to_x, size = down, across, np.sqrt(long * short)
            truth[row, column] = best
            if with_values:
                pixel = y * side + x
                values[2, row, column] = 4.0
                values[3, row, column] = 0.1 * random_number(pixel, 5)
                if best > 0:
                    values[0, row, column] = to_y + 3 * random_number(pixel, 6) - 1.5
                    values[1, row, column] = to_x + 3 * random_number(pixel, 7) - 1.5
                    values[2, row, column] = 0.3 * size
                    values[3, row, column] += 0.9 - 0.4 * depth
    return truth, values


@dataclass(frozen=True)
class Field:
    """A made-up field."""

    side: int

    @property
    def cells(self) -> int:
        """Cells in a row of cells."""
        return max(round(CELLS_PER_16384 * self.side / 16384), 1)

    def painted(self, region: Region, *, values: bool) -> tuple[np.ndarray, np.ndarray]:
        """Truth, and the embedding if asked for, of a region."""
        rows, columns = region
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        origin = (rows.start, columns.start)
        return painted(origin, shape, self.cells, self.side, values)  # type: ignore[no-any-return]


def written(field: Field, path: Path) -> Store:
    """A store with the embedding of the field."""
    identity = {"model": "made up"}
    store = Store.create(path, {"embed": identity, "model": {"kind": "spatial"}, "cluster": {}})
    row = FieldRow(FIELD, str(path / "made up"), 1, 1, field.side, field.side, 1, "uint8")
    store.write_fields([row])
    with store.embedding_writer(FIELD, (4, field.side, field.side), classes=False) as writer:
        for slab in writer.slabs:
            values = np.empty((4, *(side.stop - side.start for side in slab)), np.float16)
            for top in range(0, values.shape[1], 512):
                strip = slice(slab[0].start + top, min(slab[0].start + top + 512, slab[0].stop))
                values[:, top : top + 512] = field.painted((strip, slab[1]), values=True)[1]
            writer.write(slab, values)
    store.mark_done(FIELD, "embed", field_fingerprint(row, identity))
    return store


@dataclass(frozen=True)
class Counts:
    """What became of the true cells; those that cross a tile border apart."""

    cells: int
    crossing: int
    found: int
    found_crossing: int
    doubled: int
    doubled_crossing: int


def counted(field: Field, store: Store) -> Counts:
    """Compare the label image with the truth, slab by slab.

    A cell is found if one instance covers it with IoU > 0.5, and doubled if two instances or
    more hold a quarter of it each.
    """
    grid = Grid.of((field.side, field.side), TILE_PX, OVERLAP_PX)
    pairs, borders = [], []
    for rows, columns in slabs((field.side, field.side)):
        for top in range(rows.start, rows.stop, 512):
            region = (slice(top, min(top + 512, rows.stop)), columns)
            truth = field.painted(region, values=False)[0]
            labels = store.read_labels(FIELD, region)
            pairs.append(pair_counts(truth, labels))
            y, x = np.ogrid[region]
            tile = np.searchsorted(grid.rows, y, "right") * len(grid.columns)
            tile = tile + np.searchsorted(grid.columns, x, "right")
            borders.append(pair_counts(truth, tile)[:2])
    truth_id, label, shared = summed(np.concatenate(pairs, axis=1))
    cells = field.cells**2
    area = np.bincount(truth_id, shared, cells + 1)
    label_area = np.bincount(label, shared)
    real = (truth_id > 0) & (label > 0)
    truth_id, label, shared = truth_id[real], label[real], shared[real]
    iou = shared / (area[truth_id] + label_area[label] - shared)
    found = np.isin(np.arange(cells + 1), truth_id[iou > 0.5])
    parts = np.bincount(truth_id[4 * shared >= area[truth_id]], minlength=cells + 1)
    there = np.unique(np.concatenate(borders, axis=1), axis=1)[0]
    crossing = np.bincount(there, minlength=cells + 1) > 1
    exists = area > 0
    exists[0] = crossing[0] = False
    return Counts(
        cells=int(exists.sum()),
        crossing=int(crossing.sum()),
        found=int((found & exists).sum()),
        found_crossing=int((found & crossing).sum()),
        doubled=int((parts[exists] > 1).sum()),
        doubled_crossing=int((parts[crossing] > 1).sum()),
    )


def pair_counts(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The pairs of numbers that two images have in common, and how often: (3, n) int64."""
    keys = (one.astype(np.int64) << 32) | other.astype(np.int64)
    found, counts = np.unique(keys, return_counts=True)
    return np.stack([found >> 32, found & 0xFFFFFFFF, counts])


def summed(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equal pairs together."""
    keys, inverse = np.unique((pairs[0] << 32) | pairs[1], return_inverse=True)
    counts = np.bincount(inverse.ravel(), pairs[2]).astype(np.int64)
    return keys >> 32, keys & 0xFFFFFFFF, counts


def clustered(store: Store) -> tuple[float, float, float]:
    """Run ``cellseg cluster``: wall-clock and CPU seconds, and its peak memory in MiB."""
    command = [sys.executable, "-m", "cellseg_cli", "cluster", str(store.path), "--workers", "1"]
    began = time.perf_counter()
    subprocess.run([*command, "--overwrite", "-v"], check=True)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main(side: int, parent: str | None) -> None:
    """Write, cluster, count, print."""
    field = Field(side)
    with tempfile.TemporaryDirectory(prefix="large_field", dir=parent) as folder:
        free, needed = shutil.disk_usage(folder).free, BYTES_PER_PX * side * side
        if free < 1.2 * needed:
            sys.exit(f"{folder} has {free / 1e9:.1f} GB free, this needs {1.2 * needed / 1e9:.1f}")
        began = time.perf_counter()
        store = written(field, Path(folder) / "emb.zarr")
        print(f"{side} × {side} px, {field.cells**2} cells; store in", end=" ")
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
        seconds, cpu, peak = clustered(store)
        mark = store.mark(FIELD, "cluster") or {}
        counts = counted(field, store)
    megapixels = side * side / 1e6
    print(f"cellseg cluster     {seconds:8.1f} s, {cpu:.1f} CPU s, {cpu / megapixels:.3f} CPU s/MP")
    print(f"peak memory         {peak:8.0f} MiB")
    told = {key: mark.get(key) for key in ("instances", "tiles", "redone", "disputed")}
    print(", ".join(f"{key} {value}" for key, value in told.items()))
    crossing, inner = counts.crossing, counts.cells - counts.crossing
    print("                        cells     found   missed   doubled")
    print(f"across tile borders {crossing:9d} {counts.found_crossing:9d}", end="")
    print(f"{crossing - counts.found_crossing:9d} {counts.doubled_crossing:9d}")
    found = counts.found - counts.found_crossing
    print(f"inside one core     {inner:9d} {found:9d} {inner - found:8d}", end="")
    print(f" {counts.doubled - counts.doubled_crossing:9d}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]) if arguments else 16384, arguments[1] if len(arguments) > 1 else None)
