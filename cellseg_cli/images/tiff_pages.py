"""Read a region of one page of a TIFF: rows of its bytes, or the blocks that touch the region.

Invariant: what is returned equals that region of the whole page as tifffile decodes it, and a
page of which any part lies beyond the end of the file, or was never written, is an error
whatever the region is.  Knows nothing of series, channels or colours.

A block is what is compressed together: a strip or a tile.  Blocks that stick out of a region
are kept, up to :data:`KEPT_BYTES`, for the region beside it.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import numpy as np
import tifffile

from cellseg_cli.errors import InputError
from cellseg_cli.images.planes import MAX_PIXELS

#: Decoded blocks kept per open file: the tiles of 512 px along a border 32 768 px long, uint16.
KEPT_BYTES = 32 << 20
_AGAIN = "copy or export it again"
_JPEGS = (6, 7, 34892, 33007)  # compressions whose blocks need the tables of their page
_JPEGS_2000 = (33003, 33004, 33005, 34712)

Page: TypeAlias = "tifffile.TiffPage | tifffile.TiffFrame"


@dataclass(frozen=True)
class Region:
    """Rows and columns within a page, px, half-open."""

    y0: int
    y1: int
    x0: int
    x1: int

    @classmethod
    def of(cls, rows: slice, columns: slice) -> Region:
        """The region of two slices whose ends are given."""
        return cls(rows.start, rows.stop, columns.start, columns.stop)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.y1 - self.y0, self.x1 - self.x0

    def shaped(self, axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an array of these axes, cut to the region along Y and X."""
        cut = dict(zip("YX", self.shape, strict=True))
        return tuple(cut.get(axis, n) for axis, n in zip(axes, shape, strict=True))


@dataclass
class PageReader:
    """Reads regions of the pages of one open TIFF that are alike."""

    file: tifffile.TiffFile
    keyframe: tifffile.TiffPage
    _whole_pages: set[int] = field(default_factory=set)
    _kept: OrderedDict[tuple[int, int], np.ndarray] = field(default_factory=OrderedDict)
    _kept_bytes: int = 0

    @property
    def by_region(self) -> bool:
        """Whether a region takes less than decoding the page: rows of bytes, or several blocks."""
        if self.keyframe.is_contiguous:
            return bool(self.keyframe.is_final)
        # (samples, depth, rows of blocks, columns of blocks, 1)
        return not _is_one_jpeg(self.keyframe) and _grid(self.keyframe)[2] > 1

    def page(self, page: Page, region: Region) -> np.ndarray:
        """The region of a page, in the page's own axes and the machine's byte order.

        Raises
        ------
        InputError
            The page is truncated or incomplete, be it within the region or elsewhere.
        """
        self._check(page)
        keyframe = self.keyframe
        if keyframe.is_contiguous and keyframe.is_final:
            return self.rows(page.dataoffsets[0], region)
        if keyframe.is_contiguous or _is_one_jpeg(keyframe):
            whole = page.asarray(maxworkers=1).reshape(keyframe.shape)
            at = {"Y": slice(region.y0, region.y1), "X": slice(region.x0, region.x1)}
            return whole[tuple(at.get(axis, slice(None)) for axis in keyframe.axes)]
        return self._blocks(page, region).reshape(region.shaped(keyframe.axes, keyframe.shape))

    def rows(self, offset: int, region: Region) -> np.ndarray:
        """The region of an uncompressed page whose first byte is at ``offset``."""
        samples, depth, height, width, inner = self.keyframe.shaped
        stored = self.keyframe.dtype.newbyteorder(self.file.byteorder)
        handle = self.file.filehandle
        values = np.empty((samples * depth, *region.shape, inner), stored)
        whole_rows = region.shape[1] == width
        for plane, out in enumerate(values):
            first = (plane * height + region.y0) * width + region.x0
            targets = [out] if whole_rows else list(out)
            for row, target in enumerate(targets):
                handle.seek(offset + (first + row * width) * inner * stored.itemsize)
                if handle.readinto(target.data) != target.nbytes:
                    raise _truncated(offset + prod(self.keyframe.shaped) * stored.itemsize, handle)
        native = values.astype(self.keyframe.dtype, copy=False)
        return native.reshape(region.shaped(self.keyframe.axes, self.keyframe.shape))

    def _check(self, page: Page) -> None:
        """Refuse a page that is not all there; once is enough for a page."""
        first = int(page.dataoffsets[0]) if len(page.dataoffsets) else 0
        if first in self._whole_pages:
            return
        _check_block_size(self.keyframe)
        offsets = np.asarray(page.dataoffsets, np.int64)
        counts = np.asarray(page.databytecounts, np.int64)
        known = min(len(offsets), len(counts))
        ends = offsets[:known] + counts[:known]
        size = self.file.filehandle.size
        if known == 0 or int(ends.max()) > size:
            raise _truncated(int(ends.max()) if known else 0, self.file.filehandle)
        # A page of rows of bytes may say less of its blocks: its size follows from its shape.
        wanted = known if self.keyframe.is_contiguous else prod(_grid(self.keyframe))
        empty = int((counts[:known] == 0).sum()) + wanted - min(wanted, known)
        if empty:
            raise InputError(
                f"TIFF is incomplete: {empty} of the {max(wanted, known)} blocks of its pixels "
                f"are empty; {_AGAIN}"
            )
        self._whole_pages.add(first)

    def _blocks(self, page: Page, region: Region) -> np.ndarray:
        """The region (S, Z, y, x, s) of a page that is stored in blocks."""
        samples, depth, height, width, inner = self.keyframe.shaped
        values = np.empty((samples, depth, *region.shape, inner), self.keyframe.dtype)
        for (sample, z, top, left, _), block in self._decoded(page, region):
            # blocks at the border may be larger than what is left of the page
            bottom = min(top + block.shape[1], height, region.y1)
            right = min(left + block.shape[2], width, region.x1)
            y0, x0 = max(top, region.y0), max(left, region.x0)
            part = block[: depth - z, y0 - top : bottom - top, x0 - left : right - left]
            rows = slice(y0 - region.y0, bottom - region.y0)
            columns = slice(x0 - region.x0, right - region.x0)
            values[sample, z : z + part.shape[0], rows, columns] = part
        return values

    def _decoded(self, page: Page, region: Region) -> Iterator[tuple[Any, np.ndarray]]:
        """The position and the values (z, y, x, s) of each block that touches the region."""
        numbers = _touched(self.keyframe, region)
        key = int(page.dataoffsets[0])
        missing = []
        for number in numbers:
            kept = self._kept.get((key, number))
            if kept is None:
                missing.append(number)
            else:
                yield self.keyframe.decode(None, number)[1], kept
        for data, number in self._stored(page, missing):
            _check_codestream(self.keyframe, data or b"")
            tables = {"jpegtables": page.jpegtables, "jpegheader": self.keyframe.jpegheader}
            block, at, _ = self.keyframe.decode(
                data, number, **(tables if self.keyframe.compression in _JPEGS else {})
            )
            if block is None:
                raise InputError(f"TIFF is incomplete: a block of its pixels is empty; {_AGAIN}")
            yield at, block
            if not _within(at, block.shape, region):
                self._keep((key, number), block)

    def _stored(self, page: Page, numbers: list[int]) -> Iterator[tuple[bytes | None, int]]:
        """The bytes of these blocks, a few at a time."""
        for start in range(0, len(numbers), 16):
            some = numbers[start : start + 16]
            yield from self.file.filehandle.read_segments(
                [page.dataoffsets[n] for n in some],
                [page.databytecounts[n] for n in some],
                indices=some,
            )

    def _keep(self, key: tuple[int, int], block: np.ndarray) -> None:
        self._kept[key] = block
        self._kept_bytes += block.nbytes
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes


def _truncated(end: int, handle: tifffile.FileHandle) -> InputError:
    return InputError(
        f"TIFF is truncated: its pixels reach to byte {end}, "
        f"the file ends at byte {handle.size}; {_AGAIN}"
    )


def _is_one_jpeg(keyframe: tifffile.TiffPage) -> bool:
    """Whether one JPEG is the whole page, and is only called tiled (as Hamamatsu writes it)."""
    return keyframe.jpegheader is not None and 273 in keyframe.tags and keyframe.is_tiled


def _block_px(keyframe: tifffile.TiffPage) -> tuple[int, int, int]:
    """Depth, height and width of a block."""
    if keyframe.is_tiled:
        return keyframe.tiledepth, keyframe.tilelength, keyframe.tilewidth
    return 1, keyframe.rowsperstrip, keyframe.imagewidth


def _check_block_size(keyframe: tifffile.TiffPage) -> None:
    """Refuse blocks that would take more memory than any image may; tiles may exceed a page."""
    values = prod(_block_px(keyframe)) * keyframe.shaped[-1]
    if values > MAX_PIXELS:
        raise InputError(
            f"TIFF is damaged: it says that each block has {values} values, "
            f"an image has at most {MAX_PIXELS}; {_AGAIN}"
        )


def _check_codestream(keyframe: tifffile.TiffPage, data: bytes) -> None:
    """Refuse a block that is an image larger than the block: it would be decoded, and cut."""
    if keyframe.compression in _JPEGS[1:]:  # the old kind has no frame of its own
        size = _jpeg_px(data)
    elif keyframe.compression in _JPEGS_2000:
        size = _jpeg_2000_px(data)
    else:
        return
    _, *block = _block_px(keyframe)
    if size is not None and (size[0] > block[0] or size[1] > block[1]):
        raise InputError(
            f"TIFF is damaged: a block of {block[0]}×{block[1]} px holds an image of "
            f"{size[0]}×{size[1]} px; {_AGAIN}"
        )


def _jpeg_px(data: bytes) -> tuple[int, int] | None:
    """Height and width from the frame header; None if there is none before the pixels."""
    at = 2
    while at + 9 <= len(data):
        marker, length, _, height, width = struct.unpack_from(">HHBHH", data, at)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            return height, width
        if marker < 0xFF01 or marker == 0xFFDA:
            return None
        at += 2 + length
    return None


def _jpeg_2000_px(data: bytes) -> tuple[int, int] | None:
    """Height and width from the segment that a codestream begins with; None if there is none."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 24 > len(data):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    return bottom - top, right - left


def _grid(keyframe: tifffile.TiffPage) -> tuple[int, int, int, int]:
    """Blocks along samples, depth, rows and columns; they are numbered in this order."""
    samples, *sides, _ = keyframe.shaped
    depth, rows, columns = (
        -(-side // max(1, px)) for side, px in zip(sides, _block_px(keyframe), strict=True)
    )
    return samples, depth, rows, columns


def _touched(keyframe: tifffile.TiffPage, region: Region) -> list[int]:
    """The numbers of the blocks that touch a region, of all samples and depths."""
    grid = _grid(keyframe)
    _, height, width = _block_px(keyframe)
    rows = range(region.y0 // height, -(-region.y1 // height))
    columns = range(region.x0 // width, -(-region.x1 // width))
    numbers = np.arange(prod(grid)).reshape(grid)
    touched = numbers[:, :, rows.start : rows.stop, columns.start : columns.stop]
    return [int(number) for number in touched.ravel()]


def _within(at: tuple[int, ...], shape: tuple[int, ...], region: Region) -> bool:
    """Whether a block at (sample, z, y, x, ...) lies within the region."""
    _, _, top, left, *_ = at
    inside_rows = region.y0 <= top and top + shape[1] <= region.y1
    return inside_rows and region.x0 <= left and left + shape[2] <= region.x1
