from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.clustering.pieces import finished
from cellseg_cli.clustering.seeds import LEFTOVER_PHI, grown_instances

Field = Callable[..., np.ndarray]
Compare = Callable[[np.ndarray, np.ndarray], bool]


def slow_instances(
    values: np.ndarray, foreground: float, seed_level: float, area: int
) -> np.ndarray:
    """Rules 1 to 4 of the module, pixel by pixel over the whole field."""
    offset_y, offset_x, sigma = np.rint(values[:3] * 4096.0) / 4096
    sigma, seed = np.maximum(sigma, 1 / 4096), values[3].astype(np.float64)
    weight = np.rint(seed * 1024)
    inward = offset_y**2 + offset_x**2
    rows, columns = np.mgrid[: seed.shape[0], : seed.shape[1]]
    y, x = rows + offset_y, columns + offset_x
    mask = seed > foreground
    labels = np.zeros(seed.shape, int)
    spent = np.zeros(seed.shape, bool)
    discs = []
    while True:
        able = mask & (labels == 0) & ~spent & (seed >= seed_level)
        if not able.any():
            break
        first = np.unravel_index(
            np.lexsort((inward.ravel(), -np.where(able, seed, -1).ravel()))[0], seed.shape
        )
        centre = (y[first], x[first], sigma[first])
        for moving in (True, False):
            radius = np.rint(centre[2] * np.sqrt(2 * np.log(2)) * 4096) / 4096
            disc = mask & (np.hypot(y - centre[0], x - centre[1]) <= radius)
            free = disc & (labels == 0)
            good = free.sum() >= area and 2 * free.sum() > disc.sum()
            if not good:
                break
            if moving:
                means = (np.average(part[free], weights=weight[free]) for part in (y, x, sigma))
                centre = tuple(np.rint(mean * 4096) / 4096 for mean in means)
        spent[first] = True
        if good:
            discs.append(centre)
            labels[free] = len(discs)
        else:
            spent |= free
    if discs:
        with np.errstate(divide="ignore", invalid="ignore"):
            phi = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * s * s)) for a, b, s in discs]
        nearest = np.nan_to_num(np.stack(phi))
        left = mask & (labels == 0) & (nearest.max(0) >= LEFTOVER_PHI)
        labels[left] = nearest.argmax(0)[left] + 1
    return labels


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0.2, 4), st.booleans())
@settings(deadline=None, max_examples=60)
def test_equals_a_slow_reading_of_the_rules(
    seed: int, area: int, spread: float, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((4, *rng.integers(1, 25, 2))).astype(np.float32)
    values[:2] *= spread
    values[2] = np.abs(values[2]) * 2
    values[3] = rng.random(values[3].shape)
    if ties:
        values[3] = np.rint(values[3] * 8) / 8
    assert (grown_instances(values, 0.3, 0.5, area) == slow_instances(values, 0.3, 0.5, area)).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_perfect_embedding_gives_the_truth(
    seed: int, ellipses: Field, spatial: Field, same_partition: Compare
) -> None:
    labels = ellipses(seed)
    assert labels.max() >= 15
    assert same_partition(cluster(spatial(labels), kind="spatial"), labels)


def test_noise_costs_no_cell(ellipses: Field, spatial: Field) -> None:
    labels = ellipses(7)
    result = cluster(spatial(labels, noise_px=0.6), kind="spatial")
    assert result.max() == labels.max()
    for number in range(1, labels.max() + 1):
        mask = labels == number
        found = np.bincount(result[mask]).argmax()
        assert (mask & (result == found)).sum() / (mask | (result == found)).sum() > 0.8


def test_real_nuclei_come_back(real_data: Path, spatial: Field, same_partition: Compare) -> None:
    with (real_data / "dsb2018" / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"][:12]
    for row in rows:
        stored = tifffile.imread(real_data / "dsb2018" / "val" / "labels" / f"{row['id']}.tif")
        labels = finished(stored.astype(np.int32), 16).astype(np.int32)  # whole, without holes
        assert same_partition(cluster(spatial(labels), kind="spatial"), labels), row["id"]


def test_a_cell_may_be_as_long_as_the_field(spatial: Field) -> None:
    labels = np.zeros((20, 900), np.int32)
    labels[5:8, 10:890] = 1
    labels[8:10, 10:890] = 2
    embedding = spatial(labels)
    embedding[2] = 1  # the two centres are 2.5 px apart
    assert (cluster(embedding, kind="spatial") == labels).all()


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_a_mirrored_field_gives_the_mirrored_partition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((4, 24, 31)).astype(np.float32)
    values[2] = 1.5 + rng.random((24, 31))
    values[3] = rng.random((24, 31)).astype(np.float16)  # some tie
    straight = grown_instances(values, 0.3, 0.5, 3)
    mirrored = values[:, :, ::-1].copy()
    mirrored[1] *= -1
    assert (grown_instances(mirrored, 0.3, 0.5, 3)[:, ::-1] == straight).all()


def test_seventy_thousand_instances() -> None:
    side, pitch = 265, 4
    rows, columns = np.mgrid[: side * pitch, : side * pitch]
    inside = (rows % pitch < 3) & (columns % pitch < 3)
    values = np.zeros((4, *rows.shape), np.float32)
    values[0], values[1] = 1 - rows % pitch, 1 - columns % pitch
    values[2], values[3] = 0.5, inside
    result = cluster(values, kind="spatial", settings=Clustering(min_area_px=4))
    assert result.max() == side * side == 70_225
    assert ((result > 0) == inside).all()
    assert (np.bincount(result.ravel())[1:] == 9).all()


def test_seeds_under_the_level_start_nothing() -> None:
    values = np.zeros((4, 6, 6), np.float32)
    values[2], values[3] = 9, 0.4
    assert not cluster(values, kind="spatial").any()
    assert cluster(values, kind="spatial", settings=Clustering(seed_level=0.4)).all()
