"""Foreground that no instance took, given to the disc it is nearest to.

Rule 4 of :mod:`cellseg_cli.clustering.seeds`.  Discs are listed under the tiles they reach over.
There are tiles of several sizes and a disc is listed in those about as large as itself, nine at
most, so that the lists take little memory however wide discs are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellseg_cli.clustering.seeds import LEFTOVER_REACH, STEPS

from .plane import Plane, Tiling, radii, squared_distances

_SMALLEST_PX = 8  # side of the smallest tiles; each size is twice the last


def nearest_discs(plane: Plane, free: Tensor, field: Tensor, discs: Tensor) -> Tensor:
    """For each free pixel the number of the disc of highest phi (equal ones: the first).

    Parameters
    ----------
    plane : Plane
    free : (m,) int64
        Pixels of the plane.
    field : (k,) int64
        The field of each disc.
    discs : (k, 3) int64

    Returns
    -------
    (m,) int64
        From 1; 0 where phi is below :data:`cellseg_cli.clustering.seeds.LEFTOVER_PHI` in all.
    """
    centre, free_field = plane.disc[free], plane.field(free)
    best = torch.full(free.shape, torch.inf, dtype=torch.float64, device=free.device)
    nearest = torch.full_like(free, len(discs))
    radius = radii(discs, LEFTOVER_REACH)
    power = _powers(radius, max(plane.shape[1:]))
    for one in power.unique().tolist():
        tiling = Tiling.of(plane.shape, _SMALLEST_PX * 2**one)
        starts, listed = _lists(tiling, field, discs, radius, (power == one).nonzero()[:, 0])
        tile = tiling.at(free_field, centre)
        begin, length = starts[tile], starts[tile + 1] - starts[tile]
        for turn in range(int(length.max()) if len(free) else 0):
            at = (length > turn).nonzero()[:, 0]
            disc = listed[begin[at] + turn]
            chosen = discs[disc]
            square = squared_distances(centre[at], chosen)
            distance = square.double() / (chosen[:, 2] * chosen[:, 2]).double()
            nearer = (distance < best[at]) | ((distance == best[at]) & (disc < nearest[at]))
            nearer &= square <= radius[disc] * radius[disc]
            best[at[nearer]] = distance[nearer]
            nearest[at[nearer]] = disc[nearer]
    return torch.where(nearest < len(discs), nearest + 1, 0)


def _powers(radius: Tensor, longest_px: int) -> Tensor:
    """For each disc the tiles to list it in: of 2^power times the smallest size."""
    sides = [_SMALLEST_PX]
    while sides[-1] < longest_px:
        sides.append(2 * sides[-1])
    steps = torch.tensor(sides, device=radius.device) * STEPS
    return torch.bucketize(radius, steps).clamp_max(len(sides) - 1)


def _lists(
    tiling: Tiling, field: Tensor, discs: Tensor, radius: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of some discs reach over each tile.

    Returns
    -------
    starts : (tiles + 1,) int64
        Those of tile t are ``listed[starts[t] : starts[t + 1]]``.
    listed : (m,) int64
        In rising order for each tile.
    """
    centre, reach, across = discs[which, :2], radius[which, None], tiling.shape[2]
    low, high = tiling.at(field[which], centre - reach), tiling.at(field[which], centre + reach)
    rows, columns = high // across - low // across, high % across - low % across
    tiles, entries = [], []
    for row in range(3):
        for column in range(3):
            there = ((row <= rows) & (column <= columns)).nonzero()[:, 0]
            tiles.append(low[there] + row * across + column)
            entries.append(which[there])
    listed, order = torch.cat(entries).sort(stable=True)
    tile, by_tile = torch.cat(tiles)[order].sort(stable=True)
    every = torch.arange(tiling.tiles + 1, device=tile.device)
    return torch.searchsorted(tile, every), listed[by_tile]
