from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from sklearn.cluster import AgglomerativeClustering

from cellseg_cli.clustering import Clustering, cluster, linkage_partition, resolve
from cellseg_cli.clustering.linkage import linkage, linkage_grown, linkage_labels, linkage_tree
from cellseg_cli.clustering.resizing import enlarged_nearest, resized_bilinear
from cellseg_cli.clustering.trees import MergeTree
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


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 400),
    st.sampled_from([3, 4, 8, 9, 40]),
    st.integers(1, 30),
    st.sampled_from([0.01, 0.05, 0.3, 3.0]),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_a_tree_holds_the_partitions_of_scipy_at_all_distances(
    same_partition: Compare,
    seed: int,
    size: int,
    channels: int,
    codes: int,
    noise: float,
    rounded: bool,
) -> None:
    """Cut between merges that follow each other closely, and anywhere."""
    points = points_of(seed, size, channels, codes, noise)
    if rounded:
        points = points.astype(np.float16).astype(np.float64)
    theirs = scipy_linkage(points, "average", "cosine")
    ours = linkage_tree(points)
    assert np.allclose(np.sort(ours.heights), theirs[:, 2], rtol=0, atol=1e-11)
    gaps = np.diff(theirs[:, 2])
    apart = np.flatnonzero(gaps > 1e-11)  # nearer than 1e-12 counts as equal
    narrow = apart[np.argsort(gaps[apart])[:10]]
    between = (theirs[narrow, 2] + theirs[narrow + 1, 2]) / 2
    for distance in (*between, *((0.02, 0.3, 0.7) if len(apart) == len(gaps) else ())):
        expected = fcluster(theirs, np.nextafter(distance, 0), "distance")
        assert same_partition(ours.cut(distance) + 1, expected)


def grows(tree: MergeTree) -> bool:
    """Whether a tree joins all its points, and no merge is lower than one that it contains."""
    parent, height = np.arange(tree.size), np.full(tree.size, -np.inf)

    def root(point: int) -> int:
        while parent[point] != point:
            point = parent[point]
        return point

    for (one, two), distance in zip(tree.pairs, tree.heights, strict=True):
        one, two = root(one), root(two)
        if one == two or distance < max(height[one], height[two]):
            return False
        parent[two], height[one] = one, distance
    return len(tree.pairs) == max(tree.size - 1, 0)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 300),
    st.integers(1, 12),
    st.integers(1, 20),
    st.floats(-9, -5),
    st.sampled_from([0, 5, 7, 20]),
)
@settings(deadline=None, max_examples=50)
def test_points_that_differ_by_rounding_make_a_whole_tree(
    seed: int, size: int, channels: int, codes: int, exponent: float, decimals: int
) -> None:
    """Here distances are differences of float64 that cancel, and a nearer one can look farther."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((codes, channels))[rng.integers(0, codes, size)]
    points += 10.0**exponent * rng.standard_normal((size, channels))
    points[rng.random(size) < 0.1] = 0
    assert grows(linkage_tree(points.round(decimals)))


def test_ties_are_broken_the_same_way_at_every_distance() -> None:
    """Vectors of a coarse lattice: thousands of equal distances, most of them of many points."""
    points = np.array(list(product((-1.0, 0.0, 1.0), repeat=6)))
    partitions = [linkage_partition(points, t) for t in (0.1, 0.2, 0.4, 0.8, 1.2)]
    again = linkage_tree(points.copy())
    assert all((again.cut(t) == p).all() for t, p in zip((0.1, 0.2), partitions, strict=False))
    for finer, coarser in pairwise(partitions):
        pairs = np.unique(np.stack([finer, coarser]), axis=1)
        assert pairs.shape[1] == finer.max() + 1 > coarser.max() + 1  # every cluster lies in one
    assert grows(again)


def test_the_order_of_the_points_is_free(same_partition: Compare) -> None:
    points = points_of(5, 700, 8, 12, 0.4)
    order = np.random.default_rng(0).permutation(len(points))
    shuffled = linkage_partition(points[order], 0.3) + 1
    assert same_partition(shuffled, (linkage_partition(points, 0.3) + 1)[order])


def test_a_distance_equal_to_the_threshold_does_not_merge() -> None:
    right_angle = np.eye(2)  # the cosine distance is exactly 1
    assert linkage_partition(right_angle, 1.0).tolist() == [0, 1]
    assert linkage_partition(right_angle, np.nextafter(1.0, 2)).tolist() == [0, 0]


def test_equal_vectors_merge_first() -> None:
    """At any angle but theirs the corners of a square tie: equal points must not wait for them."""
    corners = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    tree = linkage_tree(np.repeat(corners, 50, axis=0))
    assert (tree.heights[:196] == 0).all()
    assert tree.cut(0.5).tolist() == np.repeat(np.arange(4), 50).tolist()
    assert tree.cut(1.01).max() == 1


def test_zero_vectors_have_similarity_zero() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    assert linkage_partition(points, 0.9).tolist() == [0, 1, 2, 1]
    assert linkage_partition(points, 1.1).tolist() == [0, 0, 0, 0]
    many = np.zeros((3000, 8))
    assert linkage_partition(many, 1.0).tolist() == list(range(3000))
    assert not linkage_partition(many, np.nextafter(1.0, 2)).any()


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


def test_the_origins_erosion_keeps_holes_and_drops_what_is_small() -> None:
    """The origin: erosion by a cross, connected components, enlargement, and nothing else."""
    labels = np.zeros((60, 60), np.int32)
    labels[5:45, 5:45], labels[20, 20], labels[50:55, 50:55] = 1, 0, 1
    embedding = np.eye(2, dtype=np.float32)[labels].transpose(2, 0, 1)
    settings = Clustering("linkage", erosion="origin", min_area_px=10)
    expected = np.zeros((60, 60), np.uint32)
    expected[6:44, 6:44] = 1
    expected[19:22, 20] = expected[20, 19:22] = 0  # the hole, larger by the cross
    assert (cluster(embedding, kind="contrastive", settings=settings) == expected).all()
    expected[51:54, 51:54] = 2  # 9 px are left of 25
    smaller = replace(settings, min_area_px=9)
    assert (cluster(embedding, kind="contrastive", settings=smaller) == expected).all()


@pytest.mark.parametrize(
    ("size", "shape"), [("160x128", (128, 160)), ("half", (128, 192)), ("full", (256, 384))]
)
def test_the_working_size_decides_what_is_clustered(
    same_partition: Compare, size: str, shape: tuple[int, int]
) -> None:
    labels = np.zeros((256, 384), np.int32)
    labels[64:192, 96:192], labels[64:192, 192:288] = 1, 2  # borders lie between pixels of all
    embedding = np.eye(3, dtype=np.float32)[labels].transpose(2, 0, 1)
    settings = resolve(Clustering("linkage", size=size), "contrastive")
    grown = linkage_grown(embedding, kind="contrastive", settings=settings)
    assert (grown.shape, grown.tree.size) == (shape, shape[0] * shape[1])
    found = linkage_labels(grown, settings)
    assert found.shape == labels.shape
    differ = np.zeros(labels.shape, bool)
    for axis in (0, 1):  # 384 px on 160: samples beside a border blend both sides
        for step in (-2, -1, 1, 2):
            differ |= np.roll(labels, step, axis) != labels
    assert same_partition(np.where(differ, 0, found), np.where(differ, 0, labels))
    if size != "160x128":
        assert same_partition(found, labels)


@pytest.mark.parametrize("with_classes", [False, True])
def test_one_tree_serves_all_settings(with_classes: bool) -> None:
    rng = np.random.default_rng(4)
    embedding = blocks()[0] + 0.2 * rng.standard_normal((3, 90, 100), dtype=np.float32)
    classes = rng.integers(0, 256, (3, 90, 100), np.uint8) if with_classes else None
    base = resolve(Clustering("linkage"), "contrastive", with_classes=with_classes)
    grown = linkage_grown(embedding, kind="contrastive", settings=base, classes=classes)
    seen = set()
    for distance, foreground, area, erosion in product(
        (0.05, 0.1, 0.4), (0.3, 0.5), (1, 40), ("grow", "origin")
    ):
        settings = replace(
            base,
            merge_distance=distance,
            foreground=foreground,
            min_area_px=area,
            erosion=erosion,
        )
        labels = linkage_labels(grown, settings)
        alone = linkage(embedding, kind="contrastive", settings=settings, classes=classes)
        assert (labels == alone).all()
        seen.add(labels.tobytes())
    assert len(seen) > 5


_MEMORY = """
import ctypes, sys
import numpy as np
from cellseg_cli.clustering import linkage_partition

def status(key):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

points = np.random.default_rng(0).standard_normal((20480, int(sys.argv[1])), np.float32)
linkage_partition(points[:3000], 0.3)
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
linkage_partition(points, 0.3)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure")
@pytest.mark.parametrize("channels", [4, 8])
def test_memory_grows_with_the_points_not_with_their_square(channels: int) -> None:
    """A matrix of all distances between 20 480 points would take 3355 MB."""
    run = [sys.executable, "-c", _MEMORY, str(channels)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20 * 1024
