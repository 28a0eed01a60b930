"""From an embedding to a label image: four methods behind one call.

Needs numpy and numba only; knows nothing of networks, stores or files.  Every method is
deterministic, gives dense labels, and lets other threads run while it computes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .grid import grid
from .inputs import checked_classes, checked_embedding
from .linkage import linkage, linkage_partition
from .seeds import seeds
from .settings import Clustering, default_method, ignored, resolve
from .watershed import watershed

__all__ = [
    "METHODS",
    "Clustering",
    "cluster",
    "default_method",
    "ignored",
    "linkage_partition",
    "resolve",
]


class Method(Protocol):
    """A way from a checked embedding to a label image; settings are resolved."""

    def __call__(
        self,
        embedding: np.ndarray,
        *,
        kind: str,
        settings: Clustering,
        classes: np.ndarray | None,
    ) -> np.ndarray: ...


#: The methods by name.
METHODS: dict[str, Method] = {
    "grid": grid,
    "linkage": linkage,
    "seeds": seeds,
    "watershed": watershed,
}


def cluster(
    embedding: np.ndarray,
    *,
    kind: str,
    settings: Clustering = Clustering(),
    classes: np.ndarray | None = None,
    background: np.ndarray | None = None,
) -> np.ndarray:
    """The label image of an embedding: 0 = background, instances 1 to n without gaps.

    Deterministic; every instance is one 4-connected piece of at least ``min_area_px`` pixels
    without small holes (``linkage`` with the origin's erosion leaves holes open).  The ids carry
    no meaning.  A field without foreground gives a label
    image of zeros.

    Parameters
    ----------
    embedding : (E, Y, X) float16 or float32
        ``contrastive``: one unit vector per pixel.  ``spatial``: offset y, offset x, bandwidth
        (all in px of the field) and seed value.
    kind : str
        ``contrastive`` or ``spatial``.
    settings : Clustering
        Values that are None are the defaults of the method.
    classes : (3, Y, X) uint8, optional
        Background, interior and border probability times 255.
    background : (E,) float32, optional
        The code of the background (:func:`~cellseg_cli.clustering.grid.background_code`), where
        the embedding is a part of a larger field; only ``grid`` on contrastive embeddings without
        classes asks for it.

    Returns
    -------
    (Y, X) uint32

    Raises
    ------
    ConfigError
        If the settings are out of range, or the method cannot work on this kind or without
        classes.
    InputError
        If shapes or dtypes are wrong, or values are not finite.
    LimitError
        If the field is too large to cluster at once.
    """
    chosen = resolve(settings, kind, with_classes=classes is not None)
    values = checked_embedding(embedding, kind)
    shape = (values.shape[1], values.shape[2])
    probabilities = checked_classes(classes, shape)
    if chosen.method == "grid":
        return grid(
            values, kind=kind, settings=chosen, classes=probabilities, background=background
        )
    return METHODS[chosen.method](values, kind=kind, settings=chosen, classes=probabilities)
