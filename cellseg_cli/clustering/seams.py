"""What one tile of a large field sees: its core, and the instances that lie in other cores too.

An instance is known to all tiles by its *anchor*, its first pixel in row-major order, and belongs
to the tile whose core holds that.  Two tiles see the same instance if anchor, area and a 64-bit
sum over its pixels are equal; that sum has the same bits in whatever order pixels are met, and
two different sets of pixels share it by chance once in 2^64.

Positions are ``y * X + x`` in the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from cellseg_cli.tiling import Tile, tiles

from .compiled import compiled

Region: TypeAlias = tuple[slice, slice]


class Shelf(Protocol):
    """Where arrays wait under a name."""

    def keep(self, name: str, values: np.ndarray) -> None: ...

    def kept(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Grid:
    """The tiles of a field.

    Attributes
    ----------
    shape : (int, int)
        Y and X of the field.
    tiles : tuple of Tile
        Row by row; ``window`` reaches the overlap beyond the core.
    rows, columns : (n,) int64
        The first row, or column, of each row, or column, of cores.
    """

    shape: tuple[int, int]
    tiles: tuple[Tile, ...]
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, shape: tuple[int, int], tile_px: int, overlap_px: int) -> Grid:
        """The grid of a field; sides as in :func:`cellseg_cli.tiling.tiles`."""
        found = tiles(shape, tile_px=tile_px, halo_px=overlap_px, align_px=None)
        rows = np.unique([tile.core[0].start for tile in found])
        return cls(shape, found, rows, np.unique([tile.core[1].start for tile in found]))

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns of positions."""
        rows, columns = np.divmod(positions, self.shape[1])
        return rows, columns

    def tile_of(self, positions: np.ndarray) -> np.ndarray:
        """The tile whose core holds each position."""
        rows, columns = self.places(positions)
        row = np.searchsorted(self.rows, rows, side="right") - 1
        column = np.searchsorted(self.columns, columns, side="right") - 1
        return row * len(self.columns) + column

    def in_core(self, tile: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An index into the core of a tile for positions that lie in it."""
        rows, columns = self.places(positions)
        core = self.tiles[tile].core
        return rows - core[0].start, columns - core[1].start


@dataclass(frozen=True, eq=False)
class Seams:
    """What has to be known of a tile at once, small enough to be kept for every tile.

    Ids are those of the tile: 1 to ``owned`` are its own instances, in the order of the labels
    that its window was given; the next ones lie in its core and belong to other tiles.

    Attributes
    ----------
    owned : int
    foreign : (f, 3) uint64
        Anchor, area and pixel sum of the instances ``owned + 1`` to ``owned + f``.
    claims : (c, 3) uint64
        The same of own instances, once for every other core that they lie in.
    claim_ids, claim_tiles : (c,) int64
        Id of each of these, and the tile of that core.
    """

    owned: int
    foreign: np.ndarray
    claims: np.ndarray
    claim_ids: np.ndarray
    claim_tiles: np.ndarray


@dataclass(frozen=True, eq=False)
class View:
    """What a tile sees in its window.

    Attributes
    ----------
    core : (y, x) uint32
        Ids as in :class:`Seams`, 0 = background.
    rim : (2, r) int64
        Positions outside the core, and ids, of the instances that are in the core and others.
    seams : Seams
    """

    core: np.ndarray
    rim: np.ndarray
    seams: Seams


@dataclass(frozen=True)
class Cut:
    """Instances that are in the core and reach an inner border of the window.

    Attributes
    ----------
    sides : (bool, bool, bool, bool)
        Whether one touches the top, bottom, left or right of the window.
    longest : (slice, slice)
        Rows and columns of the field in which the window shows the longest of them.
    """

    sides: tuple[bool, bool, bool, bool]
    longest: Region


def viewed(labels: np.ndarray, grid: Grid, tile: int, window: Region) -> View | Cut:
    """What a tile sees, or what its window cuts.

    Parameters
    ----------
    labels : (y, x) uint32
        The label image of the window.
    grid : Grid
    tile : int
    window : (slice, slice)
        Where it lies in the field.
    """
    rows, columns = window
    core = within(grid.tiles[tile].core, window)
    ends = (core[0].start, core[0].stop, core[1].start, core[1].stop)
    survey = _surveyed(labels, ends, (rows.start, columns.start), grid.shape[1])
    if cut := _cut(survey, window, grid.shape):
        return cut
    first, area, inside, mix, _ = survey
    there = inside > 0
    own = np.zeros_like(there)
    own[there] = grid.tile_of(first[there]) == tile
    owned = int(np.count_nonzero(own))
    label_of = np.concatenate([[0], np.flatnonzero(own), np.flatnonzero(there & ~own)])
    number = np.zeros(len(first), np.uint32)
    number[label_of] = np.arange(len(label_of))
    places, ids = _rim(labels, core, number, (number > 0) & (area > inside))
    y, x = np.divmod(places, labels.shape[1])
    positions = (y + rows.start) * grid.shape[1] + x + columns.start
    mine = ids <= owned
    claims = np.unique(grid.tile_of(positions[mine]) * (owned + 1) + ids[mine])
    claim_tiles, claim_ids = np.divmod(claims, owned + 1)
    signature = np.stack([first.astype(np.uint64), area.astype(np.uint64), mix], axis=1)
    seams = Seams(
        owned=owned,
        foreign=signature[label_of[owned + 1 :]],
        claims=signature[label_of[claim_ids]],
        claim_ids=claim_ids,
        claim_tiles=claim_tiles,
    )
    return View(number[labels[core]], np.stack([positions, ids]), seams)


def within(inner: Region, outer: Region) -> Region:
    """A region in the frame of one that holds it."""
    rows, columns = (
        slice(one.start - frame.start, one.stop - frame.start)
        for one, frame in zip(inner, outer, strict=True)
    )
    return rows, columns


def _cut(survey: tuple[np.ndarray, ...], window: Region, shape: tuple[int, int]) -> Cut | None:
    """The instances in the core that touch a border which is not the field's."""
    inside, box = survey[2], survey[4]
    rows, columns = window
    touches = np.stack(
        [
            (box[:, 0] == 0) & (rows.start > 0),
            (box[:, 1] == rows.stop - rows.start) & (rows.stop < shape[0]),
            (box[:, 2] == 0) & (columns.start > 0),
            (box[:, 3] == columns.stop - columns.start) & (columns.stop < shape[1]),
        ]
    ) & (inside > 0)
    cut = np.flatnonzero(touches.any(axis=0))
    if len(cut) == 0:
        return None
    length = np.maximum(box[cut, 1] - box[cut, 0], box[cut, 3] - box[cut, 2])
    top, bottom, left, right = box[cut[np.argmax(length)]].tolist()
    up, down, west, east = (bool(side.any()) for side in touches)
    longest = (
        slice(rows.start + top, rows.start + bottom),
        slice(columns.start + left, columns.start + right),
    )
    return Cut((up, down, west, east), longest)


def _rim(
    labels: np.ndarray, core: Region, number: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places in the window outside the core, and numbers, of wanted labels: (r,) int64 each."""
    mask = wanted[labels]
    mask[core] = False
    places = np.flatnonzero(mask)
    return places, number[labels.ravel()[places]].astype(np.int64)


@compiled
def _surveyed(
    labels: np.ndarray, core: tuple[int, int, int, int], origin: tuple[int, int], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What one pass over a window tells of each label.

    ``core`` are its first and last rows and columns in the window (half-open), ``origin`` is the
    place of the window in the field, ``width`` that of the field.

    Returns
    -------
    first : (n + 1,) int64
        Position of the first pixel; 0 for a label that is not there.
    area, inside : (n + 1,) int64
        Pixels, and those of them in the core.
    mix : (n + 1,) uint64
        Sum of the scattered positions.
    box : (n + 1, 4) int64
        Top, bottom, left and right in the window, half-open.
    """
    height, breadth = labels.shape
    count = np.int64(labels.max()) + 1
    first = np.zeros(count, np.int64)
    area, inside = np.zeros(count, np.int64), np.zeros(count, np.int64)
    mix = np.zeros(count, np.uint64)
    box = np.zeros((count, 4), np.int64)
    for y in range(height):
        in_rows = core[0] <= y < core[1]
        for x in range(breadth):
            label = labels[y, x]
            if label == 0:
                continue
            position = (y + origin[0]) * np.int64(width) + x + origin[1]
            if area[label] == 0:
                first[label] = position
                box[label, 0], box[label, 2], box[label, 3] = y, x, x + 1
            area[label] += 1
            mix[label] += _scattered(np.uint64(position))
            box[label, 1] = y + 1
            box[label, 2] = min(box[label, 2], x)
            box[label, 3] = max(box[label, 3], x + 1)
            if in_rows and core[2] <= x < core[3]:
                inside[label] += 1
    return first, area, inside, mix, box


@compiled
def _scattered(bits: np.uint64) -> np.uint64:
    """A number that looks random, one for each position (splitmix64 of Steele et al. 2014)."""
    bits += np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
