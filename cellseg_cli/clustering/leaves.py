"""The clusters of average linkage laid out so that the nearest of them are found fast.

For unit vectors the mean cosine distance of two clusters is 1 - mean.mean' (the means not
renormalised): a sum and a count per cluster, in float64, are all the state there is.  Twice that
distance, written without cancellation, is deficit + deficit' + |mean - mean'|^2, where the
deficit of a cluster is 1 - |mean|^2.

Clusters sit in *lanes*, 32 to a leaf; 64 leaves are a group, 64 groups a range.  Leaves and
groups carry the bounding box of their means and their least deficit, and a search skips those
that cannot hold anything near enough.  Lanes are scanned in float32; whatever comes within its
rounding error of being near enough is compared in float64, so the float32 decides nothing.  The
bounds of boxes are added up in the order in which lanes are, so that rounding, which is monotone,
never makes one larger than the distance of a lane inside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiled import compiled, inlined

#: Vectors have a multiple of so many components; components of 0 change no product.
STRIP = 8

#: Stands for no cluster.
NONE = -1

#: Clusters nearer than this count as equal: a search that has found enough of them ends, though
#: others may be nearer by the rounding of float64.  An angle of 1.4e-6, far below the steps of
#: float16.
COINCIDENT = 1e-12

_LANES = 32  # clusters of a leaf: their masks fit 32 bits
_WIDTH = 64  # leaves of a group, groups of a range
_FAR = np.float32(1e3)  # no distance between unit vectors: keeps empty lanes and boxes out
_SAMPLE = 64  # members of a part that tell along which component to halve it


class Clusters(NamedTuple):
    """Sums (n, E) and counts (n,) float64 by cluster; E is a multiple of STRIP."""

    sums: np.ndarray
    counts: np.ndarray


class Boxes(NamedTuple):
    """Bounds of means, low and high (parents, E, 64), and least deficits (parents, 64)."""

    low: np.ndarray
    high: np.ndarray
    deficits: np.ndarray


class Leaves(NamedTuple):
    """A layout of clusters.

    Attributes
    ----------
    clusters : Clusters
    held : (leaves * 32,) int32
        The cluster in each lane, or NONE.
    lane_of : (n,) int32
    means : (leaves, E, 32) float32
    deficits : (leaves, 32) float32
    boxes, groups : Boxes
        Of the leaves in each group, and of the groups in each range.
    """

    clusters: Clusters
    held: np.ndarray
    lane_of: np.ndarray
    means: np.ndarray
    deficits: np.ndarray
    boxes: Boxes
    groups: Boxes


class Found(NamedTuple):
    """Where a search leaves its result, and room for it to work in.

    Attributes
    ----------
    near : (n, K) int32
        The nearest of each cluster, nearest first, then NONE.
    distances : (K,) float64
        Of those found last.
    members : (K,) int32
    query : (E,) float32
    leaf_bounds, group_bounds : (64,) float32
    chosen : (64,) int64
    doubles : (32,) float32
    """

    near: np.ndarray
    distances: np.ndarray
    members: np.ndarray
    query: np.ndarray
    leaf_bounds: np.ndarray
    group_bounds: np.ndarray
    chosen: np.ndarray
    doubles: np.ndarray


def room(near: np.ndarray, channels: int) -> Found:
    """Room for searches that write into ``near``."""
    return Found(
        near,
        np.empty(near.shape[1], np.float64),
        np.empty(near.shape[1], np.int32),
        np.empty(channels, np.float32),
        np.empty(_WIDTH, np.float32),
        np.empty(_WIDTH, np.float32),
        np.empty(_WIDTH, np.int64),
        np.empty(_LANES, np.float32),
    )


@inlined
def separation(one: int, two: int, clusters: Clusters) -> float:
    """The mean cosine distance of two clusters, the same bits in both directions."""
    total = 0.0
    for k in range(clusters.sums.shape[1]):
        total += clusters.sums[one, k] * clusters.sums[two, k]
    return 1.0 - total / (clusters.counts[one] * clusters.counts[two])


@inlined
def search(tip: int, reach: float, leaves: Leaves, found: Found) -> int:
    """Write the up to K clusters that are nearest to one and nearer than ``reach``.

    Returns how many there are; ``found`` has them in the row of the cluster, with their
    distances.  If there are K, no other cluster is nearer than the last (by more than
    :data:`COINCIDENT`, if the last coincides); if less, no other is nearer than ``reach``.  Of
    equally near ones those come first that were met first: in the leaf of the cluster, then in
    its group, then in the order of the lanes.
    """
    home, lane = divmod(leaves.lane_of[tip], _LANES)
    for k in range(found.query.size):
        found.query[k] = leaves.means[home, k, lane]
    deficit = leaves.deficits[home, lane]
    own_group = home // _WIDTH
    state = (0, _ceiling(reach, found.query.size))
    for step in range(-2, len(leaves.boxes.low)):  # one loop: the scan is inlined only once
        if step == -2:
            span = (home, home + 1)
            found.leaf_bounds[0] = 0
        else:
            group = own_group if step == -1 else step
            if step >= 0 and step % _WIDTH == 0:
                upper = step // _WIDTH
                _bound(upper, deficit, leaves.groups, found.query, found.group_bounds)
            if step == own_group or (step >= 0 and found.group_bounds[step % _WIDTH] > state[1]):
                continue
            _bound(group, deficit, leaves.boxes, found.query, found.leaf_bounds)
            span = (group * _WIDTH, min((group + 1) * _WIDTH, len(leaves.means)))
            if step == -1:
                found.leaf_bounds[home - span[0]] = np.float32(np.nan)  # done: below no ceiling
        state = _scan(span, (tip, deficit, reach), state, leaves, found)
        if state[0] == found.distances.size and found.distances[-1] < COINCIDENT:
            break
    for i in range(state[0], found.distances.size):
        found.near[tip, i] = NONE
    return state[0]


@inlined
def _ceiling(distance: float, channels: int) -> np.float32:
    """What a float32 scan may see at most for a cluster that is no farther than a distance.

    With u = 2^-24 and D twice the distance, rounding the means costs 4 u sqrt(D) + 4 u^2, the
    float32 sum of E + 2 terms (E + 6) u D; both are taken twice.
    """
    double = 2 * max(distance, 0.0)
    unit = 2.0**-24
    error = (channels + 6) * unit * double + 4 * unit * np.sqrt(double) + 4 * unit * unit
    return np.float32(double + 2 * error)


@inlined
def _bound(
    parent: int, deficit: np.float32, boxes: Boxes, query: np.ndarray, bounds: np.ndarray
) -> None:
    """Lower bounds of twice the distance to each child of a group or range: (64,) float32."""
    for child in range(_WIDTH):
        bounds[child] = deficit + boxes.deficits[parent, child]
    for strip in range(0, query.size, STRIP):
        for child in range(_WIDTH):
            total = bounds[child]
            for k in range(STRIP):
                value = query[strip + k]
                below = boxes.low[parent, strip + k, child] - value
                above = value - boxes.high[parent, strip + k, child]
                outside = max(max(below, above), np.float32(0))
                total += outside * outside
            bounds[child] = total


@inlined
def _scan(
    span: tuple[int, int],
    target: tuple[int, np.float32, float],
    state: tuple[int, np.float32],
    leaves: Leaves,
    found: Found,
) -> tuple[int, np.float32]:
    """How many are found, and the float32 ceiling for more, after some leaves of a group.

    ``target`` is the cluster to find neighbours for, its deficit, and how far they may be.
    """
    query, deficit = found.query, target[1]
    count = 0
    for child in range(span[1] - span[0]):  # choose without branches, which take longer
        found.chosen[count] = child
        count += found.leaf_bounds[child] <= state[1]
    for child in found.chosen[:count]:
        leaf = span[0] + child
        ceiling = state[1]
        if found.leaf_bounds[child] > ceiling:
            continue
        hits = np.uint32(0)
        if query.size == STRIP:  # loops of constant length: straight vector code
            for lane in range(_LANES):
                double = deficit + leaves.deficits[leaf, lane]
                for k in range(STRIP):
                    off = query[k] - leaves.means[leaf, k, lane]
                    double += off * off
                hits |= np.uint32(double <= ceiling) << np.uint32(lane)
        else:
            hits = _wide_hits(leaf, deficit, ceiling, leaves, found)
        if hits != 0:
            state = _listed(leaf, hits, target, state, leaves, found)
    return state


@inlined
def _wide_hits(
    leaf: int, deficit: np.float32, ceiling: np.float32, leaves: Leaves, found: Found
) -> np.uint32:
    """The lanes of a leaf within the ceiling, one bit each, for any number of channels."""
    doubles = found.doubles
    for lane in range(_LANES):
        doubles[lane] = deficit + leaves.deficits[leaf, lane]
    for strip in range(0, found.query.size, STRIP):
        for lane in range(_LANES):
            double = doubles[lane]
            for k in range(STRIP):
                off = found.query[strip + k] - leaves.means[leaf, strip + k, lane]
                double += off * off
            doubles[lane] = double
    hits = np.uint32(0)
    for lane in range(_LANES):
        hits |= np.uint32(doubles[lane] <= ceiling) << np.uint32(lane)
    return hits


@inlined
def _listed(
    leaf: int,
    hits: np.uint32,
    target: tuple[int, np.float32, float],
    state: tuple[int, np.float32],
    leaves: Leaves,
    found: Found,
) -> tuple[int, np.float32]:
    """The state after the lanes of ``hits`` were compared in float64, and the near ones listed."""
    tip, _, reach = target
    size, ceiling = state
    most = found.distances.size
    for lane in range(_LANES):
        if (hits >> np.uint32(lane)) & np.uint32(1) == 0:
            continue
        other = leaves.held[leaf * _LANES + lane]
        if other < 0 or other == tip:  # NONE, or the cluster itself
            continue
        distance = separation(tip, other, leaves.clusters)
        if distance >= (found.distances[most - 1] if size == most else reach):
            continue
        place = size if size < most else most - 1
        size = min(size + 1, most)
        while place > 0 and found.distances[place - 1] > distance:
            found.distances[place] = found.distances[place - 1]
            found.near[tip, place] = found.near[tip, place - 1]
            place -= 1
        found.distances[place] = distance
        found.near[tip, place] = other
        if size == most:
            ceiling = _ceiling(found.distances[most - 1], found.query.size)
    return size, ceiling


@inlined
def place(cluster: int, leaves: Leaves) -> None:
    """Write mean and deficit of a cluster into its lane, and widen the boxes around it."""
    sums, counts = leaves.clusters
    leaf, lane = divmod(leaves.lane_of[cluster], _LANES)
    group, child = divmod(leaf, _WIDTH)
    upper, group_child = divmod(group, _WIDTH)
    square = 0.0
    for k in range(sums.shape[1]):
        mean = sums[cluster, k] / counts[cluster]
        square += mean * mean
        value = np.float32(mean)
        leaves.means[leaf, k, lane] = value
        _widen(leaves.boxes, group, k, child, value)
        _widen(leaves.groups, upper, k, group_child, value)
    deficit = np.float32(1.0 - square)
    leaves.deficits[leaf, lane] = deficit
    _lessen(leaves.boxes, group, child, deficit)
    _lessen(leaves.groups, upper, group_child, deficit)


@inlined
def _widen(boxes: Boxes, parent: int, k: int, child: int, value: np.float32) -> None:
    """Make a box hold a value."""
    boxes.low[parent, k, child] = min(boxes.low[parent, k, child], value)
    boxes.high[parent, k, child] = max(boxes.high[parent, k, child], value)


@inlined
def _lessen(boxes: Boxes, parent: int, child: int, deficit: np.float32) -> None:
    """Make the least deficit of a box no larger than a deficit."""
    boxes.deficits[parent, child] = min(boxes.deficits[parent, child], deficit)


@inlined
def take_out(cluster: int, leaves: Leaves) -> None:
    """Empty the lane of a cluster; boxes stay as they are."""
    leaf, lane = divmod(leaves.lane_of[cluster], _LANES)
    leaves.held[leaf * _LANES + lane] = NONE
    leaves.deficits[leaf, lane] = _FAR


def laid_out(alive: np.ndarray, clusters: Clusters) -> Leaves:
    """Some of the clusters in lanes, near ones in one leaf, with the boxes around them."""
    size, channels = clusters.sums.shape
    leaf_count = -(-alive.size // _LANES)
    group_count = -(-leaf_count // _WIDTH)
    leaves = Leaves(
        clusters,
        np.full(leaf_count * _LANES, NONE, np.int32),
        np.full(size, NONE, np.int32),
        np.zeros((leaf_count, channels, _LANES), np.float32),
        np.full((leaf_count, _LANES), _FAR, np.float32),
        _empty(group_count, channels),
        _empty(-(-group_count // _WIDTH), channels),
    )
    leaves.held[: alive.size] = alive
    _by_nearness(leaves.held[: alive.size], _means(alive, clusters))
    leaves.lane_of[leaves.held[: alive.size]] = np.arange(alive.size, dtype=np.int32)
    _place_all(alive, leaves)
    return leaves


def _empty(parents: int, channels: int) -> Boxes:
    """Boxes that hold nothing and are far from everything."""
    return Boxes(
        np.full((parents, channels, _WIDTH), _FAR, np.float32),
        np.full((parents, channels, _WIDTH), -_FAR, np.float32),
        np.full((parents, _WIDTH), _FAR, np.float32),
    )


@compiled
def _place_all(alive: np.ndarray, leaves: Leaves) -> None:
    """:func:`place` for each of the clusters."""
    for cluster in alive:
        place(cluster, leaves)


@compiled
def _means(alive: np.ndarray, clusters: Clusters) -> np.ndarray:
    """The means of some clusters: (E, clusters) float32."""
    channels = clusters.sums.shape[1]
    means = np.empty((channels, alive.size), np.float32)
    for i in range(alive.size):
        for k in range(channels):
            means[k, i] = clusters.sums[alive[i], k] / clusters.counts[alive[i]]
    return means


@compiled
def _by_nearness(members: np.ndarray, means: np.ndarray) -> None:
    """Reorder members so that every 32 from the first on are near each other.

    Halves at the median of the component that spreads most, again and again, at whole leaves.
    What spreads most is seen on a sample: it decides how fast searches are, never what they find.
    """
    order = np.arange(members.size).astype(np.int32)
    values = np.empty(members.size, np.float32)
    stack = [(0, members.size)]
    while len(stack) > 0:
        first, last = stack.pop()
        if last - first <= _LANES:
            continue
        k = _widest(order[first:last], means)
        for i in range(first, last):
            values[i] = means[k, order[i]]
        leaf_count = (last - first + _LANES - 1) // _LANES
        middle = first + (leaf_count + 1) // 2 * _LANES
        _select(values, order, first, last - 1, middle)
        stack.append((first, middle))
        stack.append((middle, last))
    members[:] = members[order]


@compiled
def _widest(order: np.ndarray, means: np.ndarray) -> int:
    """The component in which a sample of some members spreads most (equal ones: the first)."""
    step = (order.size + _SAMPLE - 1) // _SAMPLE
    widest, widest_k = np.float32(-1), 0
    for k in range(len(means)):
        low = high = means[k, order[0]]
        for i in range(0, order.size, step):
            value = means[k, order[i]]
            low, high = min(low, value), max(high, value)
        if high - low > widest:
            widest, widest_k = high - low, k
    return widest_k


@compiled
def _select(values: np.ndarray, order: np.ndarray, first: int, last: int, middle: int) -> None:
    """Reorder from ``first`` to ``last`` so that no value before ``middle`` is above one after.

    Hoare's selection with the median of three; equal values are split evenly.
    """
    while first < last:
        a, b, c = values[first], values[(first + last) // 2], values[last]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = first, last
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            last = j
        elif middle >= i:
            first = i
        else:
            return
