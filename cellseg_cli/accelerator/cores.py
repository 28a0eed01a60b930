"""Clusters of a batch cut into connected pieces that touch only by thin bridges.

The rules are those of :mod:`cellseg_cli.clustering.cores`, to the pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .graphs import LAST, neighbours
from .pieces import Pieces, connected_pieces, size_ranks


def separated(labels: Tensor, erosion: str) -> Tensor:
    """Each connected piece of each cluster under a number of its own.

    See :func:`cellseg_cli.clustering.cores.separated` for the kinds of erosion.

    Parameters
    ----------
    labels : (B, Y, X) int64
        Clusters, 0 = background.
    erosion : str

    Returns
    -------
    (B, Y, X) int64
        Numbered through the batch.
    """
    if erosion == "none":
        return connected_pieces(labels).image
    cores = connected_pieces(_eroded(labels))
    return cores.image if erosion == "origin" else _grown(cores, labels)


def _eroded(labels: Tensor) -> Tensor:
    """The labels without the pixels that have a neighbour of another label."""
    inner = torch.ones_like(labels, dtype=torch.bool)
    across = labels[..., 1:] == labels[..., :-1]
    down = labels[:, 1:] == labels[:, :-1]
    inner[..., 1:] &= across
    inner[..., :-1] &= across
    inner[:, 1:] &= down
    inner[:, :-1] &= down
    return torch.where(inner, labels, 0)


def _grown(cores: Pieces, labels: Tensor) -> Tensor:
    """Cores grown within their cluster, one 4-connected layer a round.

    A pixel goes to the largest core among the neighbours that have one.
    """
    rank = size_ranks(cores.area_of)
    cluster, core = labels.reshape(-1), cores.image.view(-1)
    grown = torch.where(core > 0, rank[core], LAST)
    waiting = ((cluster > 0) & (core == 0)).nonzero()[:, 0]
    while True:
        around = neighbours(waiting, labels.shape)
        alike = cluster[around] == cluster[waiting]
        nearest = torch.where(alike, grown[around], LAST).amin(0)
        grown[waiting] = nearest
        left = waiting[nearest == LAST]
        if left.numel() == waiting.numel():
            break
        waiting = left
    core_of = torch.cat([rank.argsort(), rank.new_zeros(1)])  # the last for those without
    return core_of[grown.clamp_max(len(rank))].view_as(labels)
