"""Overlaps and pairs against boolean masks, plain loops and exhaustive search."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_cli.errors import InputError
from cellseg_cli.evaluation.matching import Overlaps, match, overlaps, overlaps_of_labels
from cellseg_cli.instances import Instances, instances_of_labels
from cellseg_cli.runlength import runs_of_mask

SHAPE = (5, 7)
MASKS = st.lists(hnp.arrays(bool, SHAPE).filter(np.any), max_size=5)
LABELS = hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 2, 3, 200, 255]))


def instances(masks: list[np.ndarray]) -> Instances:
    return Instances(SHAPE, tuple(runs_of_mask(mask) for mask in masks))


def slow_iou(prediction: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    """IoU of every pair, (T, P), from whole masks."""
    iou = np.zeros((len(truth), len(prediction)))
    for t, true in enumerate(truth):
        for p, found in enumerate(prediction):
            iou[t, p] = np.sum(true & found) / np.sum(true | found)
    return iou


def dense_iou(pairs: Overlaps) -> np.ndarray:
    iou = np.zeros((len(pairs.truth_areas), len(pairs.prediction_areas)))
    iou[pairs.truth, pairs.prediction] = pairs.iou
    return iou


def best_by_search(iou: np.ndarray, threshold: float) -> tuple[int, float]:
    """The greatest (count, sum of all IoU) over every one-to-one assignment."""
    if iou.shape[0] > iou.shape[1]:
        iou = iou.T
    best = (0, 0.0)
    for columns in permutations(range(iou.shape[1]), iou.shape[0]):
        chosen = iou[range(iou.shape[0]), columns]
        best = max(best, (int(np.sum(chosen >= threshold)), round(float(chosen.sum()), 9)))
    return best


@given(MASKS, MASKS)
@settings(deadline=None, max_examples=50)
def test_overlaps_of_overlapping_instances(
    prediction: list[np.ndarray], truth: list[np.ndarray]
) -> None:
    pairs = overlaps(instances(prediction), instances(truth))
    assert pairs.truth_areas.tolist() == [int(mask.sum()) for mask in truth]
    assert pairs.prediction_areas.tolist() == [int(mask.sum()) for mask in prediction]
    np.testing.assert_allclose(dense_iou(pairs), slow_iou(prediction, truth), rtol=1e-15)
    assert (pairs.intersection >= 1).all()
    order = list(zip(pairs.truth.tolist(), pairs.prediction.tolist(), strict=True))
    assert order == sorted(set(order))


@given(LABELS, LABELS)
@settings(deadline=None, max_examples=50)
def test_label_images_give_the_same_overlaps_as_their_instances(
    prediction: np.ndarray, truth: np.ndarray
) -> None:
    quick = overlaps_of_labels(prediction, truth)
    general = overlaps(instances_of_labels(prediction), instances_of_labels(truth))
    for name in ("truth_areas", "prediction_areas", "truth", "prediction", "intersection"):
        assert getattr(quick, name).tolist() == getattr(general, name).tolist()


@given(MASKS, MASKS, st.sampled_from([0.05, 0.2, 0.35, 0.5, 0.75]))
@settings(deadline=None, max_examples=50)
def test_no_assignment_has_more_pairs(
    prediction: list[np.ndarray], truth: list[np.ndarray], threshold: float
) -> None:
    pairs = overlaps(instances(prediction), instances(truth))
    chosen = match(pairs, threshold)
    assert len(set(pairs.truth[chosen].tolist())) == len(chosen)
    assert len(set(pairs.prediction[chosen].tolist())) == len(chosen)
    assert (pairs.iou[chosen] >= threshold).all()
    assert len(chosen) == best_by_search(slow_iou(prediction, truth), threshold)[0]


def test_the_largest_matching_comes_before_the_best_single_pair() -> None:
    """Truth A lies in both predictions, truth B in the first only.

    A–1 has the highest IoU (6/8), but taking it leaves B alone: at 0.3 the
    pairs are A–2 (2/6) and B–1 (3/8).  At 0.5 only A–1 is left.
    """
    a, b = [[0, 6]], [[5, 3]]
    one, two = [[0, 8]], [[0, 2]]
    truth = Instances((1, 8), (np.array(a), np.array(b)))
    found = Instances((1, 8), (np.array(one), np.array(two)))
    pairs = overlaps(found, truth)
    assert dense_iou(pairs).tolist() == [[6 / 8, 2 / 6], [3 / 8, 0]]
    at_low = match(pairs, 0.3)
    matched = zip(pairs.truth[at_low].tolist(), pairs.prediction[at_low].tolist(), strict=True)
    assert set(matched) == {(0, 1), (1, 0)}
    at_half = match(pairs, 0.5)
    assert (pairs.truth[at_half].tolist(), pairs.prediction[at_half].tolist()) == ([0], [0])


def test_of_two_largest_matchings_the_one_with_more_overlap_is_taken() -> None:
    truth = Instances((1, 10), (np.array([[0, 10]]),))
    found = Instances((1, 10), (np.array([[0, 7]]), np.array([[0, 9]]), np.array([[2, 8]])))
    pairs = overlaps(found, truth)
    assert pairs.prediction[match(pairs, 0.5)].tolist() == [1]


@pytest.mark.parametrize("percent", range(50, 100, 5))
def test_an_iou_of_exactly_the_threshold_is_a_match(percent: int) -> None:
    """`percent` of 100 pixels, whose quotient is the double nearest to the decimal."""
    truth = np.ones((10, 10), np.uint8)
    found = (np.arange(100) < percent).astype(np.uint8).reshape(10, 10)
    pairs = overlaps_of_labels(found, truth)
    assert len(match(pairs, percent / 100)) == 1
    one_less = overlaps_of_labels(
        (np.arange(100) < percent - 1).astype(np.uint8).reshape(10, 10), truth
    )
    assert len(match(one_less, percent / 100)) == 0


def test_products_of_ids_do_not_overflow_the_dtype() -> None:
    """200 × 200 instances in uint8: a paired id in 8 or 16 bits would wrap."""
    ids = np.arange(1, 201, dtype=np.uint8).reshape(10, 20)
    pairs = overlaps_of_labels(ids[::-1], ids)
    assert len(pairs.truth) == 200
    assert pairs.iou.tolist() == [1.0] * 200
    assert len(match(pairs, 0.95)) == 200


@pytest.mark.parametrize("sides", [(0, 0), (0, 3), (3, 0)])
def test_no_instances_have_no_pairs(sides: tuple[int, int]) -> None:
    labels = {
        0: np.zeros((4, 4), np.uint16),
        3: np.array([[1, 2], [3, 0]], np.uint16).repeat(2, 0).repeat(2, 1),
    }
    found, true = labels[sides[0]], labels[sides[1]]
    for pairs in (
        overlaps_of_labels(found, true),
        overlaps(instances_of_labels(found), instances_of_labels(true)),
    ):
        assert (len(pairs.prediction_areas), len(pairs.truth_areas)) == sides
        assert match(pairs, 0.5).tolist() == []
        assert match(pairs, 0.1).tolist() == []


def test_sides_of_different_size_are_refused() -> None:
    message = "the prediction is 4×5 px, the truth is 4×6 px"
    with pytest.raises(InputError) as of_labels:
        overlaps_of_labels(np.zeros((4, 5), int), np.zeros((4, 6), int))
    assert str(of_labels.value) == message
    with pytest.raises(InputError) as of_instances:
        overlaps(Instances((4, 5), ()), Instances((4, 6), ()))
    assert str(of_instances.value) == message
