"""Where the contrast looks: inside, known, bounded, and evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from cellseg_cli.config import TrainSettings
from cellseg_cli.training.samplers import SAMPLERS, draw_samples


def labels_with(*boxes: tuple[int, int, int, int], side: int = 64) -> np.ndarray:
    labels = np.zeros((side, side), np.int64)
    for number, (y0, x0, y1, x1) in enumerate(boxes, start=1):
        labels[y0:y1, x0:x1] = number
    return labels


def chi_square(counts: np.ndarray) -> float:
    """How far counts of equally likely things lie from even, in standard deviations.

    Of k equally likely things drawn n times independently, the sum of (count − n/k)² / (n/k) has
    mean k − 1 and variance 2 (k − 1).  Draws without return scatter less.
    """
    mean = counts.sum() / counts.size
    statistic = ((counts - mean) ** 2 / mean).sum()
    return float((statistic - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1)))


def counts_of(name: str, labels: np.ndarray, settings: TrainSettings, draws: int) -> np.ndarray:
    """How often each pixel is in the first sample, (H, W)."""
    rng, counts = np.random.default_rng(0), np.zeros(labels.size)
    for _ in range(draws):
        counts[SAMPLERS[name](labels, settings, rng)[0]] += 1
    return counts.reshape(labels.shape)


def picture(labels: np.ndarray, pixels: np.ndarray) -> list[str]:
    """The sampled pixels as #, the others as dots."""
    marks = np.full(labels.size, ".")
    marks[pixels] = "#"
    return ["".join(row) for row in marks.reshape(labels.shape)]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@given(seed=st.integers(0, 2**32 - 1), most=st.integers(2, 300), side=st.integers(2, 30))
@examples(deadline=None, max_examples=25)
def test_samples_are_distinct_known_pixels_within_their_limit(
    name: str, seed: int, most: int, side: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(4, 40, 2)
    labels = rng.integers(-1, 6, (height, width)).repeat(2, 0).repeat(3, 1)
    settings = TrainSettings(sampled_pixels=most, window_px=side, sampled_instances=3)
    drawn = SAMPLERS[name](labels, settings, rng)
    assert 1 <= len(drawn) <= 3
    limit = side**2 if name in ("window", "foreground") else most
    for pixels in drawn:
        assert len(np.unique(pixels)) == len(pixels) <= limit
        assert (labels.ravel()[pixels] >= 0).all()


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_same_generator_gives_the_same_samples(name: str) -> None:
    labels = labels_with((5, 5, 20, 20), (5, 20, 20, 40), (30, 30, 50, 50))[None].repeat(2, 0)
    settings = TrainSettings(sampler=name, sampled_pixels=50, sampled_instances=2)  # type: ignore[arg-type]
    one, other = (draw_samples(labels, settings, np.random.default_rng(4)) for _ in range(2))
    assert one.pixels.equal(other.pixels)
    assert not one.pixels.equal(draw_samples(labels, settings, np.random.default_rng(5)).pixels)


def test_a_batch_of_samples_is_filled_up_and_keeps_its_labels() -> None:
    """Boxes of 3×3 and 5×6 px with 4 px around them, cut by the border of the second crop."""
    labels = np.zeros((2, 30, 30), np.int64)
    labels[0, 10:13, 10:13] = 1
    labels[1, :5, :6] = 1
    samples = draw_samples(labels, TrainSettings(sampler="box"), np.random.default_rng(0))
    assert samples.pixels.shape == samples.labels.shape == (2, 11 * 11)
    first, second = samples.pixels.numpy(), samples.labels.numpy()
    assert (second >= 0).sum(1).tolist() == [11 * 11, 9 * 10]
    assert (second == 1).sum(1).tolist() == [9, 30]
    known = second >= 0
    assert (labels.ravel()[first[known]] == second[known]).all()
    assert (first[1][known[1]] >= 900).all()


def test_uniform_draws_every_known_pixel_equally_often() -> None:
    labels = np.zeros((12, 10), np.int64)
    labels[3:5], labels[10:] = 7, -1
    counts = counts_of("uniform", labels, TrainSettings(sampled_pixels=10), 2000)
    assert not counts[10:].any()
    assert chi_square(counts[:10]) < 4
    assert counts.sum() == 2000 * 10


def test_window_is_one_square_at_an_even_place() -> None:
    labels = np.zeros((20, 30), np.int64)
    rng, places = np.random.default_rng(0), np.zeros((13, 23))
    for _ in range(13 * 23 * 10):
        [pixels] = SAMPLERS["window"](labels, TrainSettings(window_px=8), rng)
        y, x = np.divmod(pixels, 30)
        assert np.ptp(y) == np.ptp(x) == 7
        assert len(y) == 64
        places[y.min(), x.min()] += 1
    assert places.min() > 0
    assert chi_square(places) < 4


def test_a_window_larger_than_the_crop_is_the_crop() -> None:
    labels = labels_with((2, 2, 5, 5), side=10)
    [pixels] = SAMPLERS["window"](labels, TrainSettings(window_px=80), np.random.default_rng(0))
    assert sorted(pixels) == list(range(100))


def test_foreground_takes_two_instances_where_they_are() -> None:
    labels = labels_with((5, 5, 25, 15), (5, 15, 25, 25), (50, 50, 60, 60))
    pairs = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        [pixels] = SAMPLERS["foreground"](labels, TrainSettings(window_px=20), rng)
        found = set(labels.ravel()[pixels].tolist())
        assert 0 not in found
        pairs += len(found) >= 2
    assert pairs == 50


def test_foreground_is_centred_on_every_pixel_of_the_instances_alike() -> None:
    """Two squares of 2×2 px that touch; a window of 2 px is the rows y − 1 and y around a pixel.

    It holds both squares where its pixel lies in column 4, in rows 3 and 4 alike: row 3 is then
    always sampled, row 4 in half of the draws.  Of 20 tries all fail with (3/4)^20 = 0.3 %.
    """
    labels = labels_with((3, 2, 5, 4), (3, 4, 5, 6), side=9)
    counts = counts_of("foreground", labels, TrainSettings(window_px=2), 800)
    assert (counts[3, 3:5] >= 780).all()
    assert (np.abs(counts[4, 3:5] - 400) < 4 * np.sqrt(800 / 4)).all()
    assert counts[labels == 0].sum() == 0


def test_box_is_the_instance_with_four_pixels_around_it() -> None:
    labels = labels_with((6, 7, 8, 10), side=16)
    labels[:, 12:] = -1
    [pixels] = SAMPLERS["box"](labels, TrainSettings(), np.random.default_rng(0))
    assert picture(labels, pixels) == [
        "................",
        "................",
        "...#########....",  # rows 6 − 4 = 2 to 8 + 4 = 12, columns 7 − 4 = 3 to where it is known
        "...#########....",
        "...#########....",
        "...#########....",
        "...#########....",
        "...#########....",
        "...#########....",
        "...#########....",
        "...#########....",
        "...#########....",
        "................",
        "................",
        "................",
        "................",
    ]


def test_contour_is_three_pixels_to_both_sides_of_the_outline() -> None:
    labels = labels_with((4, 4, 13, 12), side=17)  # 9×8 px: its inner 3×2 are no contour
    [pixels] = SAMPLERS["contour"](labels, TrainSettings(), np.random.default_rng(0))
    assert picture(labels, pixels) == [
        ".................",
        ".##############..",
        ".##############..",
        ".##############..",
        ".##############..",
        ".##############..",
        ".##############..",
        ".######..######..",
        ".######..######..",
        ".######..######..",
        ".##############..",
        ".##############..",
        ".##############..",
        ".##############..",
        ".##############..",
        ".##############..",
        ".................",
    ]


def test_the_end_of_the_crop_or_of_what_is_known_is_no_contour() -> None:
    labels = np.ones((8, 12), np.int64)
    labels[:, 6:] = 0
    labels[:, 11] = -1
    labels[:, 0] = -1
    [pixels] = SAMPLERS["contour"](labels, TrainSettings(), np.random.default_rng(0))
    assert picture(labels, pixels) == ["...######..."] * 8  # 3 px left and right of column 5 | 6
    labels[labels == 0] = 1
    drawn = SAMPLERS["contour"](labels, TrainSettings(window_px=4), np.random.default_rng(0))
    assert [len(pixels) for pixels in drawn] == [16], "without any outline it is a window"


def test_contour_tells_touching_instances_apart() -> None:
    """The band of each of two touching instances holds pixels of the other."""
    labels = labels_with((10, 10, 30, 20), (10, 20, 30, 30))
    for pixels in SAMPLERS["contour"](labels, TrainSettings(), np.random.default_rng(1)):
        assert set(labels.ravel()[pixels].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("name", ["box", "contour"])
def test_every_instance_is_taken_equally_often(name: str) -> None:
    """Large and small ones alike; the sample's own instance is the one that it holds whole."""
    places = [(2, 2, 6, 6), (2, 20, 5, 24), (20, 2, 24, 4), (20, 20, 44, 44), (52, 52, 53, 53)]
    labels = labels_with(*places)
    settings = TrainSettings(sampled_instances=2, sampled_pixels=10_000)
    rng, counts = np.random.default_rng(0), np.zeros(len(places))
    for _ in range(500):
        drawn = SAMPLERS[name](labels, settings, rng)
        assert len(drawn) == 2
        for pixels in drawn:
            [number] = np.unique(labels.ravel()[pixels[labels.ravel()[pixels] > 0]])
            counts[number - 1] += 1
    # 200 of 1000 expected; each draw takes two different ones: variance 500 · 0.4 · 0.6
    assert np.abs(counts - 200).max() < 4 * np.sqrt(120)


@pytest.mark.parametrize("name", ["box", "contour"])
def test_samples_are_thinned_evenly(name: str) -> None:
    labels = labels_with((10, 10, 30, 40))
    whole = TrainSettings(sampled_pixels=10_000)
    [everything] = SAMPLERS[name](labels, whole, np.random.default_rng(0))
    counts = counts_of(name, labels, TrainSettings(sampled_pixels=40), 2000).ravel()
    assert counts.sum() == 2000 * 40
    assert set(np.flatnonzero(counts)) == set(everything)
    assert chi_square(counts[everything]) < 4


@pytest.mark.parametrize("name", ["foreground", "box", "contour"])
def test_without_instances_it_is_a_window(name: str) -> None:
    empty = np.zeros((30, 30), np.int64)
    [pixels] = SAMPLERS[name](empty, TrainSettings(window_px=8), np.random.default_rng(0))
    y, x = np.divmod(pixels, 30)
    assert (np.ptp(y), np.ptp(x), len(pixels)) == (7, 7, 64)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_crop_of_unknown_pixels_gives_an_empty_sample(name: str) -> None:
    labels = np.full((1, 10, 10), -1, np.int64)
    settings = TrainSettings(sampler=name)  # type: ignore[arg-type]
    assert draw_samples(labels, settings, np.random.default_rng(0)).pixels.shape == (1, 0)
