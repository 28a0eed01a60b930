"""Decode TIFF, OME-TIFF, ImageJ TIFF and their kin, of any compression, one field a file.

Invariant: what is returned is whole.  tifffile mends what it can and only logs it (a broken
chain of pages becomes a shorter stack, an empty strip becomes zeros); here those are errors.
Other files of a multi-file OME-TIFF are never opened: each file is its own field.  Pages that
the file marks as reduced copies (thumbnails, pyramid levels) are not images of their own and
are passed over; any other second series is an error that names all.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cellseg_cli.errors import CellsegError, InputError
from cellseg_cli.images.planes import Layout, Pick, Planes, pick, without_opaque

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: What tifffile and its codecs raise on bytes that are no valid TIFF; collected by cutting and
#: flipping the bytes of valid files.
FAULTS = (
    ValueError,
    RuntimeError,
    struct.error,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    OSError,
)
_AGAIN = "copy or export it again"
_PHOTOMETRIC = tifffile.PHOTOMETRIC
_COLOURLESS = (_PHOTOMETRIC.MINISWHITE, _PHOTOMETRIC.MINISBLACK, _PHOTOMETRIC.RGB)
#: Formats whose colour maps paint intensities on the screen and are not the data.
_MICROSCOPE_FLAGS = ("is_imagej", "is_ome", "is_metaseries", "is_stk", "is_lsm", "is_micromanager")


class _Overheard(logging.Handler):
    """Keeps tifffile's log messages, per thread, and so keeps them from stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        messages = getattr(self._local, "messages", None)
        if messages is not None:
            messages.append(record.getMessage())

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Collect the messages of this thread until the block ends."""
        messages: list[str] = []
        self._local.messages = messages
        try:
            yield messages
        finally:
            self._local.messages = None


_OVERHEARD = _Overheard()
logging.getLogger("tifffile").addHandler(_OVERHEARD)


@dataclass(frozen=True)
class _Source:
    """An open TIFF and the one series of it that is the field.

    ``leading`` counts the axes that run over pages; ``colours`` is the palette, (N, 3) uint8.
    """

    file: tifffile.TiffFile
    series: tifffile.TiffPageSeries
    layout: Layout
    leading: int
    colours: np.ndarray | None


def tiff_header(path: Path, planes: Planes) -> tuple[Layout, Pick]:
    """Return the layout as stored, and what ``planes`` picks of it; no pixels are decoded."""
    with _opened(path) as source:
        return source.layout, pick(source.layout, planes)


def tiff_pixels(path: Path, planes: Planes) -> np.ndarray:
    """Return the picked planes, (C, Y, X).

    Only the pages that are picked are decoded, one at a time.

    Raises
    ------
    InputError
        Not a TIFF, damaged, truncated, more than one image, no choice of plane, or colours
        that are not read.
    """
    with _opened(path) as source:
        picked = pick(source.layout, planes)
        samples = picked.layout.size("S")
        image = np.empty((len(picked.channels), *picked.layout.yx), picked.layout.dtype)
        for c in sorted({channel // samples for channel in picked.channels}):
            plane = _projection(source, picked, c)
            for position, channel in enumerate(picked.channels):
                if channel // samples == c:
                    image[position] = plane[channel % samples]
    return without_opaque(image, picked)


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    """Open the file; whatever tifffile raises inside becomes an InputError."""
    with _OVERHEARD.listening() as messages:
        try:
            with tifffile.TiffFile(path, _multifile=False) as file:
                source = _source(file)
                _check_chain(file, source, messages)
                yield source
        except CellsegError:
            raise
        except FAULTS as fault:
            reason = " ".join(str(fault).split()) or type(fault).__name__
            raise InputError(f"TIFF is damaged: {reason}; {_AGAIN}") from fault


def _source(file: tifffile.TiffFile) -> _Source:
    series = _only_series(file)
    keyframe = series.keyframe
    colours = _colours(file, keyframe)
    _check_colours(keyframe)
    if series.dtype.kind not in "buif":
        raise InputError(f"TIFF holds {series.dtype} values, which are not intensities")
    dtype = np.dtype(np.uint8) if series.dtype.kind == "b" or colours is not None else series.dtype
    axes, shape = series.axes, tuple(series.shape)
    if colours is not None:
        axes, shape = axes + "S", (*shape, 3)
    alpha = bool(keyframe.extrasamples) and int(keyframe.extrasamples[-1]) in (1, 2)
    leading = len(series.shape) - len(keyframe.shape)
    return _Source(file, series, Layout(axes, shape, dtype, alpha), leading, colours)


def _only_series(file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    if not file.series:
        raise InputError("TIFF holds no image")
    full = [series for series in file.series if not series.keyframe.is_reduced]
    if len(full) == 1:
        return full[0]
    held = full or list(file.series)
    if len(held) == 1:
        return held[0]
    named = ", ".join(
        f"{series.name or number} ({Layout(series.axes, series.shape, series.dtype)})"
        for number, series in enumerate(held)
    )
    raise InputError(
        f"TIFF holds {len(held)} images: {named}; save the one you want as a file of its own"
    )


def _check_chain(file: tifffile.TiffFile, source: _Source, messages: list[str]) -> None:
    """Refuse a stack that tifffile has shortened without raising."""
    series, layout = source.series, source.layout
    there = prod(layout.shape[: source.leading])
    if file.is_imagej:
        promised = int((file.imagej_metadata or {}).get("images", 1))
        if promised > there and promised > len(file.pages):
            raise InputError(
                f"TIFF is truncated: its ImageJ header promises {promised} planes, "
                f"{len(file.pages)} are there; {_AGAIN}"
            )
    if not series.is_truncated:
        len(file.pages)  # walks the whole chain, so that a break in it is overheard
    # What the list of pages itself logs are breaks in its chain.
    if any(message.startswith("<tifffile.TiffPages") for message in messages):
        raise InputError(
            f"TIFF is truncated: its list of pages breaks off after {len(file.pages)}; {_AGAIN}"
        )
    missing = sum(page is None for page in series) if not series.is_truncated else 0
    if missing:
        raise InputError(f"TIFF is incomplete: {missing} of its {there} planes are missing")


def _check_colours(keyframe: tifffile.TiffPage) -> None:
    """Refuse colour models that tifffile hands over unconverted."""
    photometric = keyframe.photometric
    jpeg = keyframe.compression in (6, 7, 34892)  # old JPEG, JPEG, lossy JPEG of DNG
    converted = photometric == _PHOTOMETRIC.YCBCR and jpeg
    if photometric in _COLOURLESS or photometric == _PHOTOMETRIC.PALETTE or converted:
        return
    name = getattr(photometric, "name", str(photometric))
    raise InputError(
        f"TIFF has colours of a kind that is not read ({name}); save it as RGB or grey"
    )


def _colours(file: tifffile.TiffFile, keyframe: tifffile.TiffPage) -> np.ndarray | None:
    """Return the palette if it is the data, (N, 3) uint8; ``None`` if values are intensities.

    A map that rises with the index in each of its colours is a false-colour table of the
    display, as microscopes write it; so is any map of the formats of microscopes.
    """
    if keyframe.photometric != _PHOTOMETRIC.PALETTE or keyframe.colormap is None:
        return None
    table = np.asarray(keyframe.colormap)
    if any(getattr(file, flag) for flag in _MICROSCOPE_FLAGS):
        return None
    if (np.diff(table.astype(np.int32), axis=1) >= 0).all():
        return None
    return (table.T >> 8).astype(np.uint8)


def _projection(source: _Source, picked: Pick, c: int) -> np.ndarray:
    """Return one channel, (S, Y, X), the maximum over the picked z planes."""
    result = _plane(source, picked, {"T": picked.t, "C": c, "Z": picked.z[0]})
    for z in picked.z[1:]:
        result = np.maximum(result, _plane(source, picked, {"T": picked.t, "C": c, "Z": z}))
    return result


def _plane(source: _Source, picked: Pick, index: dict[str, int]) -> np.ndarray:
    """Return one plane, (S, Y, X), in the layout's dtype."""
    axes, shape = picked.layout.axes, picked.layout.shape
    leading = source.leading
    at = tuple(index.get(axis, 0) for axis in axes[:leading])
    number = int(np.ravel_multi_index(at, shape[:leading])) if leading else 0
    values = _converted(_page(source, number), source)
    rest = axes[leading:]
    values = values[tuple(slice(None) if a in "YXS" else index.get(a, 0) for a in rest)]
    kept = "".join(axis for axis in rest if axis in "YXS")
    if "S" not in kept:
        values, kept = values[np.newaxis], "S" + kept
    return values.transpose([kept.index(axis) for axis in "SYX"])


def _page(source: _Source, number: int) -> np.ndarray:
    """Return the values of one page as stored, in the shape of the series' page."""
    series = source.series
    if series.is_truncated:
        return _contiguous_page(source, number)
    page: Any = series[number]
    if page is None:
        raise InputError(f"TIFF is incomplete: its plane {number} is missing")
    size = source.file.filehandle.size
    counts = np.asarray(page.databytecounts, np.int64)
    ends = np.asarray(page.dataoffsets, np.int64) + counts
    if len(ends) == 0 or int(ends.max()) > size:
        end = int(ends.max()) if len(ends) else 0
        raise InputError(
            f"TIFF is truncated: its pixels reach to byte {end}, "
            f"the file ends at byte {size}; {_AGAIN}"
        )
    empty = int((counts == 0).sum())
    if empty:
        raise InputError(
            f"TIFF is incomplete: {empty} of the {len(counts)} blocks of its pixels are empty; "
            f"{_AGAIN}"
        )
    values: np.ndarray = page.asarray(maxworkers=1)
    return values.reshape(series.shape[source.leading :])


def _contiguous_page(source: _Source, number: int) -> np.ndarray:
    """Return a page of a stack that has one directory entry for all its planes."""
    series, handle = source.series, source.file.filehandle
    if series.dataoffset is None:
        raise InputError("TIFF is of a kind that is not read (compressed planes without entries)")
    shape = series.keyframe.shape
    count = prod(shape)
    handle.seek(series.dataoffset + number * count * series.dtype.itemsize)
    stored = series.dtype.newbyteorder(source.file.byteorder)
    data = handle.read(count * stored.itemsize)
    if len(data) < count * stored.itemsize:
        raise InputError(f"TIFF is truncated: it ends within its plane {number}; {_AGAIN}")
    return np.frombuffer(data, stored).reshape(shape).astype(series.dtype)


def _converted(values: np.ndarray, source: _Source) -> np.ndarray:
    """Apply palette and polarity, so that larger is brighter; 1-bit becomes 0 and 255."""
    if source.colours is not None:
        if int(values.max(initial=0)) >= len(source.colours):
            raise InputError(
                f"TIFF is damaged: value {values.max()} is beyond its palette of "
                f"{len(source.colours)} colours; {_AGAIN}"
            )
        return source.colours[values]
    keyframe = source.series.keyframe
    white_is_zero = keyframe.photometric == _PHOTOMETRIC.MINISWHITE
    if values.dtype.kind == "b":
        return np.where(values != white_is_zero, np.uint8(255), np.uint8(0))
    if white_is_zero and values.dtype.kind == "u":
        return values.dtype.type(2 ** int(keyframe.bitspersample) - 1) - values
    return values
