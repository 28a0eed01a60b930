"""Instances and label images: which cell lies on top, and that nothing else changes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.instances import Instances, areas, instances_of_labels, labels_of
from cellseg_cli.runlength import paint, runs_of_mask


def boxes(shape: tuple[int, int], *corners: tuple[int, int, int, int]) -> Instances:
    """Instances that are filled half-open boxes y0, x0, y1, x1."""
    runs = []
    for y0, x0, y1, x1 in corners:
        mask = np.zeros(shape, dtype=bool)
        mask[y0:y1, x0:x1] = True
        runs.append(runs_of_mask(mask))
    return Instances(shape, tuple(runs))


def test_the_smaller_cell_lies_on_top() -> None:
    expected = [[2, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1]]
    assert labels_of(boxes((3, 4), (0, 0, 3, 4), (0, 0, 2, 2))).tolist() == expected
    swapped = [[1, 1, 2, 2], [1, 1, 2, 2], [2, 2, 2, 2]]
    assert labels_of(boxes((3, 4), (0, 0, 2, 2), (0, 0, 3, 4))).tolist() == swapped


def test_of_equally_large_cells_the_later_lies_on_top() -> None:
    assert labels_of(boxes((1, 5), (0, 0, 1, 3), (0, 2, 1, 5))).tolist() == [[1, 1, 2, 2, 2]]


def test_a_covered_cell_leaves_a_gap_in_the_ids() -> None:
    # The two halves together cover the whole, which is painted first.
    labels = labels_of(boxes((1, 4), (0, 0, 1, 4), (0, 0, 1, 2), (0, 2, 1, 4)))
    assert labels.tolist() == [[2, 2, 3, 3]]


def test_no_cells() -> None:
    none = instances_of_labels(np.zeros((4, 3), dtype=np.uint16))
    assert (len(none), none.shape, areas(none).tolist()) == (0, (4, 3), [])
    assert labels_of(none).dtype == np.uint32
    assert not labels_of(none).any()


def test_areas_are_whole_even_under_another_cell() -> None:
    assert areas(boxes((3, 4), (0, 0, 3, 4), (0, 0, 2, 2))).tolist() == [12, 4]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 8), st.randoms(use_true_random=False))
def test_labels_to_instances_and_back_keeps_the_cells(height: int, width: int, random) -> None:
    ids = [0, 3, 9, 70000]
    labels = np.array([[random.choice(ids) for _ in range(width)] for _ in range(height)])
    instances = instances_of_labels(labels.astype(np.uint32))
    present = sorted(set(labels.ravel().tolist()) - {0})
    assert len(instances) == len(present)
    for runs, key in zip(instances.runs, present, strict=True):
        assert np.array_equal(paint(runs, (height, width)), labels == key)
    # Ids become 1, 2, 3, ... in ascending order.
    assert np.array_equal(labels_of(instances), np.searchsorted([0, *present], labels))
