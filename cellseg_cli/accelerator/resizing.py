"""Batches of fields made smaller for clustering, and their labels larger again.

The same places, weights and order of operations as :mod:`cellseg_cli.clustering.resizing`, so
the same bits: no operation here multiplies and adds in one rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellseg_cli.clustering.resizing import bilinear_places, nearest_places


def resized_bilinear(channels: Tensor, shape: tuple[int, int]) -> Tensor:
    """The channels (B, C, Y, X) at another size: bilinear, corners of the field aligned."""
    for axis, size in ((2, shape[0]), (3, shape[1])):
        old = channels.shape[axis]
        if old == size:
            continue
        places = bilinear_places(old, size)
        low, high, part = (torch.from_numpy(one).to(channels.device) for one in places)
        part = part[:, None] if axis == 2 else part
        lower, upper = channels.index_select(axis, low), channels.index_select(axis, high)
        channels = lower * (1 - part) + upper * part
    return channels


def enlarged_nearest(labels: Tensor, field: tuple[int, int]) -> Tensor:
    """The labels (B, y, x) at the size of the field: (B, Y, X)."""
    rows, columns = (
        torch.from_numpy(nearest_places(old, new)).to(labels.device)
        for old, new in zip(labels.shape[1:], field, strict=True)
    )
    return labels[:, rows[:, None], columns]
