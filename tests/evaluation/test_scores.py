"""Scores against StarDist and Cellpose, against plain loops, and as laws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_cli.evaluation.matching import Overlaps, match, overlaps_of_labels
from cellseg_cli.evaluation.mistakes import Fate, Mistakes, fates
from cellseg_cli.evaluation.scores import (
    THRESHOLDS,
    FieldScore,
    measures,
    score_field,
    score_overlaps,
    summarise,
    summarise_groups,
    total,
)
from cellseg_cli.instances import Instances, instances_of_labels

LABELS = hnp.arrays(np.uint8, (6, 7), elements=st.integers(0, 4))

# Made once, by running two published packages on these label images: matching()
# of StarDist 0.9.1 (stardist/matching.py) and average_precision() of Cellpose
# 3.1.1.2 (cellpose/metrics.py), both with numpy 2.4.6, scipy 1.17.1, numba
# 0.68.1, on (truth, prediction) pairs: random Voronoi cells against unrelated
# ones, against themselves with frayed outlines and permuted ids, and shifted;
# merged, split, missed and false cells; halves; identical; nothing on either
# and on both sides; bars with an IoU of exactly 0.1, 0.3, 0.5 ... 0.95; noise.
# NaN is null.  peer_cases.npz holds uint8 (2, 36, 48): truth, prediction.
DATA = Path(__file__).parent / "data"
PEERS = json.loads((DATA / "peer_scores.json").read_text())


def labels_of_case(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / "peer_cases.npz", allow_pickle=False) as cases:
        truth, prediction = cases[name]
    return truth, prediction


def assert_close(ours: tuple[float, ...], theirs: list[float | None]) -> None:
    """Their numbers went through float32 and six decimals."""
    expected = [math.nan if value is None else value for value in theirs]
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize("case", PEERS["cases"])
def test_counts_and_average_precision_equal_those_of_the_peers(case: str) -> None:
    truth, prediction = labels_of_case(case)
    quick = score_overlaps(overlaps_of_labels(prediction, truth), PEERS["thresholds"])
    general = score_field(
        instances_of_labels(prediction), instances_of_labels(truth), PEERS["thresholds"]
    )
    assert quick == general
    for peer in ("stardist", "cellpose"):
        theirs = PEERS["cases"][case][peer]
        assert list(quick.tp) == theirs["tp"]
        assert list(quick.fp) == theirs["fp"]
        assert list(quick.fn) == theirs["fn"]
    assert_close(measures(quick).ap, PEERS["cases"][case]["cellpose"]["ap"])


@pytest.mark.parametrize("case", sorted(set(PEERS["cases"]) - {"nothing_on_both_sides"}))
def test_every_other_measure_equals_stardist(case: str) -> None:
    """All but the mean IoU of no pairs, which StarDist calls 0 and we leave undefined."""
    truth, prediction = labels_of_case(case)
    score = score_overlaps(overlaps_of_labels(prediction, truth), PEERS["thresholds"])
    ours, theirs = measures(score), PEERS["cases"][case]["stardist"]
    assert_close(ours.ap, theirs["accuracy"])
    assert_close(ours.precision, theirs["precision"])
    assert_close(ours.recall, theirs["recall"])
    assert_close(ours.f1, theirs["f1"])
    assert_close(ours.pq, theirs["panoptic_quality"])
    for tp, value, expected in zip(
        score.tp, ours.matched_iou, theirs["mean_matched_score"], strict=True
    ):
        assert math.isnan(value) if tp == 0 else abs(value - expected) < 2e-6


def test_nothing_on_both_sides_is_undefined_as_in_cellpose() -> None:
    peers = PEERS["cases"]["nothing_on_both_sides"]
    assert peers["cellpose"]["ap"] == [None] * 12
    assert peers["stardist"]["accuracy"] == [0.0] * 12
    empty = measures(score_field(Instances((3, 3), ()), Instances((3, 3), ())))
    for name in ("ap", "precision", "recall", "f1", "pq", "matched_iou"):
        assert all(math.isnan(value) for value in getattr(empty, name))
    assert math.isnan(empty.mean_ap)


@given(LABELS)
@settings(deadline=None, max_examples=50)
def test_identical_label_images_score_one(labels: np.ndarray) -> None:
    assume(labels.any())
    score = score_field(instances_of_labels(labels), instances_of_labels(labels))
    scored = measures(score)
    for name in ("ap", "precision", "recall", "f1", "pq", "matched_iou"):
        assert getattr(scored, name) == (1.0,) * 10
    assert scored.mean_ap == pytest.approx(1.0, abs=1e-15)
    assert score.mistakes == Mistakes()


@given(LABELS, LABELS, st.permutations(range(1, 5)))
@settings(deadline=None, max_examples=50)
def test_ids_carry_no_meaning(a: np.ndarray, b: np.ndarray, ids: list[int]) -> None:
    permuted = np.array([0, *ids], dtype=np.int16)[a]
    thresholds = (0.2, *THRESHOLDS)
    one = score_overlaps(overlaps_of_labels(a, b), thresholds)
    other = score_overlaps(overlaps_of_labels(permuted, b), thresholds)
    assert (one.tp, one.fp, one.fn, one.mistakes) == (other.tp, other.fp, other.fn, other.mistakes)
    assert one.iou_sum[1:] == pytest.approx(other.iou_sum[1:])


@given(LABELS, LABELS)
@settings(deadline=None, max_examples=50)
def test_changing_sides_changes_places(a: np.ndarray, b: np.ndarray) -> None:
    thresholds = (0.2, *THRESHOLDS)
    one = score_overlaps(overlaps_of_labels(a, b), thresholds)
    other = score_overlaps(overlaps_of_labels(b, a), thresholds)
    assert (one.tp, one.fp, one.fn) == (other.tp, other.fn, other.fp)
    swapped = Mistakes(
        missed=other.mistakes.false,
        false=other.mistakes.missed,
        split=other.mistakes.merged,
        merged=other.mistakes.split,
        boundary=other.mistakes.boundary,
    )
    assert one.mistakes == swapped


@given(LABELS, LABELS)
@settings(deadline=None, max_examples=50)
def test_counts_of_disjoint_instances_by_plain_loops(found: np.ndarray, true: np.ndarray) -> None:
    """From 0.5 on, two disjoint instances can share a partner only at exactly 0.5."""
    score = score_overlaps(overlaps_of_labels(found, true), (0.55, 0.75))
    for threshold, tp in zip(score.thresholds, score.tp, strict=True):
        expected = 0
        for t in set(true[true > 0].tolist()):
            for p in set(found[found > 0].tolist()):
                both = np.sum((true == t) & (found == p))
                either = np.sum((true == t) | (found == p))
                expected += bool(both / either >= threshold)
        assert tp == expected


def test_mistakes_by_eye() -> None:
    """1 is found as two halves, 2 and 3 as one, 4 not at all, 5 well; f is invented."""
    truth = ["11110", "22220", "33330", "44440", "55550"]
    found = ["aabb0", "cccc0", "cccc0", "00000", "eeee0"]
    prediction = ["aabb0", "cccc0", "cccc0", "0000f", "eeee0"]
    assert mistakes(found, truth) == Mistakes(missed=1, false=0, split=1, merged=1)
    assert mistakes(prediction, truth) == Mistakes(missed=1, false=1, split=1, merged=1)


def test_a_poor_outline_is_a_mistake_of_its_own() -> None:
    """1 well, 2 at IoU 4/6, 3 at 4/9 (which is nothing of these)."""
    truth = ["1111000000", "2222220000", "3333333330"]
    found = ["1111000000", "2222000000", "3333000000"]
    assert mistakes(found, truth) == Mistakes(boundary=1)
    assert mistakes(truth, found) == Mistakes(boundary=1)


def test_every_instance_has_one_fate() -> None:
    """As in `test_mistakes_by_eye`, with a poor outline of 6 and a part of 7 that is no match."""
    truth = ["11110000", "22220000", "33330000", "44440000", "55550000", "66666600", "77777777"]
    found = ["aabb0000", "cccc0000", "cccc0000", "0000000f", "eeee0000", "66660000", "77700000"]
    became = fates(pairs_of(found, truth))
    split, merged, lost, well = Fate.SPLIT, Fate.MERGED, Fate.LOST, Fate.WELL
    assert became.truth.tolist() == [split, merged, merged, lost, well, Fate.BOUNDARY, Fate.POOR]
    # ids ascend: 6, 7, a, b, c, e, f
    assert became.prediction.tolist() == [
        *(Fate.BOUNDARY, Fate.POOR, split, split, merged, well, lost)
    ]


@given(LABELS, LABELS)
@settings(deadline=None, max_examples=50)
def test_fates_agree_with_the_counts(found: np.ndarray, true: np.ndarray) -> None:
    pairs = overlaps_of_labels(found, true)
    became, counted = fates(pairs), score_overlaps(pairs).mistakes
    assert (became.truth == Fate.LOST).sum() == counted.missed
    assert (became.prediction == Fate.LOST).sum() == counted.false
    for side, areas in (
        (became.truth, pairs.truth_areas),
        (became.prediction, pairs.prediction_areas),
    ):
        assert len(side) == len(areas)
    # an instance that is well found is so whatever else it is
    assert (became.truth == Fate.SPLIT).sum() <= counted.split
    assert (became.prediction == Fate.MERGED).sum() <= counted.merged
    well = score_overlaps(pairs, (0.5,)).tp[0] - (pairs.iou[match(pairs, 0.5)] < 0.75).sum()
    assert (became.truth == Fate.WELL).sum() == (became.prediction == Fate.WELL).sum() == well


def mistakes(prediction: list[str], truth: list[str]) -> Mistakes:
    return score_overlaps(pairs_of(prediction, truth)).mistakes


def pairs_of(prediction: list[str], truth: list[str]) -> Overlaps:
    as_labels = [
        np.array([[int(c, 16) for c in row] for row in side]) for side in (prediction, truth)
    ]
    return overlaps_of_labels(*as_labels)


def counts(truth: int, predicted: int, tp: int, iou_sum: float = 0.0) -> FieldScore:
    return FieldScore((0.5,), truth, predicted, (tp,), (iou_sum,))


def test_means_give_fields_and_pools_give_instances_the_same_weight() -> None:
    """Field a: 1 of 1 found, field b: 1 of 10 found and 3 false, field c empty and right."""
    scores = summarise([counts(1, 1, 1, 0.9), counts(10, 4, 1, 0.6), counts(0, 0, 0)])
    assert (scores.fields, scores.empty_fields) == (3, 1)
    assert scores.mean.ap == (pytest.approx((1 + 1 / 13) / 2),)
    assert scores.pooled.ap == (2 / 14,)
    assert scores.mean.recall == (pytest.approx((1 + 1 / 10) / 2),)
    assert scores.pooled.recall == (2 / 11,)
    assert scores.mean.precision == (pytest.approx((1 + 1 / 4) / 2),)
    assert scores.pooled.precision == (2 / 5,)
    assert scores.pooled.f1 == (4 / 16,)
    assert scores.mean.pq == (pytest.approx((0.9 + 0.6 / (1 + 12 / 2)) / 2),)
    assert scores.pooled.pq == (pytest.approx(1.5 / (2 + 12 / 2)),)
    assert scores.mean.matched_iou == (pytest.approx(0.75),)


def test_mean_ap_is_the_mean_over_thresholds() -> None:
    """8 of 10 pixels: a match at 0.50 ... 0.80, seven of ten thresholds."""
    truth = Instances((1, 10), (np.array([[0, 10]]),))
    found = Instances((1, 10), (np.array([[0, 8]]),))
    scored = measures(score_field(found, truth))
    assert scored.ap == (1.0,) * 7 + (0.0,) * 3
    assert scored.mean_ap == 0.7
    assert scored.at("pq", 0.5) == 0.8
    assert scored.at("pq", 0.85) == 0.0


def test_groups_leave_out_fields_without_one() -> None:
    fields = {"a": counts(1, 1, 1), "b": counts(1, 0, 0), "c": counts(2, 2, 0)}
    groups = summarise_groups(fields, {"a": "y", "b": "x", "elsewhere": "z"})
    assert {name: group.total.truth for name, group in groups.items()} == {"x": 1, "y": 1}
    assert list(groups) == ["x", "y"]


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_adding_up_is_scoring_the_mosaic(fields: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Fields side by side, ids kept apart, score as their sum."""
    each = total(score_overlaps(overlaps_of_labels(*field)) for field in fields)
    sides = [
        np.hstack([np.where(f[side] > 0, f[side] + 10.0 * i, 0) for i, f in enumerate(fields)])
        for side in (0, 1)
    ]
    mosaic = score_overlaps(overlaps_of_labels(sides[0].astype(int), sides[1].astype(int)))
    assert (mosaic.tp, mosaic.fp, mosaic.fn) == (each.tp, each.fp, each.fn)
    assert mosaic.mistakes == each.mistakes
    assert mosaic.iou_sum == pytest.approx(each.iou_sum)
