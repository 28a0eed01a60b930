"""What every method asks of its input, checked in one place before any kernel runs.

The kernels assume finite numbers and agreeing shapes; a field that breaks this is refused with
the count of the offending values, never clustered into an empty label image.
"""

from __future__ import annotations

import numpy as np

from cellseg_cli.errors import ConfigError, InputError, LimitError

from .compiled import compiled

#: Kernels index pixels by int32: a field that needs more is cut into tiles by the caller.
MAX_FIELD_PX = 2**31 - 2

#: Predicted centres are counted in steps of 1/4096 px by int32.
MAX_SIDE_PX = 2**18

#: The channels of a spatial embedding, in order.
SPATIAL_CHANNELS = ("offset_y_px", "offset_x_px", "bandwidth_px", "seed")


def checked_embedding(embedding: np.ndarray, kind: str) -> np.ndarray:
    """The embedding as C-contiguous float32 (E, Y, X), after its shape and values are checked.

    Parameters
    ----------
    embedding : (E, Y, X) floating array
    kind : str
        ``spatial`` asks for exactly the four channels of :data:`SPATIAL_CHANNELS`.

    Raises
    ------
    InputError
        If it is no (E, Y, X) array of floats with at least one pixel, has values that are not
        finite (the count is told), or negative bandwidths.
    LimitError
        If the field has more than :data:`MAX_FIELD_PX` pixels, or a side longer than
        :data:`MAX_SIDE_PX`.
    """
    check_form(embedding.shape, embedding.dtype.name, kind)
    if embedding.dtype == np.float16:
        values = _widened(np.ascontiguousarray(embedding))
    else:
        values = np.ascontiguousarray(embedding, dtype=np.float32)
        _check_finite(values, "the embedding")
    if kind == "spatial" and (count := int(np.count_nonzero(values[2] < 0))):
        raise negative_bandwidths(count, values[2].size)
    return values


def check_form(shape: tuple[int, ...], dtype: str, kind: str) -> None:
    """Refuse what is no embedding of this kind by its shape and dtype alone.

    Parameters
    ----------
    shape : tuple of int
    dtype : str
        Its name.
    kind : str

    Raises
    ------
    InputError, LimitError
        As :func:`checked_embedding`.
    """
    if len(shape) != 3 or 0 in shape or not dtype.startswith(("float", "bfloat")):
        raise InputError(
            "an embedding is a floating array (E, Y, X) with at least one pixel; "
            f"got {dtype} of shape {shape}"
        )
    if kind == "spatial" and shape[0] != len(SPATIAL_CHANNELS):
        raise InputError(
            f"a spatial embedding has the channels {', '.join(SPATIAL_CHANNELS)}; "
            f"got {shape[0]} channels"
        )
    _check_size(shape[1], shape[2])


def not_finite(count: int, size: int, what: str) -> InputError:
    """The error for NaN and infinite values."""
    return InputError(f"{count} of {size} values of {what} are not finite (NaN or infinite)")


def negative_bandwidths(count: int, size: int) -> InputError:
    """The error for bandwidths below 0."""
    return InputError(f"bandwidths are lengths in px: {count} of {size} are negative")


def checked_classes(
    classes: np.ndarray | None, shape: tuple[int, int], needed_by: str | None = None
) -> np.ndarray | None:
    """The class probabilities (3, Y, X) uint8 as they are, after their shape is checked.

    Parameters
    ----------
    classes : (3, Y, X) uint8 array or None
        Background, interior and border probability times 255.
    shape : (int, int)
        Y and X of the field.
    needed_by : str, optional
        A method that cannot do without.

    Raises
    ------
    ConfigError
        If there are none and the method needs them.
    InputError
        If dtype or shape are others.
    """
    if classes is None:
        if needed_by is not None:
            raise missing_classes(needed_by)
        return None
    check_classes_form(classes.shape, classes.dtype.name, shape)
    return np.ascontiguousarray(classes)


def missing_classes(needed_by: str) -> ConfigError:
    """The error for a method that needs class probabilities where there are none."""
    return ConfigError(
        f"{needed_by} needs class probabilities (background, interior, border) and this "
        "model has no classes head; choose another method or a model with that head"
    )


def check_classes_form(shape: tuple[int, ...], dtype: str, field: tuple[int, int]) -> None:
    """Refuse class probabilities that are not uint8 of shape (3, Y, X)."""
    if dtype != "uint8" or shape != (3, *field):
        raise InputError(
            f"class probabilities are uint8 of shape {(3, *field)}; got {dtype} of shape {shape}"
        )


def check_points(points: np.ndarray) -> None:
    """Refuse anything but a finite floating (n, E) array with E at least 1."""
    if points.ndim != 2 or points.shape[1] == 0 or points.dtype.kind != "f":
        raise InputError(
            f"points are a floating array (n, E); got {points.dtype} of shape {points.shape}"
        )
    _check_finite(points, "the points")


def _widened(halves: np.ndarray) -> np.ndarray:
    """float16 as float32; ten times as fast as NumPy, which goes by way of a function call each.

    Raises
    ------
    InputError
        For values that are not finite.
    """
    values = np.empty(halves.shape, np.float32)
    count = _shift_bits(halves.ravel().view(np.uint16), values.ravel().view(np.uint32))
    if count:
        raise not_finite(count, halves.size, "the embedding")
    _scale(values.ravel())
    return values


@compiled
def _shift_bits(halves: np.ndarray, singles: np.ndarray) -> int:
    """Sign, exponent and fraction put where float32 has them; how many are not finite."""
    count = 0
    for i in range(halves.size):
        bits = np.uint32(halves[i])
        count += int((bits & np.uint32(0x7C00)) == np.uint32(0x7C00))
        singles[i] = ((bits & np.uint32(0x7FFF)) << np.uint32(13)) | (
            (bits & np.uint32(0x8000)) << np.uint32(16)
        )
    return count


@compiled
def _scale(values: np.ndarray) -> None:
    """Times 2^112, by which the biases of the two exponents differ; exact."""
    factor = np.float32(2.0**112)
    for i in range(values.size):
        values[i] *= factor


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_FIELD_PX or max(height, width) > MAX_SIDE_PX:
        raise LimitError(
            f"a field of {height}×{width} px is too large to cluster at once (at most "
            f"{MAX_FIELD_PX} px, and {MAX_SIDE_PX} on a side); cut it into tiles"
        )


def _check_finite(values: np.ndarray, what: str) -> None:
    if np.isfinite(values).all():
        return
    count = int(values.size - np.count_nonzero(np.isfinite(values)))
    raise not_finite(count, values.size, what)
