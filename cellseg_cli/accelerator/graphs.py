"""Sets of nodes that are joined in parallel, and the first of each group of entries.

Nodes, groups and keys are int64.  Minima and integer sums do not depend on the order in which a
device gets to them, so results are the same bits on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: More than any key.
LAST = torch.iinfo(torch.int64).max


def components(size: int, one: Tensor, two: Tensor) -> Tensor:
    """The lowest node of the connected component of each node.

    Every round hooks each root that has a lower one next to it under the lowest of these.

    Parameters
    ----------
    size : int
        Nodes 0 to ``size - 1``.
    one, two : (m,) int64
        The ends of each edge.

    Returns
    -------
    (size,) int64

    Examples
    --------
    >>> components(5, torch.tensor([4, 2]), torch.tensor([1, 4])).tolist()
    [0, 1, 1, 3, 1]
    """
    parent = torch.arange(size, device=one.device)
    while True:
        one, two = parent[one], parent[two]
        apart = one != two
        one, two = one[apart], two[apart]
        if one.numel() == 0:
            return parent
        parent.scatter_reduce_(0, torch.maximum(one, two), torch.minimum(one, two), "amin")
        parent = roots(parent)


def roots(parent: Tensor) -> Tensor:
    """The node at the end of each chain of parents, by pointer jumping."""
    while not torch.equal(above := parent[parent], parent):
        parent = above
    return parent


def firsts(group: Tensor, groups: int, *keys: Tensor) -> Tensor:
    """The entries that come first in their group.

    Parameters
    ----------
    group : (m,) int64
        0 to ``groups - 1``.
    groups : int
    *keys : (m,) int64
        In falling order of importance; smaller ones come first.  Entries that are equal in all
        are all returned.

    Returns
    -------
    (k,) int64
        Rising indices of entries.

    Examples
    --------
    >>> firsts(torch.tensor([2, 0, 2]), 3, torch.tensor([7, 7, 7]), torch.tensor([5, 6, 4]))
    tensor([1, 2])
    """
    index = torch.arange(len(group), device=group.device)
    for key in keys:
        key, within = key[index], group[index]
        best = least(within, groups, key)
        index = index[key == best[within]]
    return index


def least(group: Tensor, groups: int, key: Tensor) -> Tensor:
    """The smallest key of each group: (groups,) int64, :data:`LAST` for groups without entries."""
    best = torch.full((groups,), LAST, device=group.device)
    return best.scatter_reduce_(0, group, key, "amin")


def summed(group: Tensor, groups: int, values: Tensor) -> Tensor:
    """The sums of the values (m, ...) of each group: (groups, ...) of their dtype."""
    total = torch.zeros((groups, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return total.index_add_(0, group, values)


def neighbours(pixel: Tensor, shape: Sequence[int]) -> Tensor:
    """The 4 neighbours of pixels, themselves in place of those outside the field: (4, m) int64.

    Parameters
    ----------
    pixel : (m,) int64
        Flat indices.
    shape : (int, int, int)
        B, Y, X.

    Examples
    --------
    >>> neighbours(torch.tensor([6]), (2, 2, 3)).T.tolist()  # the first pixel of the second field
    [[6, 6, 7, 9]]
    """
    _, height, width = shape
    row, column = pixel // width % height, pixel % width
    steps = (
        (-width, row > 0), (-1, column > 0), (1, column < width - 1), (width, row < height - 1)
    )  # fmt: skip
    return torch.stack([torch.where(inside, pixel + step, pixel) for step, inside in steps])
