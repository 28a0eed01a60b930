"""Crops: image and labels move together, and a step is repeatable."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cellseg_cli.config import TrainSettings
from cellseg_cli.training.crops import (
    _dense,
    _pixel_of_an_instance,
    cut_crop,
    draw_batch,
    varied,
    vary_intensity,
)
from cellseg_cli.training.data import Example, Examples, open_split
from cellseg_cli.training.draw import Draw


def example(side: int = 80) -> Example:
    """Squares whose grey value is their id / 10."""
    labels = np.zeros((side, side), np.int32)
    for number, (y, x) in enumerate(np.ndindex(4, 4), start=1):
        labels[20 * y + 3 : 20 * y + 15, 20 * x + 3 : 20 * x + 15] = number
    return Example("squares", (labels / 10).astype(np.float16)[None], labels)


@pytest.mark.parametrize("seed", range(12))
def test_labels_follow_the_image(seed: int) -> None:
    settings = TrainSettings(crop_px=64, in_channels=3)
    image, labels, _ = cut_crop(example(), settings, np.random.default_rng(seed))
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
    _, labels, _ = cut_crop(example(), settings, np.random.default_rng(3))
    assert labels.min() == -1
    assert set(np.unique(labels)) == set(range(-1, labels.max() + 1))


@pytest.mark.parametrize("seed", range(6))
def test_the_second_cell_of_a_pixel_moves_with_the_first(seed: int) -> None:
    """A large cell lies under all squares: each pixel of a square has it, and no other pixel."""
    squares = example()
    large = np.where(squares.labels > 0, squares.labels, 99)
    overlapping = dataclasses.replace(
        squares, labels=large, under=np.where(squares.labels > 0, 99, 0).astype(np.uint8)
    )
    settings = TrainSettings(crop_px=64, in_channels=1)
    crop = cut_crop(overlapping, settings, np.random.default_rng(seed))
    highest = crop.labels.max()  # ids go up in order: the large cell's comes last
    on_a_square = (crop.labels > 0) & (crop.labels < highest)
    assert on_a_square.any()
    assert np.array_equal(crop.under, np.where(on_a_square, highest, 0))
    # the large cell alone: the same labels with nothing underneath
    plain = cut_crop(
        dataclasses.replace(overlapping, under=None), settings, np.random.default_rng(seed)
    )
    assert np.array_equal(plain.labels, crop.labels)
    assert not plain.under.any()


def test_a_cell_that_is_visible_only_underneath_keeps_an_id() -> None:
    """Two halves cover a third cell completely; ids in the field are 3 (below), 5 and 9."""
    labels = np.full((64, 64), 5, np.uint8)
    labels[:, 32:] = 9
    under = np.full((64, 64), 3, np.uint8)
    covered = Example("covered", np.zeros((1, 64, 64), np.float32), labels, under)
    settings = TrainSettings(crop_px=64, in_channels=1, scale_min=1.0, scale_max=1.0)
    crop = cut_crop(covered, settings, np.random.default_rng(0))
    inside = crop.labels >= 0
    assert set(np.unique(crop.labels)) == {-1, 2, 3}
    assert (crop.under[inside] == 1).all()
    assert (crop.under[~inside] == 0).all()


def test_unknown_pixels_of_a_field_stay_unknown() -> None:
    labels = np.full((64, 64), -1, np.int8)
    labels[20:30, 20:30] = 1
    part = Example("part", np.zeros((1, 64, 64), np.uint8), labels)
    settings = TrainSettings(crop_px=48, in_channels=1)
    crop = cut_crop(part, settings, np.random.default_rng(1))
    assert set(np.unique(crop.labels)) == {-1, 1}


def test_zoom_changes_areas_by_its_square() -> None:
    settings = TrainSettings(crop_px=64, scale_min=2.0, scale_max=2.0)
    areas = []
    for seed in range(20):
        _, labels, _ = cut_crop(example(), settings, np.random.default_rng(seed))
        inner = [
            (labels == k).sum()
            for k in range(1, labels.max() + 1)
            if not (np.isin(k, labels[[0, -1]]) or np.isin(k, labels[:, [0, -1]]))
        ]
        areas += inner
    assert np.mean(areas) == pytest.approx(4 * 12 * 12, rel=0.03)


def test_no_value_of_an_exact_crop_is_interpolated() -> None:
    """Values are places in the field, so that neighbours in the crop are neighbours there."""
    field = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64)
    labels = np.arange(1, 64 * 64 + 1, dtype=np.int32).reshape(64, 64)
    labels[:8] = 0  # its values are told by the image alone
    settings = TrainSettings(crop_px=48, in_channels=1, exact_share=1.0)
    turned = set()
    for seed in range(40):
        crop = cut_crop(Example("f", field, labels), settings, np.random.default_rng(seed))
        inside = crop.labels >= 0
        values = crop.image[0][inside]
        assert np.array_equal(values, np.round(values))
        ids = labels.ravel()[values.astype(int)]
        # ids are made dense in their order: the same pixels are 0, the same order among the rest
        assert np.array_equal(ids == 0, crop.labels[inside] == 0)
        assert np.array_equal(np.argsort(ids[ids > 0]), np.argsort(crop.labels[inside][ids > 0]))
        row = np.flatnonzero(inside.sum(1) > 1)[0]
        first, second = crop.image[0][row][inside[row]][:2]
        turned.add(int(second - first))
    assert turned == {-64, -1, 1, 64}


@pytest.mark.parametrize("side", [6, 200])
def test_every_pixel_of_an_instance_is_as_likely_as_another(side: int) -> None:
    """Whether it is hit at once (small fields) or has to be looked for (large ones)."""
    labels = np.zeros((side, side), np.int16)
    labels[1, 2:5], labels[4, 3] = 7, 2
    rng = np.random.default_rng(0)
    counts = Counter(_pixel_of_an_instance(labels, rng) for _ in range(2000))
    assert set(counts) == set(np.flatnonzero(labels > 0).tolist())
    # 500 each; four standard deviations are 78
    assert all(422 <= count <= 578 for count in counts.values())
    assert _pixel_of_an_instance(np.minimum(labels, 0), rng) is None


@pytest.mark.parametrize("seed", range(6))
def test_ids_above_and_under_are_numbered_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    above = rng.choice([-1, 0, 3, 5, 70_000], (5, 6)).astype(np.float32)
    under = rng.choice([0, 4, 5, 9], (5, 6)).astype(np.float32)
    new = {-1: -1, 0: 0}
    for one in np.unique([above, under]).tolist():
        new.setdefault(one, sum(value > 0 for value in new.values()) + 1)
    dense = _dense(above, under)
    for ids, found in zip((above, under), dense, strict=True):
        assert found.dtype == np.int32
        assert found.tolist() == [[new[one] for one in row] for row in ids.tolist()]


def test_half_of_the_crops_may_be_exact() -> None:
    settings = TrainSettings(crop_px=48, in_channels=1, exact_share=0.5)
    field = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64)
    place = Example("f", field, np.ones((64, 64), np.uint8))
    crops = (cut_crop(place, settings, np.random.default_rng(seed)) for seed in range(200))
    exact = sum(bool(np.array_equal(crop.image[0], np.round(crop.image[0]))) for crop in crops)
    assert 70 <= exact <= 130


def test_a_step_draws_the_same_batch_again_and_another_step_another(discs: Path) -> None:
    settings = TrainSettings(crop_px=32)
    examples = Examples(open_split([str(discs)]).train, settings)
    draw = Draw.balanced(examples.sources, 0.5)
    first, again, other = (
        draw_batch(examples, draw, settings, step=step, rank=0) for step in (7, 7, 8)
    )
    assert torch.equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.under, again.under)
    assert first.under.shape == first.labels.shape == (4, 32, 32)
    assert (first.under.dtype, first.labels.dtype) == (np.int32, np.int32)
    assert not torch.equal(first.images, other.images)


def test_grey_stays_grey_under_intensity_changes() -> None:
    grey = torch.rand(6, 1, 16, 16).expand(6, 3, 16, 16)
    changed = vary_intensity(grey, torch.Generator().manual_seed(0))
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert not torch.equal(changed, grey)


def test_what_is_varied_later_is_what_is_varied_at_once(discs: Path) -> None:
    """Grey crops travel as one channel; on the same kind of device the result is the same."""
    settings = TrainSettings(crop_px=48, in_channels=3, batch_size=6, seed=5)
    examples = Examples(open_split([str(discs)]).train, settings)
    draw = Draw.of(examples.sources, settings)
    at_once = draw_batch(examples, draw, settings, step=4, rank=1)
    plain = draw_batch(examples, draw, settings, step=4, rank=1, vary=False)
    assert plain.images.shape == (6, 1, 48, 48)
    later = varied(plain.images, settings, step=4, rank=1)
    assert torch.equal(later.expand(-1, 3, -1, -1), at_once.images)
    assert not torch.equal(later, plain.images)
    assert np.array_equal(plain.labels, at_once.labels)


def test_crops_that_are_not_chosen_stay_as_they_are() -> None:
    """Nothing happens to a crop with the probability 0.5 · 0.5 · 0.8 · 0.7 = 0.14."""
    images = torch.rand(2000, 1, 2, 2)
    same = (vary_intensity(images, torch.Generator().manual_seed(0)) == images).flatten(1).all(1)
    assert same.double().mean() == pytest.approx(0.14, abs=0.03)  # four standard deviations
