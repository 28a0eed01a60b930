from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellseg_cli.clustering import Clustering

Check = Callable[..., list[np.ndarray]]
Field = Callable[..., np.ndarray]

SIZES = st.sampled_from(["full", "half", "160x128"])


def smooth_noise(rng: np.random.Generator, channels: int, ties: bool) -> np.ndarray:
    """One to three fields of noise that neighbours share: (B, channels, Y, X) float32."""
    values = rng.standard_normal((rng.integers(1, 4), channels, *rng.integers(1, 40, 2)))
    sigma = rng.choice([0, 0.7, 1.5])
    values = ndimage.gaussian_filter(values, (0, 0, sigma, sigma))
    if ties:  # many equal vectors, zero vectors among them
        values = np.rint(2 * values) / 2
    return values.astype(np.float32)


def random_classes(rng: np.random.Generator, fields: int, shape: tuple[int, ...]) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.random((fields, 3, *shape)), (0, 0, 1, 1))
    shares = values / values.sum(1, keepdims=True)
    return (np.clip(3 * (shares - 1 / 3) + 1 / 3, 0, 1) * 255).astype(np.uint8)


def random_settings(rng: np.random.Generator, size: str) -> Clustering:
    return Clustering(
        "grid",
        merge_distance=float(rng.choice([0, 0.1, 0.45, 0.9, 2.4])),
        foreground=float(rng.choice([0, 0.2, 0.5])),
        seed_level=float(rng.choice([0.2, 0.4])),
        min_area_px=int(rng.integers(1, 12)),
        size=size,
        erosion=str(rng.choice(["none", "grow", "origin"])),
    )


@given(st.integers(0, 2**32 - 1), SIZES, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=50)
def test_contrastive_noise(
    equal_to_reference: Check, seed: int, size: str, ties: bool, with_classes: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = smooth_noise(rng, int(rng.integers(1, 9)), ties)
    classes = random_classes(rng, len(values), values.shape[2:]) if with_classes else None
    equal_to_reference(values, "contrastive", random_settings(rng, size), classes)


@given(st.integers(0, 2**32 - 1), SIZES, st.booleans(), st.sampled_from([1, 5, 9000]))
@settings(deadline=None, max_examples=30)
def test_spatial_noise(
    equal_to_reference: Check, seed: int, size: str, ties: bool, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    values = smooth_noise(rng, 4, ties)
    values[:, :2] *= spread
    values[:, 2:] = np.abs(values[:, 2:])  # bandwidths of 0 among them where there are ties
    equal_to_reference(values, "spatial", random_settings(rng, size))


def coded(labels: np.ndarray, seed: int) -> np.ndarray:
    """A contrastive embedding: a random code for each label, with smooth noise, float16."""
    rng = np.random.default_rng(seed)
    codes = rng.standard_normal((labels.max() + 1, 8))
    values = ndimage.gaussian_filter(codes[labels], (1, 1, 0)).transpose(2, 0, 1)
    values = values + 0.3 * ndimage.gaussian_filter(rng.standard_normal(values.shape), (0, 1, 1))
    return (values / np.linalg.norm(values, axis=0)).astype(np.float16)


@pytest.mark.parametrize("size", ["full", "half"])
@pytest.mark.parametrize("kind", ["spatial", "contrastive"])
def test_touching_ellipses(
    equal_to_reference: Check, ellipses: Field, spatial: Field, kind: str, size: str
) -> None:
    truth = [ellipses(seed) for seed in range(3)]
    values = np.stack(
        [
            spatial(labels, 0.6, seed) if kind == "spatial" else coded(labels, seed)
            for seed, labels in enumerate(truth)
        ]
    )
    found = equal_to_reference(values, kind, Clustering("grid", size=size))
    for labels, image in zip(truth, found, strict=True):
        assert abs(image.max() - labels.max()) < 0.3 * labels.max()


def test_a_region_of_equal_vectors_is_merged_by_scattered_ties(equal_to_reference: Check) -> None:
    values = np.zeros((2, 2, 60, 80), np.float32)
    values[:, 0, :, :50], values[1, 0, :, 50:], values[0, 1, :, 50:] = 1, 1, 1
    two_regions, one_region = equal_to_reference(values, "contrastive", Clustering("grid"))
    assert two_regions.max() == 1  # the larger one is background
    assert not one_region.any()
