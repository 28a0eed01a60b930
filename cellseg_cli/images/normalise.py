"""Bring the values of a field to a common scale, and refuse what cannot be scaled.

Invariant: the scale is measured on the whole field, never on a tile, so tiles of one field
agree where they overlap.  Same image, same numbers: the sample of a large field is a regular
grid, not a random one, and a field that is read region by region gives what the whole gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, sqrt

import numpy as np

from cellseg_cli.errors import ConfigError, InputError
from cellseg_cli.images.regions import OpenImage

#: Shortest side, px: less is smaller than the kernel footprint of any of the encoders.
MIN_SIDE_PX = 8
#: Upper end of the normalised values.  Bright debris may be many times brighter than cells;
#: beyond this it carries nothing that a network could use and only drives activations.
CEILING = 1.5
#: Weights of R, G, B in luminance, ITU-R BT.601; those of OpenCV's and Pillow's conversion.
LUMINANCE = (0.299, 0.587, 0.114)
#: Most pixels of a channel that percentiles are measured on.
MAX_SAMPLE = 1 << 22
#: Rows converted to float64 at a time.
_BLOCK_ROWS = 64
#: What a survey reads at a time: bytes, and columns.  Strips of the whole width are what striped
#: files are made of; wider fields than this are rare, and are tiled.
_SURVEY_BYTES = 16 << 20
_SURVEY_COLUMNS = 1 << 15


@dataclass(frozen=True)
class Normalisation:
    """The values of each channel that become 0 (``low``) and 1 (``high``).

    Equal values of a channel say that all its pixels have that value.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]


def measure(
    image: np.ndarray,
    low_percentile: float = 1.0,
    high_percentile: float = 99.8,
    max_sample: int = MAX_SAMPLE,
) -> Normalisation:
    """Return the values at two percentiles of each channel.

    Where both are equal (almost all pixels of the channel have one value), the channel's
    largest value takes the place of the higher: a dark channel with a few bright spots keeps
    them.

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
    points (binomial).
    """
    percentiles = _checked_percentiles(low_percentile, high_percentile)
    step = _step(image.shape[1], image.shape[2], max_sample)
    own, repeats = _own_channels(image)
    sample = own[:, ::step, ::step].reshape(len(own), -1)
    ends = [np.percentile(_exact(channel), percentiles) for channel in sample]
    highest = [h if h > low else c.max() for c, (low, h) in zip(own, ends, strict=True)]
    return Normalisation(
        tuple(float(low) for low, _ in ends) * repeats,
        tuple(float(high) for high in highest) * repeats,
    )


def survey_regions(
    image: OpenImage,
    wanted_channels: int,
    low_percentile: float = 1.0,
    high_percentile: float = 99.8,
    max_sample: int = MAX_SAMPLE,
    *,
    stains: bool = True,
) -> Normalisation:
    """Return what :func:`measure` gives of a field that is larger than memory.

    The field is read once, region by region, and checked on the way.  The result equals
    ``measure(fit_channels(whole, wanted_channels), ...)`` to the last bit.

    Parameters
    ----------
    image
        The open field.
    wanted_channels, stains
        As of :func:`fit_channels`.
    low_percentile, high_percentile, max_sample
        As of :func:`measure`.

    Raises
    ------
    InputError
        What :func:`fit_channels` and :func:`check_usable` raise of the whole field, with the
        same words.  A number of channels that does not fit is told before anything is read.
    ConfigError
        Percentiles out of order or range.

    Notes
    -----
    Takes a few times 16 MiB, and the memory of the sample.
    """
    percentiles = _checked_percentiles(low_percentile, high_percentile)
    channels, height, width = image.shape
    _check_sides(height, width)
    none = np.empty((channels, 1, 1), image.dtype)
    fit_channels(none, wanted_channels, colour=image.colour, stains=stains)
    # a channel that is to be repeated is measured once
    repeats = wanted_channels if channels == 1 else 1
    own = wanted_channels // repeats
    step = _step(height, width, max_sample)
    seen = _Seen(channels)
    sample = np.empty((own, -(-height // step), -(-width // step)), image.dtype)
    highest = [np.full(own, -np.inf)]
    for rows, columns in _survey(image):
        values = image.region(rows, columns)
        seen.look(values)
        if seen.nans or seen.infinite:
            continue  # only their number is wanted now
        fitted = fit_channels(values, own, colour=image.colour)
        highest.append(fitted.max(axis=(1, 2)))
        y, x = -(-rows.start // step), -(-columns.start // step)
        grid = fitted[:, y * step - rows.start :: step, x * step - columns.start :: step]
        sample[:, y : y + grid.shape[1], x : x + grid.shape[2]] = grid
    seen.check(channels * height * width)
    ends = [np.percentile(_exact(one), percentiles) for one in sample.reshape(len(sample), -1)]
    tops = np.max(highest[1:], axis=0)
    return Normalisation(
        tuple(float(low) for low, _ in ends) * repeats,
        tuple(float(h if h > low else top) for (low, h), top in zip(ends, tops, strict=True))
        * repeats,
    )


def apply(image: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """Return (image - low) / (high - low) per channel, clipped to [0, 1.5], float32 (C, Y, X).

    A channel whose low and high are equal becomes 0.  Any region of an image can be scaled by
    itself.  Of a channel that :func:`fit_channels` has repeated the result is read-only, and
    held in memory once.

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
    scales = list(zip(normalisation.low, normalisation.high, strict=True))
    own, repeats = _own_channels(image)
    if len(set(scales)) > 1:
        own, repeats = image, 1
    result = np.empty(own.shape, np.float32)
    for channel, out, (low, high) in zip(own, result, scales[: len(own)], strict=True):
        # float64 on the way: uint32 and float64 with a large offset lose their contrast in
        # float32.  A block of rows at a time, so that it never exists for the whole field.
        scale = 1.0 / (high - low) if high > low else 0.0
        for y in range(0, len(channel), _BLOCK_ROWS):
            rows = slice(y, y + _BLOCK_ROWS)
            out[rows] = np.clip((channel[rows].astype(np.float64) - low) * scale, 0.0, CEILING)
    return result if repeats == 1 else np.broadcast_to(result, image.shape)


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
    _check_sides(*image.shape[-2:])
    seen = _Seen(len(image))
    seen.look(image)
    seen.check(image.size)


def fit_channels(
    image: np.ndarray, wanted: int, *, colour: bool = False, stains: bool = True
) -> np.ndarray:
    """Return the image with the number of channels that a model takes.

    One channel is repeated, as a view that is read-only; RGB, or RGBA without its alpha, becomes
    luminance (BT.601) where one channel is wanted, in the image's own dtype, integers rounded.
    Nothing else is guessed: which of several stains holds the cells is for the user to say.

    Parameters
    ----------
    image
        (C, Y, X).
    wanted
        Channels that the model takes.
    colour
        Whether the first three of the image are red, green and blue.
    stains
        Whether three channels that are no colours suit a model of three.

    Raises
    ------
    InputError
        No rule leads from one number to the other.
    """
    there = len(image)
    if there == wanted == 3 and not (colour or stains):
        raise InputError(
            "the image has 3 channels that are no colours, the model takes red, green and blue; "
            "choose one, which is repeated, e.g. --channel 0, or all with --channel 0,1,2"
        )
    if there == wanted:
        return image
    if there == 1:
        return np.broadcast_to(image, (wanted, *image.shape[1:]))
    if wanted == 1 and colour and there in (3, 4):
        return _luminance(image)
    if there < wanted:
        advice = "choose one, which is repeated, e.g. --channel 0"
    else:
        advice = f"choose them, e.g. --channel {','.join(map(str, range(wanted)))}"
    raise InputError(f"the image has {there} channels, the model takes {wanted}; {advice}")


def _own_channels(image: np.ndarray) -> tuple[np.ndarray, int]:
    """The channels that are not the first one repeated in place, and how often each is there."""
    repeated = len(image) > 1 and image.strides[0] == 0
    return (image[:1], len(image)) if repeated else (image, 1)


@dataclass
class _Seen:
    """What has been seen of a field so far that would make it unusable."""

    channels: int
    nans: int = 0
    infinite: int = 0
    _firsts: list[np.generic] = field(default_factory=list)
    _varied: bool = False

    def look(self, values: np.ndarray) -> None:
        """Look at a region (C, y, x)."""
        if values.dtype.kind == "f":
            self.nans += int(np.isnan(values).sum())
            self.infinite += int(np.isinf(values).sum())
        if not self._firsts:
            self._firsts = [channel[0, 0] for channel in values]
        if not self._varied:
            pairs = zip(values, self._firsts, strict=True)
            self._varied = not all(bool((channel == first).all()) for channel, first in pairs)

    def check(self, size: int) -> None:
        """Raise for values that are not finite, and if every channel is constant."""
        if self.nans or self.infinite:
            raise InputError(
                f"the image has {self.nans} NaN and {self.infinite} infinite values of {size}; "
                f"replace them by numbers"
            )
        if not self._varied:
            value = ", ".join(f"{first.item():g}" for first in self._firsts)
            raise InputError(f"the image is constant: every pixel is {value}")


def _check_sides(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE_PX:
        raise InputError(
            f"the image is {height}×{width} px, a side needs at least {MIN_SIDE_PX} px"
        )


def _checked_percentiles(low: float, high: float) -> tuple[float, float]:
    if not 0 <= low < high <= 100:
        raise ConfigError(
            f"percentiles must satisfy 0 <= low < high <= 100, got {low:g} and {high:g}"
        )
    return low, high


def _survey(image: OpenImage) -> Iterator[tuple[slice, slice]]:
    """Regions that cover the field once: strips, as high as their size allows."""
    channels, height, width = image.shape
    columns = min(width, _SURVEY_COLUMNS)
    rows = max(1, _SURVEY_BYTES // (channels * columns * image.dtype.itemsize))
    # whole rows of tiles, where there is room for them
    rows = max(rows - rows % 512, min(rows, 512))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield (
                slice(top, min(top + rows, height)),
                slice(left, min(left + columns, width)),
            )


def _luminance(image: np.ndarray) -> np.ndarray:
    red, green, blue = LUMINANCE
    result = np.empty((1, *image.shape[1:]), image.dtype)
    for y in range(0, image.shape[1], _BLOCK_ROWS):
        rows = image[:3, y : y + _BLOCK_ROWS].astype(np.float64)
        # pixel by pixel: a matrix product would round differently with the size of the region
        values = red * rows[0] + green * rows[1] + blue * rows[2]
        result[0, y : y + _BLOCK_ROWS] = values if image.dtype.kind == "f" else np.rint(values)
    return result


def _step(height: int, width: int, max_sample: int) -> int:
    """Return the smallest step that keeps the grid to at most ``max_sample`` points."""
    step = max(1, int(sqrt(height * width / max_sample)))
    while ceil(height / step) * ceil(width / step) > max_sample:
        step += 1
    return step


def _exact(values: np.ndarray) -> np.ndarray:
    """The same values for percentiles: in a dtype in which NumPy interpolates without loss.

    Short integers are sorted, which is a radix sort: with it percentiles take a third of the
    time that NumPy's selection takes, 4 ms for 520×704 px.
    """
    if values.dtype.itemsize <= 2 and values.dtype.kind != "f":
        return np.sort(values, kind="stable")
    return values.astype(np.float64)
