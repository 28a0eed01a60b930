"""Whether the chunks of a zarr array that blosc compressed are whole, before they are decoded.

Blosc believes the length that stands in a chunk: of a file that is cut it decodes what happens
to lie behind in memory, and says nothing.  All other codecs notice.  Here the length that a
chunk claims is held against the bytes that are there, and its size against that of the array's
chunks.
"""

from __future__ import annotations

import itertools
import struct
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
_ABSENT = 2**64 - 1  # offset and length of a chunk that a shard does not hold
_AGAIN = "copy or export it again"


@dataclass
class BloscChecker:
    """Checks the chunk files of one array, each once."""

    folder: Path
    node: ArrayNode
    _whole: set[str] = field(default_factory=set)

    def check(self, where: tuple[slice, ...]) -> None:
        """Check the files of all chunks that a block of the array touches.

        Raises
        ------
        InputError
            A chunk is cut or damaged; a file that is not there is none.
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
            head = handle.read(min(_HEAD, length))
            if len(head) < _HEAD:
                raise _damaged(name, f"has {len(head)} bytes")
            values, _, claimed = struct.unpack_from("<III", head, 4)
            if claimed != length:
                raise _damaged(name, f"has {length} bytes of {claimed}")
            expected = prod(self.node.chunks) * self.node.dtype.itemsize
            if values != expected:
                raise _damaged(name, f"holds {values} bytes of values, not {expected}")


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
