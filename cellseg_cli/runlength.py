"""Masks as runs, and the run-length texts of Kaggle and COCO.

The one form everything else speaks is *runs*: an int64 array (n, 2) of
(start, length), 0-based in the row-major flattened image, sorted by start,
never overlapping and never touching (so one mask has exactly one such array).
A run may go over the end of a row into the next.  The empty mask is (0, 2).

Orders and origins of other conventions live in the functions that carry them
in their name.  This module knows arrays and texts, no files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from cellseg_cli.errors import InputError

Order = Literal["row_major", "column_major"]

_DIGITS = re.compile(r"[0-9\s]*", re.ASCII)
# Six bits a character, five of them number: 7 characters hold ±2^34, more than
# any difference of two counts below 2^32, the range of pycocotools' counts.
_MAX_CHARACTERS_A_COUNT = 7
# Kaggle counts pixels from 1.
_FROM_ONE = np.array((1, 0), dtype=np.int64)


def runs_of_mask(mask: np.ndarray) -> np.ndarray:
    """Return the runs of a (Y, X) mask; everything that is not 0 belongs to it."""
    flat = np.asarray(mask, dtype=bool).ravel()
    if flat.size == 0:
        return _no_runs()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], edges, [flat.size]))
    starts = edges[:-1][flat[edges[:-1]]]
    ends = edges[1:][flat[edges[:-1]]]
    return np.stack((starts, ends - starts), axis=1).astype(np.int64)


def runs_of_labels(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Return the runs of every instance of a (Y, X) label image, ids ascending.

    One pass over the places where the value changes; the cost is that of the
    image plus that of sorting its runs, whatever the number of instances.
    """
    flat = np.ravel(labels)
    if flat.size == 0:
        return {}
    edges = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    starts, lengths, values = edges[:-1], np.diff(edges), flat[edges[:-1]]
    cells = np.flatnonzero(values)
    # A stable sort keeps the runs of one instance in the order of the image.
    cells = cells[np.argsort(values[cells], kind="stable")]
    runs = np.stack((starts[cells], lengths[cells]), axis=1).astype(np.int64)
    ids, first = np.unique(values[cells], return_index=True)
    return dict(zip(ids.tolist(), np.split(runs, first[1:]), strict=True)) if ids.size else {}


def pixels(runs: np.ndarray) -> np.ndarray:
    """Return the flat indices that runs cover, int64, ascending."""
    lengths = runs[:, 1]
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(runs[:, 0] - offsets, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def paint(runs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the boolean (Y, X) mask that runs cover."""
    counts = _alternating(runs, shape[0] * shape[1])
    pattern = np.zeros(len(counts), dtype=bool)
    pattern[1::2] = True
    return np.repeat(pattern, counts).reshape(shape)


def union(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the runs of the pixels that lie in at least one of `parts`."""
    every = np.concatenate([*parts, _no_runs()])
    every = every[np.argsort(every[:, 0], kind="stable")]
    if len(every) == 0:
        return every
    reach = np.maximum.accumulate(every.sum(axis=1))
    first = np.concatenate(([True], every[1:, 0] > reach[:-1]))
    starts = every[first, 0]
    ends = reach[np.concatenate((np.flatnonzero(first)[1:] - 1, [len(every) - 1]))]
    return np.stack((starts, ends - starts), axis=1)


def box_of(runs: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the smallest half-open box (y0, x0, y1, x1) around runs that are not empty."""
    width = shape[1]
    first, last = runs[:, 0], runs.sum(axis=1) - 1
    y0, y1 = int(first[0]) // width, int(last[-1]) // width + 1
    if np.any(first // width != last // width):
        return y0, 0, y1, width
    return y0, int((first % width).min()), y1, int((last % width).max()) + 1


def transposed(runs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the runs of the transposed mask: row-major (Y, X) becomes column-major.

    The inverse is ``transposed(runs, shape[::-1])``.  Takes one byte for each
    pixel of the box around the mask.
    """
    if len(runs) == 0:
        return _no_runs()
    height, width = shape
    y0, x0, y1, x1 = box_of(runs, shape)
    rows, columns = y1 - y0, x1 - x0
    # A column that ends in the box must not run on into the next one, unless the
    # box is as high as the image: an empty row below the box keeps them apart.
    rows_kept = rows if rows == height else rows + 1
    y, x = runs[:, 0] // width - y0, runs[:, 0] % width - x0
    local = np.stack((y * columns + x, runs[:, 1]), axis=1)
    found = runs_of_mask(paint(local, (rows_kept, columns)).T)
    starts = (x0 + found[:, 0] // rows_kept) * height + y0 + found[:, 0] % rows_kept
    return np.stack((starts, found[:, 1]), axis=1)


def kaggle_text(runs: np.ndarray, shape: tuple[int, int], order: Order = "row_major") -> str:
    """Return ``"start length start length ..."``, starts 1-based; empty for no pixel.

    Sartorius 2021 flattens row by row, Data Science Bowl 2018 column by column.
    """
    ordered = runs if order == "row_major" else transposed(runs, shape)
    return " ".join(map(str, (ordered + _FROM_ONE).ravel().tolist()))


def runs_of_kaggle_text(
    text: str, shape: tuple[int, int], order: Order = "row_major"
) -> np.ndarray:
    """Return the runs of a Kaggle text; the runs may stand in any order and may touch.

    Raises
    ------
    InputError
        For an odd count, anything but digits, a start or length of 0, a run
        that leaves the image, and runs that overlap.
    """
    if not _DIGITS.fullmatch(text):
        strange = next(token for token in text.split() if not _DIGITS.fullmatch(token))
        raise InputError(f"a run-length text holds whole numbers only, got {_short(strange)!r}")
    numbers = text.split()
    if len(numbers) % 2:
        raise InputError(
            f"a run-length text is pairs of start and length, got {len(numbers)} numbers"
        )
    height, width = shape
    runs = _pairs_within(numbers, height * width, f"{height}×{width} px")
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = runs.sum(axis=1)
    overlapping = np.flatnonzero(runs[1:, 0] < ends[:-1])
    if overlapping.size:
        start, length = runs[overlapping[0] + 1] + _FROM_ONE
        raise InputError(f"run {start} {length} overlaps another run of the same mask")
    merged = union([runs])
    return merged if order == "row_major" else transposed(merged, (width, height))


def coco_counts(runs: np.ndarray, shape: tuple[int, int]) -> list[int]:
    """Return COCO's uncompressed counts: column-major, background first (may be 0).

    As pycocotools writes them: they sum to the number of pixels, and only the
    first may be 0.
    """
    counts = _alternating(transposed(runs, shape), shape[0] * shape[1]).tolist()
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def runs_of_coco_counts(counts: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Return the runs of COCO's uncompressed, column-major counts.

    Raises
    ------
    InputError
        For a negative count, or counts that do not sum to the number of pixels.
    """
    height, width = shape
    size = height * width
    wrong = next((c for c in counts if not isinstance(c, int) or not 0 <= c <= size), None)
    if wrong is not None:
        raise InputError(f"a COCO count of {wrong!r} does not fit an image of {height}×{width} px")
    if sum(counts) != size:
        raise InputError(
            f"COCO counts sum to {sum(counts)}, "
            f"but the image of {height}×{width} px has {size} pixels"
        )
    lengths = np.array(counts, dtype=np.int64)
    ends = np.cumsum(lengths)[1::2]
    runs = np.stack((ends - lengths[1::2], lengths[1::2]), axis=1)
    return transposed(union([runs[runs[:, 1] > 0]]), (width, height))


def coco_string(counts: Sequence[int]) -> str:
    """Return the compressed counts of pycocotools.

    From the fourth count on the difference to the count two places before is
    written, as groups of five bits, lowest first, one printable character each:
    bit 5 says that more groups follow, bit 4 of the last group is the sign
    (``rleToString`` in cocoapi's maskApi.c).
    """
    rest = np.asarray(counts, dtype=np.int64).copy()
    rest[3:] -= np.asarray(counts, dtype=np.int64)[1:-2]
    groups: list[np.ndarray] = []
    active = np.ones(len(rest), dtype=bool)
    while active.any():
        low = rest & 0x1F
        rest = rest >> 5
        more = active & np.where(low & 0x10, rest != -1, rest != 0)
        groups.append(np.where(active, low + 48 + 0x20 * more, 0))
        active = more
    if not groups:
        return ""
    characters = np.stack(groups, axis=1).ravel()
    return characters[characters > 0].astype(np.uint8).tobytes().decode("ascii")


def counts_of_coco_string(text: str) -> list[int]:
    """Return the counts of a compressed string of pycocotools.

    Raises
    ------
    InputError
        For a character outside of its alphabet, a string that stops within a
        number, and a number that cannot be a count.
    """
    codes = _codes_of(text)
    last = (codes & 0x20) == 0
    if codes.size and not last[-1]:
        raise InputError("a compressed COCO mask stops in the middle of a number")
    if codes.size == 0:
        return []
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    widths = ends - starts + 1
    if int(widths.max()) > _MAX_CHARACTERS_A_COUNT:
        raise InputError("a compressed COCO mask holds a number above 2^34")
    place = np.arange(codes.size) - np.repeat(starts, widths)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * widths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if int(values.min()) < 0:
        raise InputError(f"a compressed COCO mask holds a count below 0: {int(values.min())}")
    return [int(value) for value in values]


def _codes_of(text: str) -> np.ndarray:
    """Return the six-bit codes of a compressed string, int64."""
    strange = next((c for c in text if not "0" <= c <= "o"), None)
    if strange is not None:
        raise InputError(
            f"a compressed COCO mask is written with the characters '0' to 'o', got {strange!r}"
        )
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48


def _pairs_within(numbers: list[str], size: int, image: str) -> np.ndarray:
    """Return (n, 2) of 0-based start and length; all of them inside `size` pixels."""
    digits = len(str(size))
    # int() refuses texts of thousands of digits, zeros too: lengths are compared before
    numbers = [number.lstrip("0") or "0" for number in numbers]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        fits = len(start) <= digits and len(length) <= digits
        if not fits or int(start) + int(length) - 1 > size:
            raise InputError(
                f"run {_short(start)} {_short(length)} leaves the image of {image} ({size} pixels)"
            )
        if int(start) < 1 or int(length) < 1:
            raise InputError(f"run {start} {length}: starts count from 1, lengths are at least 1")
    return np.array(numbers, dtype=object).astype(np.int64).reshape(-1, 2) - _FROM_ONE


def _alternating(runs: np.ndarray, size: int) -> np.ndarray:
    """Return lengths of off, on, off, ..., off that sum to `size`; always 2n + 1 of them."""
    edges = np.zeros(2 * len(runs) + 2, dtype=np.int64)
    edges[1:-1:2] = runs[:, 0]
    edges[2:-1:2] = runs.sum(axis=1)
    edges[-1] = size
    return np.diff(edges)


def _no_runs() -> np.ndarray:
    return np.empty((0, 2), dtype=np.int64)


def _short(text: str, limit: int = 24) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
