"""Connected pieces of label images: what makes an instance one piece without holes.

All kernels take and give (Y, X) int32 label images, 0 = background, and are linear in the number
of pixels.  Pieces are 4-connected, so that the background between them is 8-connected and a hole
is a 4-connected region of background that no diagonal opens.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled


@compiled
def root_of(parent: np.ndarray, node: int) -> int:
    """The representative of a node; halves the path on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def _join(parent: np.ndarray, first: int, second: int) -> int:
    """Unite two sets under their lower representative, and return it."""
    first, second = root_of(parent, first), root_of(parent, second)
    low, high = min(first, second), max(first, second)
    parent[high] = low
    return low


@compiled
def connected_pieces(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 4-connected pieces of equal non-zero label, numbered from 1 in row-major order.

    Parameters
    ----------
    labels : (Y, X) int32

    Returns
    -------
    pieces : (Y, X) int32
        0 where the label is 0.
    label_of : (n + 1,) int32
        The label of each piece; entry 0 is 0.
    area_of : (n + 1,) int32
        Pixels of each piece; entry 0 is 0.
    """
    height, width = labels.shape
    pieces = np.zeros((height, width), np.int32)
    parent = np.zeros(height * width + 1, np.int32)
    used = 0
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label == 0:
                continue
            left = pieces[y, x - 1] if x > 0 and labels[y, x - 1] == label else 0
            up = pieces[y - 1, x] if y > 0 and labels[y - 1, x] == label else 0
            if left != 0 and up != 0 and left != up:
                pieces[y, x] = _join(parent, left, up)
            elif left != 0 or up != 0:
                pieces[y, x] = max(left, up)
            else:
                used += 1
                parent[used] = used
                pieces[y, x] = used
    return _numbered(labels, pieces, parent, used)


@compiled
def _numbered(
    labels: np.ndarray, pieces: np.ndarray, parent: np.ndarray, used: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Provisional pieces made dense, with the label and area of each."""
    dense = np.zeros(used + 1, np.int32)
    count = 0
    for node in range(1, used + 1):
        root = root_of(parent, node)
        if root == node:
            count += 1
            dense[node] = count
        else:
            dense[node] = dense[root]  # a root is lower than its nodes, so it has its number
    label_of = np.zeros(count + 1, np.int32)
    area_of = np.zeros(count + 1, np.int32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if pieces[y, x] != 0:
                piece = dense[pieces[y, x]]
                pieces[y, x] = piece
                label_of[piece] = labels[y, x]
                area_of[piece] += 1
    return pieces, label_of, area_of


def size_ranks(labels: np.ndarray) -> np.ndarray:
    """The place of each label among all by falling area (equal ones: the lower first).

    A choice by it, unlike one by number, is the same where the field is mirrored.

    Parameters
    ----------
    labels : (Y, X) int32
        Not negative.

    Returns
    -------
    (largest label + 1,) int32

    Examples
    --------
    >>> size_ranks(np.array([[1, 2, 2, 3, 3, 3]])).tolist()
    [3, 2, 1, 0]
    """
    area = np.bincount(labels.ravel())
    ranks = np.empty(len(area), np.int32)
    ranks[np.argsort(-area, kind="stable")] = np.arange(len(area))
    return ranks


def finished(labels: np.ndarray, min_area_px: int) -> np.ndarray:
    """The label image with instances in one piece, without holes, numbered densely.

    The rules, in this order:

    1. An instance is its largest connected piece, if that has at least ``min_area_px`` pixels
       (the first of equal ones in row-major order).
    2. Every other piece goes to the instance with which it shares the longest border, nearer
       ones first: pieces that touch an instance, then pieces that touch those, and so on (equal
       borders: the instance whose main piece is larger, then the lower one).  Pieces that touch
       none become background.
    3. Background that one instance encloses, and that is smaller than the instance, joins it.

    Parameters
    ----------
    labels : (Y, X) int32, 0 = background
    min_area_px : int

    Returns
    -------
    (Y, X) uint32
        Labels 1 to n in the order of the labels given, 0 = background.
    """
    pieces, label_of, area_of = connected_pieces(labels)
    home = _homes(label_of, area_of, min_area_px)
    owner = home
    if np.count_nonzero(home) < len(home) - 1:
        starts, contacts = _contacts(pieces, home)
        owner = _owners(home, area_of, starts, contacts)
    settled = np.where(owner > 0, label_of[owner], 0).astype(np.int32)[pieces]
    return _dense(_filled(settled))


@compiled
def _homes(label_of: np.ndarray, area_of: np.ndarray, min_area_px: int) -> np.ndarray:
    """For each piece: itself if it is the main piece of its label and large enough, else 0."""
    largest = np.zeros(label_of.max() + 1, np.int32)
    for piece in range(1, label_of.size):
        best = largest[label_of[piece]]
        if best == 0 or area_of[piece] > area_of[best]:
            largest[label_of[piece]] = piece
    home = np.zeros(label_of.size, np.int32)
    for piece in range(1, label_of.size):
        if largest[label_of[piece]] == piece and area_of[piece] >= min_area_px:
            home[piece] = piece
    return home


@compiled
def _contacts(pieces: np.ndarray, home: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of each homeless piece, once per shared pixel edge.

    Returns ``starts`` (n + 2,) and ``contacts``: those of piece p are
    ``contacts[starts[p] : starts[p + 1]]``.
    """
    height, width = pieces.shape
    starts = np.zeros(home.size + 1, np.int64)
    for filling in range(2):
        if filling:
            for piece in range(home.size):
                starts[piece + 1] += starts[piece]
            contacts = np.empty(starts[-1], np.int32)
            place = starts[:-1].copy()
        for y in range(height):
            for x in range(width):
                one = pieces[y, x]
                for side in range(2):
                    if one == 0 or (x + 1 == width if side == 0 else y + 1 == height):
                        continue
                    two = pieces[y, x + 1] if side == 0 else pieces[y + 1, x]
                    if two == 0 or two == one:
                        continue
                    for this, that in ((one, two), (two, one)):
                        if home[this] != 0:
                            continue
                        if filling:
                            contacts[place[this]] = that
                            place[this] += 1
                        else:
                            starts[this + 1] += 1
    return starts, contacts


@compiled
def _owners(
    home: np.ndarray, area_of: np.ndarray, starts: np.ndarray, contacts: np.ndarray
) -> np.ndarray:
    """The home piece that each piece ends in, 0 = none; homeless ones settle layer by layer."""
    owner = home.copy()
    votes = np.zeros(home.size, np.int64)
    seen = np.zeros(home.size, np.bool_)
    layer = np.empty(home.size, np.int32)
    size = 0
    for piece in range(1, home.size):
        if home[piece] == 0:
            for other in contacts[starts[piece] : starts[piece + 1]]:
                if owner[other] != 0 and not seen[piece]:
                    seen[piece] = True
                    layer[size] = piece
                    size += 1
    done = 0
    while done < size:
        end = size
        chosen = np.empty(end - done, np.int32)
        for i in range(done, end):
            touched = contacts[starts[layer[i]] : starts[layer[i] + 1]]
            chosen[i - done] = _longest_border(touched, owner, area_of, votes)
        for i in range(done, end):
            owner[layer[i]] = chosen[i - done]
            for other in contacts[starts[layer[i]] : starts[layer[i] + 1]]:
                if owner[other] == 0 and not seen[other]:
                    seen[other] = True
                    layer[size] = other
                    size += 1
        done = end
    return owner


@compiled
def _longest_border(
    touched: np.ndarray, owner: np.ndarray, area_of: np.ndarray, votes: np.ndarray
) -> int:
    """The owner of most of the pieces that one touches; ``votes`` is scratch, all 0."""
    best = 0
    for other in touched:
        candidate = owner[other]
        if candidate != 0:
            votes[candidate] += 1
    for other in touched:
        candidate = owner[other]
        ahead = votes[candidate] - votes[best]
        if ahead == 0:
            ahead = area_of[candidate] - area_of[best]
        if candidate != 0 and (best == 0 or ahead > 0 or (ahead == 0 and candidate < best)):
            best = candidate
    for other in touched:
        votes[owner[other]] = 0
    return best


@compiled
def _filled(labels: np.ndarray) -> np.ndarray:
    """Give background that one label encloses, and that is smaller, to that label; in place.

    Works on runs of background within rows, of which a field has far fewer than pixels.
    """
    height, width = labels.shape
    runs, of_row = _background_runs(labels)
    area = np.zeros(labels.max() + 1, np.int64)
    for label in labels.flat:
        area[label] += 1
    parent = np.arange(len(runs)).astype(np.int32)
    for y in range(1, height):
        above, here = of_row[y - 1], of_row[y]
        while above < of_row[y] and here < of_row[y + 1]:
            if runs[above, 0] < runs[here, 1] and runs[here, 0] < runs[above, 1]:
                _join(parent, above, here)
            if runs[above, 1] < runs[here, 1]:
                above += 1
            else:
                here += 1
    owner = np.zeros(len(runs), np.int32)  # -1: the border of the field or two labels
    size = np.zeros(len(runs), np.int64)
    for y in range(height):
        for run in range(of_row[y], of_row[y + 1]):
            root = root_of(parent, run)
            size[root] += runs[run, 1] - runs[run, 0]
            if y == 0 or y + 1 == height or runs[run, 0] == 0 or runs[run, 1] == width:
                owner[root] = -1
    for y in range(1, height - 1):
        for run in range(of_row[y], of_row[y + 1]):
            root = root_of(parent, run)
            if owner[root] >= 0:
                owner[root] = _around(labels, y, runs[run], owner[root])
    for y in range(1, height - 1):
        for run in range(of_row[y], of_row[y + 1]):
            label = owner[root_of(parent, run)]
            if label > 0 and size[root_of(parent, run)] < area[label]:
                labels[y, runs[run, 0] : runs[run, 1]] = label
    return labels


@compiled
def _background_runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of background: (n, 2) int32 columns, half-open, and where each row begins in them."""
    height, width = labels.shape
    count = 0
    for y in range(height):
        for x in range(width):
            count += int(labels[y, x] == 0 and (x == 0 or labels[y, x - 1] != 0))
    runs = np.empty((count, 2), np.int32)
    of_row = np.empty(height + 1, np.int64)
    count = 0
    for y in range(height):
        of_row[y] = count
        for x in range(width):
            if labels[y, x] == 0:
                if x == 0 or labels[y, x - 1] != 0:
                    runs[count, 0] = x
                if x + 1 == width or labels[y, x + 1] != 0:
                    runs[count, 1] = x + 1
                    count += 1
    of_row[height] = count
    return runs, of_row


@compiled
def _around(labels: np.ndarray, y: int, run: np.ndarray, known: int) -> int:
    """The one label around a run and ``known`` (0: none yet), -1 if there are two."""
    left, right = labels[y, run[0] - 1], labels[y, run[1]]
    for label in (left, right):
        if label != known:
            if known != 0:
                return -1
            known = label
    for x in range(run[0], run[1]):
        for label in (labels[y - 1, x], labels[y + 1, x]):
            if label != 0 and label != known:
                return -1
    return int(known)


@compiled
def _dense(labels: np.ndarray) -> np.ndarray:
    """Labels renumbered 1 to n without gaps, as uint32."""
    number = np.zeros(labels.max() + 1, np.uint32)
    for label in labels.flat:
        number[label] = 1
    number[0] = 0
    count = np.uint32(0)
    for label in range(1, number.size):
        if number[label] != 0:
            count += np.uint32(1)
            number[label] = count
    dense = np.empty(labels.shape, np.uint32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            dense[y, x] = number[labels[y, x]]
    return dense
