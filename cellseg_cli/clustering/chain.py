"""Exact average linkage on cosine distance, without a distance matrix.

For unit vectors the average of all distances between clusters A and B is 1 - mean(A).mean(B)
(the means not renormalised), so a sum and a count per cluster are all the state there is.
Average linkage is reducible: merging two nearest neighbours never brings a third cluster closer
than both were.  Hence

* a chain of nearest neighbours finds the same merges as the greedy order (Murtagh 1983), and
* a cluster whose nearest neighbour is no closer than the threshold is final and can be dropped.

A search works on twice the distance, written without cancellation: 2 (1 - q.m) = deficit(q) +
deficit(m) + |q - m|^2, where deficit(m) = 1 - |m|^2.  Clusters sit in *lanes*, 32 to a leaf,
leaves in groups of 64; leaves and groups carry the bounding box of their means and their least
deficit, and a search skips those that cannot hold anything nearer than the best so far.  Lanes
are scanned in float32; whatever comes within the rounding error of the best is compared in
float64 from sums and counts, so the float32 decides nothing.  Time grows about as n^1.4, memory
as n.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled

_LANES = 32  # clusters of a leaf: two vectors of 16 float32
_LEAVES = 64  # leaves of a group
_STRIP = 4  # channels summed at once, which keeps partial sums in registers
_NONE = -1

#: Clusters nearer than this count as equal, and a search ends at them: nothing can be nearer but
#: by the rounding of float64 sums.  An angle of 1.4e-6, far below the steps of float16.
_COINCIDENT = 1e-12


def partition(units: np.ndarray, merge_distance: float) -> np.ndarray:
    """The clusters of average linkage, cut where the distance is not below ``merge_distance``.

    Parameters
    ----------
    units : (n, E) float64
        Finite vectors of length 1, or 0 (similarity 0 to all, themselves included).
    merge_distance : float

    Returns
    -------
    (n,) int32
        Cluster of each point, numbered from 0 in the order of their first points.
    """
    padding = -units.shape[1] % _STRIP  # channels of 0 change no product
    sums = np.pad(units, ((0, 0), (0, padding)))
    clusters = (sums, np.ones(len(units), np.int64), np.arange(len(units), dtype=np.int32))
    chain = np.empty(len(units), np.int32)
    length = 0
    alive = np.arange(len(units), dtype=np.int32)
    while len(alive) > 1:
        # a round ends when half of its clusters are gone; the rest get new, tighter boxes
        lanes, boxes = _leaves(alive, clusters)
        end = len(alive) // 2 if len(alive) > 2 * _LANES else 0
        length = _round((chain, length), lanes, boxes, clusters, end, merge_distance)
        alive = lanes[0][lanes[0] != _NONE]
    return _numbers(clusters[2])


@compiled
def _round(
    links: tuple[np.ndarray, int],
    lanes: tuple[np.ndarray, ...],
    boxes: tuple[np.ndarray, ...],
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray],
    end: int,
    merge_distance: float,
) -> int:
    """Follow the chain until at most ``end`` clusters are left; all arrays change in place.

    Parameters
    ----------
    links : (n,) int32 and int
        The chain of clusters, and its length; the new length is returned.
    lanes : held (leaves * 32,) int32, lane_of (n,) int32, means (leaves, E, 32) and
            deficits (leaves, 32) float32
        The cluster in each lane (-1: none), the lane of each cluster, its mean and deficit.
    boxes : see :func:`_leaves`
    clusters : sums (n, E) float64, counts (n,) int64, parent (n,) int32
    """
    chain, length = links
    held = lanes[0]
    left = np.count_nonzero(held != _NONE)
    next_lane = 0
    scratch = np.empty(_LANES + _LEAVES, np.float32)
    while left > end:
        if length == 0:
            while next_lane < held.size and held[next_lane] == _NONE:
                next_lane += 1
            if next_lane == held.size:
                break
            chain[0] = held[next_lane]
            length = 1
        tip = chain[length - 1]
        before = chain[length - 2] if length > 1 else _NONE
        nearest = _nearest((tip, before), lanes, boxes, clusters, merge_distance, scratch)
        if nearest == _NONE:  # only the first of a chain can have no neighbour within reach
            held[lanes[1][tip]] = _NONE
            length = 0
            left -= 1
        elif nearest == before:
            _merge(tip, before, lanes, boxes, clusters)
            length -= 2
            left -= 1
        else:
            chain[length] = nearest
            length += 1
    return length


@compiled
def _similarity(one: int, two: int, clusters: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """The mean of all cosines between two clusters, the same bits in both directions."""
    sums, counts, _ = clusters
    total = 0.0
    for k in range(sums.shape[1]):
        total += sums[one, k] * sums[two, k]
    return total / (float(counts[one]) * float(counts[two]))


@compiled
def _ceiling(distance: float, channels: int) -> np.float32:
    """What a float32 scan may see at most for a cluster that is no farther than a distance.

    With u = 2^-24 and D twice the distance, rounding the means costs 4 u sqrt(D) + 4 u^2, the
    float32 sum of E + 2 terms (E + 6) u D; both are taken twice.
    """
    double = 2 * max(distance, 0.0)
    unit = 2.0**-24
    error = (channels + 6) * unit * double + 4 * unit * np.sqrt(double) + 4 * unit * unit
    return np.float32(double + 2 * error)


@compiled
def _nearest(
    ends: tuple[int, int],
    lanes: tuple[np.ndarray, ...],
    boxes: tuple[np.ndarray, ...],
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray],
    merge_distance: float,
    scratch: np.ndarray,
) -> int:
    """The nearest neighbour of the tip of the chain below the merge distance, -1 if none.

    The cluster before the tip wins all ties; of others the first one met.
    """
    tip, before = ends
    _, lane_of, means, deficits = lanes
    channels = clusters[0].shape[1]
    best, nearest = merge_distance, _NONE
    if before != _NONE:
        best, nearest = 1.0 - _similarity(tip, before, clusters), before
    home, lane = divmod(lane_of[tip], _LANES)
    query = means[home, :, lane].copy()
    deficit = deficits[home, lane]
    state = (best, nearest, _ceiling(best, channels))
    bounds = scratch[_LANES:]
    bounds[0] = np.float32(-np.inf)
    state = _scan((home, home + 1), (tip, query), state, lanes, clusters, scratch)
    for group in range(boxes[5].size):
        if _from_group(query, deficit, group, boxes) > state[2]:
            continue
        _from_leaves(query, deficit, group, boxes, bounds)
        leaves = (group * _LEAVES, min((group + 1) * _LEAVES, len(means)))
        if leaves[0] <= home < leaves[1]:
            bounds[home - leaves[0]] = np.float32(np.inf)
        state = _scan(leaves, (tip, query), state, lanes, clusters, scratch)
        if state[0] < _COINCIDENT:
            break
    return state[1]


@compiled
def _from_group(
    query: np.ndarray, deficit: float, group: int, boxes: tuple[np.ndarray, ...]
) -> float:
    """A lower bound of twice the distance from a cluster to all of a group."""
    total = deficit + boxes[5][group]
    for k in range(query.size):
        below, above = boxes[3][group, k] - query[k], query[k] - boxes[4][group, k]
        outside = max(max(below, above), np.float32(0))
        total += outside * outside
    return total


@compiled
def _from_leaves(
    query: np.ndarray,
    deficit: float,
    group: int,
    boxes: tuple[np.ndarray, ...],
    bounds: np.ndarray,
) -> None:
    """Lower bounds of twice the distance to each leaf of a group, into ``bounds`` (64,)."""
    leaf_low, leaf_high, leaf_deficit = boxes[0], boxes[1], boxes[2]
    for leaf in range(_LEAVES):
        bounds[leaf] = deficit + leaf_deficit[group, leaf]
    for k in range(query.size):
        value = query[k]
        for leaf in range(_LEAVES):
            below = leaf_low[group, k, leaf] - value
            above = value - leaf_high[group, k, leaf]
            outside = below if below > above else above
            outside = outside if outside > np.float32(0) else np.float32(0)
            bounds[leaf] += outside * outside


@compiled
def _scan(
    leaves: tuple[int, int],
    target: tuple[int, np.ndarray],
    state: tuple[float, int, np.float32],
    lanes: tuple[np.ndarray, ...],
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray],
    scratch: np.ndarray,
) -> tuple[float, int, np.float32]:
    """Least distance, its cluster and the float32 ceiling after the lanes of some leaves.

    ``target`` is the cluster to find a neighbour for, and its mean; ``scratch`` has room for 32
    numbers, and after these the lower bound of each of the leaves.
    """
    tip, query = target
    bounds = scratch[_LANES:]
    best, nearest, ceiling = state
    held, lane_of, means, deficits = lanes
    deficit = deficits[lane_of[tip] // _LANES, lane_of[tip] % _LANES]
    doubles = scratch[:_LANES]
    for leaf in range(leaves[0], leaves[1]):
        if bounds[leaf - leaves[0]] > ceiling:
            continue
        for lane in range(_LANES):
            doubles[lane] = deficit + deficits[leaf, lane]
        for k in range(0, query.size, _STRIP):
            q0, q1, q2, q3 = query[k], query[k + 1], query[k + 2], query[k + 3]
            for lane in range(_LANES):
                d0, d1 = q0 - means[leaf, k, lane], q1 - means[leaf, k + 1, lane]
                d2, d3 = q2 - means[leaf, k + 2, lane], q3 - means[leaf, k + 3, lane]
                doubles[lane] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        hits = np.int32(0)
        for lane in range(_LANES):
            hits += np.int32(doubles[lane] <= ceiling)
        if hits == 0:
            continue
        for lane in range(_LANES):
            other = held[leaf * _LANES + lane]
            if doubles[lane] > ceiling or other < 0 or other == tip:
                continue
            distance = 1.0 - _similarity(tip, other, clusters)
            if distance < best:
                best, nearest = distance, other
                ceiling = _ceiling(best, query.size)
        if best < _COINCIDENT:
            break
    return best, nearest, ceiling


@compiled
def _merge(
    one: int,
    two: int,
    lanes: tuple[np.ndarray, ...],
    boxes: tuple[np.ndarray, ...],
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Join two clusters in the lane of the larger one (equal ones: the lower)."""
    held, lane_of = lanes[0], lanes[1]
    sums, counts, parent = clusters
    if counts[two] > counts[one] or (counts[two] == counts[one] and two < one):
        one, two = two, one
    parent[two] = one
    held[lane_of[two]] = _NONE
    counts[one] += counts[two]
    for k in range(sums.shape[1]):
        sums[one, k] += sums[two, k]
    _place(one, lanes, boxes, clusters)


@compiled
def _place(
    cluster: int,
    lanes: tuple[np.ndarray, ...],
    boxes: tuple[np.ndarray, ...],
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Write mean and deficit of a cluster into its lane, and widen the boxes around it."""
    _, lane_of, means, deficits = lanes
    sums, counts, _ = clusters
    leaf, lane = divmod(lane_of[cluster], _LANES)
    group, place = divmod(leaf, _LEAVES)
    square = 0.0
    for k in range(sums.shape[1]):
        mean = sums[cluster, k] / counts[cluster]
        square += mean * mean
        value = np.float32(mean)
        means[leaf, k, lane] = value
        boxes[0][group, k, place] = min(boxes[0][group, k, place], value)
        boxes[1][group, k, place] = max(boxes[1][group, k, place], value)
        boxes[3][group, k] = min(boxes[3][group, k], value)
        boxes[4][group, k] = max(boxes[4][group, k], value)
    deficit = np.float32(1.0 - square)
    deficits[leaf, lane] = deficit
    boxes[2][group, place] = min(boxes[2][group, place], deficit)
    boxes[5][group] = min(boxes[5][group], deficit)


def _leaves(
    alive: np.ndarray, clusters: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """The clusters laid out in lanes, near ones in one leaf, with the boxes around them.

    Returns
    -------
    lanes : held (leaves * 32,) int32, lane_of (n,) int32, means (leaves, E, 32) and
            deficits (leaves, 32) float32
    boxes : leaf_low, leaf_high (groups, E, 64), leaf_deficit (groups, 64), and of whole groups
            group_low, group_high (groups, E), group_deficit (groups,), all float32
        Bounds of the means and their least deficit.
    """
    sums, counts, _ = clusters
    channels = sums.shape[1]
    leaves = -(-alive.size // _LANES)
    groups = -(-leaves // _LEAVES)
    held = np.full(leaves * _LANES, _NONE, np.int32)
    lane_of = np.full(counts.size, _NONE, np.int32)
    means = np.zeros((leaves, channels, _LANES), np.float32)
    far = 1e3  # an empty box is far from everything
    boxes = tuple(
        np.full(shape, value, np.float32)
        for shape, value in (
            ((groups, channels, _LEAVES), far),
            ((groups, channels, _LEAVES), -far),
            ((groups, _LEAVES), far),
            ((groups, channels), far),
            ((groups, channels), -far),
            (groups, far),
        )
    )
    points = (sums[alive] / counts[alive, None]).astype(np.float32)
    held[: alive.size] = alive[_by_nearness(points)]
    lane_of[held[: alive.size]] = np.arange(alive.size, dtype=np.int32)
    lanes = (held, lane_of, means, np.zeros((leaves, _LANES), np.float32))
    _place_all(alive, lanes, boxes, clusters)
    return lanes, boxes


@compiled
def _place_all(
    alive: np.ndarray,
    lanes: tuple[np.ndarray, ...],
    boxes: tuple[np.ndarray, ...],
    clusters: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """:func:`_place` for each of the clusters."""
    for cluster in alive:
        _place(cluster, lanes, boxes, clusters)


@compiled
def _by_nearness(points: np.ndarray) -> np.ndarray:
    """An order of points in which every 32 from the first on are near each other.

    Halves at the median of the widest channel, again and again, at whole leaves.
    """
    order = np.arange(len(points)).astype(np.int32)
    stack = [(0, len(points))]
    while len(stack) > 0:
        first, last = stack.pop()
        if last - first <= _LANES:
            continue
        widest, widest_k = np.float32(-1), 0
        for k in range(points.shape[1]):
            low = high = points[order[first], k]
            for i in range(first, last):
                low, high = min(low, points[order[i], k]), max(high, points[order[i], k])
            if high - low > widest:
                widest, widest_k = high - low, k
        leaves = (last - first + _LANES - 1) // _LANES
        middle = first + (leaves + 1) // 2 * _LANES
        _select(points[:, widest_k], order, first, last - 1, middle)
        stack.append((first, middle))
        stack.append((middle, last))
    return order


@compiled
def _select(values: np.ndarray, order: np.ndarray, first: int, last: int, middle: int) -> None:
    """Reorder ``order[first : last + 1]`` so that no value before ``middle`` is above one after.

    Hoare's selection with the median of three; equal values are split evenly.
    """
    while first < last:
        a, b, c = values[order[first]], values[order[(first + last) // 2]], values[order[last]]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = first, last
        while i <= j:
            while values[order[i]] < pivot:
                i += 1
            while values[order[j]] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            last = j
        elif middle >= i:
            first = i
        else:
            return


@compiled
def _numbers(parent: np.ndarray) -> np.ndarray:
    """The cluster of each point, numbered from 0 by first points."""
    number = np.full(parent.size, np.int32(_NONE))
    labels = np.empty(parent.size, np.int32)
    count = 0
    for point in range(parent.size):
        root = point
        while parent[root] != root:
            root = parent[root]
        node = point
        while parent[node] != root:
            parent[node], node = root, parent[node]
        if number[root] == _NONE:
            number[root] = count
            count += 1
        labels[point] = number[root]
    return labels
