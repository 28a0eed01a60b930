"""Decode one field: its header, cheaply, or its pixels, whole or region by region.

A field is a file, several files of a plane each, or the folder of an OME-Zarr image.  The
content of a file decides how it is read, never its name.  Whatever is wrong with a file ends
in one ``InputError`` (``LimitError`` for size) that begins with its path; part of an image is
never returned in place of the whole.  This module knows which decoder takes a field; the
decoders know the formats; what a value means is known to neither.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cellseg_cli.errors import InputError
from cellseg_cli.images import ome_zarr, plane_files, raster, tiff
from cellseg_cli.images.faults import named
from cellseg_cli.images.plane_files import OneFile
from cellseg_cli.images.planes import MAX_PIXELS, Layout, Planes, compose, pick
from cellseg_cli.images.regions import OpenImage, held
from cellseg_cli.images.source import Source

__all__ = [
    "MAX_PIXELS",
    "ImageHeader",
    "OpenImage",
    "Planes",
    "load_image",
    "open_image",
    "read_header",
    "read_image",
]

_FORMATS = "PNG, JPEG, BMP or TIFF"
#: First bytes of what is often met in a folder of images, so that the error can name it.
_KNOWN_STARTS = (
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"ZISRAWFILE", "CZI"),
    (b"\xda\xce\xbe\x0a", "ND2"),
    (b"p\x00\x00\x00", "LIF"),
    (b"RIFF", "RIFF (WebP or AVI)"),
)


@dataclass(frozen=True)
class ImageHeader:
    """What is known of a field before its pixels are read.

    Attributes
    ----------
    shape
        Height and width, px.
    channels
        Channels picked, alpha among them: :func:`read_image` gives one less if the last is an
        alpha that turns out to be opaque everywhere.
    dtype
        NumPy name of the decoded values.
    size_bytes, mtime_ns
        Of the file; of several files the sum of the sizes and the latest time, and so of the
        chunks and the metadata of an OME-Zarr image.
    planes
        Axes and lengths as stored, e.g. ``"ZCYX 5,2,512,512"``; S are the samples of a pixel.
    channel_names
        Of the channels picked, where the image tells them.
    """

    shape: tuple[int, int]
    channels: int
    dtype: str
    size_bytes: int
    mtime_ns: int
    planes: str
    channel_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Raster:
    """How one of the plain formats is read."""

    layout: Callable[[BinaryIO], Layout]
    pixels: Callable[[bytes], np.ndarray]


_RASTERS = {
    "PNG": _Raster(raster.png_layout, raster.png_pixels),
    "JPEG": _Raster(raster.jpeg_layout, raster.jpeg_pixels),
    "BMP": _Raster(raster.bmp_layout, raster.bmp_pixels),
}


def read_header(source: Source | Path, planes: Planes = Planes()) -> ImageHeader:
    """Return what the header tells, with ``planes`` applied; no pixel is decoded.

    Of a field of several files one is opened, and all are looked for.

    Raises
    ------
    InputError
        As :func:`read_image`, as far as the header shows it.
    LimitError
        More than :data:`MAX_PIXELS` values.
    """
    source = _source(source)
    if source.files:
        found = plane_files.header(source, planes, _look)
        return _header(found.layout, len(found.channels), found.size_bytes, found.mtime_ns)
    if _is_zarr(source.path):
        return _zarr_header(source.path, planes)
    with _opened(source.path) as handle:
        one = _found(source.path, handle)
        picked = pick(one.layout, planes)
    return _header(one.layout, len(picked.channels), one.size_bytes, one.mtime_ns)


def read_image(source: Source | Path, planes: Planes = Planes()) -> np.ndarray:
    """Return the image (C, Y, X), channels in the order R, G, B, in the dtype it is stored in.

    An alpha channel that is opaque everywhere is dropped unless ``planes.channel`` asks for
    it.  Palettes become RGB, 1-bit images uint8 of 0 and 255, and TIFFs where 0 is white are
    inverted, so that larger is brighter.  EXIF orientation is not applied.

    Parameters
    ----------
    source
        A PNG, JPEG, BMP or TIFF of any name, the folder of an OME-Zarr image, or a field of
        several files.
    planes
        The choice from a stack; a stack without it is an error.

    Raises
    ------
    InputError
        Missing, unreadable, empty, not an image, truncated, damaged, several images in one
        file, files of one field that differ, or a choice of planes that is missing or not
        there.
    LimitError
        More than :data:`MAX_PIXELS` values; found before memory is taken.

    Notes
    -----
    Takes the memory of the result and of one plane as stored; PNG, JPEG and BMP also that of
    the file.
    """
    return load_image(source, planes).region(slice(None), slice(None))


def load_image(source: Source | Path, planes: Planes = Planes()) -> OpenImage:
    """Return the image that :func:`read_image` gives, in memory, with what is known of it.

    Parameters, errors and memory are those of :func:`read_image`.
    """
    source = _source(source)
    if source.files or _is_zarr(source.path):
        with open_image(source, planes) as image:
            return held(image.region(slice(None), slice(None)), colour=image.colour)
    with _opened(source.path) as handle:
        kind = _kind(handle)
        if kind == "TIFF":
            return tiff.tiff_image(source.path, planes)
        return _raster_image(kind, handle, planes)


@contextmanager
def open_image(source: Source | Path, planes: Planes = Planes()) -> Iterator[OpenImage]:
    """Open a field, of which regions are read until the end of the ``with`` statement.

    ``image.region(rows, columns)`` equals ``read_image(source, planes)[:, rows, columns]``.

    Parameters
    ----------
    source, planes
        As of :func:`read_image`.

    Raises
    ------
    InputError, LimitError
        As :func:`read_image`; also when a region is read.

    Notes
    -----
    By region, so that a region takes its own memory and that of the blocks it touches: TIFFs
    that are not compressed, TIFFs of several strips or of tiles, OME-Zarr images of several
    chunks, and fields of several such files.  Decoded whole when they are opened, and kept:
    PNG, JPEG and BMP, TIFFs of a single compressed strip, OME-Zarr images of a single chunk,
    and the rare TIFFs whose pages are no plain arrays (``image.by_region`` is false).
    """
    source = _source(source)
    if source.files:
        with plane_files.opened(source, planes, _look, open_image) as image:
            yield image
        return
    # What the body of the with statement raises is not about the file: it passes untouched.
    with ExitStack() as stack:
        yield _opened_image(source.path, planes, stack)


def _opened_image(path: Path, planes: Planes, stack: ExitStack) -> OpenImage:
    """The image of one file or OME-Zarr folder, open until the stack is closed."""
    if _is_zarr(path):
        with named(path):
            return _naming(ome_zarr.open_field(path, planes), path)
    with _opened(path) as handle:
        kind = _kind(handle)
        if kind == "TIFF":
            return _naming(tiff.open_tiff(path, planes, stack), path)
        return _raster_image(kind, handle, planes)


def _source(source: Source | Path) -> Source:
    return source if isinstance(source, Source) else Source(Path(source))


def _is_zarr(path: Path) -> bool:
    """Whether the field may be an OME-Zarr image; any other folder is none."""
    with named(path):
        return path.is_dir() and ome_zarr.looks_like_zarr(path)


def _header(layout: Layout, channels: int, size_bytes: int, mtime_ns: int) -> ImageHeader:
    return ImageHeader(
        shape=layout.yx,
        channels=channels,
        dtype=layout.dtype.name,
        size_bytes=size_bytes,
        mtime_ns=mtime_ns,
        planes=str(layout),
    )


def _naming(image: OpenImage, path: Path) -> OpenImage:
    """The image, with its path in front of what goes wrong when a region is read."""

    def read(rows: slice, columns: slice) -> np.ndarray:
        with named(path):
            return image.read(rows, columns)

    return replace(image, read=read)


def _raster_image(kind: str, handle: BinaryIO, planes: Planes) -> OpenImage:
    """A PNG, JPEG or BMP, in memory."""
    picked = pick(_RASTERS[kind].layout(handle), planes)
    handle.seek(0)
    pixels = _RASTERS[kind].pixels(handle.read())
    if pixels.shape != picked.layout.shape or pixels.dtype != picked.layout.dtype:
        raise InputError(
            f"{kind} is damaged: its header says {picked.layout}, its pixels are "
            f"{','.join(map(str, pixels.shape))}; copy or export it again"
        )
    plane = pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return held(compose(plane, picked), colour=picked.colour)


def _look(path: Path) -> OneFile:
    """What one file holds, and its size and time."""
    with _opened(path) as handle:
        return _found(path, handle)


def _found(path: Path, handle: BinaryIO) -> OneFile:
    status = os.fstat(handle.fileno())
    kind = _kind(handle)
    if kind == "TIFF":
        layout = tiff.tiff_layout(path, handle, status.st_size)
    else:
        layout = _RASTERS[kind].layout(handle)
    return OneFile(layout, status.st_size, status.st_mtime_ns)


def _zarr_header(path: Path, planes: Planes) -> ImageHeader:
    with named(path):
        found = ome_zarr.read_metadata(path)
        picked = pick(found.layout, planes)
        size_bytes, mtime_ns = ome_zarr.identity(path, found)
    header = _header(found.layout, len(picked.channels), size_bytes, mtime_ns)
    names = tuple(found.channel_names[c] for c in picked.channels if found.channel_names)
    return replace(header, channel_names=names)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file; errors inside the block get its path in front."""
    with named(path):
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError("is a folder, not an image")
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for a writer that may never come.
            raise InputError("is not a regular file")
        with path.open("rb") as handle:
            yield handle


def _kind(handle: BinaryIO) -> str:
    """Tell the format from the first bytes."""
    start = handle.read(512)
    handle.seek(0)
    if start.startswith(raster.PNG_MARK):
        return "PNG"
    if start.startswith(raster.JPEG_MARK):
        return "JPEG"
    if start.startswith(tiff.MARKS):
        return "TIFF"
    if raster.is_bmp(start):
        return "BMP"
    if not start:
        raise InputError("is empty (0 bytes)")
    raise InputError(f"is not an image: it holds {_content(start)}, not {_FORMATS}")


def _content(start: bytes) -> str:
    """Name what these first bytes are of, as well as can be told."""
    for mark, name in _KNOWN_STARTS:
        if start.startswith(mark):
            return name
    if not any(start):
        return "zeros"
    try:
        # The last character may be cut in two; three bytes less are never cut twice.
        text = start.decode() if len(start) < 512 else start[:-3].decode(errors="ignore")
    except UnicodeDecodeError:
        text = ""
    if text and all(character.isprintable() or character.isspace() for character in text):
        return "text"
    return f"unknown data (first bytes {start[:8].hex(' ')})"
