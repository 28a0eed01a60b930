"""What pretraining learns from: fields without annotations, scaled once, read region by region.

Fields are decoded by the same readers as everywhere else.  Those that memory has room for are
kept as they are stored, before scaling, which takes a byte or two per value; of the others only
the scale is kept, and each region is read from its file again.  Both give the same values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg_cli.config import PretrainSettings
from cellseg_cli.errors import CellsegError, InputError
from cellseg_cli.images.decode import load_image, open_image, read_header
from cellseg_cli.images.discover import discover
from cellseg_cli.images.normalise import (
    Normalisation,
    apply,
    fit_channels,
    survey_regions,
)
from cellseg_cli.images.planes import Planes
from cellseg_cli.images.regions import OpenImage
from cellseg_cli.images.source import Field
from cellseg_cli.training.data import CACHE_BYTES, Failed


@dataclass(frozen=True)
class Found:
    """The fields to learn from; `notes` are things worth saying once."""

    fields: tuple[Field, ...]
    notes: tuple[str, ...] = ()


def find_pictures(images: Sequence[str | Path], settings: PretrainSettings) -> Found:
    """Return the fields of some sources of images, in their order.

    Of several sources each field's id begins with the number of its source, from 0, so that two
    folders may hold files of one name.

    Raises
    ------
    InputError, ConfigError
        As :func:`cellseg_cli.images.discover.discover`.
    """
    fields: list[Field] = []
    notes: list[str] = []
    for number, source in enumerate(images):
        found = discover(
            source,
            include=settings.include,
            exclude=settings.exclude,
            pattern=settings.pattern,
            planes=_planes(settings),
        )
        notes += found.notes
        prefix = f"{number}:" if len(images) > 1 else ""
        fields += [Field(prefix + f.id, f.source, f.place, f.fault) for f in found.fields]
    return Found(tuple(fields), tuple(notes))


@dataclass
class Pictures:
    """The fields that can be used, each with its scale and the digest of its pixels.

    Safe to read from several threads.
    """

    fields: tuple[Field, ...]
    settings: PretrainSettings
    scales: tuple[Normalisation, ...]
    digests: tuple[str, ...]
    _kept: dict[str, OpenImage]

    def __len__(self) -> int:
        return len(self.fields)

    @contextmanager
    def open(self, index: int) -> Iterator[Picture]:
        """Open one field, of which regions are read until the end of the ``with`` statement."""
        chosen, scale = self.fields[index], self.scales[index]
        if (kept := self._kept.get(chosen.id)) is not None:
            yield Picture(kept, scale, self.settings.in_channels)
            return
        with open_image(chosen.source, _planes(self.settings)) as image:
            yield Picture(image, scale, self.settings.in_channels)


@dataclass(frozen=True)
class Picture:
    """One open field and its scale."""

    image: OpenImage
    scale: Normalisation
    in_channels: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.image.shape[1:]

    def region(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Return the scaled values (C, y, x) of these rows and columns.

        C is 1 where the channel is to be repeated.
        """
        values = self.image.region(rows, columns)
        if len(values) == 1:
            one = Normalisation(self.scale.low[:1], self.scale.high[:1])
            return apply(values, one)
        fitted = fit_channels(values, self.in_channels, colour=self.image.colour)
        return apply(fitted, self.scale)


def usable_pictures(
    fields: Sequence[Field], settings: PretrainSettings, *, cache_bytes: int = CACHE_BYTES
) -> tuple[Pictures, tuple[Failed, ...]]:
    """Return the fields that can be used, and why the others cannot.

    Every field is read once here, so that a bad file is known before the first step.

    Raises
    ------
    InputError
        Not one can be used.
    """
    look = _Look(settings, cache_bytes)
    with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
        found = list(pool.map(look.at, fields))
    pairs = list(zip(fields, found, strict=True))
    failed = tuple(Failed(field.id, one) for field, one in pairs if isinstance(one, str))
    if len(failed) == len(fields):
        raise InputError(
            f"not one of {len(fields)} images can be used: there is nothing to learn from; "
            f"the first: {failed[0].reason}"
        )
    good = tuple((field, one) for field, one in pairs if not isinstance(one, str))
    pictures = Pictures(
        tuple(field for field, _ in good),
        settings,
        tuple(scale for _, (scale, _) in good),
        tuple(digest for _, (_, digest) in good),
        look.kept,
    )
    return pictures, failed


@dataclass
class _Look:
    """The first look at each field, or its fault; keeps what memory has room for."""

    settings: PretrainSettings
    room_bytes: int
    kept: dict[str, OpenImage] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def at(self, one: Field) -> tuple[Normalisation, str] | str:
        """The scale of a field and the digest of its pixels, or why it cannot be used."""
        if one.fault:
            return one.fault
        try:
            return self._seen(one)
        except CellsegError as error:
            return str(error)

    def _seen(self, one: Field) -> tuple[Normalisation, str]:
        planes = _planes(self.settings)
        header = read_header(one.source, planes)
        size = header.channels * header.shape[0] * header.shape[1] * np.dtype(header.dtype).itemsize
        if not self._has_room(size):
            with open_image(one.source, planes) as image:
                return self._surveyed(image)
        try:
            image = load_image(one.source, planes)
            seen = self._surveyed(image)
        except CellsegError:
            self._has_room(-size)
            raise
        with self._lock:
            self.kept[one.id] = image
        return seen

    def _surveyed(self, image: OpenImage) -> tuple[Normalisation, str]:
        """What one look at every pixel gives, in memory or not."""
        digest = hashlib.blake2b(f"{image.dtype.str}{image.shape}".encode(), digest_size=8)

        def read(rows: slice, columns: slice) -> np.ndarray:
            values = np.ascontiguousarray(image.read(rows, columns))
            digest.update(values.data)
            return values

        settings = self.settings
        scale = survey_regions(
            dataclasses.replace(image, read=read),
            settings.in_channels,
            settings.low_percentile,
            settings.high_percentile,
        )
        return scale, digest.hexdigest()

    def _has_room(self, size: int) -> bool:
        """Take `size` bytes of the room if they are there; give them back where negative."""
        with self._lock:
            if size > self.room_bytes:
                return False
            self.room_bytes -= size
            return True


def _planes(settings: PretrainSettings) -> Planes:
    return Planes(settings.channel, settings.z, settings.t)
