"""Where the losses look: inside, known, and evenly."""

from __future__ import annotations

import numpy as np
import pytest

from cellseg_cli.config import TrainSettings
from cellseg_cli.training.samplers import SAMPLERS


def labels_with(*boxes: tuple[int, int, int, int], side: int = 64) -> np.ndarray:
    labels = np.zeros((side, side), np.int64)
    for number, (y0, x0, y1, x1) in enumerate(boxes, start=1):
        labels[y0:y1, x0:x1] = number
    return labels


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samples_are_distinct_known_pixels(name: str) -> None:
    labels = labels_with((5, 5, 20, 20), (5, 20, 20, 40))
    labels[:, 50:] = -1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pixels = SAMPLERS[name](labels, TrainSettings(sampled_pixels=300, window_px=16), rng)
        assert len(np.unique(pixels)) == len(pixels) <= 300
        assert (labels.ravel()[pixels] >= 0).all()


def test_uniform_draws_every_pixel_equally_often() -> None:
    labels = np.zeros((10, 10), np.int64)
    rng, counts = np.random.default_rng(0), np.zeros(100)
    for _ in range(2000):
        counts[SAMPLERS["uniform"](labels, TrainSettings(sampled_pixels=10), rng)] += 1
    # 200 expected, binomial with sigma 13.4
    assert np.abs(counts - 200).max() < 5 * 13.4


def test_window_is_one_square_at_an_even_place() -> None:
    labels = np.zeros((20, 30), np.int64)
    rng, tops = np.random.default_rng(0), np.zeros(13)
    for _ in range(1300):
        y, x = np.divmod(SAMPLERS["window"](labels, TrainSettings(window_px=8), rng), 30)
        assert np.ptp(y) == np.ptp(x) == 7
        assert len(y) == 64
        tops[y.min()] += 1
    assert np.abs(tops - 100).max() < 5 * 10


def test_foreground_takes_two_instances_where_they_are() -> None:
    labels = labels_with((5, 5, 25, 15), (5, 15, 25, 25), (50, 50, 60, 60))
    pairs = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        pixels = SAMPLERS["foreground"](labels, TrainSettings(window_px=20), rng)
        found = set(labels.ravel()[pixels].tolist())
        assert 0 not in found
        pairs += len(found) >= 2
    assert pairs == 50


def test_foreground_without_instances_falls_back_to_a_window() -> None:
    empty = np.zeros((30, 30), np.int64)
    pixels = SAMPLERS["foreground"](empty, TrainSettings(window_px=8), np.random.default_rng(0))
    assert len(pixels) == 64
