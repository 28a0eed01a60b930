"""What training learns from: fields with truth, in groups, decoded once.

A data set is a folder of images with its truth.  Fields are grouped by data
set and cell type; the groups decide how often a field is drawn.
"""

from __future__ import annotations

import csv
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import CellsegError, ConfigError, InputError
from cellseg_cli.images.annotations import Annotations, open_annotations
from cellseg_cli.images.decode import load_image
from cellseg_cli.images.discover import Field, Found, discover
from cellseg_cli.images.normalise import (
    Normalisation,
    apply,
    check_usable,
    fit_channels,
    measure,
)
from cellseg_cli.images.planes import EVERY_PLANE, Planes
from cellseg_cli.instances import Instances, layers_of
from cellseg_cli.sizes import parse_size
from cellseg_cli.training.pixels import in_levels, values_of
from cellseg_cli.training.pseudo import Pseudo, open_pseudo

#: Decoded examples are kept in memory up to this many bytes; beyond, fields are
#: decoded again whenever they are drawn.
CACHE_BYTES = 4 << 30

#: Columns of an index that may hold the cell type, in order of preference.
TYPE_COLUMNS = ("cell_type", "kind", "type")
#: Stands for the cell type of fields whose type nobody names.
ALL_TYPES = "all"
#: Begins the name of the data set that a store of pseudo-labels is.
PSEUDO = "pseudo"


@dataclass(frozen=True)
class Source:
    """One field with a target to learn.

    Attributes
    ----------
    field
        The image.
    annotations
        Where its truth is, the field's id being a key in it; None for pseudo-labels.
    group
        Data set and cell type, such as ``0:cort``.
    planes
        Those of the image that are taken.
    pseudo
        What another model is sure of, in place of a truth.
    """

    field: Field
    annotations: Annotations | None
    group: str
    planes: Planes = EVERY_PLANE
    pseudo: Pseudo | None = None

    @property
    def identity(self) -> str:
        """What names this field when a run is resumed; of pseudo-labels also what they are."""
        return self.pseudo.identity if self.pseudo else self.field.id


@dataclass(frozen=True)
class Failed:
    """One field that training leaves out, and why."""

    field_id: str
    reason: str


@dataclass(frozen=True)
class Noted:
    """Something worth saying once."""

    text: str


@dataclass(frozen=True)
class Example:
    """One field, ready to be cut into crops.

    A pixel may belong to two cells: `labels` has the smaller and `under` the larger one.

    Attributes
    ----------
    image
        (C, Y, X) uint8, the numbers of `levels`; C is 1 where all channels are equal.
        Without levels the normalised values themselves, of any dtype.
    labels
        (Y, X) of the smallest integer dtype that holds them: −1 = unknown, 0 = background;
        overlaps flattened, smaller over larger.
    under
        (Y, X) likewise: the instance that lies next below that of `labels`, 0 = none; None
        where no pixel has a second one.
    levels
        (C, 256) float32: the normalised value of each number.
    """

    field_id: str
    image: NDArray[np.generic]
    labels: NDArray[np.integer]
    under: NDArray[np.integer] | None = None
    levels: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        arrays = (self.image, self.labels, self.under, self.levels)
        return sum(array.nbytes for array in arrays if array is not None)

    def digest(self) -> str:
        """Return what any other image or target has not: 16 hexadecimal digits."""
        kept = hashlib.blake2b(digest_size=8)
        for array in (self.image, self.labels, self.under, self.levels):
            if array is not None:
                kept.update(f"{array.dtype.str}{array.shape}".encode())
                kept.update(np.ascontiguousarray(array).data)
        return kept.hexdigest()

    def values(self, channel: int, region: tuple[slice, slice]) -> NDArray[np.float32]:
        """Return the normalised values of a part of one channel, (y, x) float32."""
        part = self.image[channel][region]
        if self.levels is None:
            return part.astype(np.float32)
        return values_of(part.astype(np.uint8, copy=False), self.levels[channel])


@dataclass(frozen=True)
class Split:
    """Fields to learn from and fields to choose by; `notes` are things worth saying once."""

    train: tuple[Source, ...]
    validation: tuple[Source, ...]
    notes: tuple[str, ...] = ()


def open_split(
    data: Sequence[str],
    *,
    validation: Sequence[str] = (),
    index: Path | None = None,
    pseudo: Sequence[str | Path] = (),
    settings: TrainSettings = TrainSettings(),
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
    pseudo
        Stores of images without truth, embedded and clustered by another model; of each
        what that model is sure of is learned from.  Images that have truth are left out.
    settings
        Uses ``channel``, ``z``, ``t``, ``pattern``, ``weights`` and ``pseudo_level``.

    Raises
    ------
    InputError
        No field of a data set has truth, or none is left to learn from; no image of a store
        is what it was.
    ConfigError
        Weights for more or fewer data sets than there are.
    StoreError
        As :func:`cellseg_cli.training.pseudo.open_pseudo`.
    """
    if settings.weights and len(settings.weights) != len(data):
        raise ConfigError(
            f"--weight is given {len(settings.weights)} times for {len(data)} data sets; "
            "give one for each DATA, in their order, or none"
        )
    rows = _index(index) if index else {}
    splits = any("split" in row for row in rows.values())
    notes: list[str] = []
    train: list[Source] = []
    held: list[Source] = []
    for number, spec in enumerate(data):
        for source in _sources(spec, number, rows, notes, settings):
            split = rows.get(source.field.id, {}).get("split") if splits else "train"
            if split == "train":
                train.append(source)
            elif split in ("val", "validation"):
                held.append(source)
    for number, spec in enumerate(validation):
        held.extend(_sources(spec, number, rows, notes, settings))
    if not train:
        raise InputError(
            f"no field to learn from in {', '.join(data)}"
            + (f": {index} names none of them as split=train" if splits else "")
        )
    notes += _shared(train, held)
    for number, path in enumerate(pseudo):
        train += _pseudo_sources(path, number, settings.pseudo_level, [*train, *held], notes)
    return Split(tuple(train), tuple(held), tuple(notes))


def _sources(
    spec: str,
    number: int,
    rows: dict[str, dict[str, str]],
    notes: list[str],
    settings: TrainSettings,
) -> list[Source]:
    images, truth = _parts(spec)
    planes = Planes(settings.channel, settings.z, settings.t)
    found = discover(images, pattern=settings.pattern or "none", planes=planes)
    annotations = open_annotations(truth)
    if settings.pattern is None:
        found = _grouped(images, found, annotations, planes)
    fields = found.fields
    notes += found.notes
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
        Source(field, annotations, f"{number}:{_cell_type(field.id, annotations, rows)}", planes)
        for field in with_truth
    ]


def _grouped(images: str, alone: Found, annotations: Annotations, planes: Planes) -> Found:
    """The files alone, or the fields of plates that they make if those are what has truth."""
    if any(field.id in annotations for field in alone.fields):
        return alone
    grouped = discover(images, planes=planes)
    return grouped if any(field.id in annotations for field in grouped.fields) else alone


def _shared(train: Sequence[Source], held: Sequence[Source]) -> list[str]:
    """What to say of held-out fields that are learned from too."""
    learned = {_place(source.field) for source in train}
    both = [source.field.id for source in held if _place(source.field) in learned]
    if not both:
        return []
    return [
        f"{len(both)} of {len(held)} held-out fields are learned from too, such as {both[0]}: "
        "their scores say nothing of new images"
    ]


def _pseudo_sources(
    path: str | Path, number: int, level: float, annotated: Sequence[Source], notes: list[str]
) -> list[Source]:
    """The fields of a store that have no truth here, as a data set of its own."""
    every = open_pseudo(path, level)
    known = {_place(source.field) for source in annotated}
    fields = [one for one in every if _place(one.field) not in known]
    if left := len(every) - len(fields):
        notes.append(f"{left} fields of {path} have truth and are not pseudo-labelled")
    if not fields:
        raise InputError(f"every image of {path} has truth: there is nothing to pseudo-label")
    group = f"{PSEUDO}{number}:{ALL_TYPES}"
    return [Source(one.field, None, group, one.planes, one) for one in fields]


def _place(field: Field) -> Path:
    return field.path.resolve()


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
    raw, _ = _read_raw(source, settings)
    image = apply(raw, _measured(raw, settings))
    return image, _truth(source, (raw.shape[1], raw.shape[2]))


def _truth(source: Source, shape: tuple[int, int]) -> Instances:
    assert source.annotations is not None, "pseudo-labels are no truth"
    return source.annotations.read(source.field.id, shape)


def _read_raw(source: Source, settings: TrainSettings) -> tuple[np.ndarray, bool]:
    """The image (C, Y, X) with the channels that the network takes; whether they are stains."""
    if source.field.fault:
        raise InputError(source.field.fault)
    image = load_image(source.field.source, source.planes)
    raw = image.region(slice(None), slice(None))
    check_usable(raw)
    fitted = fit_channels(raw, settings.in_channels, colour=image.colour)
    return fitted, len(raw) > 1 and not image.colour


def _measured(raw: np.ndarray, settings: TrainSettings) -> Normalisation:
    return measure(raw, settings.low_percentile, settings.high_percentile)


def share_of(sources: Sequence[Source], share: float, seed: int) -> tuple[Source, ...]:
    """Return a share of the annotated fields of each group, in order, at least one of each.

    Which ones depends on `seed` and, within a group, on the ids alone; a larger share holds
    every smaller one.

    >>> fields = [Source(Field(name, None), None, name[0]) for name in ("a1", "a2", "a3", "b1")]
    >>> [len(share_of(fields, share, seed=0)) for share in (0.1, 0.5, 1.0)]
    [2, 3, 4]
    """
    if share >= 1:
        return tuple(sources)
    groups: dict[str, list[int]] = {}
    for index in sorted(range(len(sources)), key=lambda index: sources[index].field.id):
        groups.setdefault(sources[index].group, []).append(index)
    taken = {index for index, source in enumerate(sources) if source.pseudo is not None}
    for members in groups.values():
        order = np.random.default_rng([seed, len(members)]).permutation(members)
        count = ceil(share * len(members) - 1e-9)  # 0.07 × 100 is a little over 7
        taken.update(int(index) for index in order[:count])
    return tuple(source for index, source in enumerate(sources) if index in taken)


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
    _digests: dict[int, str] = field(default_factory=dict)
    _stains: set[int] = field(default_factory=set)

    @property
    def stains(self) -> bool:
        """Whether any field that was decoded has several channels that are no colours."""
        return bool(self._stains)

    def __len__(self) -> int:
        return len(self.sources)

    def identities(self) -> list[list[str]]:
        """Return what each field is known by when a run goes on: name, group, and content."""
        return [
            [source.identity, source.group, self._digests.get(index) or self[index].digest()]
            for index, source in enumerate(self.sources)
        ]

    def __getitem__(self, index: int) -> Example:
        if (kept := self._kept.get(index)) is not None:
            return kept
        example = self._read(index)
        size = example.nbytes
        if index not in self._digests:
            self._digests[index] = example.digest()
        with self._lock:
            if index not in self._kept and self._bytes + size <= self.cache_bytes:
                self._kept[index] = example
                self._bytes += size
        return example

    def note(self) -> str | None:
        """Return what to say of fields that memory has no room for; None where it has."""
        if (kept := len(self._kept)) == len(self):
            return None
        return (
            f"{kept} of {len(self)} fields are kept in memory ({self._bytes / 1e6:.0f} MB of "
            f"cache={self.settings.cache}); the others are decoded again whenever they are drawn"
        )

    def only(self, indices: Sequence[int]) -> Examples:
        """Return the fields at `indices`, with what is decoded of them already."""
        kept = {new: self._kept[index] for new, index in enumerate(indices) if index in self._kept}
        size = sum(each.nbytes for each in kept.values())
        sources = [self.sources[index] for index in indices]
        digests = {new: self._digests[index] for new, index in enumerate(indices)}
        stains = {new for new, index in enumerate(indices) if index in self._stains}
        return Examples(
            sources,
            self.settings,
            self.cache_bytes,
            kept,
            _bytes=size,
            _digests=digests,
            _stains=stains,
        )

    def fault(self, index: int) -> str | None:
        """Return why a field cannot be used, or None; decodes it."""
        try:
            self[index]
        except CellsegError as error:
            return str(error)
        return None

    def _read(self, index: int) -> Example:
        source = self.sources[index]
        if source.pseudo is not None:
            source.pseudo.check()
        raw, stains = _read_raw(source, self.settings)
        if stains:
            self._stains.add(index)
        image, levels = in_levels(raw, _measured(raw, self.settings))
        return Example(
            source.field.id, image, *_target(source, (raw.shape[1], raw.shape[2])), levels
        )


def _target(
    source: Source, shape: tuple[int, int]
) -> tuple[NDArray[np.integer], NDArray[np.integer] | None]:
    """The labels of a field, and its second cells where there are any."""
    if source.pseudo is not None:
        return smallest(source.pseudo.labels(shape)), None
    labels, under = layers_of(distinct(_truth(source, shape)))
    return smallest(labels), smallest(under) if under.any() else None


def distinct(truth: Instances) -> Instances:
    """Return the instances without those that are the copy of an earlier one, pixel by pixel.

    A copy would lie on top of its original and say of each of its pixels that it belongs to
    two cells.
    """
    return Instances(truth.shape, tuple({runs.tobytes(): runs for runs in truth.runs}.values()))


def smallest(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return labels from −1 on in the smallest dtype that holds them.

    >>> smallest(np.array([0, 300])).dtype, smallest(np.array([-1, 100])).dtype
    (dtype('uint16'), dtype('int8'))
    """
    signed = labels.min(initial=0) < 0
    candidates = (np.int8, np.int16, np.int32) if signed else (np.uint8, np.uint16, np.uint32)
    highest = labels.max(initial=0)
    return labels.astype(next(one for one in candidates if highest <= np.iinfo(one).max))


def usable(
    sources: Sequence[Source], settings: TrainSettings, *, cache_bytes: int | None = None
) -> tuple[Examples, tuple[Failed, ...]]:
    """Return the fields that can be decoded, and why the others cannot.

    Every field is decoded once here, so that a bad file is known before the
    first step and not hours into a run.
    """
    if cache_bytes is None:
        cache_bytes = parse_size(settings.cache, "cache")
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
