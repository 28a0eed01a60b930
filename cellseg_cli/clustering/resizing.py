"""Fields made smaller for clustering, and their labels larger again."""

from __future__ import annotations

import numpy as np

#: Height and width that the project's origin clusters at.
ORIGIN_SHAPE = (128, 160)


def working_shape(field: tuple[int, int], size: str) -> tuple[int, int]:
    """Height and width to cluster at; no side grows.

    Parameters
    ----------
    field : (int, int)
        Y and X of the field.
    size : str
        ``160x128`` (width by height), ``half`` (rounded up) or ``full``.

    Examples
    --------
    >>> working_shape((520, 704), "160x128"), working_shape((7, 1), "half")
    ((128, 160), (4, 1))
    """
    if size == "full":
        return field
    if size == "half":
        return (field[0] + 1) // 2, (field[1] + 1) // 2
    return min(field[0], ORIGIN_SHAPE[0]), min(field[1], ORIGIN_SHAPE[1])


def resized_bilinear(channels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The channels at another size: bilinear, without smoothing, corners of the field aligned.

    The sample at i is taken at (i + 0.5) * old / new - 0.5, clamped to the field: what OpenCV's
    INTER_LINEAR and PyTorch's ``interpolate(align_corners=False)`` do.

    Parameters
    ----------
    channels : (C, Y, X) float32
    shape : (int, int)

    Returns
    -------
    (C, *shape) float32
    """
    for axis, size in ((1, shape[0]), (2, shape[1])):
        old = channels.shape[axis]
        if old == size:
            continue
        low, high, part = bilinear_places(old, size)
        part = part[:, None] if axis == 1 else part
        lower, upper = channels.take(low, axis), channels.take(high, axis)
        channels = lower * (1 - part) + upper * part
    return channels


def bilinear_places(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the samples of a side lie: between which pixels, and how near to the second.

    Returns
    -------
    low, high : (new,) intp
    part : (new,) float32
        The weight of ``high``, 0 to 1.
    """
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(place.astype(np.intp), old - 1)
    return low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32)


def enlarged_nearest(labels: np.ndarray, field: tuple[int, int]) -> np.ndarray:
    """The labels at the size of the field; each pixel takes the label its centre lies in.

    Examples
    --------
    >>> enlarged_nearest(np.array([[1, 2]]), (1, 5)).tolist()
    [[1, 1, 2, 2, 2]]
    """
    rows, columns = (nearest_places(old, new) for old, new in zip(labels.shape, field, strict=True))
    return labels[rows[:, None], columns]


def nearest_places(old: int, new: int) -> np.ndarray:
    """The pixel of the old side in which the centre of each new one lies: (new,) int."""
    return ((2 * np.arange(new) + 1) * old) // (2 * new)
