"""Bring the values of a field to a common scale, and refuse what cannot be scaled.

Invariant: the scale is measured on the whole field, never on a tile, so tiles of one field
agree where they overlap.  Same image, same numbers: the sample of a large field is a regular
grid, not a random one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from cellseg_cli.errors import ConfigError, InputError

#: Shortest side, px: less is smaller than the kernel footprint of any of the encoders.
MIN_SIDE_PX = 8
#: Upper end of the normalised values.  Bright debris may be many times brighter than cells;
#: beyond this it carries nothing that a network could use and only drives activations.
CEILING = 1.5
#: Weights of R, G, B in luminance, ITU-R BT.601; those of OpenCV's and Pillow's conversion.
LUMINANCE = (0.299, 0.587, 0.114)
#: Rows converted to float64 at a time.
_BLOCK_ROWS = 64


@dataclass(frozen=True)
class Normalisation:
    """The values of each channel that become 0 (``low``) and 1 (``high``)."""

    low: tuple[float, ...]
    high: tuple[float, ...]


def measure(
    image: np.ndarray,
    low_percentile: float = 1.0,
    high_percentile: float = 99.8,
    max_sample: int = 1 << 22,
) -> Normalisation:
    """Return the values at two percentiles of each channel.

    Parameters
    ----------
    image
        (C, Y, X), finite, any integer or float dtype.
    low_percentile, high_percentile
        0 to 100, the first below the second.
    max_sample
        Most pixels of a channel to look at.  A larger field is sampled every k-th row and
        column, k the smallest that keeps to it.

    Raises
    ------
    ConfigError
        Percentiles out of order or range.

    Notes
    -----
    Percentiles are interpolated linearly between order statistics (NumPy's default).  With 4
    million samples the standard error of the 99.8th percentile's rank is 0.002 percentage
    points (binomial).  If both values of a channel are equal, see :func:`apply`.
    """
    if not 0 <= low_percentile < high_percentile <= 100:
        raise ConfigError(
            f"percentiles must satisfy 0 <= low < high <= 100, "
            f"got {low_percentile:g} and {high_percentile:g}"
        )
    step = _step(image.shape[1], image.shape[2], max_sample)
    sample = image[:, ::step, ::step].reshape(len(image), -1)
    ends = [np.percentile(_wide(channel), (low_percentile, high_percentile)) for channel in sample]
    return Normalisation(
        tuple(float(low) for low, _ in ends), tuple(float(high) for _, high in ends)
    )


def apply(image: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """Return (image - low) / (high - low) per channel, clipped to [0, 1.5], float32 (C, Y, X).

    Where low and high of a channel are equal (almost all its pixels have one value), the
    channel is divided by its largest excess over ``low`` instead, and is all 0 if that is 0:
    a dark channel with a few bright spots keeps them.

    Raises
    ------
    InputError
        The image has another number of channels than the normalisation.
    """
    if len(image) != len(normalisation.low):
        raise InputError(
            f"got an image of {len(image)} channels, "
            f"the normalisation was measured on {len(normalisation.low)}"
        )
    result = np.empty(image.shape, np.float32)
    for channel, out, low, high in zip(
        image, result, normalisation.low, normalisation.high, strict=True
    ):
        top = high if high > low else float(channel.max())
        # float64 on the way: uint32 and float64 with a large offset lose their contrast in
        # float32.  A block of rows at a time, so that it never exists for the whole field.
        scale = 1.0 / (top - low) if top > low else 0.0
        for y in range(0, len(channel), _BLOCK_ROWS):
            rows = slice(y, y + _BLOCK_ROWS)
            out[rows] = np.clip((channel[rows].astype(np.float64) - low) * scale, 0.0, CEILING)
    return result


def check_usable(image: np.ndarray) -> None:
    """Raise if the image cannot be segmented: too small, not finite, or of one value.

    Parameters
    ----------
    image
        (C, Y, X).

    Raises
    ------
    InputError
        A side below 8 px, NaN or infinite values (with their number), or every channel
        constant (with the values).  A constant channel beside one that is not is no error.
    """
    height, width = image.shape[-2:]
    if min(height, width) < MIN_SIDE_PX:
        raise InputError(
            f"the image is {height}×{width} px, a side needs at least {MIN_SIDE_PX} px"
        )
    if image.dtype.kind == "f":
        _check_finite(image)
    if all(bool((channel == channel[0, 0]).all()) for channel in image):
        value = ", ".join(f"{channel[0, 0].item():g}" for channel in image)
        raise InputError(f"the image is constant: every pixel is {value}")


def fit_channels(image: np.ndarray, wanted: int) -> np.ndarray:
    """Return the image with the number of channels that a model takes.

    One channel is repeated; RGB, or RGBA without its alpha, becomes luminance (BT.601) where
    one channel is wanted, in the image's own dtype, integers rounded.  Nothing else is guessed.

    Raises
    ------
    InputError
        No rule leads from one number to the other.
    """
    there = len(image)
    if there == wanted:
        return image
    if there == 1:
        return np.repeat(image, wanted, axis=0)
    if wanted == 1 and there in (3, 4):
        return _luminance(image)
    if there < wanted:
        advice = "choose one, which is repeated, e.g. --channel 0"
    else:
        advice = f"choose them, e.g. --channel {','.join(map(str, range(wanted)))}"
    raise InputError(f"the image has {there} channels, the model takes {wanted}; {advice}")


def _check_finite(image: np.ndarray) -> None:
    nans = int(np.isnan(image).sum())
    infinite = int(np.isinf(image).sum())
    if nans or infinite:
        raise InputError(
            f"the image has {nans} NaN and {infinite} infinite values of {image.size}; "
            f"replace them by numbers"
        )


def _luminance(image: np.ndarray) -> np.ndarray:
    result = np.empty((1, *image.shape[1:]), image.dtype)
    for y in range(0, image.shape[1], _BLOCK_ROWS):
        rows = image[:3, y : y + _BLOCK_ROWS].astype(np.float64)
        values = np.tensordot(LUMINANCE, rows, axes=1)
        result[0, y : y + _BLOCK_ROWS] = values if image.dtype.kind == "f" else np.rint(values)
    return result


def _step(height: int, width: int, max_sample: int) -> int:
    """Return the smallest step that keeps the grid to at most ``max_sample`` points."""
    step = max(1, int(sqrt(height * width / max_sample)))
    while ceil(height / step) * ceil(width / step) > max_sample:
        step += 1
    return step


def _wide(values: np.ndarray) -> np.ndarray:
    """Return values in a dtype whose percentiles NumPy interpolates without loss."""
    exact = values.dtype.itemsize <= 2 and values.dtype.kind != "f"
    return values if exact else values.astype(np.float64)
