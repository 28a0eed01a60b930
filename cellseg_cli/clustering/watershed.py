"""Instances from class probabilities alone: interiors grown into their borders.

1. Markers are the 4-connected pieces of interior probability above ``seed_level``.
2. Foreground is where the probability of not being background is above ``foreground``.  Markers
   flood it in the order of falling interior probability (256 levels; within a level, first come
   first served, in row-major order at the start).
3. A 4-connected piece of foreground without a marker is an instance of its own.
4. The rules of :func:`~cellseg_cli.clustering.pieces.finished`.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled
from .inputs import checked_classes
from .pieces import connected_pieces, finished
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
    labels = _flooded(markers, mask, 255 - classes[1])
    alone = connected_pieces((mask & (labels == 0)).astype(np.int32))[0]
    labels = np.where(alone > 0, alone + labels.max(), labels)
    return finished(labels.astype(np.int32), settings.min_area_px)


@compiled
def _flooded(markers: np.ndarray, mask: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Markers grown over a mask, lowest of 256 levels first; a queue for each level."""
    height, width = markers.shape
    labels = markers.copy()
    first, last = np.full(256, np.int32(-1)), np.full(256, np.int32(-1))
    following = np.full(height * width, np.int32(-1))
    for y in range(height):
        for x in range(width):
            if markers[y, x] != 0:
                _append(y * width + x, level[y, x], first, last, following)
    lowest = 0
    while lowest < 256:
        place = first[lowest]
        if place < 0:
            lowest += 1
            continue
        first[lowest] = following[place]
        y, x = divmod(place, width)
        for step_y, step_x in ((-1, 0), (0, -1), (0, 1), (1, 0)):
            to_y, to_x = y + step_y, x + step_x
            if not (0 <= to_y < height and 0 <= to_x < width):
                continue
            if mask[to_y, to_x] and labels[to_y, to_x] == 0:
                labels[to_y, to_x] = labels[y, x]
                # water that stands higher flows down at once, but is never counted as lower
                depth = max(lowest, level[to_y, to_x])
                _append(to_y * width + to_x, depth, first, last, following)
    return labels


@compiled
def _append(
    place: int, level: int, first: np.ndarray, last: np.ndarray, following: np.ndarray
) -> None:
    """Put a place at the end of the queue of a level."""
    if first[level] < 0:
        first[level] = place
    else:
        following[last[level]] = place
    last[level] = place
    following[place] = -1
