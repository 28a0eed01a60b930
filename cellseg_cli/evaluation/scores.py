"""Scores from matched instances: of one field, of many fields, pooled and averaged.

A field is reduced to a few counts at once (:class:`FieldScore`); everything
that is reported follows from these counts, so fields can be pooled in any
order.  Measures that divide nothing by nothing are NaN and left out of means;
this module never replaces them by a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from cellseg_cli.evaluation.matching import Overlaps, match, overlaps
from cellseg_cli.evaluation.mistakes import Mistakes, count_mistakes
from cellseg_cli.instances import Instances

#: 0.50:0.05:0.95, each the double nearest to its decimal (a running sum is not).
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


@dataclass(frozen=True)
class FieldScore:
    """What one field (or several, added up) contributes to every score.

    Attributes
    ----------
    thresholds
        IoU thresholds, to which `tp` and `iou_sum` belong one by one.
    truth, predicted
        Number of true and of predicted instances.
    tp
        Matched pairs at each threshold.
    iou_sum
        Sum of IoU over the matched pairs at each threshold.
    mistakes
        Kinds of error.
    """

    thresholds: tuple[float, ...]
    truth: int
    predicted: int
    tp: tuple[int, ...]
    iou_sum: tuple[float, ...]
    mistakes: Mistakes = field(default_factory=Mistakes)

    @property
    def fp(self) -> tuple[int, ...]:
        """Predictions without a partner at each threshold."""
        return tuple(self.predicted - tp for tp in self.tp)

    @property
    def fn(self) -> tuple[int, ...]:
        """True instances without a partner at each threshold."""
        return tuple(self.truth - tp for tp in self.tp)


@dataclass(frozen=True)
class Measures:
    """Scores at each threshold, NaN where undefined.

    Attributes
    ----------
    ap
        TP / (TP + FP + FN), the "average precision" of DSB 2018, Cellpose and
        StarDist (there also called accuracy).
    precision, recall, f1
        TP / (TP + FP), TP / (TP + FN), 2 TP / (2 TP + FP + FN).
    pq
        Panoptic quality, sum of matched IoU / (TP + FP/2 + FN/2), Kirillov et
        al. 2019, equation 1; equal to `matched_iou` × `f1`.
    matched_iou
        Mean IoU of the matched pairs; undefined without any.
    """

    thresholds: tuple[float, ...]
    ap: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    pq: tuple[float, ...]
    matched_iou: tuple[float, ...]

    @property
    def mean_ap(self) -> float:
        """Mean of `ap` over the thresholds; over 0.50:0.05:0.95, Kaggle's mean AP."""
        return sum(self.ap) / len(self.ap)

    def at(self, name: str, threshold: float) -> float:
        """Return one measure at one of the thresholds."""
        values: tuple[float, ...] = getattr(self, name)
        return values[self.thresholds.index(threshold)]


@dataclass(frozen=True)
class Scores:
    """The scores of a set of fields.

    Attributes
    ----------
    fields
        Number of fields.
    empty_fields
        Those without cells on either side; right, but without a score of their
        own, so the means are over the others.
    total
        All fields added up, as if they were one large one.
    pooled
        The measures of `total`: every instance has the same weight.
    mean
        The mean of the measures of each field: every field has the same weight
        (Kaggle averages so).  Undefined values are left out.
    """

    fields: int
    empty_fields: int
    total: FieldScore
    pooled: Measures
    mean: Measures


def score_field(
    prediction: Instances, truth: Instances, thresholds: Sequence[float] = THRESHOLDS
) -> FieldScore:
    """Return the counts of one field at each IoU threshold, in (0, 1].

    Raises
    ------
    InputError
        If prediction and truth differ in size.
    """
    return score_overlaps(overlaps(prediction, truth), thresholds)


def score_overlaps(pairs: Overlaps, thresholds: Sequence[float] = THRESHOLDS) -> FieldScore:
    """Return the counts of one field from its overlaps, at each IoU threshold."""
    iou = pairs.iou
    matched = [iou[match(pairs, threshold)] for threshold in thresholds]
    return FieldScore(
        thresholds=tuple(thresholds),
        truth=len(pairs.truth_areas),
        predicted=len(pairs.prediction_areas),
        tp=tuple(len(values) for values in matched),
        iou_sum=tuple(math.fsum(values.tolist()) for values in matched),
        mistakes=count_mistakes(pairs),
    )


def total(scores: Iterable[FieldScore]) -> FieldScore:
    """Return the sum of all counts; the thresholds must be the same, and one field there."""
    every = list(scores)
    assert every and len({score.thresholds for score in every}) == 1
    return FieldScore(
        thresholds=every[0].thresholds,
        truth=sum(score.truth for score in every),
        predicted=sum(score.predicted for score in every),
        tp=tuple(sum(at) for at in zip(*(score.tp for score in every), strict=True)),
        iou_sum=tuple(math.fsum(at) for at in zip(*(s.iou_sum for s in every), strict=True)),
        mistakes=Mistakes(
            *(sum(getattr(s.mistakes, kind.name) for s in every) for kind in fields(Mistakes))
        ),
    )


def measures(score: FieldScore) -> Measures:
    """Return the measures of one field, or of fields added up.

    Without cells on either side everything is NaN, as Cellpose has it: nothing
    was found and nothing was there to find.  (StarDist says 0, which would
    punish a right answer in every mean over fields; 1 would reward it, and
    reward most whoever has the emptiest fields.)  With cells on one side only,
    everything but `matched_iou` is 0, as both have it.
    """
    tp = np.array(score.tp, dtype=np.float64)
    fp, fn, iou = (
        np.array(values, dtype=np.float64) for values in (score.fp, score.fn, score.iou_sum)
    )
    some = score.truth + score.predicted > 0

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, ...]:
        quotient = np.zeros(len(tp)) if some else np.full(len(tp), np.nan)
        np.divide(numerator, denominator, out=quotient, where=denominator > 0)
        return tuple(quotient.tolist())

    return Measures(
        thresholds=score.thresholds,
        ap=ratio(tp, tp + fp + fn),
        precision=ratio(tp, tp + fp),
        recall=ratio(tp, tp + fn),
        f1=ratio(2 * tp, 2 * tp + fp + fn),
        pq=ratio(iou, tp + (fp + fn) / 2),
        matched_iou=tuple(
            s / n if n else math.nan for s, n in zip(score.iou_sum, score.tp, strict=True)
        ),
    )


def summarise(scores: Iterable[FieldScore]) -> Scores:
    """Return the scores of a set of fields, at least one."""
    every = list(scores)
    added = total(every)
    each = [measures(score) for score in every]
    empty = sum(1 for score in every if score.truth + score.predicted == 0)
    return Scores(len(every), empty, added, measures(added), _mean(each))


def summarise_groups(
    scores: Mapping[str, FieldScore], group_of: Mapping[str, str]
) -> dict[str, Scores]:
    """Return the scores of each group of fields, by name; fields without a group are in none."""
    members: dict[str, list[FieldScore]] = {}
    for field_id, score in scores.items():
        if field_id in group_of:
            members.setdefault(group_of[field_id], []).append(score)
    return {name: summarise(members[name]) for name in sorted(members)}


def _mean(each: Sequence[Measures]) -> Measures:
    """Return the mean of every measure at every threshold over what is defined."""
    names = [entry.name for entry in fields(Measures) if entry.name != "thresholds"]
    values = {
        name: tuple(
            _mean_of_defined(at) for at in zip(*(getattr(m, name) for m in each), strict=True)
        )
        for name in names
    }
    return Measures(thresholds=each[0].thresholds, **values)


def _mean_of_defined(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
