"""Crops: image and labels move together, and a step is repeatable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError
from cellseg_cli.training.crops import cut_crop, draw_batch, vary_intensity
from cellseg_cli.training.data import Draw, Example, Examples, open_split


def example(side: int = 80) -> Example:
    """Squares whose grey value is their id / 10."""
    labels = np.zeros((side, side), np.int32)
    for number, (y, x) in enumerate(np.ndindex(4, 4), start=1):
        labels[20 * y + 3 : 20 * y + 15, 20 * x + 3 : 20 * x + 15] = number
    return Example("squares", (labels / 10).astype(np.float16)[None], labels)


@pytest.mark.parametrize("seed", range(12))
def test_labels_follow_the_image(seed: int) -> None:
    settings = TrainSettings(crop_px=64, in_channels=3)
    image, labels = cut_crop(example(), settings, np.random.default_rng(seed))
    assert image.shape == (3, 64, 64)
    assert np.array_equal(image[0], image[2])
    values = np.round(image[0] * 10).astype(int)
    for instance in range(1, labels.max() + 1):
        inside = values[labels == instance]
        if len(inside) < 60:
            continue  # a sliver at the crop's border is all rim
        most = np.bincount(inside).argmax()
        # interpolation blurs the rim of a 12 px square by a pixel on each side
        assert most >= 1
        assert (inside == most).mean() > 0.5


def test_ids_of_a_crop_are_dense_and_outside_is_unknown() -> None:
    settings = TrainSettings(crop_px=160)
    _, labels = cut_crop(example(), settings, np.random.default_rng(3))
    assert labels.min() == -1
    assert set(np.unique(labels)) == set(range(-1, labels.max() + 1))


def test_zoom_changes_areas_by_its_square() -> None:
    settings = TrainSettings(crop_px=64, scale_min=2.0, scale_max=2.0)
    areas = []
    for seed in range(20):
        _, labels = cut_crop(example(), settings, np.random.default_rng(seed))
        inner = [
            (labels == k).sum()
            for k in range(1, labels.max() + 1)
            if not (np.isin(k, labels[[0, -1]]) or np.isin(k, labels[:, [0, -1]]))
        ]
        areas += inner
    assert np.mean(areas) == pytest.approx(4 * 12 * 12, rel=0.03)


def test_a_step_draws_the_same_batch_again_and_another_step_another(discs: Path) -> None:
    settings = TrainSettings(crop_px=32)
    examples = Examples(open_split([str(discs)]).train, settings)
    draw = Draw.balanced(examples.sources, 0.5)
    first, again, other = (
        draw_batch(examples, draw, settings, step=step, rank=0) for step in (7, 7, 8)
    )
    assert torch.equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_grey_stays_grey_under_intensity_changes() -> None:
    grey = torch.rand(6, 1, 16, 16).expand(6, 3, 16, 16)
    changed = vary_intensity(grey, torch.Generator().manual_seed(0))
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert not torch.equal(changed, grey)


def test_balance_lies_between_even_and_as_they_come(discs: Path) -> None:
    split = open_split([str(discs), str(discs)])
    one_group = split.train[:4] + split.train[4:5]  # four fields of one data set, one of another
    shares = {b: Draw.balanced(one_group, b).probabilities[-1] for b in (0.0, 0.5, 1.0)}
    assert shares[0.0] == pytest.approx(1 / 2)
    assert shares[0.5] == pytest.approx(1 / (1 + 2))
    assert shares[1.0] == pytest.approx(1 / 5)
    with pytest.raises(ConfigError, match=r"balance=2 is not in \[0, 1\]"):
        Draw.balanced(one_group, 2)
