"""Agglomeration of touching clusters, in the rounds and with the ties of the reference.

The rules of :mod:`cellseg_cli.clustering.merging`.  Sums are exact (see there), so adding them up
in any order gives the same bits; distances are the same float64 operations in the same order, each
rounded on its own; and ties are decided by the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cellseg_cli.clustering.merging import HUB

from .graphs import LAST, firsts, least, roots

_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # as int64


@dataclass(frozen=True, eq=False)
class Clusters:
    """The state of an agglomeration; tensors are changed in place.

    Attributes
    ----------
    spatial : bool
    sums : (E, n) float64
        Of the vectors in each cluster; or of centre y, centre x and bandwidth.
    counts : (n,) float64
        Pixels of each cluster.
    name : (n,) int64
        Of each node in its field.
    parent : (n,) int64
        The cluster that each node was merged into, itself if none.
    """

    spatial: bool
    sums: Tensor
    counts: Tensor
    name: Tensor
    parent: Tensor


def merged(
    sums: Tensor, pairs: tuple[Tensor, Tensor], name: Tensor, spatial: bool, levels: Sequence[float]
) -> Tensor:
    """The cluster of each node after all merges.

    Parameters
    ----------
    sums : (E, n) float64
        What each node holds; used up.
    pairs : (m,) int64, (m,) int64
        Nodes that touch.
    name : (n,) int64
        The number of each node in its field, which decides ties.
    spatial : bool
    levels : sequence of float
        The distances to go through, rising.

    Returns
    -------
    (n,) int64
        One of the nodes of the cluster.
    """
    size = len(name)
    parent = torch.arange(size, device=name.device)
    state = Clusters(spatial, sums, torch.ones_like(name, dtype=torch.float64), name, parent)
    one, two = pairs
    distance = _distance(state, one, two)
    level = 0
    while len(distance):
        lowest = float(distance.min())
        while level < len(levels) and levels[level] <= lowest:
            level += 1
        if level == len(levels):
            break
        near = (distance < levels[level]).nonzero()[:, 0]
        changed = _joined(state, _nearest(state, one[near], two[near], distance[near]))
        one, two = parent[one], parent[two]
        apart = one != two
        one, two, distance = one[apart], two[apart], distance[apart]
        anew = (changed[one] | changed[two]).nonzero()[:, 0]
        distance[anew] = _distance(state, one[anew], two[anew])
    return roots(parent)


def _distance(state: Clusters, one: Tensor, two: Tensor) -> Tensor:
    """The distances of pairs of clusters: (m,) float64."""
    sums, counts = state.sums, state.counts
    if state.spatial:
        down = sums[0][one] / counts[one] - sums[0][two] / counts[two]
        across = sums[1][one] / counts[one] - sums[1][two] / counts[two]
        width = 0.5 * (sums[2][one] / counts[one] + sums[2][two] / counts[two])
        distance = (down * down + across * across).sqrt() / width
        return torch.where(width > 0, distance, torch.inf)
    total = torch.zeros_like(one, dtype=torch.float64)
    for component in sums:
        total = total + component[one] * component[two]
    return (1.0 - total / (counts[one] * counts[two])).clamp_min(0)


def _nearest(state: Clusters, one: Tensor, two: Tensor, distance: Tensor) -> Tensor:
    """The cluster that each is nearest to: (n,) int64, LAST for those in no pair.

    Distances are not negative, so that their bits are ordered like them.
    """
    size = len(state.name)
    node, other = torch.cat([one, two]), torch.cat([two, one])
    key = distance.view(torch.int64).repeat(2)
    tied = (key == least(node, size, key)[node]).nonzero()[:, 0]
    node, other = node[tied], other[tied]
    nearest, last = least(node, size, other), -least(node, size, -other)
    open_ = (nearest[node] != last[node]).nonzero()[:, 0]
    if open_.numel():
        node, other = node[open_], other[open_]
        chosen = firsts(node, size, *_ties(state, node, other))
        nearest[node[chosen]] = other[chosen]
    return nearest


def _ties(state: Clusters, node: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What decides between pairs of equal distance: content, scattered names, names."""
    low, high = (one(state.name[node], state.name[other]) for one in (torch.minimum, torch.maximum))
    content = _content(state, node) + _content(state, other)
    return _as_unsigned(content), _as_unsigned(_mixed((low << 32) | high)), other


def _content(state: Clusters, node: Tensor) -> Tensor:
    """A number that depends on what a cluster holds, and looks random: (m,) int64."""
    bits = state.counts[node].long()
    for component in state.sums[2 if state.spatial else 0 :]:
        bits = _mixed(bits ^ (component[node] * 16777216.0).long())
    return bits


def _mixed(bits: Tensor) -> Tensor:
    """The finaliser of splitmix64, on int64 that stand for uint64."""
    bits = (bits ^ _shifted(bits, 30)) * _MIX[0]
    bits = (bits ^ _shifted(bits, 27)) * _MIX[1]
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Bits shifted right, zeros filled in."""
    return (bits >> places) & (2 ** (64 - places) - 1)


def _as_unsigned(bits: Tensor) -> Tensor:
    """Numbers ordered as the same bits are as uint64."""
    return bits ^ -(2**63)


def _joined(state: Clusters, nearest: Tensor) -> Tensor:
    """Merge the mutual pairs, and small clusters with their much larger nearest.

    Returns
    -------
    (n,) bool
        The clusters that took others in.
    """
    counts, parent = state.counts, state.parent
    small = (nearest < LAST).nonzero()[:, 0]
    large = nearest[small]
    fewer, as_many = counts[small] < counts[large], counts[small] == counts[large]
    mutual = (nearest[large] == small) & (fewer | (as_many & (small > large)))
    merging = mutual | (HUB * counts[small] <= counts[large])
    small, large = small[merging], large[merging]
    parent[small] = large
    while not torch.equal(above := parent[large], large):
        large = above
    parent[small] = large
    held = state.sums[:, small].view(-1)
    rows = torch.arange(len(state.sums), device=small.device)[:, None] * len(parent)
    state.sums.view(-1).index_add_(0, (rows + large).view(-1), held)
    counts.index_add_(0, large, counts[small])
    changed = torch.zeros_like(parent, dtype=torch.bool)
    changed[large] = True
    return changed
