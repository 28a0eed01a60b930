"""Decode PNG, JPEG and BMP: layout from the header, pixels only if the file is whole.

Invariant: a file that is cut short or whose checksums fail gives an error and never a partly
grey image, and no C library writes on stderr.  PNG and JPEG are therefore decoded by
imagecodecs (its errors come as exceptions; OpenCV's come as text on stderr, and for a JPEG not
even always as a failure), after the container has been walked here; an uncompressed BMP is
unpacked by NumPy.  What this cannot see: a JPEG has no checksums, so bytes changed in its
middle decode to changed pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np

from cellseg_cli.errors import InputError
from cellseg_cli.images.planes import Layout

PNG_MARK = b"\x89PNG\r\n\x1a\n"
JPEG_MARK = b"\xff\xd8\xff"
BMP_MARK = b"BM"
#: Sizes of the known BMP headers (core, info and its versions 2 to 5); tells BMP from text.
_BMP_HEADERS = (12, 40, 52, 56, 108, 124)
#: PNG colour type → samples per pixel as decoded (a palette becomes RGB).
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
#: Within entropy-coded data FF is followed by 00 or a restart mark; anything else ends it.
_JPEG_NEXT_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_AGAIN = "copy or export it again"


def is_bmp(start: bytes) -> bool:
    """Return whether these first bytes (18 or more) are of a BMP."""
    known = len(start) >= 18 and struct.unpack_from("<I", start, 14)[0] in _BMP_HEADERS
    return start.startswith(BMP_MARK) and known


# -- PNG ------------------------------------------------------------------------------------


def png_layout(handle: BinaryIO) -> Layout:
    """Return the layout of a PNG; reads chunk heads up to the first pixels.

    Palettes become RGB(A) and 1-, 2- and 4-bit grey the full range of uint8.
    """
    samples, alpha, height, width, depth = 0, False, 0, 0, 8
    handle.seek(len(PNG_MARK))
    while True:
        head = _exactly(handle, 8, "PNG")
        length, name = struct.unpack(">I4s", head)
        if name == b"IHDR" and length == 13:
            width, height, depth, colour = struct.unpack(">IIBB", _exactly(handle, 10, "PNG"))
            samples, alpha = _PNG_SAMPLES.get(colour, 0), colour in (4, 6)
            handle.seek(length - 10 + 4, 1)
            continue
        if not samples:
            raise InputError(f"PNG is damaged: no usable IHDR chunk at its start; {_AGAIN}")
        if name == b"acTL":
            _refuse_animation(_exactly(handle, 4, "PNG"))
            length -= 4
        if name == b"tRNS":
            samples, alpha = samples + 1, True
        if name == b"IDAT":
            dtype = np.dtype(np.uint16 if depth == 16 else np.uint8)
            return _layout(height, width, samples, dtype, alpha)
        handle.seek(length + 4, 1)


def _refuse_animation(start: bytes) -> None:
    frames = struct.unpack(">I", start)[0]
    if frames > 1:
        raise InputError(f"PNG is an animation of {frames} frames; export them as single images")


def png_pixels(data: bytes) -> np.ndarray:
    """Return the pixels (Y, X) or (Y, X, S) of a PNG whose every chunk has been checked."""
    import imagecodecs

    return _decoded("PNG", imagecodecs.png_decode, _checked_png(data))


def _checked_png(data: bytes) -> bytes:
    """Return the PNG without its ancillary chunks, of which libpng warns on stderr."""
    kept = [PNG_MARK]
    for name, start, end in _png_chunks(data):
        if name in _PNG_CRITICAL:
            kept.append(data[start:end])
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each chunk up to IEND, its checksum verified."""
    view, start, name = memoryview(data), len(PNG_MARK), b""
    while name != b"IEND":
        if start + 12 > len(data):
            raise _cut("PNG", len(data), "IEND")
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise _cut("PNG", len(data), "IEND")
        if zlib.crc32(view[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise InputError(
                f"PNG is damaged: the checksum of its chunk at byte {start} is wrong; {_AGAIN}"
            )
        yield name, start, end
        start = end


# -- JPEG -----------------------------------------------------------------------------------


def jpeg_layout(handle: BinaryIO) -> Layout:
    """Return the layout of a JPEG; reads segment heads up to the frame header.

    Only 8-bit grey and YCbCr/RGB in baseline, extended or progressive coding are taken; EXIF
    orientation is not applied, so pixels lie as they are stored.
    """
    handle.seek(2)
    while True:
        marker, length = struct.unpack(">HH", _exactly(handle, 4, "JPEG"))
        if marker < 0xFF01 or length < 2 or marker == 0xFFDA:
            raise InputError(f"JPEG is damaged: no frame header before its pixels; {_AGAIN}")
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            bits, height, width, samples = struct.unpack(">BHHB", _exactly(handle, 6, "JPEG"))
            if marker > 0xFFC2 or bits != 8 or samples not in (1, 3):
                raise InputError(
                    f"JPEG is of a kind that is not read (coding {marker - 0xFFC0}, {bits} bits, "
                    f"{samples} samples a pixel); save it as PNG or TIFF"
                )
            return _layout(height, width, samples, np.dtype(np.uint8), False)
        handle.seek(length - 2, 1)


def jpeg_pixels(data: bytes) -> np.ndarray:
    """Return the pixels (Y, X) or (Y, X, 3) of a JPEG that reaches its end mark."""
    import imagecodecs

    _check_jpeg_end(data)
    return _decoded("JPEG", imagecodecs.jpeg8_decode, data)


def _check_jpeg_end(data: bytes) -> None:
    """Walk segments and scans to the EOI mark; one within an embedded thumbnail counts not."""
    at = 2
    while at + 2 <= len(data):
        found = _JPEG_NEXT_MARK.search(data, at)
        if found is None:
            break
        at = found.start()
        marker = data[at + 1]
        if marker == 0xD9:
            return
        if at + 4 > len(data):
            break
        # After SOS (DA) the entropy-coded data follows and the search runs through it.
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise _cut("JPEG", len(data), "EOI")


# -- BMP ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bmp:
    """The header of an uncompressed BMP; ``palette`` is (N, 3) uint8, R, G, B."""

    height: int
    width: int
    bits: int
    first_row_on_top: bool
    alpha: bool
    offset: int
    palette: np.ndarray | None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored: rows fill up to multiples of four."""
        return (self.width * self.bits + 31) // 32 * 4

    @property
    def samples(self) -> int:
        """Samples of a pixel as decoded: 1 where the whole palette is grey."""
        if self.palette is None:
            return 4 if self.alpha else 3
        return 1 if bool((self.palette == self.palette[:, :1]).all()) else 3


def bmp_layout(handle: BinaryIO) -> Layout:
    """Return the layout of an uncompressed BMP, after checking that the file is long enough."""
    bmp = _bmp(handle)
    needed = bmp.offset + bmp.row_bytes * bmp.height
    there = handle.seek(0, 2)
    if there < needed:
        raise InputError(f"BMP is truncated: it needs {needed} bytes and has {there}; {_AGAIN}")
    return _layout(bmp.height, bmp.width, bmp.samples, np.dtype(np.uint8), bmp.alpha)


def bmp_pixels(data: bytes) -> np.ndarray:
    """Return the pixels (Y, X), if all colours of its palette are grey, or (Y, X, S) of a BMP."""
    bmp = _bmp(BytesIO(data))
    count = bmp.row_bytes * bmp.height
    rows = np.frombuffer(data, np.uint8, count, bmp.offset).reshape(bmp.height, bmp.row_bytes)
    if not bmp.first_row_on_top:
        rows = rows[::-1]
    if bmp.palette is None:
        stored = bmp.bits // 8
        pixels = rows[:, : bmp.width * stored].reshape(bmp.height, bmp.width, stored)
        return pixels[..., [2, 1, 0, 3] if bmp.alpha else [2, 1, 0]]
    index = _unpacked(rows, bmp.bits)[:, : bmp.width]
    if int(index.max(initial=0)) >= len(bmp.palette):
        raise InputError(
            f"BMP is damaged: value {index.max()} is beyond its palette of "
            f"{len(bmp.palette)} colours; {_AGAIN}"
        )
    colours = bmp.palette if bmp.samples == 3 else bmp.palette[:, 0]
    return colours[index]


def _bmp(handle: BinaryIO) -> _Bmp:
    """Parse the file header (14 bytes) and the info header of any version."""
    handle.seek(10)
    offset, kind = struct.unpack("<II", _exactly(handle, 8, "BMP"))
    rest = _exactly(handle, kind - 4, "BMP")
    coding, used, masks = 0, 0, (0xFF0000, 0xFF00, 0xFF)
    if kind == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", rest)
    else:
        width, height, _, bits, coding = struct.unpack_from("<iiHHI", rest)
        used = struct.unpack_from("<I", rest, 28)[0]
    if coding == 3:
        fields = (rest + handle.read(12 if kind == 40 else 0))[36:]
        masks = struct.unpack_from("<III", fields) if len(fields) >= 12 else (0, 0, 0)
    readable = (coding == 0 and bits in (1, 4, 8, 24, 32)) or (coding == 3 and bits == 32)
    if not readable or masks != (0xFF0000, 0xFF00, 0xFF) or used > 256 or width < 0:
        raise InputError(
            f"BMP is of a kind that is not read (coding {coding}, {bits} bits a pixel); "
            f"save it as PNG or TIFF"
        )
    palette = _palette(handle, used or 2**bits, 3 if kind == 12 else 4) if bits <= 8 else None
    # The fourth byte is opacity only where a mask says so; else it is unused.
    alpha = coding == 3 and kind >= 56 and struct.unpack_from("<I", rest, 48)[0] == 0xFF000000
    return _Bmp(abs(height), width, bits, height < 0, alpha, offset, palette)


def _palette(handle: BinaryIO, count: int, entry_bytes: int) -> np.ndarray:
    entries = np.frombuffer(_exactly(handle, count * entry_bytes, "BMP"), np.uint8)
    return entries.reshape(count, entry_bytes)[:, 2::-1]


def _unpacked(rows: np.ndarray, bits: int) -> np.ndarray:
    """Return one value per pixel of rows that pack several into a byte, first in high bits."""
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    values = (rows[..., np.newaxis] >> shifts) & np.uint8(2**bits - 1)
    return values.reshape(len(rows), -1)


# -- all ------------------------------------------------------------------------------------


def _decoded(kind: str, decode: Callable[[bytes], np.ndarray], data: bytes) -> np.ndarray:
    """Run a decoder of imagecodecs, whose errors are RuntimeErrors."""
    try:
        return decode(data)
    except (RuntimeError, ValueError) as fault:
        reason = " ".join(str(fault).split())
        raise InputError(f"{kind} is damaged: {reason}; {_AGAIN}") from fault


def _layout(height: int, width: int, samples: int, dtype: np.dtype, alpha: bool) -> Layout:
    if samples == 1:
        return Layout("YX", (height, width), dtype)
    return Layout("YXS", (height, width, samples), dtype, alpha, rgb=samples >= 3)


def _exactly(handle: BinaryIO, count: int, kind: str) -> bytes:
    data = handle.read(count)
    if len(data) < count:
        size = handle.seek(0, 2)
        raise _cut(kind, size, {"PNG": "IEND", "JPEG": "EOI"}.get(kind, ""))
    return data


def _cut(kind: str, size: int, end: str) -> InputError:
    before = f"before its end mark ({end})" if end else "within its header"
    return InputError(f"{kind} is truncated: the file ends at byte {size}, {before}; {_AGAIN}")
