"""Read OME-Zarr that lies on this machine: images, and plates as high-content screens keep them.

Taken are version 0.4 (zarr 2) and 0.5 (zarr 3), and what 0.1 to 0.3 wrote alike: level 0 of the
one multiscales image of a group, axes t, c, z, y, x or some of them, y and x always.

Invariants: the metadata is not trusted.  A path in it never leads out of its folder (links on
the disk are followed, as everywhere), sizes are checked before memory is taken, and only codecs
that cannot run code are used.

A chunk that is not there stands for the fill value, as the standard says: writers leave out
chunks that are empty, so that a lost one cannot be told from these.  An image without a single
chunk is refused; a chunk that is there and damaged is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cellseg_cli import arrays
from cellseg_cli.errors import InputError, LimitError
from cellseg_cli.images.faults import named
from cellseg_cli.images.planes import Layout, Pick, Planes, pick
from cellseg_cli.images.regions import OpenImage, held
from cellseg_cli.images.source import Place
from cellseg_cli.images.zarr_chunks import ChunkChecker
from cellseg_cli.images.zarr_nodes import ArrayNode, attributes_of, node_at

#: Most bytes of one chunk as decoded; the usual ones have less than 32 MiB.
MAX_CHUNK_BYTES = 1 << 30
_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_AGAIN = "copy or export it again"


@dataclass(frozen=True)
class ZarrImage:
    """One image of an OME-Zarr folder.

    Attributes
    ----------
    relative
        POSIX path of its group relative to the folder; ``"."`` where the folder is the image.
    place
        Where on a plate it was taken; None for images that are not of a plate.
    fault
        Why it cannot be used: of a well whose fields are not known the only entry.
    """

    relative: str
    place: Place | None
    fault: str | None = None


@dataclass(frozen=True)
class ImageMetadata:
    """What the metadata of an image says.

    Attributes
    ----------
    array
        Folder of the array of level 0.
    node
        Its shape, type and chunks.
    layout
        The axes as the planes of an image.
    channel_names
        One per channel, or empty.
    """

    array: Path
    node: ArrayNode
    layout: Layout
    channel_names: tuple[str, ...]


def looks_like_zarr(folder: Path) -> bool:
    """Whether the folder has the metadata file of a zarr group or array, of either format."""
    return any((folder / name).is_file() for name in _METADATA)


def images_in(folder: Path) -> tuple[ZarrImage, ...]:
    """The image that the group ``folder`` is, or the images of all fields if it is a plate.

    Of a folder that Bio-Formats wrote (``bioformats2raw``) all its series.

    Raises
    ------
    InputError
        It is neither; the metadata of the plate is damaged, or has paths that lead out of the
        folder.  What is wrong with one well costs that well: it is an image with a fault.
    """
    with named(folder):
        attributes = attributes_of(folder)
        if "plate" in attributes:
            return tuple(_fields_of(folder, attributes["plate"]))
        if "multiscales" in attributes:
            return (ZarrImage(".", None),)
        if "bioformats2raw.layout" in attributes:
            return tuple(ZarrImage(name, None) for name in _series_in(folder))
        if "well" in attributes:
            raise InputError("is one well of an OME-Zarr plate; give the plate")
        raise InputError("is zarr, but neither an OME-Zarr image nor a plate")


def read_metadata(folder: Path) -> ImageMetadata:
    """What the metadata of an image group says; no chunk is read.

    Raises
    ------
    InputError
        It is no image, holds several, is damaged, or of a kind that is not read; the message
        is without the path of the folder.
    LimitError
        Its chunks are larger than :data:`MAX_CHUNK_BYTES`.
    """
    attributes = attributes_of(folder)
    multiscales = attributes.get("multiscales")
    if not isinstance(multiscales, list) or not multiscales:
        raise InputError("is zarr, but no OME-Zarr image")
    if len(multiscales) > 1:
        names = ", ".join(str(one.get("name", n)) for n, one in enumerate(_objects(multiscales)))
        raise InputError(f"holds {len(multiscales)} images: {names}; save them as images of one")
    (image,) = _objects(multiscales)
    levels = _objects(image.get("datasets"))
    if not levels:
        raise InputError(f"OME-Zarr is damaged: its image has no levels; {_AGAIN}")
    array = folder / inside(levels[0].get("path"))
    node = node_at(array)
    _check_chunks(node)
    layout = Layout(_axes(image.get("axes"), len(node.shape)), node.shape, node.shown_dtype)
    return ImageMetadata(array, node, layout, _channel_names(attributes, layout.size("C")))


def identity(folder: Path, found: ImageMetadata) -> tuple[int, int]:
    """The bytes of all chunks and metadata files of an image, and the latest time among them, ns.

    Raises
    ------
    InputError
        It has no chunk.
    """
    own = list(_files(found.array, deep=True))
    if all(entry.name in _METADATA for entry in own):
        raise _without_chunks()
    group = [entry for entry in _files(folder, deep=False) if entry.name in _METADATA]
    statuses = [entry.stat() for entry in (*group, *own)]
    return sum(one.st_size for one in statuses), max(one.st_mtime_ns for one in statuses)


def open_field(folder: Path, planes: Planes) -> OpenImage:
    """The picked planes of an image group, to be read by region, chunk by chunk.

    An image whose planes are one chunk each is read whole here.

    Raises
    ------
    InputError
        As :func:`read_metadata`; also when a region is read: its chunks are damaged.
    """
    found = read_metadata(folder)
    picked = pick(found.layout, planes)
    if all(entry.name in _METADATA for entry in _files(found.array, deep=True)):
        raise _without_chunks()
    with _faults_told():
        block = _checked(found, arrays.open_foreign(found.array, found.node.zarr_format))

    def read(rows: slice, columns: slice) -> np.ndarray:
        with _faults_told():
            return _values(found, picked, (rows, columns), block)

    shape = (len(picked.channels), *picked.layout.yx)
    if all(_chunk(found, axis) >= found.layout.size(axis) for axis in "YX"):
        return held(read(slice(0, shape[1]), slice(0, shape[2])))
    return OpenImage(shape, found.layout.dtype, by_region=True, read=read)


def inside(path: object) -> PurePosixPath:
    """The path of a node as metadata gives it, relative to its group.

    Raises
    ------
    InputError
        It is no text, absolute, or leads out of the group.
    """
    text = path if isinstance(path, str) else ""
    parts = text.split("/")
    if not text or "\\" in text or ":" in text or any(part in ("", ".", "..") for part in parts):
        raise InputError(
            f"OME-Zarr has the path {path!r} in its metadata, which is no path within it; {_AGAIN}"
        )
    return PurePosixPath(text)


def _fields_of(folder: Path, plate: object) -> Iterator[ZarrImage]:
    """The images of all wells of a plate, in the order of its metadata."""
    known: dict[str, Any] = plate if isinstance(plate, dict) else {}
    wells = _objects(known.get("wells"))
    if not wells:
        raise InputError("OME-Zarr plate has no wells")
    name = known.get("name")
    shown = name if isinstance(name, str) and name else folder.name.split(".")[0]
    for well in wells:
        path = inside(well.get("path"))
        if len(path.parts) != 2:
            raise InputError(f"OME-Zarr plate has a well {path}, which is no row/column")
        row, column = path.parts
        try:
            with named(folder / path):
                fields = _fields_in_well(folder / path)
        except InputError as fault:
            yield ZarrImage(str(path), None, str(fault))
            continue
        for field in fields:
            yield ZarrImage(str(path / field), Place(shown, row, column, str(field)))


def _fields_in_well(folder: Path) -> list[PurePosixPath]:
    """The paths of the images of one well, relative to it."""
    well = attributes_of(folder).get("well")
    images = _objects(well.get("images") if isinstance(well, dict) else None)
    if not images:
        raise InputError(f"OME-Zarr well has no fields; {_AGAIN}")
    return [inside(image.get("path")) for image in images]


def _series_in(folder: Path) -> Iterator[str]:
    """The series of a folder that Bio-Formats wrote: those it lists, or 0, 1, … that are there."""
    listed = attributes_of(folder / "OME").get("series") if (folder / "OME").is_dir() else None
    if isinstance(listed, list) and listed:
        yield from (str(inside(name)) for name in listed)
        return
    number = 0
    while looks_like_zarr(folder / str(number)):
        yield str(number)
        number += 1
    if not number:
        raise InputError(f"OME-Zarr holds no series; {_AGAIN}")


def _axes(given: object, count: int) -> str:
    """One letter per axis of the array."""
    if given is None and count == 5:  # versions 0.1 and 0.2
        return "TCZYX"
    axes = [_letter(axis) for axis in given] if isinstance(given, list) else []
    if len(axes) != count or len(set(axes)) < count or not {"Y", "X"} <= set(axes):
        raise InputError(
            f"OME-Zarr has an array of {count} axes, called {given}; they must be some of "
            "t, c, z, y, x, each once"
        )
    return "".join(axes)


def _letter(axis: object) -> str:
    """T, C, Z, Y or X; another text for what is none of these."""
    name = axis.get("name") if isinstance(axis, dict) else axis
    kind = axis.get("type") if isinstance(axis, dict) else None
    if isinstance(name, str) and name.upper() in ("T", "C", "Z", "Y", "X"):
        return name.upper()
    return {"time": "T", "channel": "C"}.get(str(kind), "")


def _channel_names(attributes: dict[str, Any], count: int) -> tuple[str, ...]:
    """The names of the channels, where there is one for each."""
    omero = attributes.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list):
        return ()
    names = [one.get("label") if isinstance(one, dict) else None for one in channels]
    texts = tuple(name for name in names if isinstance(name, str))
    return texts if len(texts) == len(names) == count else ()


def _objects(values: object) -> list[dict[str, Any]]:
    """The JSON objects of a list; empty where it is none."""
    if not isinstance(values, list):
        return []
    if not all(isinstance(one, dict) for one in values):
        raise InputError(f"OME-Zarr is damaged: a list of its metadata has no objects; {_AGAIN}")
    return values


def _check_chunks(node: ArrayNode) -> None:
    size = prod(node.chunks) * node.dtype.itemsize
    if size > MAX_CHUNK_BYTES:
        raise LimitError(
            f"has chunks of {size} bytes, the limit (MAX_CHUNK_BYTES) is {MAX_CHUNK_BYTES}; "
            "save it with smaller chunks"
        )


def _files(folder: Path, *, deep: bool) -> Iterator[os.DirEntry[str]]:
    """The files in a folder, and with ``deep`` those in all folders below it."""
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry
                elif deep:
                    pending.append(entry.path)


def _without_chunks() -> InputError:
    return InputError(f"OME-Zarr is incomplete: there is no chunk of its pixels; {_AGAIN}")


def _faults_told() -> AbstractContextManager[None]:
    """Turn whatever zarr and its codecs raise into an InputError."""
    return arrays.foreign_faults(
        lambda reason: InputError(f"OME-Zarr is damaged: {reason}; {_AGAIN}")
    )


def _checked(found: ImageMetadata, block: arrays.ReadBlock) -> arrays.ReadBlock:
    """What reads blocks, after a look at the chunks if they are compressed."""
    if not found.node.codec:
        return block
    checker = ChunkChecker(found.array, found.node)

    def read_block(where: tuple[slice, ...]) -> np.ndarray:
        checker.check(where)
        return block(where)

    return read_block


def _chunk(found: ImageMetadata, axis: str) -> int:
    """Length of a chunk along an axis; 1 where there is none."""
    at = found.layout.axes.find(axis)
    return found.node.chunks[at] if at >= 0 else 1


def _values(
    found: ImageMetadata, picked: Pick, region: arrays.Region, block: arrays.ReadBlock
) -> np.ndarray:
    """A region of the picked planes, (C, y, x): those of one chunk are read together."""
    rows, columns = region
    shape = (len(picked.channels), rows.stop - rows.start, columns.stop - columns.start)
    image = np.empty(shape, found.layout.dtype)
    for channels in _together(picked.channels, _chunk(found, "C")):
        known = {"T": slice(picked.t, picked.t + 1), "C": _span(channels)}
        projection = None
        for z in _together(picked.z, _chunk(found, "Z")):
            wanted = {**known, "Z": _span(z), "Y": rows, "X": columns}
            values = block(tuple(wanted[axis] for axis in found.layout.axes))
            stack = _as_czyx(values, found.layout.axes).max(axis=1)
            projection = stack if projection is None else np.maximum(projection, stack)
        assert projection is not None
        for position, channel in enumerate(picked.channels):
            if channel in channels:
                image[position] = projection[channel - min(channels)]
    return image


def _together(numbers: Sequence[int], chunk: int) -> list[list[int]]:
    """Numbers in groups that share a chunk."""
    groups: dict[int, set[int]] = {}
    for number in numbers:
        groups.setdefault(number // chunk, set()).add(number)
    return [sorted(group) for group in groups.values()]


def _span(numbers: Sequence[int]) -> slice:
    return slice(min(numbers), max(numbers) + 1)


def _as_czyx(values: np.ndarray, axes: str) -> np.ndarray:
    """Values of one time point as (C, Z, Y, X), truth values as 0 and 255."""
    values = values.transpose([axes.index(axis) for axis in "TCZYX" if axis in axes])
    sizes = dict(zip([axis for axis in "TCZYX" if axis in axes], values.shape, strict=True))
    values = values.reshape([sizes.get(axis, 1) for axis in "CZYX"])
    return values * np.uint8(255) if values.dtype.kind == "b" else values
