"""Average linkage of all pixels of a small image: the method of the project's origin.

1. The embedding is resized to 160 px width and 128 px height (bilinear, pixel centres aligned;
   a side that is shorter keeps its size).
2. Average linkage on the cosine distance, cut at ``merge_distance``; the same partition as
   scikit-learn's ``AgglomerativeClustering(metric="cosine", linkage="average")``.
3. Background: with class probabilities, every cluster whose mean probability of not being
   background is at most ``foreground``; without, the largest cluster (equal ones: the one that
   comes first in row-major order).
4. Erosion, connected pieces and growing back (:mod:`~cellseg_cli.clustering.cores`).
5. Nearest-neighbour enlargement to the size of the field, then the rules of
   :func:`~cellseg_cli.clustering.pieces.finished`.
"""

from __future__ import annotations

import numpy as np

from . import chain
from .cores import separated
from .inputs import check_points
from .pieces import finished
from .resizing import enlarged_nearest, resized_bilinear, working_shape
from .settings import Clustering


def linkage(
    embedding: np.ndarray, *, kind: str, settings: Clustering, classes: np.ndarray | None = None
) -> np.ndarray:
    """The label image of a contrastive embedding by the rules of this module.

    Parameters
    ----------
    embedding : (E, Y, X) float32, finite
    kind : ignored
    settings : Clustering
        Resolved; uses ``merge_distance``, ``foreground``, ``min_area_px``, ``size`` and
        ``erosion``.
    classes : (3, Y, X) uint8, optional

    Returns
    -------
    (Y, X) uint32

    Notes
    -----
    At 160x128 0.4 s of one core (``python tests/benchmarks/clustering.py``).  Memory grows with
    the pixels, time with about their 1.4th power.
    """
    assert settings.merge_distance is not None and settings.foreground is not None
    assert settings.min_area_px is not None
    assert settings.size is not None and settings.erosion is not None
    field = embedding.shape[1:]
    shape = working_shape(field, settings.size)
    small = resized_bilinear(embedding, shape)
    clusters = linkage_partition(small.reshape(len(small), -1).T, settings.merge_distance)
    background = _background(clusters, classes, shape, settings.foreground)
    labels = np.where(background, 0, np.arange(1, len(background) + 1))[clusters]
    pieces = separated(labels.reshape(shape).astype(np.int32), settings.erosion)
    return finished(enlarged_nearest(pieces, field), settings.min_area_px)


def linkage_partition(points: np.ndarray, merge_distance: float) -> np.ndarray:
    """The flat clusters of average linkage on the cosine distance.

    Clusters merge while the average distance between their points is below ``merge_distance``.
    Where distances tie exactly, which of the equal merges comes first is arbitrary (as it is in
    SciPy, where it depends on the order of the points), but always the same here.

    Parameters
    ----------
    points : (n, E) float
        Any length but 0 gives the direction; points of length 0 have similarity 0 to all others.
    merge_distance : float
        0 to 2.

    Returns
    -------
    (n,) int32
        Cluster of each point, numbered from 0 in the order of their first points.

    Raises
    ------
    InputError
        If the points are no floating (n, E) array or not all finite; the count is told.

    Examples
    --------
    >>> linkage_partition(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1]]), 0.5).tolist()
    [0, 1, 0]
    """
    check_points(points)
    wide = points.astype(np.float64)
    longest = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    wide /= np.where(longest > 0, longest, 1.0)  # the square of 1e200 would overflow
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return chain.partition(wide / np.where(length > 0, length, 1.0), merge_distance)


def _background(
    clusters: np.ndarray, classes: np.ndarray | None, shape: tuple[int, int], foreground: float
) -> np.ndarray:
    """Which clusters are background: (clusters,) bool."""
    counts = np.bincount(clusters)
    if classes is None:
        return np.arange(len(counts)) == np.argmax(counts)
    probability = resized_bilinear(classes[:1].astype(np.float32) / 255, shape)[0].ravel()
    return 1 - np.bincount(clusters, weights=probability) / counts <= foreground
