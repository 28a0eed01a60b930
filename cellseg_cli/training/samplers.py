"""Which pixels of a crop a contrast compares.

A sample is a set of pixels that are compared with each other and with no
others.  Every function draws from the generator it is given and from nothing
else, so that a step is repeatable from its seed, and keeps the number of
pixels of a sample below a limit: the pair matrix of a contrast is no larger.
That is ``sampled_pixels`` for ``uniform``, ``box`` and ``contour`` and
``window_px`` squared for ``window`` and ``foreground``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.config import TrainSettings

#: ``box`` reaches this far beyond the instance's own box on each side, as the project's
#: origin planned it.
BOX_MARGIN_PX = 4

#: ``contour`` reaches this far to both sides of the instance's outline, along rows, columns and
#: diagonals alike: the origin's difference of a dilation and an erosion by 7×7 pixels.
CONTOUR_REACH_PX = 3

Labels = NDArray[np.integer]
Pixels = NDArray[np.int64]


class Samples(NamedTuple):
    """The samples of a batch of crops, filled up to one length.

    Attributes
    ----------
    pixels
        (S, N) int64: flat indices into the (B, H, W) labels; 0 where a sample has ended.
    labels
        (S, N) int64: what the crops' labels say there; −1 where a sample has ended.
    """

    pixels: Tensor
    labels: Tensor


def draw_samples(
    labels: NDArray[np.integer], settings: TrainSettings, rng: np.random.Generator
) -> Samples:
    """Return the samples of all crops of (B, H, W) `labels` by the sampler of the settings."""
    sampler, area = SAMPLERS[settings.sampler], labels[0].size
    drawn = [
        pixels + crop * area
        for crop, there in enumerate(labels)
        for pixels in sampler(there, settings, rng)
    ]
    longest = max(len(pixels) for pixels in drawn)
    flat = np.zeros((len(drawn), longest), np.int64)
    known = np.full_like(flat, -1)
    for row, pixels in enumerate(drawn):
        flat[row, : len(pixels)] = pixels
        known[row, : len(pixels)] = labels.ravel()[pixels]
    return Samples(torch.from_numpy(flat), torch.from_numpy(known))


def uniform(labels: Labels, settings: TrainSettings, rng: np.random.Generator) -> list[Pixels]:
    """Return one sample: known pixels of the crop, all equally likely."""
    return [_thinned(np.flatnonzero(labels >= 0), settings.sampled_pixels, rng)]


def window(labels: Labels, settings: TrainSettings, rng: np.random.Generator) -> list[Pixels]:
    """Return one sample: the known pixels of a window, all places in the crop equally likely."""
    height, width = labels.shape
    side = settings.window_px
    top = int(rng.integers(0, max(height - side, 0) + 1))
    left = int(rng.integers(0, max(width - side, 0) + 1))
    return [_known(labels, top, left, top + side, left + side)]


def foreground(labels: Labels, settings: TrainSettings, rng: np.random.Generator) -> list[Pixels]:
    """Return one sample: the instances' pixels in a window that holds two of them or more.

    Windows are centred on random pixels of instances; after 20 without a second
    instance the last one is taken, so that a crop of lone cells still trains.
    Without instances it is that of `window`.
    """
    inside = np.flatnonzero(labels > 0)
    if inside.size == 0:
        return window(labels, settings, rng)
    side = settings.window_px
    pixels = inside[:0]
    for _ in range(20):
        y, x = divmod(int(rng.choice(inside)), labels.shape[1])
        top, left = y - side // 2, x - side // 2
        pixels = _known(labels, top, left, top + side, left + side)
        pixels = pixels[labels.ravel()[pixels] > 0]
        if len(np.unique(labels.ravel()[pixels])) >= 2:
            break
    return [pixels]


def box(labels: Labels, settings: TrainSettings, rng: np.random.Generator) -> list[Pixels]:
    """Return a sample for each of some instances: the known pixels of its box and a margin.

    ``sampled_instances`` at most, all of the crop equally likely, reach
    :data:`BOX_MARGIN_PX` beyond their boxes.  A sample with too many pixels is
    thinned at random.  Without instances there is one sample, that of `window`.
    """
    drawn = []
    for _, y0, x0, y1, x1 in _chosen(labels, settings, rng):
        reach = BOX_MARGIN_PX
        pixels = _known(labels, y0 - reach, x0 - reach, y1 + reach, x1 + reach)
        drawn.append(_thinned(pixels, settings.sampled_pixels, rng))
    return drawn or window(labels, settings, rng)


def contour(labels: Labels, settings: TrainSettings, rng: np.random.Generator) -> list[Pixels]:
    """Return a sample for each of some instances: the known pixels near its outline.

    As `box`, with the pixels at most :data:`CONTOUR_REACH_PX` from the outline,
    inside and outside.  Where the crop or what is known ends is no outline.
    """
    drawn = []
    side = 2 * CONTOUR_REACH_PX + 1
    kernel = np.ones((side, side), np.uint8)
    for number, y0, x0, y1, x1 in _chosen(labels, settings, rng):
        rows = slice(max(y0 - side, 0), y1 + side)  # more than the kernel reaches
        columns = slice(max(x0 - side, 0), x1 + side)
        there = labels[rows, columns]
        outer = cv2.dilate((there == number).astype(np.uint8), kernel)
        # cv2 takes what lies outside the array for part of the instance; so is the unknown.
        inner = cv2.erode(((there == number) | (there < 0)).astype(np.uint8), kernel)
        y, x = np.nonzero((outer > 0) & (inner == 0) & (there >= 0))
        pixels = (y + rows.start) * labels.shape[1] + x + columns.start
        drawn.append(_thinned(pixels, settings.sampled_pixels, rng))
    drawn = [pixels for pixels in drawn if pixels.size]  # an instance that fills the crop has none
    return drawn or window(labels, settings, rng)


Sampler = Callable[[Labels, TrainSettings, np.random.Generator], list[Pixels]]

#: Samplers by name; each returns the samples of one crop, distinct flat indices into its labels.
SAMPLERS: dict[str, Sampler] = {
    "uniform": uniform,
    "window": window,
    "foreground": foreground,
    "box": box,
    "contour": contour,
}


def _known(labels: Labels, top: int, left: int, bottom: int, right: int) -> Pixels:
    """Return the known pixels of what a box covers of the crop."""
    height, width = labels.shape
    rows = np.arange(max(top, 0), min(bottom, height))
    columns = np.arange(max(left, 0), min(right, width))
    flat = (rows[:, None] * width + columns).ravel()
    return flat[labels.ravel()[flat] >= 0]


def _thinned(pixels: Pixels, most: int, rng: np.random.Generator) -> Pixels:
    """Return all pixels, or `most` of them, all equally likely."""
    if len(pixels) <= most:
        return pixels
    return pixels[rng.choice(len(pixels), size=most, replace=False, shuffle=False)]


def _chosen(
    labels: Labels, settings: TrainSettings, rng: np.random.Generator
) -> list[tuple[int, int, int, int, int]]:
    """Return id, y0, x0, y1, x1 of at most ``sampled_instances`` instances, all equally likely."""
    from scipy import ndimage

    found = [
        (number, rows.start, columns.start, rows.stop, columns.stop)
        for number, (rows, columns) in (
            (number, place)
            for number, place in enumerate(ndimage.find_objects(np.maximum(labels, 0)), start=1)
            if place is not None
        )
    ]
    take = min(settings.sampled_instances, len(found))
    return [found[index] for index in rng.choice(max(len(found), 1), size=take, replace=False)]
