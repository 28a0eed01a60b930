"""Which pixels of a crop a loss looks at.

Every function draws from the generator it is given and from nothing else, so
that a step is repeatable from its seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.config import TrainSettings
from cellseg_cli.training.losses import Windows

#: Instances with fewer visible pixels say nothing of a cell's shape.
MIN_VISIBLE_PX = 6

#: A window reaches this far beyond the instance's box on each side: at least
#: these pixels, or this part of the box, whichever is more.
WINDOW_REACH_PX = 10
WINDOW_REACH = 0.3

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


def instance_windows(
    labels: NDArray[np.int64], settings: TrainSettings, rng: np.random.Generator
) -> Windows:
    """Return windows over at most ``instances_per_crop`` instances of each crop.

    A window is a grid of ``grid_points`` × ``grid_points`` points centred on the
    instance's box.  Its spacing along each axis is a whole number of pixels, 1
    for small cells and as many as needed for the grid to hold box and reach of
    a large one; so no cell is cut by its window, a long thin one is not missed
    between its points, and all windows cost the same.

    Parameters
    ----------
    labels
        (B, H, W) int64.
    """
    found = [_boxes(crop) for crop in labels]
    chosen: list[NDArray[np.int64]] = []
    for index, boxes in enumerate(found):
        take = min(settings.instances_per_crop, len(boxes))
        rows = np.sort(rng.choice(max(len(boxes), 1), size=take, replace=False))
        chosen.append(np.insert(boxes[rows], 0, index, axis=1))
    table = np.concatenate(chosen)
    crop, instance, y0, x0, y1, x1 = table.T
    y = _axis(y0, y1, settings.grid_points, rng)
    x = _axis(x0, x1, settings.grid_points, rng)
    return _windows(labels, crop, instance, y, x)


def _axis(low: Pixels, high: Pixels, points: int, rng: np.random.Generator) -> Pixels:
    """Return the (K, points) coordinates of each window along one axis."""
    side = high - low
    reach = np.maximum(WINDOW_REACH_PX, np.ceil(side * WINDOW_REACH)).astype(np.int64)
    spacing = np.maximum(1, -((side + 2 * reach) // -points))
    shift = rng.integers(0, spacing) if spacing.size else spacing
    first = (low + high) // 2 - (points * spacing) // 2 + shift
    return first[:, None] + spacing[:, None] * np.arange(points)


def _windows(
    labels: NDArray[np.int64], crop: Pixels, instance: Pixels, y: Pixels, x: Pixels
) -> Windows:
    count, points = y.shape
    _, height, width = labels.shape
    y = np.broadcast_to(y[:, :, None], (count, points, points)).reshape(count, points * points)
    x = np.broadcast_to(x[:, None, :], (count, points, points)).reshape(count, points * points)
    valid = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    valid &= labels[crop[:, None], y, x] >= 0
    return Windows(*(_tensor(array) for array in (crop, instance, y, x, valid)))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _boxes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (n, 5) rows id, y0, x0, y1, x1 of the instances with enough visible pixels."""
    from scipy import ndimage

    visible = np.maximum(labels, 0)
    areas = np.bincount(visible.ravel())
    rows = [
        (index + 1, box[0].start, box[1].start, box[0].stop, box[1].stop)
        for index, box in enumerate(ndimage.find_objects(visible))
        if box is not None and areas[index + 1] >= MIN_VISIBLE_PX
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 5)
