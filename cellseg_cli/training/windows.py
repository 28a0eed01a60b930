"""Where the spatial loss looks: a window of points over each of some instances."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.config import TrainSettings

#: Instances with fewer visible pixels say nothing of a cell's shape.
MIN_VISIBLE_PX = 6

#: A window reaches this far beyond the instance's box on each side: at least
#: these pixels, or this part of the box, whichever is more.
WINDOW_REACH_PX = 10
WINDOW_REACH = 0.3

Pixels = NDArray[np.int64]


class Windows(NamedTuple):
    """Points laid over some instances of a batch.

    Attributes
    ----------
    crop, instance
        (K,) int64: which crop of the batch and which id in it.
    y, x
        (K, P) int64: the points, inside the crop.
    valid
        (K, P) bool: False where the point would lie outside the crop or on
        an unknown pixel.
    """

    crop: Tensor
    instance: Tensor
    y: Tensor
    x: Tensor
    valid: Tensor


def instance_windows(
    labels: NDArray[np.int64],
    settings: TrainSettings,
    rng: np.random.Generator,
    under: NDArray[np.int64] | None = None,
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
    under
        (B, H, W) int64, the second instance of a pixel, 0 = none: where two
        cells overlap, the pixel is one of the upper cell, and no point of the
        lower one's window, to which it is neither inside nor outside.
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
    windows = _windows(labels, crop, instance, y, x)
    if under is None:
        return windows
    covered = torch.from_numpy(under)[windows.crop[:, None], windows.y, windows.x]
    return windows._replace(valid=windows.valid & (covered != windows.instance[:, None]))


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
