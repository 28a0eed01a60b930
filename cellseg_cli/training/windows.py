"""Where the spatial loss looks: a window of points over each of some instances."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.clustering.compiled import compiled
from cellseg_cli.config import TrainSettings

#: Instances with fewer visible pixels say nothing of a cell's shape.
MIN_VISIBLE_PX = 6

#: A window reaches this far beyond the instance's box on each side: at least
#: these pixels, or this part of the box, whichever is more.
WINDOW_REACH_PX = 10
WINDOW_REACH = 0.3


class Windows(NamedTuple):
    """Grids of points over some instances of a batch: few numbers, made on the host.

    Attributes
    ----------
    crop, instance
        (K,) int64: which crop of the batch and which id in it.
    first, spacing
        (K, 2) int64: y, x of a grid's first point, which may lie outside the crop, and the pixels
        from one point to the next.
    """

    crop: Tensor
    instance: Tensor
    first: Tensor
    spacing: Tensor


class Points(NamedTuple):
    """The points of windows, where the labels are.

    Attributes
    ----------
    crop, instance
        As of :class:`Windows`.
    y, x
        (K, P) int64: the points, inside the crop.
    valid
        (K, P) bool: False where the point would lie outside the crop or on
        an unknown pixel, or where nobody can say whether it is the instance's.
    """

    crop: Tensor
    instance: Tensor
    y: Tensor
    x: Tensor
    valid: Tensor


def instance_windows(
    labels: NDArray[np.integer], settings: TrainSettings, rng: np.random.Generator
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
        (B, H, W).
    """
    found = [_boxes(crop) for crop in labels]
    chosen: list[NDArray[np.int64]] = []
    for index, boxes in enumerate(found):
        take = min(settings.instances_per_crop, len(boxes))
        rows = np.sort(rng.choice(max(len(boxes), 1), size=take, replace=False))
        chosen.append(np.insert(boxes[rows], 0, index, axis=1))
    table = np.concatenate(chosen)
    low, high = table[:, 2:4], table[:, 4:6]
    side = high - low
    reach = np.maximum(WINDOW_REACH_PX, np.ceil(side * WINDOW_REACH)).astype(np.int64)
    points = settings.grid_points
    spacing = np.maximum(1, -((side + 2 * reach) // -points))
    shift = np.stack([rng.integers(0, axis) if axis.size else axis for axis in spacing.T], axis=1)
    first = (low + high) // 2 - (points * spacing) // 2 + shift
    return Windows(*map(_tensor, (table[:, 0], table[:, 1], first, spacing)))


def points_of(
    windows: Windows, labels: Tensor, under: Tensor | None, points_per_side: int
) -> Points:
    """Return the points of `windows`, on the device of all tensors and without waiting for it.

    Parameters
    ----------
    labels
        (B, H, W) int64.
    under
        (B, H, W), the second instance of a pixel, 0 = none: where two
        cells overlap, the pixel is one of the upper cell, and no point of the
        lower one's window, to which it is neither inside nor outside.
    """
    _, height, width = labels.shape
    steps = torch.arange(points_per_side, device=labels.device)
    count, area = len(windows.crop), points_per_side**2
    y, x = (windows.first[:, :, None] + windows.spacing[:, :, None] * steps).unbind(1)
    y = y[:, :, None].expand(-1, -1, points_per_side).reshape(count, area)
    x = x[:, None, :].expand(-1, points_per_side, -1).reshape(count, area)
    valid = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    crop = windows.crop[:, None]
    valid &= labels[crop, y, x] >= 0
    if under is not None:
        valid &= under[crop, y, x] != windows.instance[:, None]
    return Points(windows.crop, windows.instance, y, x, valid)


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


@compiled
def _boxes(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return (n, 5) rows id, y0, x0, y1, x1 of the instances with enough visible pixels."""
    height, width = labels.shape
    highest = 0
    for y in range(height):
        for x in range(width):
            highest = max(highest, int(labels[y, x]))
    boxes = np.zeros((highest + 1, 5), np.int64)
    boxes[:, 1], boxes[:, 2] = height, width
    areas = np.zeros(highest + 1, np.int64)
    for y in range(height):
        for x in range(width):
            one = int(labels[y, x])
            if one > 0:
                areas[one] += 1
                box = boxes[one]
                box[0] = one
                box[1], box[2] = min(box[1], y), min(box[2], x)
                box[3], box[4] = max(box[3], y + 1), max(box[4], x + 1)
    return boxes[areas >= MIN_VISIBLE_PX]
