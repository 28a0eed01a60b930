"""Laws that every method keeps on 50 random fields, from clean to hopeless embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import ndimage

from cellseg_cli.clustering import Clustering, cluster

Field = Callable[..., np.ndarray]

WAYS = [
    ("seeds", "spatial", "full"),
    ("grid", "spatial", "full"),
    ("grid", "spatial", "half"),
    ("grid", "contrastive", "full"),
    ("grid", "contrastive", "half"),
    ("linkage", "contrastive", "160x128"),
    ("watershed", "spatial", "full"),
]


@dataclass(frozen=True)
class Case:
    """One field: its embeddings of both kinds and its class probabilities."""

    embedding: dict[str, np.ndarray]
    classes: np.ndarray


def _cases(ellipses: Field, spatial: Field) -> Iterator[Case]:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        side = (60, 480) if seed < 5 else (60, 200)
        labels = ellipses(seed, tuple(rng.integers(*side, 2)), int(rng.integers(1, 401)))
        worse = seed % 5  # 0: no noise; 4: hopeless
        values = spatial(labels, (0.0, 0.5, 2.0, 6.0, 40.0)[worse], seed)
        values[3] = np.clip(values[3] + worse / 8 * rng.standard_normal(labels.shape), 0, 1)
        codes = rng.standard_normal((labels.max() + 1, 8))
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        vectors = ndimage.gaussian_filter(codes[labels], (0.7, 0.7, 0)).transpose(2, 0, 1)
        vectors += (0.0, 0.05, 0.15, 1.0, 20.0)[worse] * rng.standard_normal(vectors.shape)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=0), 1e-6)
        yield Case({"spatial": values, "contrastive": vectors.astype(np.float16)}, _classes(labels))


def _classes(labels: np.ndarray) -> np.ndarray:
    """Probabilities that say where the background, the interiors and the borders are, blurred."""
    low, high = ndimage.minimum_filter(labels, 3), ndimage.maximum_filter(labels, 3)
    parts = [labels == 0, (labels > 0) & (low == high), (labels > 0) & (low != high)]
    blurred = [ndimage.gaussian_filter(part.astype(float), 0.7) for part in parts]
    return (np.stack(blurred) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def cases(ellipses: Field, spatial: Field) -> list[Case]:
    """50 fields of 1 to 400 cells wanted."""
    return list(_cases(ellipses, spatial))


def _labels(case: Case, way: tuple[str, str, str]) -> np.ndarray:
    method, kind, size = way
    classes = case.classes if method == "watershed" else None
    settings = Clustering(method, size=size, min_area_px=12)
    return cluster(case.embedding[kind], kind=kind, settings=settings, classes=classes)


def _mirrored(case: Case, axis: int) -> Case:
    turned = {kind: np.flip(values, axis).copy() for kind, values in case.embedding.items()}
    turned["spatial"][axis - 1] *= -1
    return Case(turned, np.flip(case.classes, axis).copy())


def _not_in(one: np.ndarray, other: np.ndarray) -> int:
    """How many instances of one label image the other does not hold pixel for pixel."""
    pairs, counts = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1, return_counts=True)
    area, other_area = np.bincount(one.ravel()), np.bincount(other.ravel())
    whole = (pairs[0] > 0) & (pairs[1] > 0)
    whole &= (counts == area[pairs[0]]) & (counts == other_area[pairs[1]])
    return int(one.max() - np.count_nonzero(whole))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_labels_are_dense_whole_and_the_same_on_any_number_of_threads(
    cases: list[Case], way: tuple[str, str, str]
) -> None:
    if way[0] == "linkage":  # up to a second a field: ten of them, two of each noise
        cases = cases[::6] + cases[1::30]
    alone = [_labels(case, way) for case in cases]
    for labels in alone:
        assert labels.dtype == np.uint32
        assert set(np.unique(labels)) | {0} == set(range(labels.max() + 1))
        areas = np.bincount(labels.ravel())
        assert (areas[1:] >= 12).all()
        pieces = sum(ndimage.label(labels == one)[1] for one in range(1, min(labels.max(), 20) + 1))
        assert pieces == min(labels.max(), 20)
    order = np.random.default_rng(0).permutation(len(cases))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: _labels(cases[index], way), order))
    for index, labels in zip(order, together, strict=True):
        assert (labels == alone[index]).all()


@pytest.mark.parametrize("way", WAYS[:5], ids="-".join)
def test_a_mirrored_field_has_the_mirrored_instances(
    cases: list[Case], way: tuple[str, str, str]
) -> None:
    """All of them, but where pieces of equal size and equal borders tie: below 1 in 100."""
    differing = total = 0
    for number, case in enumerate(cases):
        axis = 1 + number // 5 % 2
        if number % 5 > 2 or (way[2] == "half" and case.classes.shape[axis] % 2):
            # Hopeless: which sample pixels look like background hangs on the last bit.
            # An odd side: its 2x2 blocks lie elsewhere when mirrored.
            continue
        labels = _labels(case, way)
        differing += _not_in(labels, np.flip(_labels(_mirrored(case, axis), way), axis - 1))
        total += int(labels.max())
    assert total > 400
    assert differing <= (0 if way[0] == "seeds" else total // 100)


def test_seventy_thousand_instances_of_one_code() -> None:
    side, pitch = 265, 4
    rows, columns = np.mgrid[: side * pitch, : side * pitch]
    inside = (rows % pitch < 3) & (columns % pitch < 3)
    vectors = np.eye(2, dtype=np.float16)[inside.astype(int)].transpose(2, 0, 1)
    classes = np.stack([~inside, inside, inside & False]).astype(np.uint8) * 255
    settings = Clustering("grid", min_area_px=9)
    result = cluster(vectors, kind="contrastive", settings=settings, classes=classes)
    assert result.max() == side * side == 70_225
    assert ((result > 0) == inside).all()
