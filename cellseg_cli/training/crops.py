"""Crops of an example under a random similarity, image and labels together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cellseg_cli.clustering.compiled import compiled
from cellseg_cli.config import TrainSettings
from cellseg_cli.training.data import Example, Examples
from cellseg_cli.training.draw import Draw

#: Share of the crops that are centred on a pixel of an instance; the others lie
#: anywhere, so that empty background is learned too.
CENTRED_SHARE = 0.5

#: Places that are tried to hit an instance: one in 50 px is hit by them in three of four times.
PLACES_TRIED = 64

#: Share of the crops that are mirrored, by ``augment``; the second is the project's origin's.
MIRRORED_SHARE = {"full": 0.5, "origin": 0.25}

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
        (B, C, S, S) float32, normalised; C may be 1 for grey crops before they are varied.
    labels
        (B, S, S) int32: −1 unknown (outside the field, or nobody knows), 0 background, 1..n
        instances of the crop.
    field_ids
        Where each crop comes from.
    under
        (B, S, S) int32: the second instance of a pixel that belongs to two, by the ids of
        `labels`; 0 = none.  An instance may be visible here alone.
    """

    images: Tensor
    labels: NDArray[np.int32]
    field_ids: tuple[str, ...]
    under: NDArray[np.int32]


class Crop(NamedTuple):
    """A part of an example under a random similarity.

    Attributes
    ----------
    image
        (C, S, S) float32, normalised, C = ``in_channels``.
    labels, under
        (S, S) int32, as in :class:`Batch`.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    under: NDArray[np.int32]


def draw_batch(
    examples: Examples,
    draw: Draw,
    settings: TrainSettings,
    *,
    step: int,
    rank: int,
    vary: bool = True,
) -> Batch:
    """Return the batch of one step; it depends on seed, step and process alone.

    So a resumed run needs no memory of what it has drawn.  Without `vary` the intensities are as
    they are: :func:`varied` is left to whoever has the images on an accelerator.
    """
    crops: list[Crop] = []
    field_ids: list[str] = []
    for number in range(settings.batch_size):
        rng = np.random.default_rng([settings.seed, step, rank, number])
        example = examples[int(rng.choice(len(examples), p=draw.probabilities))]
        crops.append(cut_crop(example, settings, rng))
        field_ids.append(example.field_id)
    images = torch.from_numpy(np.stack([crop.image for crop in crops]))
    if torch.equal(images[:, :-1], images[:, 1:]):
        images = images[:, :1]  # grey: one channel is varied, and copied to the device
    if vary:
        images = varied(images, settings, step=step, rank=rank)
        images = images.expand(-1, settings.in_channels, -1, -1)
    return Batch(
        images,
        np.stack([crop.labels for crop in crops]),
        tuple(field_ids),
        np.stack([crop.under for crop in crops]),
    )


def cut_crop(example: Example, settings: TrainSettings, rng: np.random.Generator) -> Crop:
    """Return one crop: image and labels under the same similarity.

    Rotation by any angle (none with ``augment`` = origin), mirroring, and a
    zoom drawn log-uniformly from ``scale_min`` to ``scale_max``; the image
    bilinear, the labels by nearest pixel.  ``exact_share`` of the crops are
    turned by right angles and not zoomed: every value of theirs is one of the
    field's.  Outside the field the image is mirrored and the labels are −1.
    """
    side = settings.crop_px
    zoom = np.exp(rng.uniform(np.log(settings.scale_min), np.log(settings.scale_max)))
    angle = rng.uniform(0, 2 * np.pi) if settings.augment == "full" else 0.0
    exact = settings.exact_share > 0 and rng.random() < settings.exact_share
    if exact:
        zoom, angle = 1.0, np.round(angle / (np.pi / 2)) * (np.pi / 2)
    mirrored = -1.0 if rng.random() < MIRRORED_SHARE[settings.augment] else 1.0
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    linear = np.array([[cos * mirrored, -sin], [sin * mirrored, cos]])  # crop (x, y) → field
    reach = side / (2 * zoom) - OVERHANG_PX / zoom
    centre = _centre(example.labels, reach, rng)
    origin = centre - linear @ np.full(2, (side - 1) / 2)
    if exact:
        linear, origin = np.round(linear), np.round(origin)
    region = _reach(linear, origin, side, example.labels.shape)
    to_source = np.column_stack([linear, origin - (region[1].start, region[0].start)])
    channels = [
        _warp_image(example.values(channel, region), to_source, side)
        for channel in range(len(example.image))
    ]
    image = np.stack(channels)
    if len(channels) == 1:
        image = np.repeat(image, settings.in_channels, axis=0)
    labels = _warp_ids(example.labels[region], to_source, side, outside=-1)
    if example.under is None:
        under = np.zeros_like(labels)
    else:
        under = _warp_ids(example.under[region], to_source, side, outside=0)
    return Crop(image, *_dense(labels, under))


def _centre(
    labels: NDArray[np.integer], reach: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (x, y) in the field around which the crop lies, `reach` from its borders."""
    height, width = labels.shape
    centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    if rng.random() < CENTRED_SHARE and (pixel := _pixel_of_an_instance(labels, rng)) is not None:
        y, x = divmod(pixel, width)
        centre = np.array([x, y], float)
    middle = np.array([width, height]) / 2
    slack = np.maximum(middle - reach, OVERHANG_PX / 2)
    return np.clip(centre, middle - slack, middle + slack)


def _pixel_of_an_instance(labels: NDArray[np.integer], rng: np.random.Generator) -> int | None:
    """Return the flat index of a pixel of an instance, all equally likely; None without any.

    Some places are tried first: to look for all such pixels takes longer the larger the field.
    """
    flat = labels.ravel()
    tried = rng.integers(flat.size, size=PLACES_TRIED)
    inside = tried[flat[tried] > 0]
    if inside.size:
        return int(inside[0])
    inside = np.flatnonzero(flat > 0)
    return int(rng.choice(inside)) if inside.size else None


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


def _warp_image(
    plane: NDArray[np.float32], to_source: NDArray[np.float64], side: int
) -> NDArray[np.float32]:
    warped: NDArray[np.float32] = cv2.warpAffine(
        plane,
        to_source,
        (side, side),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return warped


def _warp_ids(
    ids: NDArray[np.integer], to_source: NDArray[np.float64], side: int, *, outside: int
) -> NDArray[np.float32]:
    # float32 holds every id of a field exactly: ids stay below 2**24.
    warped: NDArray[np.float32] = cv2.warpAffine(
        ids.astype(np.float32),
        to_source,
        (side, side),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=outside,
    )
    return warped


@compiled
def _dense(
    labels: NDArray[np.float32], under: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return both with the ids 1..n of either in their order; −1 and 0 stay."""
    flat = labels.ravel(), under.ravel()
    highest = 0
    for index in range(labels.size):
        highest = max(highest, int(flat[0][index]), int(flat[1][index]))
    new = np.zeros(highest + 2, np.int32)  # the last one is that of −1
    for index in range(labels.size):
        new[int(flat[0][index])] = 1
        new[int(flat[1][index])] = 1
    new[0] = 0
    new[-1] = 0
    count = 0
    for old in range(1, highest + 1):
        if new[old]:
            count += 1
            new[old] = count
    new[-1] = -1
    above, below = np.empty(labels.size, np.int32), np.empty(labels.size, np.int32)
    for index in range(labels.size):
        above[index] = new[int(flat[0][index])]
        below[index] = new[int(flat[1][index])]
    return above.reshape(labels.shape), below.reshape(labels.shape)


def varied(images: Tensor, settings: TrainSettings, *, step: int, rank: int) -> Tensor:
    """Return the images (B, C, S, S) of a batch with their intensities varied, where they are.

    Depends on seed, step, process and the kind of device alone.
    """
    generator = torch.Generator().manual_seed(_mixed(settings.seed, step, rank))
    return VARY[settings.augment](images, generator)


def vary_intensity(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return `images` (B, C, S, S) with gamma, contrast, brightness, blur and noise varied.

    All channels of a crop get the same change, so that a grey image that is
    repeated over the channels stays grey.

    Parameters
    ----------
    images
        On any device.
    generator
        On the host, where it decides which crops are changed and how much, so that no device is
        waited for; the noise is made where the images are, by a seed that it gives.
    """
    crops = len(images)
    chosen, exponent = _chosen(crops, 0.5, generator), _uniform(crops, -0.5, 0.5, generator).exp()
    images = _changed(images, chosen, lambda some, by: some.clamp(min=0) ** by, exponent)
    images = vary_brightness(images, generator)
    chosen = _chosen(crops, 0.2, generator)
    images = _changed(images, chosen, lambda some, by: _blurred(some))
    noise = _noise(images, generator)
    noisy = _uniform(crops, 0, 1, generator) < 0.3
    amount = torch.where(noisy, _uniform(crops, 0.0, 0.06, generator), 0)
    return images + noise * amount.to(images.device, non_blocking=True)


def vary_brightness(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return `images` (B, C, S, S) with contrast and brightness of half of them varied."""
    crops = len(images)
    chosen = _chosen(crops, 0.5, generator)
    contrast = _uniform(crops, 0.7, 1.3, generator)
    shift = _uniform(crops, -0.1, 0.1, generator)
    return _changed(
        images,
        chosen,
        lambda some, by: some * by[:, :1] + by[:, 1:],
        torch.cat([contrast, shift], dim=1),
    )


#: What happens to the intensities, by ``augment``.
VARY = {"full": vary_intensity, "origin": vary_brightness}


def _changed(
    images: Tensor,
    chosen: list[int],
    change: Callable[[Tensor, Tensor], Tensor],
    by: Tensor | None = None,
) -> Tensor:
    """Return images of which those `chosen` are changed `by` their rows, (B, n, 1, 1) float32."""
    if not chosen:
        return images
    rows = torch.zeros(0) if by is None else by[chosen].to(images.device, non_blocking=True)
    where = torch.tensor(chosen).to(images.device, non_blocking=True)
    return images.index_copy(0, where, change(images.index_select(0, where), rows))


def _chosen(crops: int, share: float, generator: torch.Generator) -> list[int]:
    """Return which crops are changed, each with the probability `share`."""
    drawn = _uniform(crops, 0, 1, generator).flatten() < share
    return [crop for crop, chosen in enumerate(drawn.tolist()) if chosen]


def _uniform(crops: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(crops, 1, 1, 1).uniform_(low, high, generator=generator)


def _noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return (B, 1, S, S) of standard normal values, the same for all channels."""
    shape = (len(images), 1, *images.shape[2:])
    if images.device.type == "cpu":
        return torch.randn(shape, generator=generator)
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    there = torch.Generator(images.device).manual_seed(seed)
    return torch.randn(shape, generator=there, device=images.device)


def _blurred(images: Tensor) -> Tensor:
    channels = images.shape[1]
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).to(images.device, images.dtype, non_blocking=True)
    kernel = kernel.expand(channels, 1, 3, 3)
    return functional.conv2d(
        functional.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels
    )


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
