"""Clusters cut into connected pieces that touch only by thin bridges.

A cluster of equal vectors may hold several cells that touch.  Eroding it by one pixel (a cross)
breaks bridges that are one or two pixels thin; the connected cores are then grown back inside
the cluster, so that no cell loses its rim.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled
from .pieces import connected_pieces, size_ranks


def separated(labels: np.ndarray, erosion: str) -> np.ndarray:
    """Each connected piece of each cluster under a number of its own.

    Parameters
    ----------
    labels : (Y, X) int32
        Clusters, 0 = background.
    erosion : str
        ``none``: the connected pieces as they are.  ``origin``: those of the eroded clusters; a
        pixel stays if its four neighbours (those inside the field) are of its cluster.
        ``grow``: these, grown back within their cluster, nearest core first (equal ones: the
        larger core, then the lower number).  Parts of a cluster that are not connected with a
        core are background.

    Returns
    -------
    (Y, X) int32
    """
    if erosion == "none":
        return connected_pieces(labels)[0]
    cores = connected_pieces(_eroded(labels))[0]
    return cores if erosion == "origin" else _grown(cores, labels, size_ranks(cores))


@compiled
def _eroded(labels: np.ndarray) -> np.ndarray:
    """The labels without the pixels that have a neighbour of another label."""
    height, width = labels.shape
    inner = np.zeros((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if (
                labels[max(y - 1, 0), x] == label
                and labels[y, max(x - 1, 0)] == label
                and labels[y, min(x + 1, width - 1)] == label
                and labels[min(y + 1, height - 1), x] == label
            ):
                inner[y, x] = label
    return inner


@compiled
def _grown(cores: np.ndarray, labels: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Cores grown within their cluster, one 4-connected layer after the other."""
    height, width = labels.shape
    grown = cores.copy()
    distance = np.zeros((height, width), np.int32)
    queue = np.empty(height * width, np.int32)
    size = 0
    for place in range(height * width):
        if cores.flat[place] != 0:
            queue[size] = place
            size += 1
    done = 0
    while done < size:
        y, x = divmod(queue[done], width)
        done += 1
        for step_y, step_x in ((-1, 0), (0, -1), (0, 1), (1, 0)):
            to_y, to_x = y + step_y, x + step_x
            if not (0 <= to_y < height and 0 <= to_x < width):
                continue
            if labels[to_y, to_x] != labels[y, x]:
                continue
            if grown[to_y, to_x] == 0:
                grown[to_y, to_x] = grown[y, x]
                distance[to_y, to_x] = distance[y, x] + 1
                queue[size] = to_y * width + to_x
                size += 1
            elif (
                distance[to_y, to_x] == distance[y, x] + 1
                and rank[grown[y, x]] < rank[grown[to_y, to_x]]
            ):
                grown[to_y, to_x] = grown[y, x]
    return grown
