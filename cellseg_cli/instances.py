"""Instances of one field as runs: the form in which truth and prediction meet.

Unlike a label image, instances may overlap, carry a cell type and a score, and
cost memory by their outline, not by the field.  This module knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellseg_cli.runlength import pixels, runs_of_labels


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances of one field, in an order that carries no meaning.

    Attributes
    ----------
    shape
        (Y, X) of the field, in px.
    runs
        One int64 (n, 2) array for each instance, as in :mod:`cellseg_cli.runlength`.
        Instances may overlap; none is empty when it comes from a file or label image.
    cell_types
        One name for each instance, or None where nothing is known.
    scores
        One number for each instance, higher is surer, or None.
    """

    shape: tuple[int, int]
    runs: tuple[np.ndarray, ...]
    cell_types: tuple[str, ...] | None = None
    scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        assert self.cell_types is None or len(self.cell_types) == len(self.runs)
        assert self.scores is None or len(self.scores) == len(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


def instances_of_labels(labels: np.ndarray) -> Instances:
    """Return the instances of a (Y, X) label image of any integer dtype, ids ascending.

    0 is background; negative ids are not allowed here (readers refuse them).
    """
    assert labels.ndim == 2, f"a label image has two axes, got shape {labels.shape}"
    shape = (int(labels.shape[0]), int(labels.shape[1]))
    return Instances(shape, tuple(runs_of_labels(labels).values()))


def labels_of(instances: Instances) -> np.ndarray:
    """Return instances flattened into a (Y, X) uint32 label image.

    Instance i has id i + 1.  Where instances overlap the smaller one (by its
    whole area) lies on top, so that a small cell on a large one stays whole; of
    two equally large ones the later lies on top.  An instance that is covered
    completely has no pixel and its id is missing.

    Examples
    --------
    >>> large, small = np.array([[0, 4]]), np.array([[3, 2]])
    >>> labels_of(Instances((1, 6), (large, small)))
    array([[1, 1, 1, 2, 2, 0]], dtype=uint32)
    """
    return layers_of(instances)[0]


def layers_of(instances: Instances) -> tuple[np.ndarray, np.ndarray]:
    """Return the uppermost and the second instance of each pixel, two (Y, X) uint32.

    The first is :func:`labels_of`.  The second is the instance that lies next below it, 0
    where a pixel belongs to at most one; of three instances of a pixel the largest is in
    neither.

    Examples
    --------
    >>> large, small = np.array([[0, 4]]), np.array([[3, 2]])
    >>> layers_of(Instances((1, 6), (large, small)))[1]
    array([[0, 0, 0, 1, 0, 0]], dtype=uint32)
    """
    upper = np.zeros(instances.shape[0] * instances.shape[1], dtype=np.uint32)
    under = np.zeros_like(upper)
    for index in np.argsort(-areas(instances), kind="stable").tolist():
        inside = pixels(instances.runs[index])
        under[inside] = upper[inside]
        upper[inside] = index + 1
    return upper.reshape(instances.shape), under.reshape(instances.shape)


def areas(instances: Instances) -> np.ndarray:
    """Return the area of each instance in px², int64."""
    return np.array([int(runs[:, 1].sum()) for runs in instances.runs], dtype=np.int64)
