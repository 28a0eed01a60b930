"""What every method asks of a batch: the checks of :mod:`cellseg_cli.clustering.inputs`.

What is wrong with the values of one field is a fault of that field; shapes and dtypes are the
same for all and raise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellseg_cli.clustering.inputs import (
    check_classes_form,
    check_form,
    missing_classes,
    negative_bandwidths,
    not_finite,
)
from cellseg_cli.errors import InputError, LimitError

#: Sums of ``grid`` are exact for clusters of fewer pixels.
MAX_GRID_FIELD_PX = 2**25


def checked_embeddings(
    embeddings: Tensor, kind: str, method: str
) -> tuple[Tensor, tuple[InputError | None, ...]]:
    """The embeddings as C-contiguous float32, and what is wrong with the values of each.

    Parameters
    ----------
    embeddings : (B, E, Y, X) floating tensor
    kind, method : str

    Raises
    ------
    InputError
        If they are not (B, E, Y, X) floats with at least one field and pixel, or have a wrong
        number of channels.
    LimitError
        If a field is too large.
    """
    shape, dtype = tuple(embeddings.shape), _name(embeddings)
    if len(shape) != 4 or shape[0] == 0:
        raise InputError(
            "a batch of embeddings is (B, E, Y, X) with at least one field; "
            f"got {dtype} of shape {shape}"
        )
    check_form(shape[1:], dtype, kind)
    if method == "grid" and shape[2] * shape[3] > MAX_GRID_FIELD_PX:
        raise LimitError(
            f"a field of {shape[2]}×{shape[3]} px is too large for grid on an accelerator (at "
            f"most {MAX_GRID_FIELD_PX} px); cluster it on the CPU"
        )
    values = embeddings.float().contiguous()
    endless = (~values.isfinite()).flatten(1).sum(1)
    negative = (values[:, 2] < 0).flatten(1).sum(1) if kind == "spatial" else endless * 0
    counts = torch.stack([endless, negative], 1).tolist()
    return values, tuple(_fault(shape, *both) for both in counts)


def _fault(shape: tuple[int, ...], endless: int, negative: int) -> InputError | None:
    pixels = shape[2] * shape[3]
    if endless:
        return not_finite(endless, shape[1] * pixels, "the embedding")
    return negative_bandwidths(negative, pixels) if negative else None


def checked_classes(
    classes: Tensor | None, values: Tensor, needed_by: str | None = None
) -> Tensor | None:
    """The class probabilities (B, 3, Y, X) uint8 as they are, after their shape is checked.

    Parameters
    ----------
    classes : (B, 3, Y, X) uint8 tensor or None
    values : (B, E, Y, X) tensor
        The embeddings.
    needed_by : str, optional
        A method that cannot do without.

    Raises
    ------
    ConfigError
        If there are none and the method needs them.
    InputError
        If dtype, shape or device are others.
    """
    if classes is None:
        if needed_by is not None:
            raise missing_classes(needed_by)
        return None
    fields, _, height, width = values.shape
    check_classes_form(tuple(classes.shape[1:]), _name(classes), (height, width))
    if len(classes) != fields or classes.device != values.device:
        raise InputError(
            f"class probabilities of {len(classes)} fields on {classes.device} do not go with "
            f"embeddings of {fields} fields on {values.device}"
        )
    return classes.contiguous()


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
