"""Decode one field: its header, cheaply, or its pixels, whole.

The content of a file decides how it is read, never its name.  Whatever is wrong with a file
ends in one ``InputError`` (``LimitError`` for size) that begins with its path; part of an
image is never returned.  This module knows which decoder takes a file; the decoders know the
formats; what a value means is known to neither.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cellseg_cli.errors import CellsegError, InputError
from cellseg_cli.images import raster, tiff
from cellseg_cli.images.planes import MAX_PIXELS, Layout, Pick, Planes, compose, pick

__all__ = ["MAX_PIXELS", "ImageHeader", "Planes", "read_header", "read_image"]

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
        Of the file.
    planes
        Axes and lengths as stored, e.g. ``"ZCYX 5,2,512,512"``; S are the samples of a pixel.
    """

    shape: tuple[int, int]
    channels: int
    dtype: str
    size_bytes: int
    mtime_ns: int
    planes: str


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


def read_header(path: Path, planes: Planes = Planes()) -> ImageHeader:
    """Return what the header tells, with ``planes`` applied; no pixel is decoded.

    Raises
    ------
    InputError
        As :func:`read_image`, as far as the header shows it.
    LimitError
        More than :data:`MAX_PIXELS` values.
    """
    with _opened(path) as handle:
        status = os.fstat(handle.fileno())
        layout, picked = _picked(path, handle, planes)
    return ImageHeader(
        shape=picked.layout.yx,
        channels=len(picked.channels),
        dtype=layout.dtype.name,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        planes=str(layout),
    )


def read_image(path: Path, planes: Planes = Planes()) -> np.ndarray:
    """Return the image (C, Y, X), channels in the order R, G, B, in the dtype it is stored in.

    An alpha channel that is opaque everywhere is dropped unless ``planes.channel`` asks for
    it.  Palettes become RGB, 1-bit images uint8 of 0 and 255, and TIFFs where 0 is white are
    inverted, so that larger is brighter.  EXIF orientation is not applied.

    Parameters
    ----------
    path
        A PNG, JPEG, BMP or TIFF of any name.
    planes
        The choice from a stack; a stack without it is an error.

    Raises
    ------
    InputError
        Missing, unreadable, empty, not an image, truncated, damaged, several images in one
        file, or a choice of planes that is missing or not there.
    LimitError
        More than :data:`MAX_PIXELS` values; found before memory is taken.

    Notes
    -----
    Takes the memory of the result and of one plane as stored; PNG, JPEG and BMP also that of
    the file.
    """
    with _opened(path) as handle:
        kind = _kind(handle)
        if kind == "TIFF":
            return tiff.tiff_pixels(Path(path), planes)
        picked = pick(_RASTERS[kind].layout(handle), planes)
        handle.seek(0)
        pixels = _RASTERS[kind].pixels(handle.read())
        if pixels.shape != picked.layout.shape or pixels.dtype != picked.layout.dtype:
            raise InputError(
                f"{kind} is damaged: its header says {picked.layout}, its pixels are "
                f"{','.join(map(str, pixels.shape))}; copy or export it again"
            )
        plane = pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return compose(plane, picked)


def _picked(path: Path, handle: BinaryIO, planes: Planes) -> tuple[Layout, Pick]:
    kind = _kind(handle)
    if kind == "TIFF":
        return tiff.tiff_header(Path(path), planes)
    layout = _RASTERS[kind].layout(handle)
    return layout, pick(layout, planes)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file; errors inside the block get its path in front."""
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError("is a folder, not an image")
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for a writer that may never come.
            raise InputError("is not a regular file")
        with Path(path).open("rb") as handle:
            yield handle
    except CellsegError as fault:
        raise type(fault)(f"{path}: {fault}") from fault
    except OSError as fault:
        raise InputError(f"{path}: {_reason(fault)}") from fault


def _reason(fault: OSError) -> str:
    if isinstance(fault, FileNotFoundError):
        return "there is no such file"
    if isinstance(fault, PermissionError):
        return "cannot be read (permission denied); mend its permissions"
    return f"cannot be read ({fault.strerror or fault})"


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
