"""What training learns from: fields with truth, in groups, decoded once.

A data set is a folder of images with its truth.  Fields are grouped by data
set and cell type; the groups decide how often a field is drawn.
"""

from __future__ import annotations

import csv
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import CellsegError, ConfigError, InputError
from cellseg_cli.images.annotations import Annotations, open_annotations
from cellseg_cli.images.decode import read_image
from cellseg_cli.images.discover import Field, find_fields
from cellseg_cli.images.normalise import apply, check_usable, fit_channels, measure
from cellseg_cli.instances import Instances, labels_of

#: Decoded examples are kept in memory up to this many bytes; beyond, fields are
#: decoded again whenever they are drawn.
CACHE_BYTES = 4 << 30

#: Columns of an index that may hold the cell type, in order of preference.
TYPE_COLUMNS = ("cell_type", "kind", "type")
#: Stands for the cell type of fields whose type nobody names.
ALL_TYPES = "all"


@dataclass(frozen=True)
class Source:
    """One field with truth.

    Attributes
    ----------
    field
        The image.
    annotations
        Where its truth is; the field's id is a key in it.
    group
        Data set and cell type, such as ``train/cort``.
    """

    field: Field
    annotations: Annotations
    group: str


@dataclass(frozen=True)
class Failed:
    """One field that training leaves out, and why."""

    field_id: str
    reason: str


@dataclass(frozen=True)
class Example:
    """One field, ready to be cut into crops.

    Attributes
    ----------
    image
        (C, Y, X) float16, normalised; C is 1 where all channels are equal.
    labels
        (Y, X) int32, 0 = background; overlaps flattened, smaller over larger.
    """

    field_id: str
    image: NDArray[np.float16]
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class Split:
    """Fields to learn from and fields to choose by; `notes` are things worth saying once."""

    train: tuple[Source, ...]
    validation: tuple[Source, ...]
    notes: tuple[str, ...] = ()


def open_split(
    data: Sequence[str], *, validation: Sequence[str] = (), index: Path | None = None
) -> Split:
    """Return the training and validation fields of some data sets.

    Parameters
    ----------
    data, validation
        Each a folder that holds ``images`` and ``labels`` (or ``masks``), or
        ``IMAGES=TRUTH`` with any truth :func:`open_annotations` reads.
    index
        CSV with a column ``id`` and, each optional, ``split`` (``train``,
        ``val``; other fields are left out; without this column all fields of
        `data` are learned from) and a cell type (``cell_type``, ``kind`` or
        ``type``).

    Raises
    ------
    InputError
        No field of a data set has truth, or none is left to learn from.
    """
    rows = _index(index) if index else {}
    splits = any("split" in row for row in rows.values())
    notes: list[str] = []
    train: list[Source] = []
    held: list[Source] = []
    for number, spec in enumerate(data):
        for source in _sources(spec, number, rows, notes):
            split = rows.get(source.field.id, {}).get("split") if splits else "train"
            if split == "train":
                train.append(source)
            elif split in ("val", "validation"):
                held.append(source)
    for number, spec in enumerate(validation):
        held.extend(_sources(spec, number, rows, notes))
    if not train:
        raise InputError(
            f"no field to learn from in {', '.join(data)}"
            + (f": {index} names none of them as split=train" if splits else "")
        )
    return Split(tuple(train), tuple(held), tuple(notes))


def _sources(
    spec: str, number: int, rows: dict[str, dict[str, str]], notes: list[str]
) -> list[Source]:
    images, truth = _parts(spec)
    fields = find_fields(images, pattern="none")
    annotations = open_annotations(truth)
    with_truth = [field for field in fields if field.id in annotations]
    if not with_truth:
        raise InputError(
            f"none of the {len(fields)} images in {images} has truth in {truth}: "
            f"ids such as {fields[0].id!r} against {annotations.field_ids[0]!r}"
        )
    if without := len(fields) - len(with_truth):
        notes.append(f"{without} images in {images} have no truth in {truth} and are left out")
    if lost := len(annotations.field_ids) - len(with_truth):
        notes.append(f"{lost} truths in {truth} have no image in {images} and are left out")
    return [
        Source(field, annotations, f"{number}:{_cell_type(field.id, annotations, rows)}")
        for field in with_truth
    ]


def _cell_type(field_id: str, annotations: Annotations, rows: dict[str, dict[str, str]]) -> str:
    row = rows.get(field_id, {})
    named = next((row[column] for column in TYPE_COLUMNS if row.get(column)), None)
    return named or annotations.cell_type(field_id) or ALL_TYPES


def _parts(spec: str) -> tuple[str, Path]:
    images, equals, truth = spec.partition("=")
    if equals:
        return images, Path(truth)
    for name in ("labels", "masks"):
        if (Path(spec) / "images").is_dir() and (Path(spec) / name).exists():
            return str(Path(spec) / "images"), Path(spec) / name
    raise InputError(
        f"{spec} is no data set: give a folder that holds images/ and labels/, or IMAGES=TRUTH"
    )


def _index(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "id" not in (reader.fieldnames or ()):
                raise InputError(f"{path} has no column id; it has {reader.fieldnames}")
            return {row["id"]: row for row in reader}
    except OSError as error:
        raise InputError(f"cannot read the index {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def read_field(source: Source, settings: TrainSettings) -> tuple[NDArray[np.float32], Instances]:
    """Return the normalised image (C, Y, X) float32 and the truth of one field.

    Raises
    ------
    InputError
        As decoding, :func:`check_usable`, and a truth of another size.
    """
    raw = read_image(source.field.path)
    check_usable(raw)
    raw = fit_channels(raw, settings.in_channels)
    image = apply(raw, measure(raw, settings.low_percentile, settings.high_percentile))
    shape = (image.shape[1], image.shape[2])
    return image, source.annotations.read(source.field.id, shape)


@dataclass
class Examples:
    """The fields of one split, decoded on first use and kept while memory allows.

    Safe to read from several threads.
    """

    sources: Sequence[Source]
    settings: TrainSettings
    cache_bytes: int = CACHE_BYTES
    _kept: dict[int, Example] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Example:
        if (kept := self._kept.get(index)) is not None:
            return kept
        example = self._read(index)
        size = example.image.nbytes + example.labels.nbytes
        with self._lock:
            if index not in self._kept and self._bytes + size <= self.cache_bytes:
                self._kept[index] = example
                self._bytes += size
        return example

    def only(self, indices: Sequence[int]) -> Examples:
        """Return the fields at `indices`, with what is decoded of them already."""
        kept = {new: self._kept[index] for new, index in enumerate(indices) if index in self._kept}
        size = sum(each.image.nbytes + each.labels.nbytes for each in kept.values())
        sources = [self.sources[index] for index in indices]
        return Examples(sources, self.settings, self.cache_bytes, kept, _bytes=size)

    def fault(self, index: int) -> str | None:
        """Return why a field cannot be used, or None; decodes it."""
        try:
            self[index]
        except CellsegError as error:
            return str(error)
        return None

    def _read(self, index: int) -> Example:
        source = self.sources[index]
        image, instances = read_field(source, self.settings)
        if all(np.array_equal(image[0], channel) for channel in image[1:]):
            image = image[:1]
        labels = labels_of(instances).astype(np.int32)
        return Example(source.field.id, image.astype(np.float16), labels)


def usable(
    sources: Sequence[Source], settings: TrainSettings, *, cache_bytes: int = CACHE_BYTES
) -> tuple[Examples, tuple[Failed, ...]]:
    """Return the fields that can be decoded, and why the others cannot.

    Every field is decoded once here, so that a bad file is known before the
    first step and not hours into a run.
    """
    every = Examples(sources, settings, cache_bytes)
    reasons: dict[int, str] = {}
    with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
        for number, reason in enumerate(pool.map(every.fault, range(len(every)))):
            if reason is not None:
                reasons[number] = reason
    if not reasons:
        return every, ()
    failed = tuple(Failed(sources[number].field.id, reason) for number, reason in reasons.items())
    return every.only([number for number in range(len(every)) if number not in reasons]), failed


@dataclass(frozen=True)
class Draw:
    """How often each field is drawn.

    Attributes
    ----------
    probabilities
        (n,) float64, one per field, summing to 1.
    """

    probabilities: NDArray[np.float64]

    @classmethod
    def balanced(cls, sources: Sequence[Source], balance: float) -> Draw:
        """Return a draw in which a group of n fields has a share ∝ n**balance.

        >>> fields = [Source(None, None, group) for group in "aaab"]
        >>> Draw.balanced(fields, 0.0).probabilities.round(3).tolist()
        [0.167, 0.167, 0.167, 0.5]
        """
        if not 0 <= balance <= 1:
            raise ConfigError(f"balance={balance} is not in [0, 1]")
        _, group, sizes = np.unique(
            [source.group for source in sources], return_inverse=True, return_counts=True
        )
        weight = sizes[group] ** (balance - 1.0)
        return cls(weight / weight.sum())
