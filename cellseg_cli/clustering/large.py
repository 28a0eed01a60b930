"""Label images of fields that are too large to cluster at once: tile by tile, one result.

1. A field is cut into tiles (:mod:`cellseg_cli.tiling`).  Each is clustered on its own, in a
   window that reaches an overlap beyond its core.
2. Every pixel takes the instance that the tile of its core sees there.
3. An instance that lies in a core and touches an inner border of the window is longer than the
   overlap: that tile is clustered again with twice the overlap there, until the instance is
   whole.
4. Where an instance lies in several cores, their tiles must see the same instance, pixel for
   pixel (:mod:`~cellseg_cli.clustering.seams`).  Then it is neither cut nor doubled, and the
   label image shows in every core what its own window shows.  Tiles that disagree are clustered
   again with twice the overlap, in rounds, until all agree.
5. Windows grow to a stated side.  An instance that is longer is a :class:`LimitError`; what tiles
   still disagree about is settled by a fixed rule and counted
   (:mod:`~cellseg_cli.clustering.disputes`).

The result does not depend on the order in which the tiles of a round are clustered.  Ids are 1 to
n, in the order of the tiles, row by row, and in each in the order of the labels of its window.

Memory: one window, the core of one tile, some 12 bytes for each instance and 100 for each that
lies in several cores.  The cores wait on a shelf of the caller, 4 bytes a pixel.  Knows no method,
file or store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cellseg_cli.errors import ConfigError, LimitError
from cellseg_cli.labels import MAX_INSTANCES

from .disputes import settled
from .seams import Grid, Region, Seams, Shelf, View, viewed, within


@dataclass(frozen=True)
class Tiling:
    """How a large field is cut.

    Attributes
    ----------
    tile_px
        Side of a window; even.
    overlap_px
        How far a window reaches beyond its core; even, less than half of ``tile_px``.
    largest_px
        Side to which a window may grow.
    """

    tile_px: int
    overlap_px: int
    largest_px: int

    def __post_init__(self) -> None:
        """Refuse sides that do not go together.

        Raises
        ------
        ConfigError
            All faults in one message.
        """
        faults = [
            f"{name} must be an even number of at least 2; got {side}"
            for name, side in (("tile_px", self.tile_px), ("overlap_px", self.overlap_px))
            if side < 2 or side % 2
        ]
        if not faults and self.tile_px <= 2 * self.overlap_px:
            faults.append(
                f"tile_px must be more than twice overlap_px; got {self.tile_px} and "
                f"{self.overlap_px}"
            )
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, eq=False)
class LargeLabels:
    """The label image of a large field, made region by region.

    Attributes
    ----------
    instances
        How many; their ids are 1 to this.
    tiles
        Of the field.
    redone
        Windows that were clustered again because an instance was cut or tiles disagreed.
    disputed
        Instances that tiles saw differently to the end.
    """

    instances: int
    tiles: int
    redone: int
    disputed: int
    _grid: Grid = field(repr=False)
    _shelf: Shelf = field(repr=False)
    _numbers: tuple[np.ndarray, ...] = field(repr=False)  # id in the field of each id of a tile
    _patches: np.ndarray = field(repr=False)  # (2, p) int64: positions and ids of settled pixels

    def region(self, region: Region) -> np.ndarray:
        """The label image of some rows and columns: uint32, 0 = background."""
        rows, columns = region
        labels = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint32)
        for number, tile in enumerate(self._grid.tiles):
            both = (_common(rows, tile.core[0]), _common(columns, tile.core[1]))
            if all(one.start < one.stop for one in both):
                core = self._shelf.kept(f"core{number}")[within(both, tile.core)]
                labels[within(both, region)] = self._numbers[number][core]
        y, x = self._grid.places(self._patches[0])
        here = (y >= rows.start) & (y < rows.stop) & (x >= columns.start) & (x < columns.stop)
        labels[y[here] - rows.start, x[here] - columns.start] = self._patches[1][here]
        return labels


def cluster_in_tiles(
    shape: tuple[int, int],
    look: Callable[[Region], np.ndarray],
    tiling: Tiling,
    shelf: Shelf,
    *,
    min_area_px: int,
    check: Callable[[], None] = lambda: None,
) -> LargeLabels:
    """The label image of a field by the rules of this module.

    Parameters
    ----------
    shape
        Y and X of the field.
    look
        The label image (uint32, dense, each instance 4-connected) of some rows and columns of
        the field, clustered as if there were no more.
    tiling
        How the field is cut.
    shelf
        Keeps ``core0``, ``rim0``, ``core1``, ... until the result is used no more.
    min_area_px
        Parts of disputed instances that are smaller become background.
    check
        Called before each window; what it raises ends the work.

    Raises
    ------
    LimitError
        An instance is longer than windows may grow, or there are more than 2^32 - 1.

    Notes
    -----
    Tiles that agree prove that nothing is cut or doubled, not that the whole field clustered at
    once would look the same: a border changes what is decided next to it, and where decisions
    hang on each other, further away.  Measured on 121 crops of DSB 2018 side by side (2816 ×
    2816 px, bundled model) in tiles of 512, 256 and 128 px with overlaps of 64, 48 and 24 px:
    ``seeds``, ``watershed`` and ``grid`` at half size give the untiled partition, ``grid`` at full
    size differs in 2 to 4 of 1821 instances by a few pixels (``tests/pipeline/test_tiles.py`` holds
    six of the crops).  On made-up cells in noise (``tests/clustering/test_large.py``) all are
    equal, until noise joins cells and background.
    """
    grid = Grid.of(shape, tiling.tile_px, tiling.overlap_px)
    work = _Work(grid, tiling, look, shelf)
    to_do = list(range(len(grid.tiles)))
    while to_do:
        for tile in to_do:
            work.solve(tile, check)
        agreement = _compared(grid, work.seams)
        disagreeing = np.unique(agreement.lone[:, [0, 2]]).tolist()
        to_do = [tile for tile in disagreeing if work.grow(tile)]
    numbers, total = _numbered(work.seams, agreement)
    patches, disputed = np.zeros((2, 0), np.int64), 0
    if len(agreement.lone):
        nodes = np.unique(agreement.lone[:, :2], axis=0)
        numbers, patches, disputed = settled(grid, shelf, numbers, nodes, min_area_px)
        numbers, patches, total = _dense(numbers, patches)
    if total > MAX_INSTANCES:
        raise LimitError(
            f"the field has {total} instances, a label image holds at most {MAX_INSTANCES}; "
            "raise min_area_px"
        )
    final = tuple(one.astype(np.uint32) for one in numbers)
    redone = work.looks - len(grid.tiles)
    return LargeLabels(total, len(grid.tiles), redone, disputed, grid, shelf, final, patches)


class _Work:
    """The tiles of a field as far as they are clustered."""

    def __init__(
        self, grid: Grid, tiling: Tiling, look: Callable[[Region], np.ndarray], shelf: Shelf
    ) -> None:
        self.seams: dict[int, Seams] = {}
        self.looks = 0
        self._grid, self._tiling, self._look, self._shelf = grid, tiling, look, shelf
        self._windows = [tile.window for tile in grid.tiles]

    def solve(self, tile: int, check: Callable[[], None]) -> None:
        """Cluster a tile in a window that cuts no instance of its core."""
        while True:
            check()
            window = self._windows[tile]
            view = viewed(self._look(window), self._grid, tile, window)
            self.looks += 1
            if isinstance(view, View):
                break
            if not self.grow(tile, view.sides):
                raise LimitError(_too_long(view.longest, self._tiling))
        self.seams[tile] = view.seams
        self._shelf.keep(f"core{tile}", view.core)
        self._shelf.keep(f"rim{tile}", view.rim)

    def grow(self, tile: int, sides: tuple[bool, bool, bool, bool] = (True,) * 4) -> bool:
        """Whether the window of a tile can grow at some sides; from now on it has grown."""
        core, window = self._grid.tiles[tile].core, self._windows[tile]
        rows, columns = (
            wider(window[axis], core[axis], self._grid.shape[axis], ends, self._tiling.largest_px)
            for axis, ends in enumerate((sides[:2], sides[2:]))
        )
        self._windows[tile] = (rows, columns)
        return (rows, columns) != window


def wider(
    span: slice, core: slice, side_px: int, ends: tuple[bool, bool], largest_px: int
) -> slice:
    """One side of a window with twice the overlap at some ends, as far as it may grow.

    Parameters
    ----------
    span, core
        Of the window and of its core.
    side_px
        Of the field.
    ends
        Whether the lower and the upper end grow.
    largest_px
        What the result is no longer than; where both ends would need more, they share it.

    Examples
    --------
    >>> wider(slice(30, 70), slice(40, 60), 100, (True, True), 90)
    slice(20, 80, None)
    >>> wider(slice(30, 70), slice(40, 60), 100, (True, False), 44)
    slice(26, 70, None)
    """
    low, high = core.start - span.start, span.stop - core.stop
    more_low = min(low, span.start) if ends[0] else 0
    more_high = min(high, side_px - span.stop) if ends[1] else 0
    room = max(largest_px - (span.stop - span.start), 0)
    if more_low + more_high > room:
        more_low = min(more_low, max(room - more_high, room // 2)) // 2 * 2
        more_high = min(more_high, room - more_low) // 2 * 2
    return slice(span.start - more_low, span.stop + more_high)


@dataclass(frozen=True, eq=False)
class _Agreement:
    """What tiles say of the instances that lie in several cores.

    Attributes
    ----------
    matched : (m, 4) int64
        Tile and id of an instance that belongs to another tile; that tile, and its id there.
    lone : (k, 3) int64
        Tile and id of an instance as another tile does not see it; that tile.
    """

    matched: np.ndarray
    lone: np.ndarray


def _compared(grid: Grid, seams: dict[int, Seams]) -> _Agreement:
    """Who sees the same, and who does not."""
    keys, nodes = [], []  # (core, anchor, area, mix) and (tile, id, other tile)
    for tile, one in seams.items():
        ids = np.arange(one.owned + 1, one.owned + len(one.foreign) + 1)
        owners = grid.tile_of(one.foreign[:, 0].astype(np.int64))
        for signature, core, id_of, other in (
            (one.foreign, np.full(len(ids), tile), ids, owners),
            (one.claims, one.claim_tiles, one.claim_ids, one.claim_tiles),
        ):
            keys.append(np.column_stack([core.astype(np.uint64), signature]))
            nodes.append(np.column_stack([np.full(len(core), tile), id_of, other]))
    key, node = np.concatenate(keys), np.concatenate(nodes).astype(np.int64)
    order = np.lexsort([node[:, 0], *key.T])
    key, node = key[order], node[order]
    twins = (key[1:] == key[:-1]).all(axis=1)  # one is foreign, the other a claim
    first = np.flatnonzero(twins)
    lone = np.ones(len(key), bool)
    lone[first] = lone[first + 1] = False
    here = key[first, 0].astype(np.int64) == node[first, 0]
    foreign, owner = np.where(here, first, first + 1), np.where(here, first + 1, first)
    matched = np.column_stack([node[foreign, :2], node[owner, :2]])
    return _Agreement(matched, node[lone])


def _numbered(seams: dict[int, Seams], agreement: _Agreement) -> tuple[tuple[np.ndarray, ...], int]:
    """For each tile, the id in the field of each of its ids (int64); how many instances.

    Instances that belong to another tile, which does not see them so, come last.
    """
    ends = np.cumsum([0, *(seams[tile].owned for tile in range(len(seams)))])
    numbers = [
        np.zeros(one.owned + len(one.foreign) + 1, np.int64) for _, one in sorted(seams.items())
    ]
    for tile, one in seams.items():
        numbers[tile][1 : one.owned + 1] = np.arange(ends[tile] + 1, ends[tile + 1] + 1)
    for tile, there, owner, own in agreement.matched.tolist():
        numbers[tile][there] = numbers[owner][own]
    total = int(ends[-1])
    for table in numbers:
        open_ids = np.flatnonzero(table[1:] == 0) + 1
        table[open_ids] = np.arange(total + 1, total + len(open_ids) + 1)
        total += len(open_ids)
    return tuple(numbers), total


def _dense(
    numbers: tuple[np.ndarray, ...], patches: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray, int]:
    """Ids without gaps, in the order of those given."""
    used = np.unique(np.concatenate([*numbers, patches[1]]))
    used = used[used > 0]

    def dense(ids: np.ndarray) -> np.ndarray:
        return np.where(ids > 0, np.searchsorted(used, ids) + 1, 0)

    return tuple(map(dense, numbers)), np.stack([patches[0], dense(patches[1])]), len(used)


def _too_long(longest: Region, tiling: Tiling) -> str:
    rows, columns = longest
    return (
        f"the instance in rows {rows.start} to {rows.stop - 1} and columns {columns.start} to "
        f"{columns.stop - 1} goes on beyond that, and windows grow to {tiling.largest_px} px; "
        f"raise tile_px to {tiling.largest_px} or more"
    )


def _common(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))
