"""Decode TIFF, OME-TIFF, ImageJ TIFF and their kin, of any compression, one field a file.

Invariant: what is returned is whole.  tifffile mends what it can and only logs it (a broken
chain of pages becomes a shorter stack, an empty strip becomes zeros); here those are errors.
Other files of a multi-file OME-TIFF are never opened: each file is its own field.  Pages that
the file marks as reduced copies (thumbnails, pyramid levels) are not images of their own and
are passed over; any other second series is an error that names all.  What is read by region
goes through the same conversions as what is read whole.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from cellseg_cli.errors import CellsegError, InputError
from cellseg_cli.images.planes import Layout, Pick, Planes, is_opaque, pick, without_opaque
from cellseg_cli.images.regions import OpenImage, held
from cellseg_cli.images.tiff_header import plain_layout
from cellseg_cli.images.tiff_pages import PageReader, Region

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
_ALPHA_PX = 1 << 22  # looked at in one go, to see whether an alpha is opaque
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
    reader: PageReader


def tiff_layout(path: Path, handle: BinaryIO, size_bytes: int) -> Layout:
    """Return the layout as stored; no pixels are decoded.

    The file is open already as ``handle``; what is not an ordinary page is opened again.
    """
    layout = plain_layout(handle, size_bytes)
    if layout is not None:
        return layout
    with _opened(path) as source:
        return source.layout


def tiff_image(path: Path, planes: Planes) -> OpenImage:
    """Return the picked planes, in memory.

    Only the pages that are picked are decoded, one at a time.

    Raises
    ------
    InputError
        Not a TIFF, damaged, truncated, more than one image, no choice of plane, or colours
        that are not read.
    """
    with _opened(path) as source:
        return _whole(source, pick(source.layout, planes))


def open_tiff(path: Path, planes: Planes, stack: ExitStack) -> OpenImage:
    """Open the picked planes for reading by region, until ``stack`` is closed.

    A region takes its own memory and, where the file is compressed, that of the strips or tiles
    that touch it, one at a time.  A file whose pages are each one compressed block high is
    decoded whole here, and so are kinds that only tifffile can put together.  Where an alpha
    channel may have to go, it is read here up to the first value that is not opaque.

    Raises
    ------
    InputError
        As :func:`tiff_image`; also when a region is read.
    """
    with _faults_told():
        source = _source_of(stack.enter_context(tifffile.TiffFile(path, _multifile=False)))
        picked = pick(source.layout, planes)
        if not (source.reader.by_region and _has_plain_pages(source)):
            return _whole(source, picked)
        channels = len(picked.channels)
        if picked.drops_opaque and _alpha_is_opaque(source, picked):
            channels -= 1

    def read(rows: slice, columns: slice) -> np.ndarray:
        with _faults_told():
            return _values(source, picked, Region.of(rows, columns))[:channels]

    shape = (channels, *picked.layout.yx)
    return OpenImage(shape, picked.layout.dtype, True, read, picked.colour)


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    """Open the file; whatever tifffile raises inside becomes an InputError."""
    with _faults_told(), tifffile.TiffFile(path, _multifile=False) as file:
        yield _source_of(file)


@contextmanager
def _faults_told() -> Iterator[None]:
    """Turn whatever tifffile raises into an InputError."""
    try:
        yield
    except CellsegError:
        raise
    except MemoryError as fault:
        raise InputError("TIFF asks for more memory than there is") from fault
    except FAULTS as fault:
        reason = " ".join(str(fault).split()) or type(fault).__name__
        raise InputError(f"TIFF is damaged: {reason}; {_AGAIN}") from fault


def _source_of(file: tifffile.TiffFile) -> _Source:
    """Return the one image of a file, after checking that no plane of it is lost."""
    with _OVERHEARD.listening() as messages:
        source = _source(file)
        _check_chain(file, source, messages)
    return source


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
    rgb = colours is not None or keyframe.photometric in (_PHOTOMETRIC.RGB, _PHOTOMETRIC.YCBCR)
    layout = Layout(axes, shape, dtype, alpha, rgb)
    return _Source(file, series, layout, leading, colours, PageReader(file, keyframe))


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


def _whole(source: _Source, picked: Pick) -> OpenImage:
    """Return the picked planes, in memory."""
    height, width = picked.layout.yx
    pixels = without_opaque(_values(source, picked, Region(0, height, 0, width)), picked)
    return held(pixels, colour=picked.colour)


def _values(source: _Source, picked: Pick, region: Region) -> np.ndarray:
    """Return a region of the picked planes, (C, y, x), an alpha among them."""
    samples = picked.layout.size("S")
    image = np.empty((len(picked.channels), *region.shape), picked.layout.dtype)
    for c in sorted({channel // samples for channel in picked.channels}):
        plane = _projection(source, picked, c, region)
        for position, channel in enumerate(picked.channels):
            if channel // samples == c:
                image[position] = plane[channel % samples]
    return image


def _alpha_is_opaque(source: _Source, picked: Pick) -> bool:
    """Whether the last channel is opaque everywhere; reads up to the first place where not."""
    height, width = picked.layout.yx
    rows = max(1, _ALPHA_PX // width)
    return all(
        is_opaque(_values(source, picked, Region(top, min(top + rows, height), 0, width))[-1])
        for top in range(0, height, rows)
    )


def _has_plain_pages(source: _Source) -> bool:
    """Whether the axes of a page are the last axes of the series, so that regions agree."""
    keyframe, leading = source.series.keyframe, source.leading
    shape, axes = source.series.shape[leading:], source.series.axes[leading:]
    same = tuple(shape) == tuple(keyframe.shape)
    return same and all(axes.find(axis) == keyframe.axes.find(axis) for axis in "YX")


def _projection(source: _Source, picked: Pick, c: int, region: Region) -> np.ndarray:
    """Return one channel, (S, y, x), the maximum over the picked z planes."""
    result = _plane(source, picked, {"T": picked.t, "C": c, "Z": picked.z[0]}, region)
    for z in picked.z[1:]:
        plane = _plane(source, picked, {"T": picked.t, "C": c, "Z": z}, region)
        result = np.maximum(result, plane)
    return result


def _plane(source: _Source, picked: Pick, index: dict[str, int], region: Region) -> np.ndarray:
    """Return a region of one plane, (S, y, x), in the layout's dtype."""
    axes, shape = picked.layout.axes, picked.layout.shape
    leading = source.leading
    at = tuple(index.get(axis, 0) for axis in axes[:leading])
    number = int(np.ravel_multi_index(at, shape[:leading])) if leading else 0
    values = _converted(_page(source, number, region), source)
    rest = axes[leading:]
    values = values[tuple(slice(None) if a in "YXS" else index.get(a, 0) for a in rest)]
    kept = "".join(axis for axis in rest if axis in "YXS")
    if "S" not in kept:
        values, kept = values[np.newaxis], "S" + kept
    return values.transpose([kept.index(axis) for axis in "SYX"])


def _page(source: _Source, number: int, region: Region) -> np.ndarray:
    """Return a region of one page as stored, in the axes of the series' page."""
    series, leading = source.series, source.leading
    if series.is_truncated:
        values = _contiguous_page(source, number, region)
    else:
        page: Any = series[number]
        if page is None:
            raise InputError(f"TIFF is incomplete: its plane {number} is missing")
        values = source.reader.page(page, region)
    return values.reshape(region.shaped(series.axes[leading:], series.shape[leading:]))


def _contiguous_page(source: _Source, number: int, region: Region) -> np.ndarray:
    """Return a region of a page of a stack with one directory entry for all its planes."""
    series, handle = source.series, source.file.filehandle
    if series.dataoffset is None:
        raise InputError("TIFF is of a kind that is not read (compressed planes without entries)")
    page_bytes = prod(series.keyframe.shape) * series.dtype.itemsize
    start = series.dataoffset + number * page_bytes
    if start + page_bytes > handle.size:
        raise InputError(f"TIFF is truncated: it ends within its plane {number}; {_AGAIN}")
    return source.reader.rows(start, region)


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
