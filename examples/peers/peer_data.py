"""Images with their truth, as an index splits them; the clock of a training.

An index is a CSV with columns `id`, `split` (`train` or `val`) and a column of kinds
(`kind`, or `cell_type`).  Images and label images are found by their id, in folders given,
and below them.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np
import tifffile

#: Columns that may hold the kind of a field, in the order in which they are looked for.
KIND_COLUMNS = ("kind", "cell_type")

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".bmp")

#: Seconds of one of the two clocks.
CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes
    ----------
    name : str
        Its id in the index.
    image : ndarray
        (Y, X) float32, grey, not normalised.
    truth : ndarray
        (Y, X) int32 label image, ids 1 … n, 0 = background.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray

    @property
    def megapixels(self) -> float:
        """Size in 10⁶ pixels."""
        return self.image.size / 1e6


@dataclass(frozen=True)
class Selection:
    """Which rows of which index: patterns of file names (`fluo*`) by column."""

    index: Path
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Budget:
    """The time of a training, which starts with its first step.

    Attributes
    ----------
    seconds : float
        What there is.
    clock : str
        `wall`, or `cpu`: seconds of this process on all cores, for a machine that is shared.
    """

    seconds: float
    clock: str = "wall"
    started_wall_s: float | None = None
    _started_s: float = 0.0
    _started_cpu_s: float = 0.0

    def start(self) -> None:
        """Start, if not yet started."""
        if self.started_wall_s is None:
            self.started_wall_s = time.monotonic()
            self._started_s = CLOCKS[self.clock]()
            self._started_cpu_s = time.process_time()

    @property
    def fraction(self) -> float:
        """The part that is spent: 0 before the start, 1 or more at the end."""
        if self.started_wall_s is None:
            return 0.0
        return (CLOCKS[self.clock]() - self._started_s) / self.seconds

    def spent(self) -> dict[str, float]:
        """Wall and CPU seconds since the start."""
        if self.started_wall_s is None:
            return {"train_wall_s": 0.0, "train_cpu_s": 0.0}
        return {
            "train_wall_s": round(time.monotonic() - self.started_wall_s, 1),
            "train_cpu_s": round(time.process_time() - self._started_cpu_s, 1),
        }


def cosine(fraction: float, last: float) -> float:
    """The factor of a learning rate that falls from 1 to `last` over a training."""
    return last + (1 - last) * 0.5 * (1 + float(np.cos(np.pi * min(max(fraction, 0.0), 1.0))))


def read_split(
    selection: Selection, images: Sequence[Path], labels: Sequence[Path]
) -> tuple[list[Field], list[Field]]:
    """The fields of an index that are wanted: for training, and for validation.

    Raises
    ------
    ValueError
        If the index lacks a column, or nothing is left of it.
    FileNotFoundError
        If a field has no image or no label image.
    """
    names = list(_rows(selection))
    image_files, label_files = _by_stem(images), _by_stem(labels)
    split: dict[str, list[Field]] = {"train": [], "val": []}
    for name, part in names:
        for files, folders in ((image_files, images), (label_files, labels)):
            if name not in files:
                where = ", ".join(map(str, folders))
                raise FileNotFoundError(f"{name} of {selection.index} is not in {where}")
        split[part].append(_read_field(name, image_files[name], label_files[name]))
    for part, fields in split.items():
        if not fields:
            raise ValueError(f"{selection.index} has no {part} fields where {selection.where}")
    return split["train"], split["val"]


def _rows(selection: Selection) -> Iterator[tuple[str, str]]:
    """Id and split of the rows that match."""
    with selection.index.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] in ("train", "val") and all(
                fnmatchcase(_value(row, column, selection.index), pattern)
                for column, pattern in selection.where.items()
            ):
                yield row["id"], row["split"]


def _value(row: Mapping[str, str], column: str, index: Path) -> str:
    """A cell of the table; `kind` stands for any of `KIND_COLUMNS`."""
    for name in KIND_COLUMNS if column == "kind" else (column,):
        if name in row:
            return row[name]
    raise ValueError(f"{index} has no column {column}; it has {', '.join(row)}")


def _by_stem(folders: Iterable[Path]) -> dict[str, Path]:
    """Image files in folders and below, by name without suffix."""
    return {
        path.stem: path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    }


def _read_field(name: str, image_file: Path, label_file: Path) -> Field:
    image = cv2.imread(str(image_file), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise ValueError(f"{image_file} cannot be read")
    ids, truth = np.unique(tifffile.imread(label_file), return_inverse=True)
    truth = truth.reshape(image.shape).astype(np.int32)
    return Field(name, image.astype(np.float32), truth if ids[0] == 0 else truth + 1)
