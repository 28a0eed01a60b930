from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from cellseg_cli.clustering.pieces import connected_pieces, finished

small_labels = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
)


def drawn(*rows: str) -> np.ndarray:
    """A label image as one sees it; a dot is background."""
    return np.array([[0 if sign == "." else int(sign) for sign in row] for row in rows], np.int32)


@given(small_labels)
@settings(deadline=None, max_examples=50)
def test_pieces_are_those_of_scipy_label_by_label(labels: np.ndarray) -> None:
    pieces, label_of, area_of = connected_pieces(labels)
    expected = np.zeros_like(labels)
    for label in range(1, 4):
        found, count = ndimage.label(labels == label)
        expected[found > 0] = found[found > 0] + expected.max()
        assert np.count_nonzero(label_of == label) == count
    pairs = np.unique(np.stack([pieces.ravel(), expected.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    assert (label_of[pieces] == labels).all()
    assert (np.bincount(pieces[pieces > 0], minlength=len(area_of)) == area_of).all()


@given(small_labels, st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_finished_instances_are_whole_large_enough_and_dense(
    labels: np.ndarray, min_area_px: int
) -> None:
    result = finished(labels, min_area_px)
    assert result.dtype == np.uint32
    for number in range(1, int(result.max()) + 1):
        mask = result == number
        assert ndimage.label(mask)[1] == 1
        assert mask.sum() >= min_area_px
    assert (finished(result.astype(np.int32), min_area_px) == result).all()


def test_a_loose_piece_joins_the_neighbour_of_the_longest_border() -> None:
    labels = drawn("11111", "11111", "..1.3", "22133", "22233")
    labels[4, 3] = 1  # cut off from the rest of 1: borders 3 above and right, 2 on the left
    expected = drawn("11111", "11111", "..1.3", "22133", "22233")
    expected[4, 3] = 3
    assert (finished(labels, 2) == expected).all()


def test_loose_pieces_settle_layer_by_layer_or_vanish() -> None:
    labels = drawn("111234..5", "111......")
    assert (finished(labels, 2) == drawn("111111...", "111......")).all()


def test_holes_are_filled_unless_two_cells_or_the_border_own_them() -> None:
    labels = drawn("1111...", "1.11222", "11112.2", "1112222", ".......")
    assert (
        finished(labels, 1) == drawn("1111...", "1111222", "1111222", "1112222", ".......")
    ).all()
    shared = drawn("1122", "1..2", "1122")
    assert (finished(shared, 1) == shared).all()
    open_to_border = drawn("1111", "1..1", "1..1")
    assert (finished(open_to_border, 1) == open_to_border).all()


def test_a_loop_larger_than_its_line_stays_open() -> None:
    loop = np.ones((12, 12), np.int32)
    loop[1:-1, 1:-1] = 0
    assert (finished(loop, 1) == loop).all()  # 44 px around 100


def test_numbers_become_dense() -> None:
    assert finished(drawn("44.9", "44.9"), 1).tolist() == [[1, 1, 0, 2], [1, 1, 0, 2]]
