"""Label images of one field under many settings, for the price of a few clusterings.

A merge tree holds the partitions of every smaller merge distance, so trials of ``linkage`` and
``grid`` that differ only in what is cut from a tree share one.  Each label image is that of
:func:`~cellseg_cli.clustering.cluster` with the same settings; this module never decides which
settings are tried, nor which are best.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from . import METHODS
from .grid import grid_grown, grid_labels
from .inputs import checked_classes, checked_embedding
from .linkage import linkage_grown, linkage_labels
from .merging import LADDER
from .settings import Clustering, resolve

#: The methods that have a merge tree: how it grows, and how a label image is cut from it.
_TREES: dict[str, tuple[Callable[..., Any], Callable[[Any, Clustering], np.ndarray]]] = {
    "grid": (grid_grown, grid_labels),
    "linkage": (linkage_grown, linkage_labels),
}


def labels_of_trials(
    embedding: np.ndarray,
    *,
    kind: str,
    trials: Sequence[Clustering],
    classes: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the trial, label image) for every trial, those of one tree together.

    Parameters
    ----------
    embedding, kind, classes
        As :func:`~cellseg_cli.clustering.cluster` takes them.
    trials : sequence of Clustering

    Yields
    ------
    int, (Y, X) uint32
        Each index once; the label image is that of ``cluster`` with ``trials[index]``.

    Raises
    ------
    ConfigError, InputError, LimitError
        As ``cluster``, before the first label image.

    Notes
    -----
    One tree and one label image are held at a time.
    """
    resolved = [resolve(trial, kind, with_classes=classes is not None) for trial in trials]
    values = checked_embedding(embedding, kind)
    probabilities = checked_classes(classes, (values.shape[1], values.shape[2]))
    shared: dict[Hashable, list[int]] = {}
    for index, trial in enumerate(resolved):
        shared.setdefault(_shared(trial), []).append(index)
    for indices in shared.values():
        alike = [(index, resolved[index]) for index in indices]
        yield from _labels(values, kind, probabilities, alike)


def _shared(trial: Clustering) -> Hashable:
    """What two trials must have in common to be made together."""
    if trial.method == "linkage":
        return "linkage", trial.size
    if trial.method == "grid":
        distance = None if trial.merge_distance in LADDER else trial.merge_distance
        return "grid", trial.size, trial.foreground, trial.seed_level, distance
    return trial.method


def _labels(
    embedding: np.ndarray,
    kind: str,
    classes: np.ndarray | None,
    trials: Sequence[tuple[int, Clustering]],
) -> Iterator[tuple[int, np.ndarray]]:
    """The label images of trials that share a tree, or of a method that has none."""
    method = trials[0][1].method
    if method not in _TREES:
        for index, trial in trials:
            yield index, METHODS[method](embedding, kind=kind, settings=trial, classes=classes)
        return
    grow, cut = _TREES[method]
    farthest = max((trial for _, trial in trials), key=lambda each: each.merge_distance or 0.0)
    tree = grow(embedding, kind=kind, settings=farthest, classes=classes)
    for index, trial in trials:
        yield index, cut(tree, trial)
