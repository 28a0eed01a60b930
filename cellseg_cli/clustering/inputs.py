"""What every method asks of its input, checked in one place before any kernel runs.

The kernels assume finite numbers and agreeing shapes; a field that breaks this is refused with
the count of the offending values, never clustered into an empty label image.
"""

from __future__ import annotations

import numpy as np

from cellseg_cli.errors import ConfigError, InputError, LimitError

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
    if embedding.ndim != 3 or embedding.size == 0 or embedding.dtype.kind != "f":
        raise InputError(
            "an embedding is a floating array (E, Y, X) with at least one pixel; "
            f"got {embedding.dtype} of shape {embedding.shape}"
        )
    if kind == "spatial" and len(embedding) != len(SPATIAL_CHANNELS):
        raise InputError(
            f"a spatial embedding has the channels {', '.join(SPATIAL_CHANNELS)}; "
            f"got {len(embedding)} channels"
        )
    _check_size(embedding.shape[1], embedding.shape[2])
    values = np.ascontiguousarray(embedding, dtype=np.float32)
    _check_finite(values, "the embedding")
    if kind == "spatial" and (count := int(np.count_nonzero(values[2] < 0))):
        raise InputError(f"bandwidths are lengths in px: {count} of {values[2].size} are negative")
    return values


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
            raise ConfigError(
                f"{needed_by} needs class probabilities (background, interior, border) and this "
                "model has no classes head; choose another method or a model with that head"
            )
        return None
    if classes.dtype != np.uint8 or classes.shape != (3, *shape):
        raise InputError(
            f"class probabilities are uint8 of shape {(3, *shape)}; "
            f"got {classes.dtype} of shape {classes.shape}"
        )
    return np.ascontiguousarray(classes)


def check_points(points: np.ndarray) -> None:
    """Refuse anything but a finite floating (n, E) array with E at least 1."""
    if points.ndim != 2 or points.shape[1] == 0 or points.dtype.kind != "f":
        raise InputError(
            f"points are a floating array (n, E); got {points.dtype} of shape {points.shape}"
        )
    _check_finite(points, "the points")


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
    raise InputError(f"{count} of {values.size} values of {what} are not finite (NaN or infinite)")
