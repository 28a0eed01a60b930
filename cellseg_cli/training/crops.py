"""Crops of an example under a random similarity, image and labels together."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cellseg_cli.config import TrainSettings
from cellseg_cli.training.data import Draw, Example, Examples

#: Share of the crops that are centred on a pixel of an instance; the others lie
#: anywhere, so that empty background is learned too.
CENTRED_SHARE = 0.5

#: A crop may reach this far beyond the field (in crop pixels, before rotation):
#: enough for variety in fields no larger than a crop, little enough that most
#: of a crop is known.
OVERHANG_PX = 32


@dataclass(frozen=True)
class Batch:
    """Crops of one optimiser step.

    Attributes
    ----------
    images
        (B, C, S, S) float32, normalised.
    labels
        (B, S, S) int64: −1 outside the field, 0 background, 1..n instances of the crop.
    field_ids
        Where each crop comes from.
    """

    images: Tensor
    labels: NDArray[np.int64]
    field_ids: tuple[str, ...]


def draw_batch(
    examples: Examples, draw: Draw, settings: TrainSettings, *, step: int, rank: int
) -> Batch:
    """Return the batch of one step; it depends on seed, step and process alone.

    So a resumed run needs no memory of what it has drawn.
    """
    crops = []
    for number in range(settings.batch_size):
        rng = np.random.default_rng([settings.seed, step, rank, number])
        example = examples[int(rng.choice(len(examples), p=draw.probabilities))]
        crops.append((example.field_id, *cut_crop(example, settings, rng)))
    images = torch.from_numpy(np.stack([image for _, image, _ in crops]))
    labels = np.stack([labels for _, _, labels in crops])
    generator = torch.Generator().manual_seed(_mixed(settings.seed, step, rank))
    return Batch(
        vary_intensity(images, generator), labels, tuple(field_id for field_id, _, _ in crops)
    )


def cut_crop(
    example: Example, settings: TrainSettings, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return one crop: image (C, S, S) with C = ``in_channels``, and labels (S, S).

    Rotation by any angle, mirroring, and a zoom drawn log-uniformly from
    ``scale_min`` to ``scale_max``; the image bilinear, the labels by nearest
    pixel.  Outside the field the image is mirrored and the labels are −1.
    """
    side = settings.crop_px
    zoom = np.exp(rng.uniform(np.log(settings.scale_min), np.log(settings.scale_max)))
    angle = rng.uniform(0, 2 * np.pi)
    mirrored = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    linear = np.array([[cos * mirrored, -sin], [sin * mirrored, cos]])  # crop (x, y) → field
    reach = side / (2 * zoom) - OVERHANG_PX / zoom
    centre = _centre(example.labels, reach, rng)
    origin = centre - linear @ np.full(2, (side - 1) / 2)
    rows, columns = _reach(linear, origin, side, example.labels.shape)
    to_source = np.column_stack([linear, origin - (columns.start, rows.start)])
    channels = [
        _warp(plane[rows, columns].astype(np.float32), to_source, side, cv2.INTER_LINEAR)
        for plane in example.image
    ]
    image = np.stack(channels)
    if len(channels) == 1:
        image = np.repeat(image, settings.in_channels, axis=0)
    # float32 holds every id of a field exactly: ids stay below 2**24.
    labels = _warp(
        example.labels[rows, columns].astype(np.float32), to_source, side, cv2.INTER_NEAREST
    )
    return image, _dense(labels)


def _centre(
    labels: NDArray[np.int32], reach: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (x, y) in the field around which the crop lies, `reach` from its borders."""
    height, width = labels.shape
    centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    if rng.random() < CENTRED_SHARE and (inside := np.flatnonzero(labels)).size:
        y, x = divmod(int(rng.choice(inside)), width)
        centre = np.array([x, y], float)
    middle = np.array([width, height]) / 2
    slack = np.maximum(middle - reach, OVERHANG_PX / 2)
    return np.clip(centre, middle - slack, middle + slack)


def _reach(
    linear: NDArray[np.float64], origin: NDArray[np.float64], side: int, shape: tuple[int, int]
) -> tuple[slice, slice]:
    """Return the rows and columns of the field that the crop can touch."""
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]]) @ linear.T + origin
    low = np.floor(corners.min(0)).astype(int) - 2
    high = np.ceil(corners.max(0)).astype(int) + 3
    x0, y0 = np.clip(low, 0, [shape[1] - 1, shape[0] - 1])
    x1, y1 = np.clip(high, [x0 + 1, y0 + 1], [shape[1], shape[0]])
    return slice(int(y0), int(y1)), slice(int(x0), int(x1))


def _warp(
    plane: NDArray[np.float32], to_source: NDArray[np.float64], side: int, interpolation: int
) -> NDArray[np.float32]:
    labels = interpolation == cv2.INTER_NEAREST
    warped: NDArray[np.float32] = cv2.warpAffine(
        plane,
        to_source,
        (side, side),
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT if labels else cv2.BORDER_REFLECT_101,
        borderValue=-1,
    )
    return warped


def _dense(labels: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return labels with the ids 1..n in their order; −1 and 0 stay."""
    ids, position = np.unique(labels, return_inverse=True)
    new = np.cumsum(ids > 0)
    new[ids < 0] = -1
    dense: NDArray[np.int64] = new[position].reshape(labels.shape).astype(np.int64)
    return dense


def vary_intensity(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return `images` (B, C, S, S) with gamma, contrast, brightness, blur and noise varied.

    All channels of a crop get the same change, so that a grey image that is
    repeated over the channels stays grey.
    """
    crops = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(crops, 1, 1, 1).uniform_(low, high, generator=generator)

    def chance(share: float) -> Tensor:
        return uniform(0, 1) < share

    images = torch.where(chance(0.5), images.clamp(min=0) ** uniform(-0.5, 0.5).exp(), images)
    images = torch.where(chance(0.5), images * uniform(0.7, 1.3) + uniform(-0.1, 0.1), images)
    images = torch.where(chance(0.2), _blurred(images), images)
    noise = torch.randn(crops, 1, *images.shape[2:], generator=generator)
    return torch.where(chance(0.3), images + noise * uniform(0.0, 0.06), images)


def _blurred(images: Tensor) -> Tensor:
    channels = images.shape[1]
    row = images.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(channels, 1, 3, 3)
    return functional.conv2d(
        functional.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels
    )


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
