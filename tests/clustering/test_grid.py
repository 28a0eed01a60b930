from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.clustering.grid import grid, grid_grown, grid_labels
from cellseg_cli.clustering.merging import LADDER, merge_tree
from cellseg_cli.clustering.settings import resolve

Field = Callable[..., np.ndarray]
Compare = Callable[[np.ndarray, np.ndarray], bool]


def coded(labels: np.ndarray, seed: int, noise: float = 0.15) -> np.ndarray:
    """A contrastive embedding: a random unit code for each label, blurred by noise."""
    rng = np.random.default_rng(seed)
    codes = rng.standard_normal((labels.max() + 1, 8))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    values = codes[labels].transpose(2, 0, 1)
    values = values + noise * rng.standard_normal(values.shape)
    return (values / np.linalg.norm(values, axis=0)).astype(np.float16)


def merged(
    features: np.ndarray, mask: np.ndarray, spatial: bool, merge_distance: float
) -> np.ndarray:
    """The clusters, before any clean-up, as an image."""
    labels = np.zeros(mask.shape, np.int32)
    tree = merge_tree(features, mask, spatial, merge_distance)
    labels[mask] = tree.cut(merge_distance) + 1
    return labels


@pytest.mark.parametrize("size", ["full", "half"])
def test_well_parted_codes_give_the_truth(size: str, ellipses: Field) -> None:
    labels = ellipses(1, wanted=12)
    result = cluster(
        coded(labels, 4, 0.05), kind="contrastive", settings=Clustering("grid", size=size)
    )
    assert result.max() == labels.max()
    if size == "full":
        assert np.mean((result > 0) == (labels > 0)) > 0.999


def test_equal_codes_that_do_not_touch_stay_apart() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[5:20, 5:20], labels[5:20, 30:50] = 1, 1
    values = np.eye(2, dtype=np.float32)[labels].transpose(2, 0, 1)
    assert cluster(values, kind="contrastive").max() == 2


def test_classes_say_what_is_foreground(same_partition: Compare) -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[:, :40], labels[5:20, 42:60] = 1, 2
    values = np.eye(3, dtype=np.float32)[labels].transpose(2, 0, 1)
    classes = np.zeros((3, 40, 60), np.uint8)
    classes[0] = np.where(labels > 0, 127, 128)  # at 0.5 exactly half of 255 is neither
    assert same_partition(cluster(values, kind="contrastive", classes=classes), labels)


@pytest.mark.parametrize("seed", range(3))
def test_predicted_centres_give_the_truth(
    seed: int, ellipses: Field, spatial: Field, same_partition: Compare
) -> None:
    labels = ellipses(seed)
    result = cluster(spatial(labels), kind="spatial", settings=Clustering("grid"))
    assert same_partition(result, labels)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.floats(0.01, 1.5))
@settings(deadline=None, max_examples=40)
def test_clusters_are_connected_and_touching_ones_are_far_apart(
    seed: int, is_spatial: bool, merge_distance: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 14, 2))
    features = rng.standard_normal((3, *shape)).astype(np.float32)
    features[2] = np.abs(features[2]) + 0.1 if is_spatial else features[2]
    mask = rng.random(shape) < 0.8
    labels = merged(features, mask, is_spatial, merge_distance)
    assert ((labels > 0) == mask).all()
    vectors = features if is_spatial else features / np.linalg.norm(features, axis=0)
    means = [
        vectors[:, labels == one].mean(1, dtype=np.float64) for one in range(1, labels.max() + 1)
    ]
    for one in range(1, labels.max() + 1):
        assert ndimage.label(labels == one)[1] == 1
    for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        touching = (first != second) & (first > 0) & (second > 0)
        for one, two in zip(first[touching], second[touching], strict=True):
            a, b = means[one - 1], means[two - 1]
            distance = np.hypot(*(a - b)[:2]) / (a + b)[2] * 2 if is_spatial else 1 - a @ b
            assert distance > merge_distance - 1e-6


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_a_mirrored_field_gives_the_mirrored_partition(same_partition: Compare, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((8, 15, 22)).astype(np.float32)
    mask = np.ones((15, 22), bool)
    straight = merged(features, mask, False, 0.8)
    turned = merged(np.ascontiguousarray(features[:, ::-1, ::-1]), mask, False, 0.8)[::-1, ::-1]
    assert same_partition(straight, turned)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["contrastive", "spatial"]), st.booleans())
@settings(deadline=None, max_examples=25)
def test_one_tree_holds_the_label_images_of_all_distances_of_the_ladder(
    seed: int, kind: str, half: bool
) -> None:
    rng = np.random.default_rng(seed)
    embedding = ndimage.gaussian_filter(rng.standard_normal((4, 21, 34)), (0, 1, 1))
    embedding = (embedding / np.abs(embedding).max(axis=(1, 2), keepdims=True)).astype(np.float32)
    embedding[2:] = np.abs(embedding[2:]) + 0.01 if kind == "spatial" else embedding[2:]
    size = "half" if half else "full"
    grown = grid_grown(
        embedding, kind=kind, settings=resolve(Clustering("grid", 1.0, 0.1, size=size), kind)
    )
    for distance in (d for d in LADDER if d <= 1.0):
        chosen = resolve(Clustering("grid", distance, 0.1, None, 3, size), kind)
        assert (grid_labels(grown, chosen) == grid(embedding, kind=kind, settings=chosen)).all()


def test_a_large_region_of_one_code_is_one_cluster() -> None:
    features = np.ones((8, 200, 300), np.float32)
    features += 0.1 * np.random.default_rng(0).standard_normal(features.shape, dtype=np.float32)
    assert merged(features, np.ones((200, 300), bool), False, 0.45).max() == 1
    assert merged(np.ones_like(features), np.ones((200, 300), bool), False, 0.45).max() == 1
