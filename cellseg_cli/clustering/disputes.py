"""What to do with instances that tiles of a large field see differently to the end.

Every pixel keeps the instance that the tile of its core sees; what is open is which parts in
different cores are one instance.

1. Two tiles see the same instance if what they see, inside their cores and outside, shares more
   than half of its union.  Among what two tiles see no instance can have two such partners.
2. An instance is all parts that rule 1 joins, directly or by others.
3. Of an instance that is in several pieces then, the largest stays (of equal ones the first in
   row-major order).  Other pieces become instances of their own; pieces under ``min_area_px``
   become background.

So no pixel is in two instances, and none is lost but in pieces too small to be one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .pieces import connected_pieces
from .seams import Grid, Shelf

Node = tuple[int, int]  # a tile, and an id of it


def settled(
    grid: Grid,
    shelf: Shelf,
    numbers: tuple[np.ndarray, ...],
    nodes: np.ndarray,
    min_area_px: int,
) -> tuple[tuple[np.ndarray, ...], np.ndarray, int]:
    """Settle what is disputed by the rules of this module.

    Parameters
    ----------
    grid : Grid
    shelf : Shelf
        Holds core and rim of each tile.
    numbers : tuple of (n,) int64
        For each tile, the id in the field of each of its ids.
    nodes : (k, 2) int64
        Tile and id of the instances that another tile does not see so.
    min_area_px : int

    Returns
    -------
    numbers : tuple of (n,) int64
        The same for the settled instances; may have gaps.
    patches : (2, p) int64
        Positions where other ids stand than ``numbers`` say, and these ids.
    disputed : int
        Instances that had to be settled.
    """
    numbers = _renamed(numbers, _joined(grid, shelf, numbers, nodes))
    ids = np.unique([numbers[tile][one] for tile, one in nodes.tolist()])
    following = max(int(table.max()) for table in numbers) + 1
    dropped: dict[int, int] = {}
    patches = [np.zeros((2, 0), np.int64)]
    for one, positions in _parts(grid, shelf, numbers, ids):
        pieces, areas = _pieces(grid, positions)
        largest = int(np.argmax(areas[1:])) + 1
        if areas[largest] < min_area_px:
            dropped[one] = 0
            continue
        number = np.zeros(len(areas), np.int64)
        for piece in np.flatnonzero(areas >= min_area_px).tolist():
            if piece != largest:
                number[piece] = following
                following += 1
        other = pieces != largest
        patches.append(np.stack([positions[other], number[pieces[other]]]))
    return _renamed(numbers, dropped), np.concatenate(patches, axis=1), len(ids)


def _joined(
    grid: Grid, shelf: Shelf, numbers: tuple[np.ndarray, ...], nodes: np.ndarray
) -> dict[int, int]:
    """The ids that are joined to a lower one by rules 1 and 2, and that lowest one."""
    seen = dict(_seen(grid, shelf, nodes))
    rivals = _rivals(grid, shelf, seen)
    others = np.array(sorted({rival for _, rival in rivals} - seen.keys())).reshape(-1, 2)
    seen |= dict(_seen(grid, shelf, others))
    lowest: dict[int, int] = {}

    def root(number: int) -> int:
        while number in lowest:
            number = lowest[number]
        return number

    for one, other in rivals:
        common = len(np.intersect1d(seen[one], seen[other], assume_unique=True))
        if 2 * common > len(seen[one]) + len(seen[other]) - common:
            ends = sorted({root(int(numbers[tile][there])) for tile, there in (one, other)})
            lowest |= {ends[-1]: ends[0]} if len(ends) == 2 else {}
    return {number: root(number) for number in lowest}


def _rivals(grid: Grid, shelf: Shelf, seen: dict[Node, np.ndarray]) -> list[tuple[Node, Node]]:
    """Each instance with each that another tile has in its own core where this one lies."""
    entering: dict[int, list[tuple[Node, np.ndarray]]] = {}
    for node, positions in seen.items():
        tiles = grid.tile_of(positions)
        for tile in np.unique(tiles[tiles != node[0]]).tolist():
            entering.setdefault(tile, []).append((node, positions[tiles == tile]))
    rivals = []
    for tile, guests in sorted(entering.items()):
        core = shelf.kept(f"core{tile}")
        for node, positions in guests:
            there = np.unique(core[grid.in_core(tile, positions)])
            rivals += [(node, (tile, one)) for one in there[there > 0].tolist()]
    return rivals


def _seen(grid: Grid, shelf: Shelf, nodes: np.ndarray) -> Iterator[tuple[Node, np.ndarray]]:
    """The sorted positions of instances as their tiles see them, inside their cores and outside."""
    for tile in np.unique(nodes[:, 0]).tolist():
        ids = np.unique(nodes[nodes[:, 0] == tile, 1])
        rim = shelf.kept(f"rim{tile}")
        rim = rim[:, np.isin(rim[1], ids)]
        inside = _in_core(grid, shelf, tile, ids)
        for one, positions in _by_id(np.concatenate([inside, rim], axis=1)):
            yield (tile, one), positions


def _parts(
    grid: Grid, shelf: Shelf, numbers: tuple[np.ndarray, ...], ids: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """The sorted positions of instances of the field, each in the core that it lies in."""
    found = [np.zeros((2, 0), np.int64)]
    for tile, table in enumerate(numbers):
        there = np.flatnonzero(np.isin(table, ids))
        if len(there):
            inside = _in_core(grid, shelf, tile, there)
            found.append(np.stack([inside[0], table[inside[1]]]))
    return _by_id(np.concatenate(found, axis=1))


def _in_core(grid: Grid, shelf: Shelf, tile: int, ids: np.ndarray) -> np.ndarray:
    """Positions and ids of some instances in the core of a tile: (2, p) int64."""
    core = shelf.kept(f"core{tile}")
    wanted = np.zeros(max(int(core.max()), int(ids.max())) + 1, bool)
    wanted[ids] = True
    rows, columns = np.nonzero(wanted[core])
    start = grid.tiles[tile].core
    positions = (rows + start[0].start) * grid.shape[1] + columns + start[1].start
    return np.stack([positions, core[rows, columns].astype(np.int64)])


def _by_id(pixels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Ids, ascending, and their sorted positions, of (2, p) positions and ids."""
    positions, ids = pixels[:, np.lexsort(pixels)]
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield int(ids[start]), positions[start:end]


def _pieces(grid: Grid, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected piece of each position, from 1, and the area of each piece."""
    rows, columns = grid.places(positions)
    rows, columns = rows - rows.min(), columns - columns.min()
    mask = np.zeros((rows.max() + 1, columns.max() + 1), np.int32)
    mask[rows, columns] = 1
    pieces, _, areas = connected_pieces(mask)
    return pieces[rows, columns], areas


def _renamed(numbers: tuple[np.ndarray, ...], names: dict[int, int]) -> tuple[np.ndarray, ...]:
    """The tables with other ids in place of some."""
    if not names:
        return numbers
    old = np.array(sorted(names))
    new = np.array([names[one] for one in old.tolist()])

    def renamed(table: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(old, table), len(old) - 1)
        return np.where(old[at] == table, new[at], table)

    return tuple(map(renamed, numbers))
