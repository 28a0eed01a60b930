from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.accelerator.cores import separated
from cellseg_cli.accelerator.graphs import components
from cellseg_cli.accelerator.pieces import connected_pieces, finished
from cellseg_cli.clustering import cores, pieces


def random_labels(seed: int) -> np.ndarray:
    """A batch of label images, from noise to large regions with specks: (B, Y, X) int32."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, 7), (rng.integers(1, 4), *rng.integers(1, 16, 2)))
    coarse = int(rng.integers(1, 4))
    labels = labels.repeat(coarse, 1).repeat(coarse, 2)
    labels[rng.random(labels.shape) < 0.1 * (coarse > 1)] = 0
    return labels.astype(np.int32)


def rising(labels: np.ndarray, device: str) -> torch.Tensor:
    """The labels of each field above those of the fields before it."""
    before = np.concatenate([[0], labels.max((1, 2)).cumsum()[:-1]])
    raised = np.where(labels > 0, labels + before[:, None, None], 0)
    return torch.from_numpy(raised.astype(np.int64)).to(device)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_instances_are_finished_as_by_the_reference(device: str, seed: int, area: int) -> None:
    labels = random_labels(seed)
    found = finished(rising(labels, device), area).cpu().numpy()
    for image, given_labels in zip(found, labels, strict=True):
        np.testing.assert_array_equal(image, pieces.finished(given_labels, area))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_pieces_of_one_field_are_those_of_the_reference(device: str, seed: int) -> None:
    labels = random_labels(seed)[:1]
    found = connected_pieces(torch.from_numpy(labels).to(device))
    image, label_of, area_of = pieces.connected_pieces(labels[0])
    np.testing.assert_array_equal(found.image[0].cpu().numpy(), image)
    np.testing.assert_array_equal(found.label_of.cpu().numpy(), label_of)
    np.testing.assert_array_equal(found.area_of.cpu().numpy(), area_of)


@pytest.mark.parametrize("erosion", ["none", "origin", "grow"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_clusters_are_separated_as_by_the_reference(device: str, erosion: str, seed: int) -> None:
    labels = random_labels(seed)
    found = separated(rising(labels, device), erosion).cpu().numpy()
    before = 0
    for image, given_labels in zip(found, labels, strict=True):
        expected = cores.separated(given_labels, erosion)
        np.testing.assert_array_equal(image, np.where(expected > 0, expected + before, 0))
        grown_from = "origin" if erosion == "grow" else erosion
        before += cores.separated(given_labels, grown_from).max()


def test_a_spiral_is_one_piece() -> None:
    """A way through 25 turns: rounds are few, since roots are hooked and not passed on."""
    side = 101
    labels = np.zeros((1, side, side), np.int32)
    for turn in range(0, side // 2, 2):
        labels[0, turn, max(turn - 2, 0) : side - turn] = 1
        labels[0, turn : side - turn, side - turn - 1] = 1
        labels[0, side - turn - 1, turn : side - turn] = 1
        labels[0, turn + 2 : side - turn, turn] = 1
    assert len(connected_pieces(torch.from_numpy(labels)).area_of) == 2
    assert pieces.connected_pieces(labels[0])[0].max() == 1


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 40))
@settings(deadline=None, max_examples=30)
def test_components_are_those_of_a_search(device: str, seed: int, size: int, edges: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, size, (2, edges))
    lowest = np.arange(size)
    for _ in range(size):
        for a, b in zip(one, two, strict=True):
            lowest[[a, b]] = min(lowest[a], lowest[b])
    ends = (torch.from_numpy(part).to(device) for part in (one, two))
    np.testing.assert_array_equal(components(size, *ends).cpu().numpy(), lowest)
