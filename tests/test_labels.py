"""Label images as partitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_cli.errors import InputError
from cellseg_cli.labels import areas, relabel_dense, same_partition

DTYPES = st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
LABELS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.sampled_from([0, 1, 2, 3, 50, 120, 127]),
    )
)


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    """The instances as sets of flat pixel indices, by a plain loop."""
    instances: dict[int, set[int]] = {}
    for index, value in enumerate(labels.ravel().tolist()):
        if value:
            instances.setdefault(value, set()).add(index)
    return {frozenset(pixels) for pixels in instances.values()}


@given(LABELS)
@settings(deadline=None, max_examples=50)
def test_dense_ids_keep_the_partition_and_the_order(labels: np.ndarray) -> None:
    dense = relabel_dense(labels)
    assert dense.dtype == np.uint32
    assert partition(dense) == partition(labels)
    present = sorted(set(labels.ravel().tolist()) - {0})
    for rank, old in enumerate(present, start=1):
        assert set(dense[labels == old].tolist()) == {rank}


@given(LABELS)
@settings(deadline=None, max_examples=50)
def test_areas_are_counted_by_ascending_id(labels: np.ndarray) -> None:
    flat = labels.ravel().tolist()
    assert areas(labels).tolist() == [flat.count(i) for i in sorted(set(flat) - {0})]


@given(LABELS, LABELS)
@settings(deadline=None, max_examples=50)
def test_same_partition_is_equality_of_the_sets_of_pixels(a: np.ndarray, b: np.ndarray) -> None:
    assert same_partition(a, b) == (a.shape == b.shape and partition(a) == partition(b))


@given(LABELS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_permuted_ids_are_the_same_partition(labels: np.ndarray, random: object) -> None:
    ids = list(range(1, 128))
    random.shuffle(ids)  # type: ignore[attr-defined]
    permuted = np.array([0, *ids], dtype=np.uint16)[labels.astype(np.int64)]
    assert same_partition(labels, permuted)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([[1, 1, 0]], [[1, 0, 0]]),
        ([[1, 2]], [[1, 1]]),
        ([[1, 1]], [[1, 2]]),
        ([[0, 1]], [[1, 0]]),
        ([[1, 1, 2]], [[1, 2, 2]]),
        ([[0, 0, 1]], [[1, 1, 0]]),
    ],
)
def test_different_partitions(a: list[list[int]], b: list[list[int]]) -> None:
    assert not same_partition(np.array(a), np.array(b))


def test_different_shapes_are_different_partitions() -> None:
    assert not same_partition(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


def test_no_pixels_and_no_instances() -> None:
    for shape in [(0, 0), (0, 5), (2, 2)]:
        empty = np.zeros(shape, np.uint16)
        assert relabel_dense(empty).shape == shape
        assert areas(empty).tolist() == []
        assert same_partition(empty, empty.astype(np.int64))


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64])
def test_ids_near_the_end_of_their_dtype(dtype: type[np.integer]) -> None:
    top = min(int(np.iinfo(dtype).max), 2**63 - 1)
    labels = np.array([[0, top, top - 1], [top, 0, 1]], dtype=dtype)
    assert relabel_dense(labels).tolist() == [[0, 3, 2], [3, 0, 1]]


def test_more_instances_than_the_input_dtype_counts() -> None:
    """65 536 ids in an int32 image: dense ids must not be counted in 16 bits."""
    labels = np.arange(1, 65_537 + 1, dtype=np.int32).reshape(1, -1)
    assert relabel_dense(labels).max() == 65_537
    assert areas(labels).tolist() == [1] * 65_537


def test_a_float_image_is_refused() -> None:
    with pytest.raises(InputError) as error:
        relabel_dense(np.zeros((2, 2), np.float32))  # type: ignore[arg-type]
    assert str(error.value) == "a label image holds integers, got float32"


def test_a_negative_id_is_refused() -> None:
    with pytest.raises(InputError) as error:
        areas(np.array([[0, -3]]))
    assert str(error.value) == "a label image holds no negative id, got -3 (0 is background)"


def test_an_id_above_int64_is_refused() -> None:
    with pytest.raises(InputError) as error:
        relabel_dense(np.array([[0, 2**63]], np.uint64))
    assert str(error.value) == "a label image holds ids up to 2^63 - 1, got 9223372036854775808"
