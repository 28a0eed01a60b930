from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.accelerator.leftovers import nearest_discs
from cellseg_cli.accelerator.plane import Plane
from cellseg_cli.accelerator.seeds import grown_instances
from cellseg_cli.clustering import Clustering
from cellseg_cli.clustering.seeds import STEPS
from cellseg_cli.clustering.seeds import grown_instances as reference

Check = Callable[..., list[np.ndarray]]
Field = Callable[..., np.ndarray]


def random_fields(
    rng: np.random.Generator, spread: float, width: float, outlier: float, ties: bool
) -> np.ndarray:
    """One to three spatial embeddings without any order in them: (B, 4, Y, X) float32."""
    values = rng.standard_normal((rng.integers(1, 4), 4, *rng.integers(1, 30, 2)))
    values[:, :2] *= spread
    values[:, 2] = np.abs(values[:, 2]) * width
    values[:, 3] = rng.random(values[:, 3].shape)
    if outlier:
        values[:, 2] = np.where(rng.random(values[:, 2].shape) < 0.02, outlier, values[:, 2])
    if ties:
        values[:, 3] = np.rint(values[:, 3] * 4) / 4
        values[:, :2] = np.rint(values[:, :2])
    return values.astype(np.float32)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.2, 1.0, 4.0, 30.0, 9000.0]),
    st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0]),
    st.sampled_from([0.0, 50.0, 9000.0]),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_instances_are_those_grown_one_by_one(
    device: str, seed: int, spread: float, width: float, outlier: float, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = random_fields(rng, spread, width, outlier, ties)
    foreground, level = rng.choice([0, 0.3, 0.6, 0.99]), rng.choice([0, 0.5, 0.9])
    area = int(rng.integers(1, 9))
    usable = torch.ones(len(values), dtype=torch.bool, device=device)
    found = grown_instances(
        torch.from_numpy(values).to(device), usable, float(foreground), float(level), area
    )
    before = 0
    for image, embedding in zip(found.cpu().numpy(), values, strict=True):
        expected = reference(embedding, foreground, level, area)
        np.testing.assert_array_equal(image, np.where(expected > 0, expected + before, 0))
        before += expected.max()


@pytest.mark.parametrize("noise_px", [0.0, 0.6, 6.0])
def test_touching_ellipses(
    equal_to_reference: Check,
    ellipses: Field,
    spatial: Field,
    same_partition: Callable[[np.ndarray, np.ndarray], bool],
    noise_px: float,
) -> None:
    truth = [ellipses(seed) for seed in range(4)]
    values = np.stack([spatial(labels, noise_px, seed) for seed, labels in enumerate(truth)])
    found = equal_to_reference(values, "spatial", Clustering())
    if noise_px == 0:
        assert all(map(same_partition, found, truth))


def test_a_disc_wider_than_the_field_among_small_ones(equal_to_reference: Check) -> None:
    """The wide one has the last rank but one, and waits for all others."""
    rng = np.random.default_rng(0)
    values = np.zeros((1, 4, 60, 90), np.float32)
    values[0, 2] = 1.5
    values[0, 3] = 0.6 + 0.4 * rng.random((60, 90))
    values[0, 2:, 30, 45] = 500, 0.55
    values[0, 3, 10, 10] = 0.52
    assert equal_to_reference(values, "spatial", Clustering(min_area_px=2))[0].max() > 300


def test_no_foreground_and_one_pixel(equal_to_reference: Check) -> None:
    assert not equal_to_reference(np.zeros((2, 4, 5, 7), np.float32), "spatial", Clustering())[
        0
    ].any()
    values = np.array([0, 0, 1, 0.9], np.float32).reshape(1, 4, 1, 1)
    assert equal_to_reference(values, "spatial", Clustering(min_area_px=1))[0].item() == 1


def test_foreground_without_seeds_is_background(equal_to_reference: Check) -> None:
    values = np.full((1, 4, 6, 6), 0.4, np.float32)
    assert not equal_to_reference(values, "spatial", Clustering())[0].any()


def test_a_lattice_of_equal_cells(equal_to_reference: Check) -> None:
    """Seeds that tie go in the order of the rows, so each cell waits for its neighbours."""
    rows, columns = np.mgrid[:120, :160]
    values = np.zeros((1, 4, 120, 160), np.float32)
    values[0, 0], values[0, 1] = 1 - rows % 4, 1 - columns % 4
    values[0, 2], values[0, 3] = 0.5, (rows % 4 < 3) & (columns % 4 < 3)
    found = equal_to_reference(values, "spatial", Clustering(min_area_px=4))
    assert found[0].max() == 30 * 40


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_pixel_as_near_to_a_small_disc_as_to_a_wide_one_goes_to_the_first(
    device: str, order: list[int]
) -> None:
    pixel = torch.tensor([[10, 22, 1]], device=device) * STEPS
    discs = torch.tensor([[10, 20, 1], [10, 38, 8]], device=device)[order] * STEPS
    one = torch.zeros(1, dtype=torch.int64, device=device)
    plane = Plane((1, 40, 60), pixel=one, disc=pixel, seed=one.float(), inward=one)
    field = torch.zeros(2, dtype=torch.int64, device=device)
    assert nearest_discs(plane, one, field, discs).tolist() == [1]  # both at 2 bandwidths
