"""Polygons to masks by pycocotools' rule, so that truth is what everybody scores with.

The corners are moved to a grid of a fifth of a pixel, each side becomes a
discrete line on that grid, and a pixel belongs to the mask if its centre
(x + 0.5, y + 0.5) has an odd number of sides above it in its column: the
even-odd rule at pixel centres.  `rleFrPoly` in cocoapi's maskApi.c defines the
rounding, which is kept to the bit.
"""

from __future__ import annotations

import numpy as np

from cellseg_cli.errors import InputError, LimitError
from cellseg_cli.runlength import runs_of_coco_counts

_PER_PIXEL = 5
#: Points of one outline, about ten int64 each; 3 million px of outline, where the largest
#: image that is a square has 185 000 px around it.
MAX_OUTLINE_POINTS = 1 << 24


def runs_of_polygon(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the runs of the pixels inside a polygon.

    Parameters
    ----------
    corners
        float64 (n, 2), n ≥ 3, of x, y in px; (0, 0) is the outer corner of the
        first pixel.  The last corner joins the first.
    shape
        (Y, X) of the field; what lies outside is cut off.

    Raises
    ------
    InputError
        For fewer than three corners, corners that are not finite, and corners
        farther outside of the image than the image is large.
    LimitError
        For an outline longer than :data:`MAX_OUTLINE_POINTS`.
    """
    height, width = shape
    if len(corners) < 3:
        raise InputError(f"a polygon has at least 3 corners, got {len(corners)}")
    size = np.array((width, height))
    strange = ~((corners >= -size) & (corners <= 2 * size)).all(axis=1)
    if strange.any():
        x, y = corners[strange][0]
        raise InputError(f"the polygon corner x={x:g}, y={y:g} is outside of {height}×{width} px")
    sides = np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1)
    if (length := float(sides.sum())) * _PER_PIXEL > MAX_OUTLINE_POINTS:
        raise LimitError(
            f"the polygon has an outline of {length:.0f} px, "
            f"the limit is {MAX_OUTLINE_POINTS // _PER_PIXEL} (MAX_OUTLINE_POINTS)"
        )
    crossings = _crossings(*_outline(corners), shape)
    return runs_of_coco_counts(_counts(crossings, height * width), shape)


def _outline(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the dense outline in fifths of a pixel, int64, in order."""
    # Truncation, not floor: what C's conversion to int does.
    grid = (_PER_PIXEL * corners + 0.5).astype(np.int64)
    start, end = grid, np.roll(grid, -1, axis=0)
    reach = np.abs(end - start)
    flat = reach[:, 0] >= reach[:, 1]  # sides that go farther in x than in y
    steps = np.where(flat, reach[:, 0], reach[:, 1])
    backward = np.where(flat, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])
    low = np.where(backward[:, None], end, start)
    rise = np.where(backward[:, None], start, end) - low
    slope = np.where(flat, rise[:, 1], rise[:, 0]) / np.maximum(steps, 1)

    side = np.repeat(np.arange(len(grid)), steps + 1)
    step = np.arange(len(side)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    step = np.where(backward[side], steps[side] - step, step)
    along_x, along_y = low[side, 0] + step, low[side, 1] + step
    across_x = (low[side, 0] + slope[side] * step + 0.5).astype(np.int64)
    across_y = (low[side, 1] + slope[side] * step + 0.5).astype(np.int64)
    return np.where(flat[side], along_x, across_x), np.where(flat[side], across_y, along_y)


def _crossings(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the column-major pixels at which a column goes in or out, int64, in any order."""
    height, width = shape
    moves = np.flatnonzero(np.diff(x)) + 1
    left = np.minimum(x[moves], x[moves - 1])
    column = (left + 0.5) / _PER_PIXEL - 0.5
    at_centre = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    top = (np.minimum(y[moves], y[moves - 1]) + 0.5) / _PER_PIXEL - 0.5
    row = np.ceil(np.clip(top, 0, height))
    return (column[at_centre] * height + row[at_centre]).astype(np.int64)


def _counts(crossings: np.ndarray, size: int) -> list[int]:
    """Return column-major counts, background first; two equal crossings cancel."""
    ends = np.concatenate((np.sort(crossings), [size]))
    counts = np.diff(ends, prepend=0)
    return [int(count) for count in counts]
