"""Agglomeration where only touching clusters may merge, at the full size of the field.

1. Foreground.  With class probabilities: where the probability of not being background is above
   ``foreground``.  Spatial without classes: where the seed value is above it.  Contrastive
   without classes: where the cosine distance from the background code is above it; that code is
   the mean of the largest cluster of average linkage among at most 4096 pixels on a regular grid.
2. Every foreground pixel begins as a cluster.  In each round all pairs of touching clusters that
   are each other's nearest merge, if nearer than ``merge_distance``; until none are.  Small
   clusters may join their nearest neighbour earlier, if it is much larger (``_HUB``).  The
   distance is that of average linkage: the mean cosine distance over all pairs of pixels
   (contrastive), or the distance of the mean predicted centres divided by the mean bandwidth
   (spatial).  Sums are float64.
3. Contrastive: erosion, connected pieces and growing back (:mod:`~cellseg_cli.clustering.cores`).
4. At a smaller size: nearest-neighbour enlargement, cut to the foreground at full size.
5. The rules of :func:`~cellseg_cli.clustering.pieces.finished`; by these, clusters that are too
   small join the instance they share the longest border with.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled
from .cores import separated
from .linkage import linkage_partition
from .pieces import finished, root_of
from .resizing import enlarged_nearest, resized_bilinear, working_shape
from .settings import Clustering

_SAMPLE_SIDE = 64  # pixels a side of the sample that finds the background code

#: A cluster takes in, in the same round, every neighbour of at most 1/8 of its size whose nearest
#: it is, if hardly farther than its own nearest.  Strictly mutual merging would give a large
#: region its rim pixels one a round, and take the square of the pixels.
_HUB = 8
_SLACK = 0.05


def grid(
    embedding: np.ndarray, *, kind: str, settings: Clustering, classes: np.ndarray | None = None
) -> np.ndarray:
    """The label image of an embedding of either kind by the rules of this module.

    Parameters
    ----------
    embedding : (E, Y, X) float32, finite
    kind : str
    settings : Clustering
        Resolved; uses ``merge_distance``, ``foreground``, ``min_area_px``, ``size`` and, for
        contrastive embeddings, ``erosion``.
    classes : (3, Y, X) uint8, optional

    Returns
    -------
    (Y, X) uint32
    """
    assert settings.merge_distance is not None and settings.min_area_px is not None
    assert settings.size is not None and settings.erosion is not None
    field = embedding.shape[1:]
    shape = working_shape(field, settings.size)
    features = _centres(embedding) if kind == "spatial" else embedding
    mask = _foreground(embedding, kind, settings, classes)
    if not mask.any():
        return np.zeros(field, np.uint32)
    small = resized_bilinear(features, shape)
    small_mask = resized_bilinear(mask[None].astype(np.float32), shape)[0] >= 0.5
    labels = merged(small, small_mask, kind == "spatial", settings.merge_distance)
    if kind == "contrastive":
        labels = separated(labels, settings.erosion)
    labels = np.where(mask, enlarged_nearest(labels, field), 0).astype(np.int32)
    return finished(labels, settings.min_area_px)


def _centres(embedding: np.ndarray) -> np.ndarray:
    """Predicted centre y, x in px of the field, and bandwidth: (3, Y, X) float32."""
    _, height, width = embedding.shape
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)
    return np.stack([embedding[0] + rows, embedding[1] + columns, embedding[2]])


def _foreground(
    embedding: np.ndarray, kind: str, settings: Clustering, classes: np.ndarray | None
) -> np.ndarray:
    """The foreground at the size of the field: (Y, X) bool."""
    assert settings.foreground is not None and settings.merge_distance is not None
    if classes is not None:
        return classes[0] < 255 * (1 - settings.foreground)
    if kind == "spatial":
        return np.asarray(embedding[3] > settings.foreground)
    code = _background_code(embedding, settings.merge_distance)
    length = np.sqrt(np.einsum("eyx,eyx->yx", embedding, embedding))
    cosine = np.einsum("e,eyx->yx", code, embedding) / np.where(length > 0, length, 1)
    return np.asarray(1 - cosine > settings.foreground)


def _background_code(embedding: np.ndarray, merge_distance: float) -> np.ndarray:
    """The direction of the mean of the most common cluster: (E,) float32 of length 1 or 0."""
    channels, height, width = embedding.shape
    rows, columns = (
        np.arange(min(side, _SAMPLE_SIDE)) * side // min(side, _SAMPLE_SIDE)
        for side in (height, width)
    )
    sample = embedding[:, rows[:, None], columns].reshape(channels, -1).T.astype(np.float64)
    clusters = linkage_partition(sample, merge_distance)
    mean = sample[clusters == np.argmax(np.bincount(clusters))].mean(axis=0)
    length = float(np.linalg.norm(mean))
    return np.asarray(mean / length if length > 0 else mean, dtype=np.float32)


def merged(
    features: np.ndarray, mask: np.ndarray, spatial: bool, merge_distance: float
) -> np.ndarray:
    """The clusters of mutual-best merging of touching pixels, before any clean-up.

    Parameters
    ----------
    features : (E, Y, X) float32
        Vectors compared by cosine; or, if ``spatial``, centre y, centre x and bandwidth.
    mask : (Y, X) bool
        The pixels to cluster.
    spatial : bool
    merge_distance : float

    Returns
    -------
    (Y, X) int32
        Clusters numbered from 1 in row-major order, 0 outside the mask.
    """
    sums = features[:, mask].T.astype(np.float64)
    if not spatial:
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        sums /= np.where(length > 0, length, 1)
    cluster = _rounds(np.ascontiguousarray(sums), _touching(mask), spatial, merge_distance)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.unique(cluster, return_inverse=True)[1] + 1
    return labels


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
    return 1.0 - total / (float(counts[one]) * float(counts[two]))


@compiled
def _rounds(
    sums: np.ndarray, pairs: np.ndarray, spatial: bool, merge_distance: float
) -> np.ndarray:
    """The cluster of each node, named by one of its nodes; ``sums`` and ``pairs`` are used up.

    Pairs have a strict order (:func:`_before`), so the first of all is always mutual and every
    round but the last merges something.
    """
    size = len(sums)
    counts = np.ones(size, np.int64)
    parent = np.arange(size).astype(np.int32)
    distance = np.empty(len(pairs), np.float64)
    stale = np.ones(size, np.bool_)
    best = np.empty(size, np.int32)  # the nearest pair of each cluster
    left = len(pairs)
    changed = True
    while changed:
        for i in range(left):
            one, two = pairs[i]
            if stale[one] or stale[two]:
                distance[i] = _distance(sums, counts, one, two, spatial)
        stale[:] = False
        best[:] = -1
        for i in range(left):
            if distance[i] < merge_distance:
                for node in pairs[i]:
                    if best[node] < 0 or _before(i, best[node], pairs, distance):
                        best[node] = i
        slack = _SLACK * merge_distance
        changed = False
        for i in range(left):
            one, two = pairs[i]
            if counts[two] > counts[one]:
                one, two = two, one
            if best[two] != i:
                continue
            within = distance[i] <= (1 + _SLACK) * distance[best[one]] + slack
            if best[one] == i or (within and _HUB * counts[two] <= counts[one]):
                parent[two] = one
                stale[one] = True
                changed = True
        _gather(pairs[:left], parent, sums, counts)
        left = _contracted(pairs, distance, left, parent)
    for node in range(size):
        parent[node] = root_of(parent, node)
    return parent


@compiled
def _gather(pairs: np.ndarray, parent: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> None:
    """Add what was merged in this round to its cluster; what was added holds no pixels more."""
    for i in range(len(pairs)):
        for node in pairs[i]:
            root = root_of(parent, node)
            if root != node and counts[node] > 0:
                counts[root] += counts[node]
                sums[root] += sums[node]
                counts[node] = 0


@compiled
def _before(one: int, two: int, pairs: np.ndarray, distance: np.ndarray) -> bool:
    """Whether a pair comes before another: nearer, or as near and first in a scattered order.

    In the order of the nodes, a region of equal vectors would merge one pixel a round.
    """
    if distance[one] != distance[two]:
        return bool(distance[one] < distance[two])
    first, second = _scattered(pairs[one]), _scattered(pairs[two])
    if first != second:
        return bool(first < second)
    if pairs[one, 0] != pairs[two, 0]:
        return bool(pairs[one, 0] < pairs[two, 0])
    return bool(pairs[one, 1] < pairs[two, 1])


@compiled
def _scattered(pair: np.ndarray) -> np.uint64:
    """A number that depends on a pair of nodes and looks random (the finaliser of splitmix64)."""
    bits = (np.uint64(pair[0]) << np.uint64(32)) | np.uint64(pair[1])
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@compiled
def _contracted(
    pairs: np.ndarray,
    distance: np.ndarray,
    left: int,
    parent: np.ndarray,
) -> int:
    """Pairs renamed to the clusters they lie in, without those inside one; how many are left."""
    kept = 0
    for i in range(left):
        one, two = root_of(parent, pairs[i, 0]), root_of(parent, pairs[i, 1])
        if one != two:
            pairs[kept, 0], pairs[kept, 1] = min(one, two), max(one, two)
            distance[kept] = distance[i]
            kept += 1
    return kept
