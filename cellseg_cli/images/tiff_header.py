"""The layout of an ordinary TIFF of one page, from its directory alone: a tenth of the time.

Invariant: what is returned is what :mod:`cellseg_cli.images.tiff` finds with tifffile; anything
that is not known to be ordinary gives None, and is left to that.  Ordinary are one page, grey
or RGB of 8 to 64 bits, without any tag or description that could give the page another meaning.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from cellseg_cli.images.planes import Layout

#: Tags that say nothing of axes, colours or further images, beside those that are looked at.
_PLAIN_TAGS = frozenset(
    {254, 256, 257, 258, 259, 262, 270, 273, 274, 277, 278, 279, 282, 283, 284, 296, 305, 306}
    | {317, 322, 323, 324, 325, 339}
)
_MOST_TAGS = 64
_MOST_TEXT_BYTES = 1 << 16
#: None, LZW, Deflate (two numbers), PackBits, Zstandard, LZMA.
_COMPRESSIONS = frozenset({1, 5, 8, 32946, 32773, 50000, 34925})
_SAMPLE_KINDS = {1: "u", 2: "i", 3: "f"}
_NUMBERS = {3: "H", 4: "L", 16: "Q"}  # TIFF's SHORT, LONG and LONG8
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
_SOFTWARE = re.compile(r"(tifffile\.py|MetaSeries|MetaMorph[^\0]*|ImageJ[^\0]*)?")
_METAMORPH = re.compile(r"<MetaData>.*</MetaData>\s*", re.DOTALL)
_IMAGEJ = re.compile(r"ImageJ=[^\n=]*\n((min|max|unit|spacing|loop|mode)=[^\n]*\n|images=1\n)*")


@dataclass(frozen=True)
class _Directory:
    """The tags of the first page: number → (type, count, bytes of the value or of its offset)."""

    handle: BinaryIO
    size: int
    order: str
    offset: str
    tags: dict[int, tuple[int, int, bytes]]

    def data(self, tag: int) -> bytes | None:
        """The bytes of a value; None if they are not all there."""
        kind, count, inline = self.tags[tag]
        length = _SIZES.get(kind, 0) * count
        if not 0 < length <= _MOST_TEXT_BYTES:
            return None
        if length <= len(inline):
            return inline[:length]
        self.handle.seek(struct.unpack(self.order + self.offset, inline)[0])
        data = self.handle.read(length)
        return data if len(data) == length else None

    def number(self, tag: int, default: int | None = None) -> int | None:
        """The value of a tag, if all its numbers are equal; ``default`` if it is not there."""
        if tag not in self.tags:
            return default
        kind, count, _ = self.tags[tag]
        data = self.data(tag) if kind in _NUMBERS and count <= 4 else None
        if data is None:
            return None
        values = set(struct.unpack(f"{self.order}{count}{_NUMBERS[kind]}", data))
        return int(values.pop()) if len(values) == 1 else None

    def text(self, tag: int) -> str | None:
        """The text of a tag, empty if it is not there; None if it is no text or cut."""
        if tag not in self.tags:
            return ""
        data = self.data(tag) if self.tags[tag][0] == 2 else None
        # units such as µm come in several encodings; all of them agree on what is looked for
        return None if data is None else data.rstrip(b"\0").decode("latin-1")

    def reaches(self, tag: int) -> bool:
        """Whether the values of a tag lie within the file."""
        kind, count, inline = self.tags[tag]
        length = _SIZES.get(kind, 0) * count
        if length <= len(inline):
            return length > 0
        return bool(struct.unpack(self.order + self.offset, inline)[0] + length <= self.size)


def plain_layout(handle: BinaryIO, size: int) -> Layout | None:
    """Return the layout of an ordinary TIFF, or None for any that may not be one.

    Parameters
    ----------
    handle
        The open file.
    size
        Its bytes.
    """
    try:
        directory = _directory(handle, size)
        return None if directory is None else _layout(directory)
    except (struct.error, OSError, OverflowError, ValueError):
        return None  # whatever is wrong is told by who looks carefully


def _directory(handle: BinaryIO, size: int) -> _Directory | None:
    """The tags of the only page; None if there are several pages or unknown tags."""
    handle.seek(0)
    start = handle.read(16)
    order = {b"II": "<", b"MM": ">"}[start[:2]]
    big = struct.unpack_from(order + "H", start, 2)[0] == 43
    count, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHL4s", "L")
    handle.seek(struct.unpack_from(order + offset, start, 8 if big else 4)[0])
    count_bytes = struct.calcsize("=" + count)
    (there,) = struct.unpack(order + count, handle.read(count_bytes))
    if there > _MOST_TAGS:
        return None
    body = there * struct.calcsize("=" + entry)
    data = handle.read(body + struct.calcsize("=" + offset))
    tags = {
        tag: (kind, number, value)
        for tag, kind, number, value in struct.iter_unpack(order + entry, data[:body])
    }
    further = struct.unpack_from(order + offset, data, body)[0]
    if further or len(tags) < there or not tags.keys() <= _PLAIN_TAGS:
        return None
    return _Directory(handle, size, order, offset, tags)


def _layout(page: _Directory) -> Layout | None:
    height, width = page.number(257), page.number(256)
    samples, bits = page.number(277, 1), page.number(258)
    colours = page.number(262)
    if height is None or width is None or min(height, width) < 2 or bits is None:
        return None
    if (colours, samples) not in ((0, 1), (1, 1), (2, 3)):
        return None
    # 2 says that the page is one of several: here of a set of files
    if page.number(254, 0) not in (0, 2) or page.number(284, 1) != 1:
        return None
    kind = _SAMPLE_KINDS.get(page.number(339, 1) or 0)
    known = bits in (16, 32, 64) if kind == "f" else bits in (8, 16, 32, 64)
    if kind is None or not known or page.number(259, 1) not in _COMPRESSIONS:
        return None
    shape = (height, width) if samples == 1 else (height, width, 3)
    if not _has_pixels(page) or not _is_plain_text(page, shape):
        return None
    dtype = np.dtype(f"{kind}{bits // 8}")
    return Layout("YX" if samples == 1 else "YXS", shape, dtype, rgb=samples == 3)


def _has_pixels(page: _Directory) -> bool:
    """Whether the places of strips or tiles are told, and within the file."""
    tiled = 322 in page.tags
    places = (322, 323, 324, 325) if tiled else (273, 279)
    return all(tag in page.tags and page.reaches(tag) for tag in places)


def _is_plain_text(page: _Directory, shape: tuple[int, ...]) -> bool:
    """Whether description and software are of programs that write nothing else than is there."""
    software, description = page.text(305), page.text(270)
    if software is None or description is None or not _SOFTWARE.fullmatch(software):
        return False
    shaped = f'{{"shape": [{", ".join(map(str, shape))}]}}'
    if description in ("", shaped) or _METAMORPH.fullmatch(description):
        return True
    return len(shape) == 2 and _IMAGEJ.fullmatch(description) is not None
