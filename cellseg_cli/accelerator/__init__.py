"""The clustering methods for batches of fields that lie on an accelerator.

:func:`cluster_batch` gives the label images of :func:`cellseg_cli.clustering.cluster`, id for id,
by torch operations alone: nothing goes over fields, instances or pixels one by one, only over
rounds in which all fields take part.  The reference is the package ``clustering``; rules,
numbers and settings are taken from there, and a rule that changes there must change here.

Equality does not rest on how a device rounds: sums are of integers, or of floats that hold them
exactly, so that the order of additions is free; all other float operations are single ones, in
the order of the reference, which IEEE 754 defines to the bit.

Memory beyond the embeddings, per pixel of the batch: 85 bytes for ``seeds`` and 140 for ``grid``
where a fifth is foreground, 250 and 500 where all is (four fields of 520×704 px, growth of the
process on PyTorch's CPU backend).  A caller that meets the limit of its device halves the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cellseg_cli.clustering import Clustering, resolve
from cellseg_cli.errors import ConfigError, InputError

from .grid import grid
from .inputs import checked_classes, checked_embeddings
from .seeds import seeds
from .watershed import watershed

__all__ = ["METHODS", "BatchLabels", "check_method", "cluster_batch"]

#: The methods that work on an accelerator.
METHODS = ("grid", "seeds", "watershed")


@dataclass(frozen=True, eq=False)
class BatchLabels:
    """What a batch of fields gave.

    Attributes
    ----------
    images : (B, Y, X) int32
        Label images, on the device of the embeddings; 0 = background, instances 1 to n without
        gaps.  All 0 for a field with a fault.
    faults : tuple of (InputError or None)
        For each field why it has no label image.
    """

    images: Tensor
    faults: tuple[InputError | None, ...]

    def of(self, field: int) -> Tensor:
        """The label image of a field: (Y, X) int32.

        Raises
        ------
        InputError
            The fault of the field, if it has one.
        """
        if (fault := self.faults[field]) is not None:
            raise fault
        return self.images[field]


def check_method(method: str) -> None:
    """Raise ConfigError unless the method works on an accelerator."""
    if method not in METHODS:
        raise ConfigError(
            f"{method} works on the CPU only; cluster there, or choose one of {', '.join(METHODS)}"
        )


@torch.no_grad()
def cluster_batch(
    embeddings: Tensor,
    *,
    kind: str,
    settings: Clustering = Clustering(),
    classes: Tensor | None = None,
) -> BatchLabels:
    """The label images of a batch of embeddings, each as if its field were alone.

    A field whose values cannot be used is left out and told in ``faults``; the others are not
    affected.  What is wrong with the whole batch, or with the settings, is raised.

    Parameters
    ----------
    embeddings : (B, E, Y, X) float16, bfloat16 or float32
        As :func:`cellseg_cli.clustering.cluster`.
    kind : str
        ``contrastive`` or ``spatial``.
    settings : Clustering
        Values that are None are the defaults of the method.
    classes : (B, 3, Y, X) uint8, optional
        Background, interior and border probability times 255, on the same device.

    Raises
    ------
    ConfigError
        If the settings are out of range, the method cannot work on this kind or without classes,
        or it is ``linkage``, which works on the CPU only.
    InputError
        If shapes or dtypes are wrong.
    LimitError
        If a field is too large to cluster at once.
    """
    chosen = resolve(settings, kind, with_classes=classes is not None)
    check_method(chosen.method)
    values, faults = checked_embeddings(embeddings, kind, chosen.method)
    needed_by = "watershed" if chosen.method == "watershed" else None
    probabilities = checked_classes(classes, values, needed_by)
    usable = torch.tensor([fault is None for fault in faults], device=values.device)
    if chosen.method == "grid":
        images = grid(values, usable, kind=kind, settings=chosen, classes=probabilities)
    elif chosen.method == "seeds":
        images = seeds(values, usable, chosen)
    else:
        assert probabilities is not None
        images = watershed(usable, chosen, probabilities)
    return BatchLabels(images, faults)
