"""Whether compressed chunks of a zarr array hold what its metadata says, before they are decoded.

Blosc believes the length that stands in a chunk: of a file that is cut it decodes what happens
to lie behind in memory, and says nothing.  So the length that a chunk claims is held against the
bytes that are there, and its size against that of the array's chunks.  The other codecs notice
what is cut, but make as many bytes as the file wants of them, a thousand times its own or a
million: these are counted first, and at most one more than may be are ever made.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cellseg_cli.errors import InputError
from cellseg_cli.images.zarr_nodes import ArrayNode

#: Bytes of a chunk's head: four of versions and flags, then three sizes: of the values, of a
#: block, and of the whole chunk (https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst).
_HEAD = 16
#: Filters may make values longer before they are compressed: of one byte eight, and a checksum.
_FILTERED, _CHECKSUM_BYTES = 8, 4
_OVERHEAD = 1024  # bytes that a codec may put around values, whatever they are
_WINDOW_BITS = {"zlib": 15, "gzip": 31}  # as zlib names the two
_GZIP_MARK = b"\x1f\x8b"
_ABSENT = 2**64 - 1  # offset and length of a chunk that a shard does not hold
_AGAIN = "copy or export it again"


@dataclass
class ChunkChecker:
    """Checks the chunk files of one array, each once."""

    folder: Path
    node: ArrayNode
    _whole: set[str] = field(default_factory=set)

    def check(self, where: tuple[slice, ...]) -> None:
        """Check the files of all chunks that a block of the array touches.

        Raises
        ------
        InputError
            A chunk is cut or damaged, or larger than it may be; a file that is not there is none.
        OSError
            A file cannot be read.
        """
        for name in _names(self.node, where):
            if name in self._whole:
                continue
            try:
                with (self.folder / name).open("rb") as handle:
                    self._check_file(name, handle)
            except FileNotFoundError:
                continue
            self._whole.add(name)

    def _check_file(self, name: str, handle: BinaryIO) -> None:
        size = handle.seek(0, 2)
        for start, length in _chunks_in(handle, size, self.node):
            if start + length > size:
                raise _damaged(name, f"reaches to byte {start + length} of {size}")
            handle.seek(start)
            if self.node.codec == "blosc":
                self._check_blosc(name, handle.read(min(_HEAD, length)), length)
                continue
            # what cannot be compressed grows a little; a file is not read for nothing
            longer = length > 2 * self._most_bytes + _OVERHEAD
            if longer or _is_longer(self.node.codec, handle.read(length), self._most_bytes):
                raise _damaged(name, f"holds more than {self._most_bytes} bytes of values")

    def _check_blosc(self, name: str, head: bytes, length: int) -> None:
        if len(head) < _HEAD:
            raise _damaged(name, f"has {len(head)} bytes")
        values, _, claimed = struct.unpack_from("<III", head, 4)
        if claimed != length:
            raise _damaged(name, f"has {length} bytes of {claimed}")
        if values > self._most_bytes or (values < self._bytes and not self.node.filtered):
            raise _damaged(name, f"holds {values} bytes of values, not {self._bytes}")

    @property
    def _bytes(self) -> int:
        """Bytes of the values of a chunk."""
        return prod(self.node.chunks) * self.node.dtype.itemsize

    @property
    def _most_bytes(self) -> int:
        """Most bytes that may come out of a chunk."""
        return self._bytes * _FILTERED + _CHECKSUM_BYTES if self.node.filtered else self._bytes


def _is_longer(codec: str, data: bytes, most: int) -> bool:
    """Whether more than ``most`` bytes would come out; what is damaged is left to the codec."""
    if codec == "lz4":  # of numcodecs: the size in front
        return len(data) >= 4 and int.from_bytes(data[:4], "little") > most
    if codec == "zstd":
        return _zstd_is_longer(data, most)
    made = 0
    while True:
        inflate = zlib.decompressobj(_WINDOW_BITS[codec])
        try:
            made += len(inflate.decompress(data, most + 1 - made))
        except zlib.error:
            return False
        data = inflate.unused_data  # another member of gzip, or a checksum that stands behind
        if made > most or codec != "gzip" or not data.startswith(_GZIP_MARK):
            return made > most


def _zstd_is_longer(data: bytes, most: int) -> bool:
    import imagecodecs

    try:
        return len(imagecodecs.zstd_decode(data, out=bytearray(most + 1))) > most
    except imagecodecs.ZstdError as fault:
        return "too small" in str(fault)


def _names(node: ArrayNode, where: tuple[slice, ...]) -> Iterator[str]:
    """The names of the files that a block of an array touches."""
    sides = node.shards.shape if node.shards else node.chunks
    ranges = [
        range(one.start // side, -(-one.stop // side))
        for one, side in zip(where, sides, strict=True)
    ]
    for numbers in itertools.product(*ranges):
        yield node.prefix + node.separator.join(map(str, numbers))


def _chunks_in(handle: BinaryIO, size: int, node: ArrayNode) -> list[tuple[int, int]]:
    """First byte and length of each chunk in a file."""
    if node.shards is None:
        return [(0, size)]
    handle.seek(max(0, size - node.shards.index_bytes) if node.shards.index_at_end else 0)
    index = handle.read(node.shards.index_bytes)
    if len(index) < node.shards.index_bytes:
        return [(0, size + 1)]  # the index itself is cut
    entries = np.frombuffer(index, "<u8", len(index) // 16 * 2).reshape(-1, 2)
    return [(int(start), int(length)) for start, length in entries if start != _ABSENT]


def _damaged(name: str, how: str) -> InputError:
    return InputError(f"OME-Zarr is damaged: a chunk in {name} {how}; {_AGAIN}")
