"""Images as training keeps them: one byte a pixel and channel, and what each byte stands for.

An 8-bit source keeps its own values, and nothing is lost.  Any other is kept in 256 levels that
lie closer together the darker they are (the root of the value is what is rounded, as the noise
of a camera grows with the root of the light): a normalised value near 0 is off by at most
0.00002, of 0.1 by 0.0016, of 1 by 0.005, of the ceiling by 0.006.  The noise that augmentation
adds has a standard deviation of up to 0.06.  Only training works on these: validation and
prediction normalise the image itself.
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg_cli.errors import InputError
from cellseg_cli.images.normalise import CEILING, Normalisation, apply

#: (C, 256) float32: the normalised value that each number stands for.
Levels: TypeAlias = NDArray[np.float32]


def in_levels(
    raw: np.ndarray, normalisation: Normalisation
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return an image as numbers (C, Y, X) uint8 and what they stand for, (C, 256) float32.

    Parameters
    ----------
    raw
        (C, Y, X) of any dtype, as it was measured.
    normalisation
        Of each channel.

    Returns
    -------
    tuple
        C is 1 where all channels are equal.

    Raises
    ------
    InputError
        The image has too little contrast for numbers: its normalised values are not finite.
    """
    if raw.dtype == np.uint8:
        numbers = np.arange(256, dtype=np.uint8)
        table = np.broadcast_to(numbers, (len(raw), 1, 256))
        levels = np.ascontiguousarray(apply(table, normalisation)[:, 0])
        return _own(raw, levels)
    with np.errstate(over="ignore", invalid="ignore"):
        values = apply(raw, normalisation)
    if not np.isfinite(values).all():
        ends = ", ".join(f"{low:g} to {high:g}" for low, high in _ends(normalisation))
        raise InputError(f"the image has too little contrast to be scaled: {ends}")
    steps = np.arange(256, dtype=np.float64) / 255
    levels = np.tile((CEILING * steps**2).astype(np.float32), (len(raw), 1))
    image = np.rint(255 * np.sqrt(values / CEILING)).astype(np.uint8)
    return _own(image, levels)


def values_of(numbers: NDArray[np.uint8], levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the normalised values (Y, X) of a plane of numbers, by its own 256 levels."""
    values: NDArray[np.float32] = cv2.LUT(numbers, levels)
    return values


def _own(
    image: NDArray[np.uint8], levels: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The image without channels that only repeat the first one, in memory of its own."""
    pairs = zip(image[1:], levels[1:], strict=True)
    if all(
        np.array_equal(levels[0], level) and np.array_equal(image[0], channel)
        for channel, level in pairs
    ):
        image, levels = image[:1], levels[:1]
    # a view would keep the other channels in memory too
    return image if image.flags.owndata else image.copy(), levels


def _ends(normalisation: Normalisation) -> list[tuple[float, float]]:
    return sorted(set(zip(normalisation.low, normalisation.high, strict=True)))
