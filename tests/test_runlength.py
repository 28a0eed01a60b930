"""Runs, and the texts of Kaggle and COCO, against slower independent methods."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.errors import InputError
from cellseg_cli.runlength import (
    Order,
    box_of,
    coco_counts,
    coco_string,
    counts_of_coco_string,
    kaggle_text,
    paint,
    pixels,
    runs_of_coco_counts,
    runs_of_kaggle_text,
    runs_of_labels,
    runs_of_mask,
    transposed,
    union,
)

ORDERS: tuple[Order, ...] = ("row_major", "column_major")
LAWS = settings(deadline=None, max_examples=50)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Masks from 1×1 on: empty, full, one pixel, stripes, noise."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["empty", "full", "pixel", "rows", "columns", "noise"]))
    mask = np.zeros((height, width), dtype=bool)
    if kind == "full":
        mask[:] = True
    elif kind == "pixel":
        mask.flat[draw(st.integers(0, mask.size - 1))] = True
    elif kind == "rows":
        mask[:: draw(st.integers(1, 3))] = True
    elif kind == "columns":
        mask[:, :: draw(st.integers(1, 3))] = True
    elif kind == "noise":
        mask.flat[draw(st.lists(st.integers(0, mask.size - 1)))] = True
    return mask


def drawn(*rows: str) -> np.ndarray:
    """A mask from text; # is inside."""
    return np.array([[character == "#" for character in row] for row in rows])


def slow_runs(flat: list[bool]) -> list[tuple[int, int]]:
    """Runs of (start, length), 0-based, one pixel after the other."""
    runs: list[tuple[int, int]] = []
    for index, inside in enumerate(flat):
        if inside and runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif inside:
            runs.append((index, 1))
    return runs


def slow_string(counts: list[int]) -> str:
    """The loop of rleToString in cocoapi's maskApi.c, number by number."""
    text = ""
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group, rest = rest & 0x1F, rest >> 5
            more = rest != -1 if group & 0x10 else rest != 0
            text += chr(group + (0x20 if more else 0) + 48)
    return text


def test_runs_go_over_the_end_of_a_row() -> None:
    mask = drawn("..#", "##.", "..#")
    assert runs_of_mask(mask).tolist() == [[2, 3], [8, 1]]
    assert pixels(runs_of_mask(mask)).tolist() == [2, 3, 4, 8]
    assert transposed(runs_of_mask(mask), (3, 3)).tolist() == [[1, 1], [4, 1], [6, 1], [8, 1]]


def test_runs_of_no_pixels_at_all() -> None:
    assert runs_of_mask(np.zeros((0, 5), dtype=bool)).shape == (0, 2)
    assert runs_of_labels(np.zeros((0, 5), dtype=np.uint8)) == {}
    assert runs_of_labels(np.zeros((4, 5), dtype=np.uint8)) == {}


def test_runs_of_labels_come_by_ascending_id() -> None:
    labels = np.array([[7, 7, 0, 2], [2, 7, 7, 0]], dtype=np.uint16)
    found = runs_of_labels(labels)
    assert list(found) == [2, 7]
    assert found[2].tolist() == [[3, 2]]
    assert found[7].tolist() == [[0, 2], [5, 2]]


def test_runs_of_a_large_id_are_not_cut_to_a_smaller_dtype() -> None:
    labels = np.array([[0, 2**32 - 1], [1, 1]], dtype=np.uint32)
    assert {key: runs.tolist() for key, runs in runs_of_labels(labels).items()} == {
        1: [[2, 2]],
        2**32 - 1: [[1, 1]],
    }


@LAWS
@given(masks())
def test_runs_are_those_found_pixel_by_pixel(mask: np.ndarray) -> None:
    runs = runs_of_mask(mask)
    assert runs.dtype == np.int64
    assert list(map(tuple, runs.tolist())) == slow_runs(mask.ravel().tolist())
    assert np.array_equal(paint(runs, mask.shape), mask)
    assert np.array_equal(pixels(runs), np.flatnonzero(mask))


@LAWS
@given(masks())
def test_transposed_runs_are_those_of_the_transposed_mask(mask: np.ndarray) -> None:
    height, width = mask.shape
    columns = transposed(runs_of_mask(mask), (height, width))
    assert list(map(tuple, columns.tolist())) == slow_runs(mask.T.ravel().tolist())
    assert np.array_equal(transposed(columns, (width, height)), runs_of_mask(mask))


@LAWS
@given(st.integers(1, 8), st.integers(1, 8), st.randoms(use_true_random=False))
def test_runs_of_labels_equal_those_of_each_mask(height: int, width: int, random) -> None:
    labels = np.array([[random.randint(0, 4) for _ in range(width)] for _ in range(height)])
    found = runs_of_labels(labels)
    assert list(found) == sorted(set(labels.ravel().tolist()) - {0})
    for key, runs in found.items():
        assert np.array_equal(runs, runs_of_mask(labels == key))


@LAWS
@given(st.lists(masks(), max_size=4))
def test_union_is_the_union_of_pixels(parts: list[np.ndarray]) -> None:
    indices = [set(np.flatnonzero(mask).tolist()) for mask in parts]
    joined = union([runs_of_mask(mask) for mask in parts])
    assert set(pixels(joined).tolist()) == set().union(*indices)
    assert np.all(joined[1:, 0] > joined[:-1].sum(axis=1))


@LAWS
@given(masks().filter(np.any))
def test_box_is_the_smallest_around_the_mask(mask: np.ndarray) -> None:
    y, x = np.nonzero(mask)
    expected = (y.min(), x.min(), y.max() + 1, x.max() + 1)
    assert box_of(runs_of_mask(mask), mask.shape) == expected


# --- Kaggle ---


def test_kaggle_texts_count_from_one_in_both_orders() -> None:
    runs = runs_of_mask(drawn(".##.", "##..", "...#"))
    assert kaggle_text(runs, (3, 4), "row_major") == "2 2 5 2 12 1"
    assert kaggle_text(runs, (3, 4), "column_major") == "2 1 4 2 7 1 12 1"
    assert kaggle_text(runs_of_mask(np.zeros((3, 4))), (3, 4)) == ""


def test_kaggle_runs_may_stand_in_any_order_and_touch() -> None:
    assert runs_of_kaggle_text("7 2  3 1\n4 1", (3, 4), "row_major").tolist() == [[2, 2], [6, 2]]
    assert runs_of_kaggle_text("", (3, 4), "column_major").shape == (0, 2)


@LAWS
@given(masks(), st.sampled_from(ORDERS))
def test_kaggle_text_and_back_is_the_identity(mask: np.ndarray, order: Order) -> None:
    text = kaggle_text(runs_of_mask(mask), mask.shape, order)
    flat = (mask if order == "row_major" else mask.T).ravel().tolist()
    assert text == " ".join(f"{start + 1} {length}" for start, length in slow_runs(flat))
    assert np.array_equal(runs_of_kaggle_text(text, mask.shape, order), runs_of_mask(mask))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "a run-length text is pairs of start and length, got 3 numbers"),
        ("1 x", "a run-length text holds whole numbers only, got 'x'"),
        ("1.5 2", "a run-length text holds whole numbers only, got '1.5'"),
        ("-1 2", "a run-length text holds whole numbers only, got '-1'"),
        ("١ 2", "a run-length text holds whole numbers only, got '١'"),
        ("0 2", "run 0 2: starts count from 1, lengths are at least 1"),
        ("2 0", "run 2 0: starts count from 1, lengths are at least 1"),
        ("1 1 12 2", "run 12 2 leaves the image of 3×4 px (12 pixels)"),
        ("13 1", "run 13 1 leaves the image of 3×4 px (12 pixels)"),
        (
            "1 " + "9" * 5000,
            f"run 1 {'9' * 23}… leaves the image of 3×4 px (12 pixels)",
        ),
        ("0" * 5000 + " 1", "run 0 1: starts count from 1, lengths are at least 1"),
        ("1 3 9 1 3 2", "run 3 2 overlaps another run of the same mask"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_wrong_kaggle_text_is_refused(text: str, message: str, order: Order) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        runs_of_kaggle_text(text, (3, 4), order)


def test_leading_zeros_of_a_number_do_not_count() -> None:
    expected = runs_of_kaggle_text("2 3", (3, 4), "row_major")
    text = "0" * 5000 + "2 " + "0" * 5000 + "3"
    assert np.array_equal(runs_of_kaggle_text(text, (3, 4), "row_major"), expected)


# --- COCO ---

# (shape, half-open boxes y0, x0, y1, x1 that make the mask, its string), the
# strings made once with pycocotools 2.0.11 (mask.encode).
PYCOCOTOOLS = [
    ((3, 4), [], "<"),
    ((3, 4), [(0, 0, 3, 4)], "0<"),
    ((1, 1), [(0, 0, 1, 1)], "01"),
    ((3, 4), [(0, 0, 1, 1)], "01;"),
    ((3, 4), [(2, 3, 3, 4)], ";1"),
    ((3, 4), [(1, 1, 2, 3)], "41202"),
    ((4, 3), [(0, 0, 4, 1), (0, 2, 4, 3)], "0440"),
    ((520, 704), [(100, 200, 140, 260)], "TeU3X1P?" + "0" * 117 + "l[Q7"),
    ((40000, 2), [(0, 0, 1, 1), (39999, 1, 40000, 2)], "01nS^20"),
    (
        (64, 64),
        [(i, 2 * i, i + 1 + i % 5, 2 * i + 3) for i in range(30)],
        "01o1002OO02OO02OO02OO001L32OO02OO02OO02OO001L32OO02OO02OO02OO001L32OO02OO02OO02OO"
        "001L32OO02OO02OO02OO001L32OO02OO02OO02OO00S5",
    ),
]


@pytest.mark.parametrize(("shape", "boxes", "text"), PYCOCOTOOLS)
def test_coco_strings_are_those_of_pycocotools(shape, boxes, text: str) -> None:
    mask = np.zeros(shape, dtype=bool)
    for y0, x0, y1, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    assert coco_string(coco_counts(runs_of_mask(mask), shape)) == text
    assert np.array_equal(
        paint(runs_of_coco_counts(counts_of_coco_string(text), shape), shape), mask
    )


def test_coco_counts_begin_with_the_background() -> None:
    runs = runs_of_mask(drawn("##.", ".#."))
    assert coco_counts(runs, (2, 3)) == [0, 1, 1, 2, 2]
    assert runs_of_coco_counts([0, 1, 1, 2, 2], (2, 3)).tolist() == runs.tolist()
    assert coco_counts(runs_of_mask(np.zeros((2, 3))), (2, 3)) == [6]
    assert coco_counts(runs_of_mask(np.ones((2, 3))), (2, 3)) == [0, 6]


def test_counts_of_zero_in_between_join_runs() -> None:
    assert runs_of_coco_counts([1, 1, 0, 2, 2, 0, 0], (6, 1)).tolist() == [[1, 3]]


@LAWS
@given(masks())
def test_coco_string_and_back_is_the_identity(mask: np.ndarray) -> None:
    counts = coco_counts(runs_of_mask(mask), mask.shape)
    flat = mask.T.ravel().tolist()
    assert [length for _, length in slow_runs(flat)] == counts[1::2]
    assert sum(counts) == mask.size
    assert coco_string(counts) == slow_string(counts)
    back = runs_of_coco_counts(counts_of_coco_string(coco_string(counts)), mask.shape)
    assert np.array_equal(back, runs_of_mask(mask))


@LAWS
@given(st.lists(st.integers(0, 2**32 - 1), max_size=12))
def test_any_counts_survive_their_string(counts: list[int]) -> None:
    text = coco_string(counts)
    assert text == slow_string(counts)
    assert counts_of_coco_string(text) == counts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "01 2",
            "a compressed COCO mask is written with the characters '0' to 'o', got ' '",
        ),
        (
            "0é",
            "a compressed COCO mask is written with the characters '0' to 'o', got 'é'",
        ),
        ("01o", "a compressed COCO mask stops in the middle of a number"),
        ("oooooooo0", "a compressed COCO mask holds a number above 2^34"),
        ("0O", "a compressed COCO mask holds a count below 0: -1"),
    ],
)
def test_a_wrong_coco_string_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        counts_of_coco_string(text)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2], "COCO counts sum to 3, but the image of 2×3 px has 6 pixels"),
        ([], "COCO counts sum to 0, but the image of 2×3 px has 6 pixels"),
        ([6, 6], "COCO counts sum to 12, but the image of 2×3 px has 6 pixels"),
        ([7, -1], "a COCO count of 7 does not fit an image of 2×3 px"),
        ([3, -1, 4], "a COCO count of -1 does not fit an image of 2×3 px"),
        ([1.5, 4.5], "a COCO count of 1.5 does not fit an image of 2×3 px"),
        (["6"], "a COCO count of '6' does not fit an image of 2×3 px"),
    ],
)
def test_wrong_coco_counts_are_refused(counts, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        runs_of_coco_counts(counts, (2, 3))
