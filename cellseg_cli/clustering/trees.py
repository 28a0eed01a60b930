"""Merge trees: one clustering that holds the partitions of all thresholds.

A tree is the list of its merges.  Cutting it at a distance keeps the merges below, so that every
smaller merge distance can be tried without clustering again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .compiled import compiled
from .pieces import root_of


@dataclass(frozen=True, eq=False)
class MergeTree:
    """The merges of an agglomeration.

    Attributes
    ----------
    size : int
        The number of points.
    pairs : (m, 2) int32
        A point of each of the two clusters that merged.
    heights : (m,) float64
        The distance at which they merged; no two merges need be in order.
    """

    size: int
    pairs: np.ndarray
    heights: np.ndarray

    def cut(self, distance: float) -> np.ndarray:
        """The clusters made of the merges below a distance.

        Returns
        -------
        (size,) int32
            Cluster of each point, numbered from 0 in the order of their first points.

        Examples
        --------
        >>> tree = MergeTree(3, np.array([[0, 2], [0, 1]], np.int32), np.array([0.1, 0.4]))
        >>> tree.cut(0.4).tolist(), tree.cut(0.5).tolist()
        ([0, 1, 0], [0, 0, 0])
        """
        return _clusters(self.size, self.pairs[self.heights < distance])


@compiled
def _clusters(size: int, pairs: np.ndarray) -> np.ndarray:
    """The connected components of points joined by pairs, numbered by first points."""
    parent = np.arange(size).astype(np.int32)
    for i in range(len(pairs)):
        one, two = root_of(parent, pairs[i, 0]), root_of(parent, pairs[i, 1])
        parent[max(one, two)] = min(one, two)
    number = np.empty(size, np.int32)
    count = 0
    for point in range(size):
        root = root_of(parent, point)
        if root == point:
            number[point] = count
            count += 1
        else:
            number[point] = number[root]
    return number
