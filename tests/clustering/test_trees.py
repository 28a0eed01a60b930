from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg_cli.clustering.trees import MergeTree


def tree_of(size: int, merges: list[tuple[int, int, float]]) -> MergeTree:
    pairs = np.array([merge[:2] for merge in merges], np.int32).reshape(-1, 2)
    return MergeTree(size, pairs, np.array([merge[2] for merge in merges], np.float64))


@pytest.mark.parametrize(
    ("distance", "clusters"),
    [
        (0.1, [0, 1, 2, 3, 4]),
        (0.2, [0, 1, 2, 1, 3]),  # 3 joined 1; cutting at a height leaves its merge out
        (0.31, [0, 1, 0, 1, 2]),
        (9.0, [0, 0, 0, 0, 1]),
    ],
)
def test_a_cut_keeps_the_merges_below(distance: float, clusters: list[int]) -> None:
    tree = tree_of(5, [(3, 1, 0.1), (2, 0, 0.3), (3, 2, 0.5)])
    cut = tree.cut(distance)
    assert cut.dtype == np.int32
    assert cut.tolist() == clusters


def test_a_tree_may_have_no_merges_and_no_points() -> None:
    assert tree_of(3, []).cut(1.0).tolist() == [0, 1, 2]
    assert tree_of(0, []).cut(1.0).tolist() == []


@given(
    st.integers(1, 40).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.lists(
                st.tuples(
                    st.integers(0, size - 1), st.integers(0, size - 1), st.sampled_from([0.1, 0.2])
                ),
                max_size=60,
            ),
        )
    ),
    st.randoms(),
)
def test_clusters_are_the_connected_points_in_any_order_of_merges(
    case: tuple[int, list[tuple[int, int, float]]], random: Random
) -> None:
    size, merges = case
    cut = tree_of(size, merges).cut(0.2)
    expected = list(range(size))  # the lowest point reached, by spreading until nothing changes
    for _ in range(size):
        for one, two, height in merges:
            if height < 0.2:
                expected[one] = expected[two] = min(expected[one], expected[two])
    firsts = sorted(set(expected))
    assert cut.tolist() == [firsts.index(point) for point in expected]
    random.shuffle(merges)
    assert (tree_of(size, merges).cut(0.2) == cut).all()
