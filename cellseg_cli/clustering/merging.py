"""Average linkage in which only touching clusters may merge.

Every pixel to cluster begins as a cluster.  The distances of :data:`LADDER` below
``merge_distance``, and last that itself, are gone through one after the other.  At each, in
rounds until none are left, all pairs of touching clusters merge that are nearer than it and
each other's nearest; a cluster of at most 1/8 of its nearest's size merges with that at once.
The distance is that of average linkage: the mean cosine distance over all pairs of pixels
(contrastive), or the distance of the mean predicted centres divided by the mean bandwidth
(spatial).

Since the distances of the ladder come one after the other, the merges made for a large merge
distance begin with those made for a smaller one on the ladder: one clustering holds the partitions
of all of them (:class:`~cellseg_cli.clustering.trees.MergeTree`).

Vectors are rounded to multiples of 2^-24 (centres and bandwidths to 2^-10 px), so that their
float64 sums are exact for clusters of less than 2^25 pixels and do not depend on the order of
the pixels.  Pairs of equal distance are ordered by what the clusters hold, and only where that
is equal too by their place: mirroring a field changes the partition only there, or where two
distances differ by the rounding of a quotient.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled
from .pieces import root_of
from .trees import MergeTree

#: The distances at which the agglomeration stops to let all merges below happen first.
LADDER = (
    *(0.02, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    *(1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0),
    *(50.0, 100.0, 1000.0),
)

VECTOR_STEPS = 2.0**24  # steps of a component from 0 to 1
CENTRE_STEPS = 2.0**10  # steps of a px

#: A cluster takes in, in the same round, every neighbour of at most 1/8 of its size whose nearest
#: it is.  Strictly mutual merging would give a large region its rim pixels one a round, and take
#: the square of the pixels.
HUB = 8


def merge_tree(
    features: np.ndarray, mask: np.ndarray, spatial: bool, merge_distance: float
) -> MergeTree:
    """The merges of touching clusters, by rule 2 of this module.

    Parameters
    ----------
    features : (E, Y, X) float32 or float64
        Vectors compared by cosine; or, if ``spatial``, centre y, centre x and bandwidth.
    mask : (Y, X) bool
        The pixels to cluster; they are the points of the tree, in row-major order.
    spatial : bool
    merge_distance : float
    """
    sums = np.ascontiguousarray(features[:, mask].T, dtype=np.float64)
    if not spatial:
        square = np.zeros(len(sums))
        for component in sums.T:  # one after the other: the same bits on every machine
            square += component * component
        length = np.sqrt(square)[:, None]
        sums /= np.where(length > 0, length, 1)
    steps = CENTRE_STEPS if spatial else VECTOR_STEPS
    np.rint(sums * steps, out=sums)
    sums /= steps
    below = [distance for distance in LADDER if distance < merge_distance]
    pairs, level = _agglomerated(sums, _touching(mask), spatial, np.array([*below, merge_distance]))
    # a merge of the level up to b belongs to every cut at b or above: its height is the level below
    return MergeTree(len(sums), pairs, np.array([0.0, *below])[level])


@compiled
def _touching(mask: np.ndarray) -> np.ndarray:
    """The pairs of 4-neighbours in a mask, by their rank in it: (pairs, 2) int32."""
    height, width = mask.shape
    rank = np.full(width, np.int32(-1))
    pairs = np.empty((2 * np.count_nonzero(mask), 2), np.int32)
    count, node = 0, 0
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:
                rank[x] = -1
                continue
            if x > 0 and mask[y, x - 1]:
                pairs[count, 0], pairs[count, 1] = node - 1, node
                count += 1
            if rank[x] >= 0:
                pairs[count, 0], pairs[count, 1] = rank[x], node
                count += 1
            rank[x] = node
            node += 1
    return pairs[:count]


@compiled
def _distance(sums: np.ndarray, counts: np.ndarray, one: int, two: int, spatial: bool) -> float:
    """The distance of two clusters, the same bits in both directions."""
    if spatial:
        down = sums[one, 0] / counts[one] - sums[two, 0] / counts[two]
        across = sums[one, 1] / counts[one] - sums[two, 1] / counts[two]
        width = 0.5 * (sums[one, 2] / counts[one] + sums[two, 2] / counts[two])
        return np.sqrt(down * down + across * across) / width if width > 0 else np.inf
    total = 0.0
    for k in range(sums.shape[1]):
        total += sums[one, k] * sums[two, k]
    # never negative: unit vectors that were rounded can be longer than 1
    return max(0.0, 1.0 - total / (float(counts[one]) * float(counts[two])))


@compiled
def _agglomerated(
    sums: np.ndarray, pairs: np.ndarray, spatial: bool, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All merges, and the index of the level of each; ``sums`` and ``pairs`` are used up.

    A round looks at the pairs of touching clusters (several, if these share a longer border).
    Pairs have a strict order (:func:`_before`), so the first of all is always mutual and every
    round but the last of a level merges something.
    """
    size = len(sums)
    counts = np.ones(size, np.int64)
    parent = np.arange(size).astype(np.int32)
    alive = np.arange(size).astype(np.int32)
    changed = np.ones(size, np.bool_)
    best = np.full(size, np.int32(-1))  # the nearest pair of each cluster
    distance = np.empty(len(pairs), np.float64)
    merges = np.empty((max(size - 1, 0), 2), np.int32)
    level_of = np.empty(max(size - 1, 0), np.int32)
    made = 0
    for level in range(levels.size):
        while True:
            left = _contracted(pairs, distance, parent, changed, (sums, counts, spatial))
            pairs, distance = pairs[:left], distance[:left]
            if not _chosen(pairs, distance, levels[level], best, (sums, counts, spatial)):
                break
            end = _joined(pairs, best, alive, counts, merges, made)
            level_of[made:end] = level
            _gathered(merges[made:end], parent, changed, sums, counts)
            alive = _still(alive, parent)
            made = end
    return merges[:made], level_of[:made]


@compiled
def _contracted(
    pairs: np.ndarray,
    distance: np.ndarray,
    parent: np.ndarray,
    changed: np.ndarray,
    clusters: tuple[np.ndarray, np.ndarray, bool],
) -> int:
    """Pairs renamed to the clusters they lie in, without those inside one; how many are left.

    The lower node comes first.  Distances of clusters that changed are computed anew; afterwards
    none has changed.
    """
    sums, counts, spatial = clusters
    kept = 0
    for i in range(len(pairs)):
        one, two = parent[pairs[i, 0]], parent[pairs[i, 1]]
        if one == two:
            continue
        pairs[kept, 0], pairs[kept, 1] = min(one, two), max(one, two)
        distance[kept] = distance[i]
        if changed[one] or changed[two]:
            distance[kept] = _distance(sums, counts, one, two, spatial)
        kept += 1
    changed[:] = False
    return kept


@compiled
def _chosen(
    pairs: np.ndarray,
    distance: np.ndarray,
    level: float,
    best: np.ndarray,
    clusters: tuple[np.ndarray, np.ndarray, bool],
) -> bool:
    """Put the first pair below the level of each cluster in ``best``; whether there is any."""
    found = False
    for i in range(len(pairs)):
        if distance[i] < level:
            found = True
            for node in (pairs[i, 0], pairs[i, 1]):
                held = best[node]
                if (
                    held < 0
                    or distance[i] < distance[held]
                    or (distance[i] == distance[held] and _before(pairs[i], pairs[held], clusters))
                ):
                    best[node] = i
    return found


@compiled
def _joined(
    pairs: np.ndarray,
    best: np.ndarray,
    alive: np.ndarray,
    counts: np.ndarray,
    merges: np.ndarray,
    made: int,
) -> int:
    """Merge the mutual pairs, and small clusters with their much larger nearest.

    Merges are written from ``made`` on, as (larger, smaller); returns the end of them.
    """
    for small in alive:
        if best[small] < 0:
            continue
        one, two = pairs[best[small], 0], pairs[best[small], 1]
        large = one if two == small else two
        mutual = best[large] == best[small] and (
            counts[small] < counts[large] or (counts[small] == counts[large] and small > large)
        )
        if mutual or HUB * counts[small] <= counts[large]:
            merges[made, 0], merges[made, 1] = large, small
            made += 1
    best[alive] = -1
    return made


@compiled
def _gathered(
    merges: np.ndarray,
    parent: np.ndarray,
    changed: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Add each cluster that was merged to the one it now lies in, and note that as changed."""
    for i in range(len(merges)):
        parent[merges[i, 1]] = merges[i, 0]
    for i in range(len(merges)):
        node = merges[i, 1]
        root = root_of(parent, node)
        parent[node] = root
        changed[root] = True
        counts[root] += counts[node]
        for k in range(sums.shape[1]):
            sums[root, k] += sums[node, k]


@compiled
def _still(alive: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """The clusters that were not merged into others; in place."""
    kept = 0
    for node in alive:
        if parent[node] == node:
            alive[kept] = node
            kept += 1
    return alive[:kept]


@compiled
def _before(
    one: np.ndarray, two: np.ndarray, clusters: tuple[np.ndarray, np.ndarray, bool]
) -> bool:
    """Whether a pair comes before another of equal distance, in a scattered order.

    In the order of the nodes, a region of equal vectors would merge one pixel a round.
    """
    if one[0] == two[0] and one[1] == two[1]:
        return False
    first, second = _content(one, clusters), _content(two, clusters)
    if first == second:
        first, second = _scattered(one), _scattered(two)
    if first != second:
        return bool(first < second)
    return bool(one[0] < two[0] or (one[0] == two[0] and one[1] < two[1]))


@compiled
def _content(pair: np.ndarray, clusters: tuple[np.ndarray, np.ndarray, bool]) -> np.uint64:
    """A number that depends on what two clusters hold, in whatever order, and looks random."""
    sums, counts, spatial = clusters
    total = np.uint64(0)
    for node in pair:
        bits = np.uint64(counts[node])
        for k in range(2 if spatial else 0, sums.shape[1]):
            bits = _mixed(bits ^ np.uint64(np.int64(sums[node, k] * 16777216.0)))
        total += bits
    return total


@compiled
def _scattered(pair: np.ndarray) -> np.uint64:
    """A number that depends on two nodes and looks random."""
    return _mixed((np.uint64(pair[0]) << np.uint64(32)) | np.uint64(pair[1]))


@compiled
def _mixed(bits: np.uint64) -> np.uint64:
    """The finaliser of splitmix64."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
