"""Which predicted instance is which true one: overlaps in pixels, then one-to-one pairs.

Only pairs that share a pixel are ever held, so cost and memory follow the
outlines of the instances, not their number squared.  Instances may overlap on
either side.  The pairs are those of StarDist's `matching` and Cellpose's
`average_precision` (same objective, same ``>=`` at the threshold).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from cellseg_cli.errors import InputError
from cellseg_cli.instances import Instances, areas
from cellseg_cli.labels import relabel_dense

IntArray = NDArray[np.int64]

#: Pairs of ids are counted in a table while it has at most this many entries per
#: pixel; a larger table costs more than sorting the pixels.
_TABLE_ENTRIES_PER_PIXEL = 2


@dataclass(frozen=True, eq=False)
class Overlaps:
    """All pairs of a true and a predicted instance that share a pixel.

    Attributes
    ----------
    truth_areas, prediction_areas
        int64 (T,) and (P,), px².
    truth, prediction
        int64 (K,): the two instances of each pair, as indices into the areas;
        sorted by (truth, prediction), each pair once.
    intersection
        int64 (K,), px², at least 1.
    """

    truth_areas: IntArray
    prediction_areas: IntArray
    truth: IntArray
    prediction: IntArray
    intersection: IntArray

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, float64 (K,), in (0, 1]."""
        sums = self.truth_areas[self.truth] + self.prediction_areas[self.prediction]
        return self.intersection / (sums - self.intersection)


def overlaps(prediction: Instances, truth: Instances) -> Overlaps:
    """Return the pairs that share a pixel; instances may overlap on either side.

    The ends of all runs cut the row-major flattened field into segments that
    every instance covers whole or not at all; the shared area of two instances
    is the summed length of their common segments, a sparse matrix product.

    Raises
    ------
    InputError
        If the two sides differ in size.

    Examples
    --------
    >>> truth = Instances((1, 6), (np.array([[0, 4]]), np.array([[3, 2]])))
    >>> found = overlaps(Instances((1, 6), (np.array([[2, 3]]),)), truth)
    >>> found.truth.tolist(), found.intersection.tolist(), found.iou.tolist()
    ([0, 1], [2, 2], [0.4, 0.6666666666666666])
    """
    check_same_size(prediction.shape, truth.shape)
    true_runs, found_runs = _joined(truth), _joined(prediction)
    ends = [runs.sum(axis=1) for runs in (true_runs, found_runs)]
    bounds = np.unique(np.concatenate([true_runs[:, 0], found_runs[:, 0], *ends]))
    lengths = np.diff(bounds)
    true_cover = _cover(truth, true_runs, bounds)
    found_cover = _cover(prediction, found_runs, bounds)
    true_cover.data *= lengths[true_cover.indices]
    shared = (true_cover @ found_cover.T).tocsr()
    shared.sort_indices()
    rows = np.repeat(np.arange(len(truth)), np.diff(shared.indptr))
    columns = shared.indices.astype(np.int64)
    return Overlaps(areas(truth), areas(prediction), rows, columns, shared.data)


def overlaps_of_labels(prediction: NDArray[np.integer], truth: NDArray[np.integer]) -> Overlaps:
    """Return the pairs that share a pixel, for two label images of any integer dtype.

    The quick way where nothing overlaps: one count over paired ids.  Instances
    are numbered by ascending id, as in `instances_of_labels`.

    Raises
    ------
    InputError
        If the two images differ in size, or one is no label image.
    """
    check_same_size(prediction.shape, truth.shape)
    # Dense ids first, in 64 bits: products of ids overflow the dtype of the files.
    true_ids = relabel_dense(truth).ravel().astype(np.int64)
    found_ids = relabel_dense(prediction).ravel().astype(np.int64)
    true_areas, found_areas = np.bincount(true_ids)[1:], np.bincount(found_ids)[1:]
    both = (true_ids > 0) & (found_ids > 0)
    codes, counts = _counted(
        (true_ids[both] - 1) * len(found_areas) + found_ids[both] - 1,
        len(true_areas) * len(found_areas),
    )
    width = max(len(found_areas), 1)
    return Overlaps(true_areas, found_areas, codes // width, codes % width, counts)


def match(pairs: Overlaps, threshold: float) -> IntArray:
    """Return the true positives at one threshold, as ascending indices into the pairs.

    Each instance is in at most one pair and every pair has IoU ≥ `threshold`.
    As many pairs as possible are matched; among the largest matchings the one
    with the greatest sum of IoU is taken, pairs below the threshold counted
    too.  Several matchings of equal sum are a tie that is not defined.

    Parameters
    ----------
    pairs
        What :func:`overlaps` returns.
    threshold
        In (0, 1]; the double nearest to the decimal meant, such as ``0.55``.

    Notes
    -----
    IoU is a quotient of integers below 2³², correctly rounded to float64, so
    ``>=`` is exact: 11 of 20 pixels match at 0.55 (but not at
    ``0.5 + 0.05``-style sums that overshoot).

    Instances that do not overlap have at most one partner above 0.5, and at
    exactly 0.5 two only where these are its halves; wherever no instance has a
    second candidate the answer is read off.  Otherwise the assignment is solved
    on the sparse pairs (LAPJVsp, `min_weight_full_bipartite_matching`), with
    the objective of StarDist 0.9.1 (``matching.py``) and Cellpose 3.1.1.2
    (``metrics.py``): ``[iou >= t] + iou / (2 min(T, P))``.
    """
    assert 0 < threshold <= 1
    iou = pairs.iou
    good = np.flatnonzero(iou >= threshold)
    if _no_index_twice(pairs.truth[good]) and _no_index_twice(pairs.prediction[good]):
        return good
    chosen = _assignment(pairs, iou, threshold)
    return chosen[iou[chosen] >= threshold]


def _assignment(pairs: Overlaps, iou: NDArray[np.float64], threshold: float) -> IntArray:
    """Return the best one-to-one pairs, those below the threshold included, ascending."""
    n_true, n_found = len(pairs.truth_areas), len(pairs.prediction_areas)
    gain = (iou >= threshold) + iou / (2 * min(n_true, n_found))
    # Every true instance gets a partner of its own that stands for "none": the
    # solver wants each row assigned.  2 keeps all costs positive, since it takes
    # an explicit 0 for an absent edge; one per row, it does not move the optimum.
    nobody = np.arange(n_true)
    rows = np.concatenate([pairs.truth, nobody])
    columns = np.concatenate([pairs.prediction, n_found + nobody])
    costs = np.concatenate([2.0 - gain, np.full(n_true, 2.0)])
    graph = sparse.csr_array((costs, (rows, columns)), shape=(n_true, n_found + n_true))
    row, column = min_weight_full_bipartite_matching(graph)
    taken = row[column < n_found] * n_found + column[column < n_found]
    return np.flatnonzero(np.isin(pairs.truth * n_found + pairs.prediction, taken))


def _no_index_twice(indices: IntArray) -> bool:
    return indices.size == 0 or int(np.bincount(indices).max()) <= 1


def _counted(codes: IntArray, n_codes: int) -> tuple[IntArray, IntArray]:
    """Return the distinct codes, ascending, and how often each occurs."""
    if n_codes > _TABLE_ENTRIES_PER_PIXEL * codes.size:
        return np.unique(codes, return_counts=True)
    counts = np.bincount(codes, minlength=n_codes)
    present = np.flatnonzero(counts)
    return present, counts[present]


def _joined(instances: Instances) -> IntArray:
    """Return the runs of all instances one after the other, int64 (N, 2)."""
    return np.concatenate([np.zeros((0, 2), dtype=np.int64), *instances.runs])


def _cover(instances: Instances, runs: IntArray, bounds: IntArray) -> sparse.csr_array:
    """Return which instance covers which segment: ones, int64 (instances, segments)."""
    first = np.searchsorted(bounds, runs[:, 0])
    counts = np.searchsorted(bounds, runs.sum(axis=1)) - first
    offsets = np.cumsum(counts) - counts
    segments = np.repeat(first - offsets, counts) + np.arange(counts.sum())
    run_ends = np.cumsum([0, *(len(one) for one in instances.runs)])
    row_ends = np.concatenate([[0], np.cumsum(counts)])[run_ends]
    ones = np.ones(len(segments), dtype=np.int64)
    shape = (len(instances), max(len(bounds) - 1, 0))
    return sparse.csr_array((ones, segments, row_ends), shape=shape)


def check_same_size(prediction: tuple[int, ...], truth: tuple[int, ...]) -> None:
    """Raise InputError where the two sides of a comparison differ in size."""
    if tuple(prediction) != tuple(truth):
        raise InputError(
            f"the prediction is {'×'.join(map(str, prediction))} px, "
            f"the truth is {'×'.join(map(str, truth))} px"
        )
