"""A field that is exported as a file per plane: which files are read, and how they fit together.

Invariant: the files stand for the planes of one stack, so that the choice of channels and z
means what it means for a stack in one file, and only files that are picked are opened.  A
channel may have fewer z planes than another: the maximum and the middle are those of its own,
and a single plane is the same for every z.  That no file is lost is known by who found the
files.  Knows no format: how a single file is looked at and opened is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cellseg_cli.errors import InputError
from cellseg_cli.images.faults import named
from cellseg_cli.images.planes import Layout, Planes, check_size, pick
from cellseg_cli.images.regions import OpenImage, held
from cellseg_cli.images.source import Source


@dataclass(frozen=True)
class OneFile:
    """What one image file holds, and its size and time."""

    layout: Layout
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Assembled:
    """What all files of a field hold together; ``channels`` are those that are picked."""

    layout: Layout
    channels: tuple[int, ...]
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class _Picked:
    """The files to read: those of the z planes of each picked channel, and the choice in each."""

    stacks: tuple[tuple[Path, ...], ...]
    channels: tuple[int, ...]
    within: Planes

    @property
    def first(self) -> Path:
        return self.stacks[0][0]


_AGAIN = "copy or export the field again"

Look: TypeAlias = Callable[[Path], OneFile]
Open: TypeAlias = Callable[[Path, Planes], AbstractContextManager[OpenImage]]


def header(source: Source, planes: Planes, look: Look) -> Assembled:
    """What the files hold; one of them is looked into, and all are looked for.

    Raises
    ------
    InputError
        A file is not there, two stand for one plane, planes are missing, or the choice is
        missing or not there.
    LimitError
        The image would be too large.
    """
    picked = _picked(source, planes, look)
    sizes, times = [], []
    for one in source.files:
        with named(Path(one.path)):
            status = Path(one.path).stat()
        sizes.append(status.st_size)
        times.append(status.st_mtime_ns)
    inside = look(picked.first).layout
    with named(picked.first):
        within = pick(inside, picked.within)
        _check_channels(len(within.channels) - within.drops_opaque)
    layout = _layout(source, inside.yx, inside.dtype)
    with named(source.path):
        check_size(layout, len(picked.channels))
    return Assembled(layout, picked.channels, sum(sizes), max(times))


@contextmanager
def opened(source: Source, planes: Planes, look: Look, open_file: Open) -> Iterator[OpenImage]:
    """The image (C, Y, X) of the picked files, z planes projected as ``planes`` says.

    Raises
    ------
    InputError
        As :func:`header`; files that differ in size or dtype, both named; also when a region
        is read.
    """
    picked = _picked(source, planes, look)
    with open_file(picked.first, picked.within) as first:
        with named(picked.first):
            _check_channels(first.shape[0])
        with named(source.path):
            layout = _layout(source, first.shape[1:], first.dtype)
            check_size(layout, len(picked.channels))

        def read(rows: slice, columns: slice) -> np.ndarray:
            shape = (len(picked.stacks), rows.stop - rows.start, columns.stop - columns.start)
            values = np.empty(shape, first.dtype)
            for out, paths in zip(values, picked.stacks, strict=True):
                for number, path in enumerate(paths):
                    with _plane(path, picked, first, open_file) as image:
                        plane = image.region(rows, columns)[0]
                    np.copyto(out, plane if number == 0 else np.maximum(out, plane))
            return values

        shape = (len(picked.stacks), *first.shape[1:])
        if first.by_region:
            yield OpenImage(shape, first.dtype, by_region=True, read=read)
        else:
            yield held(read(slice(0, shape[1]), slice(0, shape[2])))


@contextmanager
def _plane(path: Path, picked: _Picked, first: OpenImage, open_file: Open) -> Iterator[OpenImage]:
    """One file, which must be like the first one."""
    if path == picked.first:
        yield first
        return
    with open_file(path, picked.within) as image:
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise InputError(
                f"{path}: is {_size(image)}, but {picked.first} of the same field is "
                f"{_size(first)}; {_AGAIN}"
            )
        yield image


def _size(image: OpenImage) -> str:
    channels, height, width = image.shape
    beside = "" if channels == 1 else f" × {channels} channels"
    return f"{height}×{width} px{beside} of {image.dtype.name}"


def _check_channels(channels: int) -> None:
    if channels != 1:
        raise InputError(
            f"is one of the files of a field, a plane each, but has {channels} channels; "
            "export it as single planes"
        )


def _picked(source: Source, planes: Planes, look: Look) -> _Picked:
    """Which files are read, as the choice of channels and z says."""
    with named(source.path):
        paths = _paths(source)
        channels, depth = (1 + max(numbers) for numbers in zip(*paths, strict=True))
        z = planes.z if depth > 1 else None
        chosen = pick(
            Layout("CZ", (channels, depth), np.dtype(np.uint8)), Planes(planes.channel, z)
        )
        stacks = tuple(_stack(paths, channel, z) for channel in chosen.channels)
    first = stacks[0][0]
    t = planes.t
    if t is not None and _is_of_one_time(look(first).layout):
        t = None  # it chose the field, not a plane of its files
    return _Picked(stacks, chosen.channels, Planes(None, None if depth > 1 else planes.z, t))


def _is_of_one_time(layout: Layout) -> bool:
    return layout.size("T") == 1 and prod(layout.shape) == layout.size("ZCSYX")


def _paths(source: Source) -> dict[tuple[int, int], Path]:
    """The file of each channel and z."""
    paths: dict[tuple[int, int], Path] = {}
    for one in source.files:
        key = (one.channel, one.z)
        if key in paths:
            raise InputError(
                f"{one.path} and {paths[key]} are both channel {one.channel}, z {one.z} of "
                "one field; leave one out with --exclude"
            )
        paths[key] = Path(one.path)
    return paths


def _stack(paths: dict[tuple[int, int], Path], channel: int, z: str | None) -> tuple[Path, ...]:
    """The files of the picked z planes of a channel."""
    own = sorted(number for c, number in paths if c == channel)
    if not own:
        raise InputError(f"is incomplete: there is no file of channel {channel}; {_AGAIN}")
    if z == "max":
        return tuple(paths[channel, number] for number in own)
    if z == "mid" or len(own) == 1:
        return (paths[channel, own[len(own) // 2]],)
    if int(z or 0) not in own:
        raise InputError(f"is incomplete: there is no file of channel {channel}, z {z}; {_AGAIN}")
    return (paths[channel, int(z or 0)],)


def _layout(source: Source, yx: tuple[int, int], dtype: np.dtype) -> Layout:
    """What the files hold, as if they were one stack."""
    channels = 1 + max(one.channel for one in source.files)
    z = 1 + max(one.z for one in source.files)
    if z == 1:
        return Layout("CYX", (channels, *yx), dtype)
    return Layout("CZYX", (channels, z, *yx), dtype)
