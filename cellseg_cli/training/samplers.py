"""Which pixels of a crop a contrast compares.

Every function draws from the generator it is given and from nothing else, so
that a step is repeatable from its seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cellseg_cli.config import TrainSettings

Pixels = NDArray[np.int64]


def uniform(labels: NDArray[np.int64], settings: TrainSettings, rng: np.random.Generator) -> Pixels:
    """Return flat indices of known pixels drawn uniformly, ``sampled_pixels`` at most."""
    known = np.flatnonzero(labels >= 0)
    return rng.choice(known, size=min(settings.sampled_pixels, known.size), replace=False)


def window(labels: NDArray[np.int64], settings: TrainSettings, rng: np.random.Generator) -> Pixels:
    """Return flat indices of the known pixels of one window at a random place."""
    height, width = labels.shape
    side = settings.window_px
    top = int(rng.integers(0, max(height - side, 0) + 1))
    left = int(rng.integers(0, max(width - side, 0) + 1))
    return _window_pixels(labels, top, left, side)


def foreground(
    labels: NDArray[np.int64], settings: TrainSettings, rng: np.random.Generator
) -> Pixels:
    """Return flat indices of the instances' pixels in a window that holds two of them or more.

    Windows are centred on random pixels of instances; after 20 without a second
    instance the last one is taken, so that a crop of lone cells still trains.
    """
    inside = np.flatnonzero(labels > 0)
    if inside.size == 0:
        return window(labels, settings, rng)
    side = settings.window_px
    pixels = inside[:0]
    for _ in range(20):
        y, x = divmod(int(rng.choice(inside)), labels.shape[1])
        pixels = _window_pixels(labels, y - side // 2, x - side // 2, side)
        pixels = pixels[labels.ravel()[pixels] > 0]
        if len(np.unique(labels.ravel()[pixels])) >= 2:
            break
    return pixels


#: Samplers by name; each returns int64 flat indices into the (H, W) labels.
SAMPLERS: dict[str, Callable[[NDArray[np.int64], TrainSettings, np.random.Generator], Pixels]] = {
    "uniform": uniform,
    "window": window,
    "foreground": foreground,
}


def _window_pixels(labels: NDArray[np.int64], top: int, left: int, side: int) -> Pixels:
    height, width = labels.shape
    rows = np.arange(max(top, 0), min(top + side, height))
    columns = np.arange(max(left, 0), min(left + side, width))
    flat = (rows[:, None] * width + columns).ravel()
    return flat[labels.ravel()[flat] >= 0]
