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
   :func:`~cellseg_cli.clustering.pieces.finished`.  After the origin's erosion only its rule for
   small pieces holds: they become background, and holes stay open.

Steps 1 and 2 make a merge tree (:func:`linkage_grown`), the others cut label images from it
(:func:`linkage_labels`), of which one tree serves any number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import chain
from .compiled import compiled
from .cores import separated
from .inputs import check_points
from .leaves import STRIP
from .pieces import finished
from .resizing import enlarged_nearest, resized_bilinear, working_shape
from .settings import Clustering
from .trees import MergeTree


@dataclass(frozen=True, eq=False)
class Grown:
    """The merge tree of a field, and what it takes to cut label images from it.

    Attributes
    ----------
    tree : MergeTree
        Of the pixels at the working size, in row-major order.
    shape, field : (int, int)
        Y and X of the working size, and of the field.
    probability : (pixels,) float32 or None
        Of being no background, at the working size; None without class probabilities.
    """

    tree: MergeTree
    shape: tuple[int, int]
    field: tuple[int, int]
    probability: np.ndarray | None


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
    """
    grown = linkage_grown(embedding, kind=kind, settings=settings, classes=classes)
    return linkage_labels(grown, settings)


def linkage_grown(
    embedding: np.ndarray, *, kind: str, settings: Clustering, classes: np.ndarray | None = None
) -> Grown:
    """The merge tree of a contrastive embedding: all merges, at the size of ``settings``.

    Parameters
    ----------
    embedding : (E, Y, X) float32, finite
    kind : ignored
    settings : Clustering
        Resolved; uses ``size`` only.
    classes : (3, Y, X) uint8, optional
    """
    assert settings.size is not None
    field = (embedding.shape[1], embedding.shape[2])
    shape = working_shape(field, settings.size)
    small = resized_bilinear(embedding, shape)
    probability = None
    if classes is not None:
        background = resized_bilinear(classes[:1].astype(np.float32) / 255, shape)
        probability = 1 - background.ravel()
    return Grown(linkage_tree(small.reshape(len(small), -1).T), shape, field, probability)


def linkage_labels(grown: Grown, settings: Clustering) -> np.ndarray:
    """The label image that :func:`linkage` gives for the embedding that was grown.

    Parameters
    ----------
    grown : Grown
        Made at the ``size`` of the settings.
    settings : Clustering
        Resolved; uses ``merge_distance``, ``foreground``, ``min_area_px`` and ``erosion``.

    Returns
    -------
    (Y, X) uint32
    """
    assert settings.merge_distance is not None and settings.foreground is not None
    assert settings.min_area_px is not None and settings.erosion is not None
    clusters = grown.tree.cut(settings.merge_distance)
    background = _background(clusters, grown.probability, settings.foreground)
    labels = np.where(background, 0, np.arange(1, len(background) + 1))[clusters]
    pieces = separated(labels.reshape(grown.shape).astype(np.int32), settings.erosion)
    enlarged = enlarged_nearest(pieces, grown.field)
    if settings.erosion == "origin":
        return _large_enough(enlarged, settings.min_area_px)
    return finished(enlarged, settings.min_area_px)


def linkage_tree(points: np.ndarray) -> MergeTree:
    """All merges of average linkage on the cosine distance.

    The tree is that of SciPy and scikit-learn, wherever no distances tie; which of equal merges
    comes first is arbitrary (as it is in SciPy, where it depends on the order of the points), but
    always the same here, by the rule of :mod:`~cellseg_cli.clustering.chain`.  Distances below
    1e-12, which float32 vectors cannot hold, count as equal.

    Parameters
    ----------
    points : (n, E) float
        Any length but 0 gives the direction; points of length 0 have similarity 0 to all others.

    Raises
    ------
    InputError
        If the points are no floating (n, E) array or not all finite; the count is told.

    Notes
    -----
    20 480 points take 0.04 to 0.12 s of one core and 5 MB beside the points, 366 080 (a field of
    520 x 704 at full size) 1 to 6 s and 81 MB; noise takes most, vectors on a curved line or plane
    least (``python tests/benchmarks/clustering``).  The first call on a machine compiles for about
    10 s.
    """
    check_points(points)
    channels = points.shape[1]
    units = np.zeros((len(points), channels + -channels % STRIP))
    units[:, :channels] = points
    _make_units(units)
    tree = chain.merges(units)
    return MergeTree(len(points), tree.pairs, tree.heights)


def linkage_partition(points: np.ndarray, merge_distance: float) -> np.ndarray:
    """The flat clusters of average linkage on the cosine distance.

    Clusters merge while the average distance between their points is below ``merge_distance``.

    Parameters
    ----------
    points : (n, E) float
        As :func:`linkage_tree` takes them.
    merge_distance : float
        0 to 2.

    Returns
    -------
    (n,) int32
        Cluster of each point, numbered from 0 in the order of their first points.

    Raises
    ------
    InputError
        As :func:`linkage_tree`.

    Examples
    --------
    >>> linkage_partition(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1]]), 0.5).tolist()
    [0, 1, 0]
    """
    return linkage_tree(points).cut(merge_distance)


@compiled
def _make_units(vectors: np.ndarray) -> None:
    """Bring vectors (n, E) float64 to length 1, in place; those of length 0 stay."""
    for i in range(len(vectors)):
        longest = 0.0
        for k in range(vectors.shape[1]):
            longest = max(longest, abs(vectors[i, k]))
        if longest == 0:
            continue
        square = 0.0
        for k in range(vectors.shape[1]):
            vectors[i, k] /= longest  # the square of 1e200 would overflow
            square += vectors[i, k] * vectors[i, k]
        for k in range(vectors.shape[1]):
            vectors[i, k] /= np.sqrt(square)


def _background(
    clusters: np.ndarray, probability: np.ndarray | None, foreground: float
) -> np.ndarray:
    """Which clusters are background: (clusters,) bool."""
    counts = np.bincount(clusters)
    if probability is None:
        return np.arange(len(counts)) == np.argmax(counts)
    return np.bincount(clusters, weights=probability) / counts <= foreground


def _large_enough(pieces: np.ndarray, min_area_px: int) -> np.ndarray:
    """The pieces of at least so many pixels, numbered from 1: (Y, X) uint32."""
    kept = np.bincount(pieces.ravel()) >= min_area_px
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.uint32)[pieces]
