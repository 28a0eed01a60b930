"""What went wrong with which instance, without regard to the matching at one threshold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from cellseg_cli.evaluation.matching import Overlaps, match

#: Below this IoU two instances have nothing to do with each other: the background
#: threshold of TIDE (Bolya et al. 2020, section 2.2).
_NEAR_IOU = 0.1
#: A pair from here on is the same instance, and from there on well outlined.
_SAME_IOU, _WELL_IOU = 0.5, 0.75

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Mistakes:
    """Kinds of error, counted without regard to the matching.

    They answer "what went wrong", so they are not a partition of the unmatched:
    an instance with a good match and a stray fragment in it is split as well.

    Attributes
    ----------
    missed
        True instances that no prediction touches to speak of: IoU < 0.1 with
        each, and not more than half inside any.
    false
        Predictions that touch no true instance to speak of, in the same sense.
    split
        True instances that hold more than half of each of two or more predictions.
    merged
        Predictions that hold more than half of each of two or more true instances.
    boundary
        Pairs that match at IoU 0.5 but not at 0.75, and are neither split nor merged:
        the right instance with a poor outline.
    """

    missed: int = 0
    false: int = 0
    split: int = 0
    merged: int = 0
    boundary: int = 0


class Fate(IntEnum):
    """What became of one instance; of several kinds the first that holds.

    ``POOR`` is the rest: touched, but by nothing of IoU 0.5, and neither split nor merged.
    """

    WELL = 0
    LOST = 1  # a true instance is missed, a prediction false
    SPLIT = 2
    MERGED = 3
    BOUNDARY = 4
    POOR = 5


@dataclass(frozen=True, eq=False)
class Fates:
    """What became of every instance.

    Attributes
    ----------
    truth, prediction
        :class:`Fate` of each, uint8 (T,) and (P,): of a true instance whether it is missed,
        split, or within a merged prediction; of a prediction whether it is false, one of the
        parts of a split instance, or merged.
    """

    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Found:
    """The kinds of error as marks on pairs (K,) and on instances (T,), (P,)."""

    missed: BoolArray
    false: BoolArray
    split: BoolArray
    merged: BoolArray
    of_split: BoolArray
    of_merged: BoolArray
    matched: NDArray[np.int64]
    boundary: NDArray[np.int64]


def count_mistakes(pairs: Overlaps) -> Mistakes:
    """Return how many instances are missed, false, split, merged and badly outlined."""
    found = _find(pairs)
    return Mistakes(
        missed=int(np.count_nonzero(found.missed)),
        false=int(np.count_nonzero(found.false)),
        split=int(np.count_nonzero(found.split)),
        merged=int(np.count_nonzero(found.merged)),
        boundary=len(found.boundary),
    )


def fates(pairs: Overlaps) -> Fates:
    """Return what became of every instance on both sides."""
    found = _find(pairs)
    well = found.matched[pairs.iou[found.matched] >= _WELL_IOU]
    truth = _chosen(
        len(pairs.truth_areas),
        (Fate.BOUNDARY, found.boundary, pairs.truth),
        (Fate.MERGED, np.flatnonzero(found.of_merged), pairs.truth),
        (Fate.SPLIT, np.flatnonzero(found.split), None),
        (Fate.LOST, np.flatnonzero(found.missed), None),
        (Fate.WELL, well, pairs.truth),
    )
    prediction = _chosen(
        len(pairs.prediction_areas),
        (Fate.BOUNDARY, found.boundary, pairs.prediction),
        (Fate.MERGED, np.flatnonzero(found.merged), None),
        (Fate.SPLIT, np.flatnonzero(found.of_split), pairs.prediction),
        (Fate.LOST, np.flatnonzero(found.false), None),
        (Fate.WELL, well, pairs.prediction),
    )
    return Fates(truth, prediction)


def _chosen(
    count: int, *kinds: tuple[Fate, NDArray[np.int64], NDArray[np.int64] | None]
) -> NDArray[np.uint8]:
    """Return a fate for each of `count` instances; a later kind takes the place of earlier ones.

    Each kind comes with instances, or with pairs and the instance of every pair.
    """
    chosen = np.full(count, Fate.POOR, dtype=np.uint8)
    for fate, which, instance in kinds:
        chosen[which if instance is None else instance[which]] = fate
    return chosen


def _find(pairs: Overlaps) -> _Found:
    iou = pairs.iou
    near = iou >= _NEAR_IOU
    found_in_true = 2 * pairs.intersection > pairs.prediction_areas[pairs.prediction]
    true_in_found = 2 * pairs.intersection > pairs.truth_areas[pairs.truth]
    n_true, n_found = len(pairs.truth_areas), len(pairs.prediction_areas)
    split = np.bincount(pairs.truth[found_in_true], minlength=n_true) >= 2
    merged = np.bincount(pairs.prediction[true_in_found], minlength=n_found) >= 2
    matched = match(pairs, _SAME_IOU)
    rough = matched[iou[matched] < _WELL_IOU]
    return _Found(
        missed=np.bincount(pairs.truth[near | true_in_found], minlength=n_true) == 0,
        false=np.bincount(pairs.prediction[near | found_in_true], minlength=n_found) == 0,
        split=split,
        merged=merged,
        of_split=found_in_true & split[pairs.truth],
        of_merged=true_in_found & merged[pairs.prediction],
        matched=matched,
        boundary=rough[~split[pairs.truth[rough]] & ~merged[pairs.prediction[rough]]],
    )
