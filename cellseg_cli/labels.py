"""Label-image algebra: integer arrays in which 0 is background and every other id one instance.

Ids carry no meaning beyond being equal or different, so what two images have
in common is compared as a partition, never by id.  No function does arithmetic
on ids in the dtype it was handed: ids are turned into dense indices first,
which cannot overflow.  Nothing here knows files, fields or cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg_cli.errors import InputError, LimitError

MAX_INSTANCES = 2**32 - 1  #: ids of a label image are uint32 and 0 is background

_MAX_ID = 2**63 - 1  # ids are handed out as int64

#: Up to this many table entries for each pixel, ids are counted in a table
#: instead of being sorted: the table then costs no more than the image itself.
_TABLE_ENTRIES_PER_PIXEL = 4


def relabel_dense(labels: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Return the same partition with ids 1..n, in the order of the old ids.

    Parameters
    ----------
    labels : integer array of any shape
        Any integer dtype; 0 is background, ids may have gaps.

    Returns
    -------
    uint32 array of the same shape
        Always a new array.

    Raises
    ------
    InputError
        If the array is not of integers, or holds a negative id or one above 2^63 - 1.

    Notes
    -----
    Memory: one to two copies of the image, plus a table of the largest id
    where ids are small; images with huge ids are sorted instead.

    Examples
    --------
    >>> relabel_dense(np.array([[0, 7], [3, 7]], dtype=np.uint8))
    array([[0, 2],
           [1, 2]], dtype=uint32)
    """
    return _dense(labels)[1]


def areas(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the area in pixels of each instance, by ascending id: int64 (n,).

    In a dense label image entry ``i`` belongs to id ``i + 1``.

    Examples
    --------
    >>> areas(np.array([[0, 7], [3, 7]]))
    array([1, 2])
    """
    ids, dense = _dense(labels)
    return np.bincount(dense.ravel(), minlength=len(ids) + 1)[1:]


def same_partition(a: NDArray[np.integer], b: NDArray[np.integer]) -> bool:
    """Return whether two label images hold the same instances, whatever their ids.

    Background must be the same set of pixels in both.  Images of different
    shape are never the same partition; dtypes may differ.

    Examples
    --------
    >>> same_partition(np.array([[1, 1, 2]]), np.array([[9, 9, 4]]))
    True
    >>> same_partition(np.array([[1, 1, 2]]), np.array([[9, 9, 9]]))
    False
    """
    if a.shape != b.shape:
        return False
    ids_a, dense_a = _dense(a)
    ids_b, dense_b = _dense(b)
    if len(ids_a) != len(ids_b):
        return False
    partner = np.zeros(len(ids_a) + 1, dtype=np.uint32)
    partner[dense_a] = dense_b
    # With equally many ids on both sides, "each id of a lies in one id of b"
    # is a bijection as soon as b is reproduced: all ids of b are then hit.
    return bool(partner[0] == 0 and np.array_equal(partner[dense_a], dense_b))


def check_labels(labels: NDArray[np.integer]) -> None:
    """Raise InputError unless the array holds integers from 0 to 2^63 - 1."""
    if labels.dtype.kind not in "iu":
        raise InputError(f"a label image holds integers, got {labels.dtype}")
    if labels.size and labels.dtype == np.uint64 and labels.max() > _MAX_ID:
        raise InputError(f"a label image holds ids up to 2^63 - 1, got {labels.max()}")
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise InputError(
            f"a label image holds no negative id, got {labels.min()} (0 is background)"
        )


def _dense(labels: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return the ids (ascending, without 0) and the image with ids 1..n in that order."""
    check_labels(labels)
    largest = int(labels.max()) if labels.size else 0
    if largest < max(_TABLE_ENTRIES_PER_PIXEL * labels.size, 256):
        present = np.zeros(largest + 1, dtype=bool)
        present[labels.ravel()] = True
        present[0] = False
        return np.flatnonzero(present), _numbering(present)[labels]
    values, inverse = np.unique(labels, return_inverse=True)
    present = values != 0
    return values[present].astype(np.int64), _numbering(present)[inverse.reshape(labels.shape)]


def _numbering(keep: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Return a table that numbers the entries to keep 1..n and sends the others to 0."""
    n = int(np.count_nonzero(keep))
    if n > MAX_INSTANCES:
        raise LimitError(f"a label image holds at most {MAX_INSTANCES} instances, got {n}")
    table = np.zeros(len(keep), dtype=np.uint32)
    table[keep] = np.arange(1, n + 1, dtype=np.uint32)
    return table
