"""Exact average linkage on cosine distance, without a distance matrix.

Average linkage is reducible: merging two nearest neighbours never brings a third cluster closer
than both were.  Hence

* a chain of nearest neighbours finds the same merges as the greedy order (Murtagh 1983), and
* what is known of the neighbours of a cluster stays true.  Every cluster keeps up to 8 near
  ones and a *reach*: all others are at least so far.  When near ones merge, their union stands in
  for them; when the cluster itself merges, lists are joined, and the reach of the union is the
  mean of both, weighted by their points, as its distances are.  If the nearest of the list is
  within reach, it is the nearest of all, and no search is needed.  Half of all steps end so.

The chain runs to the last merge, whatever the merge distance, so that all partitions of a set of
points are cuts of one tree, also where distances tie.  An early stop would save next to nothing:
at useful distances few clusters are left and the time has gone into the first merges (a synthetic
field cut at 0.3: 0.151 s with it, 0.156 s without; embeddings of trained networks: no difference;
noise cut at 0.02, where hardly anything merges: 0.115 s and 0.168 s).

Ties: equal vectors merge first.  Of neighbours at the same distance in float64, the one before in
the chain wins, then the one that the search met first (:mod:`~cellseg_cli.clustering.leaves`).
The order of the points decides which that is, and nothing else.

Time grows about as n^1.4, memory as n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiled import compiled, inlined, lean
from .leaves import (
    COINCIDENT,
    NONE,
    Clusters,
    Found,
    Leaves,
    laid_out,
    place,
    room,
    search,
    separation,
    take_out,
)
from .pieces import root_of

#: Neighbours kept by each cluster, and how much farther than it must a search looks, so that the
#: list it finds lasts.  Of 4 to 16 and 1.2 to 3, on synthetic fields and on embeddings of trained
#: networks, lists of 6 to 12 and a factor of 1.2 to 2 took the same time, others up to a third
#: more.
_KEPT = 8
_FARTHER = 1.5

#: Below so many clusters the layout is made no more.
_FEW = 64


class Tree(NamedTuple):
    """Merges by order of the chain: pairs (n - 1, 2) int32 and heights (n - 1,) float64."""

    pairs: np.ndarray
    heights: np.ndarray


class Neighbours(NamedTuple):
    """What is known of each cluster.

    Attributes
    ----------
    near : (n, 8) int32
        Clusters, or parts of clusters, that may be nearer than ``reach``; then NONE.
    reach : (n,) float64
        The distance of all others is at least this.
    parent : (n,) int32
        The cluster that one went into, or itself.
    height : (n,) float64
        Of the highest merge inside.
    linked : (n,) bool
        Whether it is in the chain.
    """

    near: np.ndarray
    reach: np.ndarray
    parent: np.ndarray
    height: np.ndarray
    linked: np.ndarray


def merges(units: np.ndarray) -> Tree:
    """All merges of average linkage on the cosine distance.

    Parameters
    ----------
    units : (n, E) float64
        Finite vectors of length 1, or 0 (similarity 0 to all, themselves included); E is a
        multiple of :data:`~cellseg_cli.clustering.leaves.STRIP`.  Used up.

    Returns
    -------
    pairs : (max(n - 1, 0), 2) int32
        A point of each of the clusters that merged.
    heights : (max(n - 1, 0),) float64
        The mean of all distances between them, or the height of a merge inside one of them where
        that is larger by the rounding of float64: no tree has a merge below one that it is
        made of, and a cut at any distance gives whole clusters.
    """
    size = len(units)
    clusters = Clusters(units, np.ones(size))
    known = Neighbours(
        np.full((size, _KEPT), NONE, np.int32),
        np.zeros(size),
        np.arange(size, dtype=np.int32),
        np.full(size, -np.inf),
        np.zeros(size, np.bool_),
    )
    tree = Tree(np.empty((max(size - 1, 0), 2), np.int32), np.empty(max(size - 1, 0)))
    alive = _without_repeats(clusters, known, tree)
    found = room(known.near, units.shape[1])
    chain = np.empty(alive.size, np.int32)
    length = 0
    while alive.size > 1:
        # a round ends when half of its clusters are gone; the rest get new, tighter boxes
        leaves = laid_out(alive, clusters)
        end = alive.size // 2 if alive.size > _FEW else 1
        length = _round((chain, length), (alive.size, end), leaves, known, tree, found)
        alive = leaves.held[leaves.held != NONE]
    return tree


def _without_repeats(clusters: Clusters, known: Neighbours, tree: Tree) -> np.ndarray:
    """Merge equal vectors, at 0 (zero vectors: at 1), and return which clusters there are.

    Whole regions of equal vectors tie with each other; a search among them would compare all.
    """
    first = _first_of_equal(clusters.sums, clusters.sums.view(np.uint64))
    points = np.arange(first.size, dtype=np.int32)
    repeats = np.flatnonzero(first != points)
    alive = points[first == points]
    tree.pairs[: repeats.size, 0] = first[repeats]
    tree.pairs[: repeats.size, 1] = repeats
    tree.heights[: repeats.size] = ~clusters.sums[repeats].any(axis=1)
    known.parent[repeats] = first[repeats]
    known.height[first[repeats]] = tree.heights[: repeats.size]
    clusters.counts[:] = np.bincount(first, minlength=first.size)
    many = np.flatnonzero(clusters.counts > 1)
    clusters.sums[many] *= clusters.counts[many, None]
    return alive


@compiled
def _first_of_equal(vectors: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The first vector that equals each one: (n,) int32, by a table of hashes."""
    size = 2
    while size < 2 * len(vectors):
        size *= 2
    table = np.full(size, np.int32(NONE))
    first = np.empty(len(vectors), np.int32)
    for i in range(len(vectors)):
        mixed = np.uint64(0)
        for k in range(vectors.shape[1]):
            mixed = (mixed ^ bits[i, k]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        slot = np.int64(mixed & np.uint64(size - 1))
        while table[slot] != NONE and (bits[table[slot]] != bits[i]).any():
            slot = (slot + 1) & (size - 1)
        if table[slot] == NONE:
            table[slot] = i
        first[i] = table[slot]
    return first


@lean
def _round(
    links: tuple[np.ndarray, int],
    until: tuple[int, int],
    leaves: Leaves,
    known: Neighbours,
    tree: Tree,
    found: Found,
) -> int:
    """Follow the chain from one number of clusters to another; all arrays change in place.

    ``links`` is the chain of clusters, and its length; the new length is returned.
    """
    chain, length = links
    left, end = until
    next_lane = 0
    while left > end:
        if length == 0:
            while leaves.held[next_lane] == NONE:
                next_lane += 1
            chain[0] = leaves.held[next_lane]
            length = 1
        tip = chain[length - 1]
        before = chain[length - 2] if length > 1 else NONE
        nearest, distance = _nearest(tip, before, leaves, known, found)
        known.linked[tip] = True
        # a link of the chain cannot be nearer than the one before, but by rounding
        if nearest != before and not known.linked[nearest]:
            chain[length] = nearest
            length += 1
            continue
        merge = len(tree.heights) + 1 - left
        tree.pairs[merge, 0], tree.pairs[merge, 1] = tip, before
        tree.heights[merge] = _merge(tip, before, distance, leaves, known, found)
        known.linked[tip] = known.linked[before] = False
        length -= 2
        left -= 1
    return length


@inlined
def _nearest(
    tip: int, before: int, leaves: Leaves, known: Neighbours, found: Found
) -> tuple[int, float]:
    """The nearest neighbour of a cluster, and its distance; ``before`` (or NONE) wins all ties."""
    nearest, distance = before, np.inf
    if before != NONE:
        distance = separation(tip, before, leaves.clusters)
    for i in range(_KEPT):
        if known.near[tip, i] == NONE:
            break
        other = root_of(known.parent, known.near[tip, i])
        known.near[tip, i] = other
        if other != tip and other != before:
            away = separation(tip, other, leaves.clusters)
            if away < distance:
                nearest, distance = other, away
    if distance > known.reach[tip] and distance >= COINCIDENT:
        reach = _FARTHER * distance
        count = search(tip, reach, leaves, found)
        known.reach[tip] = reach if count < _KEPT else found.distances[_KEPT - 1]
        if found.distances[0] < distance:  # there is one: ``before``, or any
            nearest, distance = known.near[tip, 0], found.distances[0]
    return nearest, distance


@inlined
def _merge(
    one: int, two: int, distance: float, leaves: Leaves, known: Neighbours, found: Found
) -> float:
    """Join two clusters in the lane of the larger one (equal ones: the lower); the height."""
    sums, counts = leaves.clusters
    if counts[two] > counts[one] or (counts[two] == counts[one] and two < one):
        one, two = two, one
    known.parent[two] = one
    known.height[one] = max(distance, max(known.height[one], known.height[two]))
    total = counts[one] + counts[two]
    reach = (counts[one] * known.reach[one] + counts[two] * known.reach[two]) / total
    counts[one] = total
    for k in range(sums.shape[1]):
        sums[one, k] += sums[two, k]
    take_out(two, leaves)
    place(one, leaves)
    known.reach[one] = _join_lists(one, two, reach, leaves, known, found)
    return known.height[one]


@inlined
def _join_lists(
    one: int, two: int, reach: float, leaves: Leaves, known: Neighbours, found: Found
) -> float:
    """Give ``one`` the nearest of both lists; its reach is returned.

    Clusters in neither list are at least as far as ``reach``.  Of those listed the ninth and
    farther ones are dropped, and bring the reach down.
    """
    count = 0
    for i in range(2 * _KEPT):
        other = known.near[one if i < _KEPT else two, i % _KEPT]
        if other == NONE:
            continue
        other = root_of(known.parent, other)
        twice = other == one
        for j in range(count):
            twice |= other == found.members[j]
        away = np.inf if twice else separation(one, other, leaves.clusters)
        if away >= reach:
            continue
        if count == _KEPT:
            reach = max(away, found.distances[_KEPT - 1])
            if away >= reach:
                continue
            count -= 1
        j = count
        while j > 0 and found.distances[j - 1] > away:
            found.distances[j] = found.distances[j - 1]
            found.members[j] = found.members[j - 1]
            j -= 1
        found.distances[j] = away
        found.members[j] = other
        count += 1
    for i in range(_KEPT):
        known.near[one, i] = found.members[i] if i < count else NONE
    return reach
