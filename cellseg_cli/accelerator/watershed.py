"""Instances of a batch from class probabilities alone: interiors grown into their borders.

The rules and the label images are those of :mod:`cellseg_cli.clustering.watershed`, to the
pixel.  There the water rises level by level; here every pixel finds from its neighbours when it
is reached and whose water that is, again and again until nothing changes.  That takes as many
rounds as the longest way from a marker has pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellseg_cli.clustering.settings import Clustering

from .graphs import LAST, neighbours, summed
from .pieces import connected_pieces, finished, size_ranks

_LEVEL = 2**32  # a time is a level times this, and the layer in it


def watershed(usable: Tensor, settings: Clustering, classes: Tensor) -> Tensor:
    """The label images of class probabilities.

    Parameters
    ----------
    usable : (B,) bool
        The fields to cluster; the others come out as background.
    settings : Clustering
        Resolved; uses ``seed_level``, ``foreground`` and ``min_area_px``.
    classes : (B, 3, Y, X) uint8

    Returns
    -------
    (B, Y, X) int32
    """
    assert settings.seed_level is not None and settings.foreground is not None
    assert settings.min_area_px is not None
    mask = foreground(classes, settings.foreground) & usable[:, None, None]
    markers = connected_pieces(mask & inside(classes, settings.seed_level)).image
    return finished(flooded(markers, mask, classes[:, 1]), settings.min_area_px)


def foreground(classes: Tensor, level: float) -> Tensor:
    """Where the probability of not being background is above a level: (B, Y, X) bool."""
    return classes[:, 0].double() < 255 * (1 - level)


def inside(classes: Tensor, level: float) -> Tensor:
    """Where the interior probability is above a level: (B, Y, X) bool."""
    return classes[:, 1].double() > 255 * level


def flooded(markers: Tensor, mask: Tensor, interior: Tensor) -> Tensor:
    """Markers grown over the foreground, and pieces of it that have none.

    Parameters
    ----------
    markers : (B, Y, X) int64, 0 = none
        The markers of a field are higher than those of the fields before it.
    mask : (B, Y, X) bool
        The foreground; holds all markers.
    interior : (B, Y, X) uint8
        Probability times 255.

    Returns
    -------
    (B, Y, X) int64
        For each field, ordered as the labels of the markers, and above these those of pieces
        without a marker.
    """
    labels = _flooded(markers, mask, 255 - interior.long())
    alone = connected_pieces(mask & (labels == 0)).image
    top, last = (_top(image) for image in (markers, alone))
    before = torch.cat([last.new_zeros(1), last[:-1]])  # pieces in earlier fields
    labels = torch.where(labels > 0, labels + before[:, None, None], 0)
    return torch.where(alone > 0, alone + top[:, None, None], labels)


def _top(labels: Tensor) -> Tensor:
    """The highest label up to each field: (B,)."""
    return labels.flatten(1).amax(1).cummax(0).values


def _flooded(markers: Tensor, mask: Tensor, level: Tensor) -> Tensor:
    """The label of the marker that each pixel is reached by, 0 = none."""
    flat = markers.view(-1)
    marked = flat[flat > 0]
    rank = size_ranks(summed(marked, int(flat.max()) + 1, torch.ones_like(marked)))
    nobody = len(rank)
    owner = torch.where(flat > 0, rank[flat], nobody)
    level = level.reshape(-1)
    time = torch.where(flat > 0, level * _LEVEL, LAST)
    open_ = (mask.view(-1) & (flat == 0)).nonzero()[:, 0]
    depth = level[open_]
    around = neighbours(open_, markers.shape)
    while True:
        times = time[around]
        first = times.amin(0)
        owners = torch.where(times == first, owner[around], nobody).amin(0)
        reached = torch.where(first // _LEVEL >= depth, first + 1, depth * _LEVEL)
        reached = torch.where(first < LAST, reached, LAST)
        if torch.equal(reached, time[open_]) and torch.equal(owners, owner[open_]):
            break
        time[open_], owner[open_] = reached, owners
    return torch.cat([rank.argsort(), rank.new_zeros(1)])[owner].view_as(markers)
