"""Instances from class probabilities alone: interiors grown into their borders.

1. Markers are the 4-connected pieces of interior probability above ``seed_level``.
2. Foreground is where the probability of not being background is above ``foreground``.  Markers
   flood it in the order of falling interior probability, 256 levels, and within a level in
   4-connected layers, beginning with the pixels of the markers.  A pixel takes the label of the
   neighbour that was flooded first (in the same layer: of the larger marker, then the lower).
3. A 4-connected piece of foreground without a marker is an instance of its own.
4. The rules of :func:`~cellseg_cli.clustering.pieces.finished`.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled
from .inputs import checked_classes
from .pieces import connected_pieces, finished, size_ranks
from .settings import Clustering


def watershed(
    embedding: np.ndarray, *, kind: str, settings: Clustering, classes: np.ndarray | None = None
) -> np.ndarray:
    """The label image of class probabilities by the rules of this module.

    Parameters
    ----------
    embedding : (E, Y, X) array
        Only its shape is used.
    kind : ignored
    settings : Clustering
        Resolved; uses ``seed_level``, ``foreground`` and ``min_area_px``.
    classes : (3, Y, X) uint8

    Returns
    -------
    (Y, X) uint32

    Raises
    ------
    ConfigError
        If there are no classes.
    """
    assert settings.seed_level is not None and settings.foreground is not None
    assert settings.min_area_px is not None
    shape = (embedding.shape[1], embedding.shape[2])
    classes = checked_classes(classes, shape, needed_by="watershed")
    assert classes is not None
    mask = classes[0] < 255 * (1 - settings.foreground)
    interior = (classes[1] > 255 * settings.seed_level) & mask
    markers = connected_pieces(interior.astype(np.int32))[0]
    return finished(flooded(markers, mask, classes[1]), settings.min_area_px)


def flooded(markers: np.ndarray, mask: np.ndarray, interior: np.ndarray) -> np.ndarray:
    """Rules 2 and 3: markers grown over the foreground.

    Parameters
    ----------
    markers : (Y, X) int32, 0 = none
    mask : (Y, X) bool
        The foreground; holds all markers.
    interior : (Y, X) uint8
        Probability times 255.

    Returns
    -------
    (Y, X) int32
        The labels of the markers, and above these those of pieces without a marker.
    """
    labels = _flooded(markers, mask, 255 - interior, size_ranks(markers))
    alone = connected_pieces((mask & (labels == 0)).astype(np.int32))[0]
    return np.where(alone > 0, alone + labels.max(), labels).astype(np.int32)


@compiled
def _flooded(
    markers: np.ndarray, mask: np.ndarray, level: np.ndarray, rank: np.ndarray
) -> np.ndarray:
    """Markers grown over a mask, lowest of 256 levels first; ``rank`` says who goes first."""
    height, width = markers.shape
    labels = markers.copy()
    layer_of = np.zeros((height, width), np.int32)
    seen = markers != 0
    first = np.full(256, np.int32(-1))  # a list of the places that wait at each level
    following = np.full(height * width, np.int32(-1))
    for y in range(height):
        for x in range(width):
            if markers[y, x] != 0:
                following[y * width + x] = first[level[y, x]]
                first[level[y, x]] = y * width + x
    layer = np.empty(np.count_nonzero(mask), np.int32)
    chosen = np.empty(layer.size, np.int32)
    lowest, layers = 0, 0
    while lowest < 256:
        size = 0
        place = first[lowest]
        while place >= 0:
            layer[size] = place
            size += 1
            place = following[place]
        if size == 0:
            lowest += 1
            continue
        first[lowest] = -1
        layers += 1
        for i in range(size):
            own = labels.flat[layer[i]]
            chosen[i] = own if own != 0 else _first_around(layer[i], labels, layer_of, rank)
        for i in range(size):
            labels.flat[layer[i]] = chosen[i]
            layer_of.flat[layer[i]] = layers
        for i in range(size):
            y, x = divmod(layer[i], width)
            _wait_around(y, x, lowest, mask, level, seen, first, following)
    return labels


@compiled
def _wait_around(
    y: int,
    x: int,
    lowest: int,
    mask: np.ndarray,
    level: np.ndarray,
    seen: np.ndarray,
    first: np.ndarray,
    following: np.ndarray,
) -> None:
    """Put the neighbours of a pixel, if they are new, on the lists of their levels."""
    height, width = mask.shape
    for step_y, step_x in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        to_y, to_x = y + step_y, x + step_x
        if not (0 <= to_y < height and 0 <= to_x < width):
            continue
        if mask[to_y, to_x] and not seen[to_y, to_x]:
            seen[to_y, to_x] = True
            # water that stands higher flows down at once, but is never counted as lower
            depth = max(lowest, int(level[to_y, to_x]))
            following[to_y * width + to_x] = first[depth]
            first[depth] = to_y * width + to_x


@compiled
def _first_around(
    place: int, labels: np.ndarray, layer_of: np.ndarray, rank: np.ndarray
) -> np.int32:
    """The label that was first among the 4 neighbours."""
    y, x = divmod(place, labels.shape[1])
    best, earliest = np.int32(0), np.int32(0)
    for step_y, step_x in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        to_y, to_x = y + step_y, x + step_x
        if not (0 <= to_y < labels.shape[0] and 0 <= to_x < labels.shape[1]):
            continue
        label, layer = labels[to_y, to_x], layer_of[to_y, to_x]
        if layer != 0 and (
            best == 0 or layer < earliest or (layer == earliest and rank[label] < rank[best])
        ):
            best, earliest = label, layer
    return best
