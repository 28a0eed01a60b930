"""Two views of one place of a field, each under a random similarity of its own.

Frames: a view has pixels (x, y) of its own, `crop_px` a side; ``linear`` and ``origin`` take
them to the field.  What is drawn depends on seed and step alone, so that a resumed run needs no
memory of what it has drawn.  Colours are not shifted against each other: in a micrograph they
are stains, and what they mean does not survive it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.config import PretrainSettings
from cellseg_cli.training.crops import vary_intensity
from cellseg_cli.training.pictures import Picture, Pictures

#: A view's centre lies at most this share of its side from the place, along y and x: two views
#: of one zoom, not turned, share at least a quarter of their pixels, and most share more.
SHIFT = 0.25


@dataclass(frozen=True)
class View:
    """Where a view lies: field (x, y) = ``linear`` @ view (x, y) + ``origin``, in pixels."""

    linear: NDArray[np.float64]
    origin: NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """The views of one step.

    Attributes
    ----------
    first, second
        (B, C, S, S) float32, normalised; row i of both shows one place.
    order
        (B,) int64: a permutation, in which the second views are grouped for batch norm.
    field_ids
        Where each place is.
    """

    first: Tensor
    second: Tensor
    order: Tensor
    field_ids: tuple[str, ...]


def draw_pairs(pictures: Pictures, settings: PretrainSettings, *, step: int) -> Pairs:
    """Return the views of one step; every field is as likely as every other, whatever its size."""
    sides: tuple[list[NDArray[np.float32]], ...] = ([], [])
    ids = []
    for number in range(settings.batch_size):
        rng = np.random.default_rng([settings.seed, step, number])
        index = int(rng.integers(len(pictures)))
        with pictures.open(index) as picture:
            for side, view in zip(sides, draw_views(picture.shape, settings, rng), strict=True):
                side.append(cut_view(picture, view, settings))
        ids.append(pictures.fields[index].id)
    state = np.random.SeedSequence([settings.seed, step]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    first, second = (vary_intensity(torch.from_numpy(np.stack(side)), generator) for side in sides)
    order = torch.randperm(settings.batch_size, generator=generator)
    return Pairs(first, second, order, tuple(ids))


def draw_views(
    shape: tuple[int, int], settings: PretrainSettings, rng: np.random.Generator
) -> tuple[View, View]:
    """Return two views of one place of a field of `shape` (height, width).

    Each is turned by any angle, mirrored or not, and zoomed by a factor drawn log-uniformly
    from ``scale_min`` to ``scale_max``.  A view reaches over the field's border with its
    corners at most, unless the field is smaller than the view.
    """
    size = np.array([shape[1], shape[0]], float)
    place = rng.uniform(0, size)
    return _view(place, size, settings, rng), _view(place, size, settings, rng)


def _view(
    place: NDArray[np.float64],
    size: NDArray[np.float64],
    settings: PretrainSettings,
    rng: np.random.Generator,
) -> View:
    zoom = np.exp(rng.uniform(np.log(settings.scale_min), np.log(settings.scale_max)))
    angle = rng.uniform(0, 2 * np.pi)
    mirrored = -1.0 if rng.random() < 0.5 else 1.0
    side = settings.crop_px / zoom  # in the field
    centre = place + rng.uniform(-SHIFT, SHIFT, 2) * side
    slack = np.maximum(size / 2 - side / 2, 0)
    centre = np.clip(centre, size / 2 - slack, size / 2 + slack)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    linear = np.array([[cos * mirrored, -sin], [sin * mirrored, cos]])
    return View(linear, centre - linear @ np.full(2, (settings.crop_px - 1) / 2))


def cut_view(picture: Picture, view: View, settings: PretrainSettings) -> NDArray[np.float32]:
    """Return a view's pixels (C, S, S), bilinear; outside the field it is mirrored."""
    side = settings.crop_px
    rows, columns = _touched(view, side, picture.shape)
    values = picture.region(rows, columns)
    to_region = np.column_stack([view.linear, view.origin - (columns.start, rows.start)])
    planes = [
        cv2.warpAffine(
            plane,
            to_region,
            (side, side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for plane in values
    ]
    repeats = settings.in_channels if len(planes) == 1 else 1
    return np.repeat(np.stack(planes), repeats, axis=0)


def _touched(view: View, side: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the field that the view can touch, mirrored ones too."""
    ends = np.array([[0, 0], [side, 0], [0, side], [side, side]]) @ view.linear.T + view.origin
    low, high = np.floor(ends.min(0)).astype(int) - 2, np.ceil(ends.max(0)).astype(int) + 3
    size = np.array([shape[1], shape[0]])
    # what lies beyond a border shows as much of what lies before it
    low, high = np.minimum(low, 2 * size - high - 2), np.maximum(high, -low + 2)
    x0, y0 = np.clip(low, 0, size - 1)
    x1, y1 = np.clip(high, (x0 + 1, y0 + 1), size)
    return slice(int(y0), int(y1)), slice(int(x0), int(x1))
