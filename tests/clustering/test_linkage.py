from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from sklearn.cluster import AgglomerativeClustering

from cellseg_cli.clustering import Clustering, cluster, linkage_partition
from cellseg_cli.clustering.resizing import enlarged_nearest, resized_bilinear
from cellseg_cli.errors import InputError

Compare = Callable[[np.ndarray, np.ndarray], bool]


def points_of(seed: int, size: int, channels: int, codes: int, noise: float) -> np.ndarray:
    """Noisy copies of a few codes, a fifth of them blends of two, as at the borders of cells."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((codes, channels))
    points = centres[rng.integers(0, codes, size)]
    blend = rng.random(size) < 0.2
    points[blend] = 0.5 * points[blend] + 0.5 * centres[rng.integers(0, codes, blend.sum())]
    return points + noise * rng.standard_normal((size, channels))


def sklearn_partition(points: np.ndarray, merge_distance: float) -> np.ndarray:
    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=merge_distance
    )
    return np.asarray(model.fit_predict(points))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 400),
    st.integers(2, 17),
    st.integers(1, 30),
    st.sampled_from([0.05, 0.3, 3.0]),
    st.floats(0.005, 1.3),
)
@settings(deadline=None, max_examples=50)
def test_the_partition_is_that_of_sklearn_and_scipy(
    same_partition: Compare,
    seed: int,
    size: int,
    channels: int,
    codes: int,
    noise: float,
    merge_distance: float,
) -> None:
    points = points_of(seed, size, channels, codes, noise)
    ours = linkage_partition(points, merge_distance) + 1
    assert same_partition(ours, sklearn_partition(points, merge_distance) + 1)
    tree = scipy_linkage(points, "average", "cosine")
    assert same_partition(ours, fcluster(tree, np.nextafter(merge_distance, 0), "distance"))


@pytest.mark.parametrize("noise", [0.1, 0.4, 3.0])
def test_large_sets_agree_at_every_threshold(same_partition: Compare, noise: float) -> None:
    points = points_of(3, 2000, 8, 25, noise).astype(np.float32)
    tree = scipy_linkage(points.astype(np.float64), "average", "cosine")
    for merge_distance in (0.002, 0.02, 0.1, 0.3, 0.45, 0.7, 0.95):
        expected = fcluster(tree, np.nextafter(merge_distance, 0), "distance")
        assert same_partition(linkage_partition(points, merge_distance) + 1, expected)
    expected = sklearn_partition(points, 0.3) + 1
    assert same_partition(linkage_partition(points, 0.3) + 1, expected)


def test_the_order_of_the_points_is_free(same_partition: Compare) -> None:
    points = points_of(5, 700, 8, 12, 0.4)
    order = np.random.default_rng(0).permutation(len(points))
    shuffled = linkage_partition(points[order], 0.3) + 1
    assert same_partition(shuffled, (linkage_partition(points, 0.3) + 1)[order])


def test_a_distance_equal_to_the_threshold_does_not_merge() -> None:
    right_angle = np.eye(2)  # the cosine distance is exactly 1
    assert linkage_partition(right_angle, 1.0).tolist() == [0, 1]
    assert linkage_partition(right_angle, np.nextafter(1.0, 2)).tolist() == [0, 0]


def test_zero_vectors_have_similarity_zero() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    assert linkage_partition(points, 0.9).tolist() == [0, 1, 2, 1]
    assert linkage_partition(points, 1.1).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [0, 1, 2, 33, 5000])
def test_equal_points_are_one_cluster(size: int) -> None:
    assert (linkage_partition(np.full((size, 3), 1e-200), 0.1) == 0).all()
    assert (linkage_partition(np.full((size, 3), 1e200), 0.1) == 0).all()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            np.array([[np.nan, 1.0], [np.inf, 1.0]]),
            "2 of 4 values of the points are not finite (NaN or infinite)",
        ),
        (np.zeros((3, 2), int), "points are a floating array (n, E); got int64 of shape (3, 2)"),
        (np.zeros(3), "points are a floating array (n, E); got float64 of shape (3,)"),
    ],
)
def test_unusable_points_are_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(InputError) as caught:
        linkage_partition(points, 0.3)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(128, 160), (7, 5), (61, 1)])
def test_resizing_is_that_of_opencv(shape: tuple[int, int]) -> None:
    channels = np.random.default_rng(0).random((2, 61, 93), dtype=np.float32)
    expected = [cv2.resize(one, shape[::-1], interpolation=cv2.INTER_LINEAR) for one in channels]
    assert np.allclose(resized_bilinear(channels, shape), expected, atol=1e-5)


def test_enlarging_by_a_whole_factor_repeats() -> None:
    labels = np.arange(6).reshape(2, 3)
    assert (enlarged_nearest(labels, (6, 6)) == labels.repeat(3, 0).repeat(2, 1)).all()


def blocks() -> tuple[np.ndarray, np.ndarray]:
    """Two blocks of one code each that touch, on a background of a third code."""
    labels = np.zeros((90, 100), np.int32)
    labels[20:60, 10:40], labels[20:60, 40:80] = 1, 2
    return np.eye(3, dtype=np.float32)[labels].transpose(2, 0, 1), labels


def test_clusters_become_cells_and_the_largest_is_background(same_partition: Compare) -> None:
    embedding, labels = blocks()
    settings = Clustering("linkage")
    result = cluster(embedding, kind="contrastive", settings=settings)
    assert same_partition(result, labels)
    eroded = cluster(
        embedding, kind="contrastive", settings=Clustering("linkage", erosion="origin")
    )
    inner = np.zeros_like(labels)
    inner[21:59, 11:39], inner[21:59, 41:79] = 1, 2
    assert same_partition(eroded, inner)


def test_classes_say_what_is_background(same_partition: Compare) -> None:
    embedding, labels = blocks()
    classes = np.zeros((3, *labels.shape), np.uint8)
    classes[0] = 255 * (labels == 2)  # the field around is cell, the second block is not
    classes[1] = 255 - classes[0]
    result = cluster(embedding, kind="contrastive", settings=Clustering("linkage"), classes=classes)
    assert same_partition(result, np.array([2, 1, 0])[labels])


def test_cells_of_one_code_part_at_a_thin_bridge() -> None:
    labels = np.zeros((60, 60), np.int32)
    labels[10:30, 5:25], labels[10:30, 27:50], labels[20:22, 25:27] = 1, 1, 1
    embedding = np.eye(2, dtype=np.float32)[labels].transpose(2, 0, 1)
    found = {
        erosion: cluster(
            embedding, kind="contrastive", settings=Clustering("linkage", erosion=erosion)
        )
        for erosion in ("grow", "none")
    }
    assert (found["grow"].max(), found["none"].max()) == (2, 1)
    assert ((found["grow"] > 0) == (labels > 0)).all()
