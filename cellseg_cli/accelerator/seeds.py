"""Instances of a batch of spatial embeddings, grown around the maxima of the seed map.

The rules and the label images are those of :mod:`cellseg_cli.clustering.seeds`, to the pixel.
There seeds are taken one by one; here all that cannot see each other grow in the same round
(:mod:`~cellseg_cli.accelerator.turns`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cellseg_cli.clustering.seeds import CORE_REACH
from cellseg_cli.clustering.settings import Clustering

from .graphs import summed
from .leftovers import nearest_discs
from .pieces import finished
from .plane import Plane, Tiling, plane_of, radii, squared_distances
from .turns import Turns

#: Side of the tiles in which seeds take turns: about the reach of a small nucleus.
TILE_PX = 8

_SPENT = -1  # owner of a pixel that may be taken, but starts no instance


def seeds(values: Tensor, usable: Tensor, settings: Clustering) -> Tensor:
    """The label images of spatial embeddings.

    Parameters
    ----------
    values : (B, 4, Y, X) float32, C-contiguous
        Finite in the fields that are usable.
    usable : (B,) bool
        The fields to cluster; the others come out as background.
    settings : Clustering
        Resolved; uses ``foreground``, ``seed_level`` and ``min_area_px``.

    Returns
    -------
    (B, Y, X) int32
    """
    assert settings.foreground is not None and settings.seed_level is not None
    assert settings.min_area_px is not None
    instances = grown_instances(
        values, usable, settings.foreground, settings.seed_level, settings.min_area_px
    )
    return finished(instances, settings.min_area_px)


def grown_instances(
    values: Tensor, usable: Tensor, foreground: float, seed_level: float, min_area_px: int
) -> Tensor:
    """The instances before pieces and holes are settled: (B, Y, X) int64.

    They are numbered from 1 through the batch, in each field by falling seed value.
    """
    plane = plane_of(values, usable, float(np.float32(foreground)))
    labels = torch.zeros(plane.shape, dtype=torch.int64, device=values.device)
    order = _by_falling_seed(plane, float(np.float32(seed_level)))
    if order.numel() == 0:
        return labels
    owner, field, discs = _grow(plane, order, min_area_px)
    free = (owner == 0).nonzero()[:, 0]
    owner[free] = nearest_discs(plane, free, field, discs)
    labels.view(-1)[plane.pixel] = owner
    return labels


def _by_falling_seed(plane: Plane, seed_level: float) -> Tensor:
    """The pixels that may start an instance, in the order in which they do: (c,) int64.

    The bits of floats that are not negative are ordered like the values.
    """
    able = (plane.seed >= seed_level).nonzero()[:, 0]
    falling = -plane.seed[able].view(torch.int32).long()
    inward = plane.inward[able].float().view(torch.int32).long()
    return able[((falling << 32) + inward).sort(stable=True).indices]


@dataclass(frozen=True, eq=False)
class _Round:
    """Seeds that grow at the same time, and the pixels within their reach.

    Attributes
    ----------
    seed : (a,) int64
        Indices in the plane.
    pixel : (m,) int64
        Indices in the plane.
    turn : (m,) int64
        Which of the seeds may take each pixel.
    free : (m,) bool
        The pixels that no instance has.
    """

    seed: Tensor
    pixel: Tensor
    turn: Tensor
    free: Tensor

    def within(self, plane: Plane, disc: Tensor) -> Tensor:
        """The pixels in the disc of their seed, of discs (a, 3): (m,) bool."""
        radius = radii(disc, CORE_REACH)
        square = squared_distances(plane.disc[self.pixel], disc[self.turn])
        return square <= (radius * radius)[self.turn]


def _grow(plane: Plane, order: Tensor, min_area_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """Instances of all seeds.

    Returns
    -------
    owner : (n,) int64
        The instance of each pixel of the plane, from 1; 0 = none.
    field : (k,) int64
        Of each instance.
    disc : (k, 3) int64
        Of each instance.
    """
    every = torch.arange(len(plane.pixel), device=order.device)
    tiling = Tiling.of(plane.shape, TILE_PX)
    tile = tiling.at(plane.field(every), plane.disc)
    turns = Turns(tiling, tile, radii(plane.disc, CORE_REACH), order)
    owner = torch.zeros_like(every)  # rank of the seed + 1
    waiting = torch.arange(len(order), device=order.device)  # ranks
    ranks, discs = [], []
    while waiting.numel():
        going, pixel, turn = turns.next(waiting)
        now = _Round(order[going], pixel, turn, owner[pixel] <= 0)
        disc, good, taken = _decided(plane, now, min_area_px)
        owner[now.seed] = _SPENT
        owner[pixel[taken]] = torch.where(good, going + 1, _SPENT)[turn[taken]]
        ranks.append(going[good])
        discs.append(disc[good])
        waiting = waiting[owner[order[waiting]] == 0]
    rank, disc = torch.cat(ranks), torch.cat(discs)
    sequence = _by_field_and_rank(plane.field(order[rank]), rank)
    rank = rank[sequence]
    number = torch.zeros(len(order) + 1, dtype=torch.int64, device=order.device)
    number[rank + 1] = torch.arange(1, len(rank) + 1, device=order.device)
    return number[owner.clamp_min(0)], plane.field(order[rank]), disc[sequence]


def _by_field_and_rank(field: Tensor, rank: Tensor) -> Tensor:
    by_rank = rank.argsort()
    return by_rank[field[by_rank].sort(stable=True).indices]


def _decided(plane: Plane, now: _Round, min_area_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """What becomes of the seeds of a round.

    Returns
    -------
    disc : (a, 3) int64
        Moved, where that was due.
    good : (a,) bool
        Whether the seed gives an instance.
    taken : (m,) bool
        The free pixels in the disc.
    """
    disc = plane.disc[now.seed]
    taken, moving = _counted(plane, now, disc, min_area_px)
    disc = _moved(plane, now, disc, taken, moving)
    taken, good = _counted(plane, now, disc, min_area_px)
    return disc, good, taken


def _counted(plane: Plane, now: _Round, disc: Tensor, min_area_px: int) -> tuple[Tensor, Tensor]:
    """The free pixels in the discs (m,), and whether these are enough for an instance (a,)."""
    inside = now.within(plane, disc)
    taken = inside & now.free
    free, every = summed(now.turn, len(disc), torch.stack([taken, inside], 1).long()).unbind(1)
    return taken, (free >= min_area_px) & (2 * free > every)


def _moved(plane: Plane, now: _Round, disc: Tensor, taken: Tensor, moving: Tensor) -> Tensor:
    """Discs at the seed-weighted mean of centres and bandwidths of the pixels taken.

    Those that are not moving stay as they are.  Means are rounded to the nearest step.
    """
    at = taken.nonzero()[:, 0]
    pixel, turn = now.pixel[at], now.turn[at]
    weight = plane.weight(pixel)[:, None]
    origin = disc.clone()
    origin[:, 2] = 0  # centres are summed from that of the seed, bandwidths from 0
    total = summed(turn, len(disc), weight)
    parts = summed(turn, len(disc), weight * (plane.disc[pixel] - origin[turn]))
    mean = (parts.double() / total.clamp_min(1).double()).round().long() + origin
    # a total of 0: seed values below half a step
    return torch.where(moving[:, None] & (total > 0), mean, disc)
