"""The zarr arrays of a store: how they are laid out, written slab by slab, read by region.

A slab is what one shard holds: up to 4096 × 4096 px of every channel.  A part of a shard cannot
be written without writing the rest again, so arrays are written slab by slab, each slab once;
chunks of 256 × 256 px are read out of a shard one by one.

Invariants: every shard is written, so that a missing one means damage and never zeros; chunks
carry checksums.  Knows nothing of fields, marks or stages.

Shards are read by zarr and written here, in the layout of its codec ``sharding_indexed``
(zarr-specs, codec of that name, version 1.0).  zarr would give each chunk to other threads in
several tasks of an event loop: with it, writing an embedding took 0.09 CPU seconds per
megapixel, a fifth of what the network takes, against 0.04 now.

Arrays that other programs wrote are read here too, by :func:`open_foreign`, by their own rules:
there a missing chunk means the fill value.
"""

from __future__ import annotations

import contextlib
import functools
import lzma
import math
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from cellseg_cli import durable
from cellseg_cli.errors import CellsegError

if TYPE_CHECKING:
    import zarr

CHUNK_PX = 256
SHARD_PX = 4096

#: What the index of a shard has for a chunk outside of the plane (zarr-specs).
_ABSENT = 2**64 - 1

#: Rows and columns of a plane.
Region: TypeAlias = tuple[slice, slice]
#: Reads a block of an array: a slice for each axis.
ReadBlock: TypeAlias = Callable[[tuple[slice, ...]], np.ndarray]

#: What zarr and the codecs raise on metadata and bytes that are not valid.
_FAULTS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
)


@functools.lru_cache(maxsize=64)
def _layout(shape: tuple[int, ...], dtype: type, shard_px: int) -> tuple[zarr.Array[Any], bytes]:
    """An array (Y, X) or (C, Y, X) without any shard, in memory, and its metadata as a file.

    Fields of one size share it: zarr takes 1.5 ms to make an array.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
    from zarr.core.buffer import Buffer
    from zarr.storage import MemoryStore

    # the checksum makes silent damage an error, not other numbers
    compressors: Any = ZstdCodec(level=1, checksum=True)
    if np.dtype(dtype).kind == "f":
        # a third of the time of Zstandard, and as small, since bits of equal rank lie together
        compressors = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()
    rest = shape[:-2]
    shard = tuple(min(shard_px, CHUNK_PX * max(1, math.ceil(n / CHUNK_PX))) for n in shape[-2:])
    files: dict[str, Buffer] = {}
    array = zarr.create_array(
        store=MemoryStore(files),
        shape=shape,
        chunks=(*rest, CHUNK_PX, CHUNK_PX),
        shards=(*rest, *shard),
        dtype=dtype,
        fill_value=0,
        compressors=compressors,
        dimension_names=("c", "y", "x")[-len(shape) :],
    )
    return array, files["zarr.json"].to_bytes()


def _created(path: Path, shape: tuple[int, ...], dtype: type) -> zarr.Array[Any]:
    """Make an array at ``path``, without any shard yet; gives what says how it is laid out."""
    array, metadata = _layout(shape, dtype, SHARD_PX)
    path.mkdir(parents=True, exist_ok=True)
    _write_whole(path / "zarr.json", [metadata])
    return array


def shape_of(path: Path) -> tuple[int, ...]:
    """The shape of the array at ``path``.

    Raises
    ------
    OSError, ValueError, RuntimeError, KeyError, TypeError
        Nothing is there, or it is damaged: zarr has no error class of its own.
    """
    import zarr

    return tuple(zarr.open_array(store=str(path), mode="r").shape)


def read(path: Path, region: Region | None = None) -> np.ndarray:
    """The array at ``path``: the whole plane, or a region of it, of all channels.

    Raises
    ------
    OSError, ValueError, RuntimeError, KeyError, TypeError
        Nothing is there, or it is damaged: zarr has no error class of its own.
    """
    import zarr

    array = zarr.open_array(store=str(path), mode="r")
    rows, columns = region or (slice(0, array.shape[-2]), slice(0, array.shape[-1]))
    _require_shards(array, path, (rows, columns))
    return np.asarray(array[..., rows, columns])


def open_foreign(path: Path, zarr_format: int) -> ReadBlock:
    """Open an array that another program wrote; gives what reads blocks of it.

    Blocks come in the machine's byte order; chunks that are not there are the fill value.
    Use it within :func:`foreign_faults`.
    """
    import zarr

    known: Literal[2, 3] = 2 if zarr_format == 2 else 3
    array = zarr.open_array(store=str(path), mode="r", zarr_format=known)

    def read_block(where: tuple[slice, ...]) -> np.ndarray:
        values = np.asarray(array[where])
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    return read_block


@contextlib.contextmanager
def foreign_faults(told: Callable[[str], Exception]) -> Iterator[None]:
    """Raise ``told(reason)`` in place of whatever zarr and its codecs raise inside the block."""
    try:
        yield
    except CellsegError:
        raise
    except _FAULTS as fault:
        raise told(" ".join(str(fault).split()) or type(fault).__name__) from fault


def slabs(shape: tuple[int, int]) -> Iterator[Region]:
    """The regions of a plane (Y, X) that are one shard each, row by row.

    >>> [(rows.stop, columns.stop) for rows, columns in slabs((5000, 30))]
    [(4096, 30), (5000, 30)]
    """
    for top in range(0, shape[0], SHARD_PX):
        for left in range(0, shape[1], SHARD_PX):
            rows = slice(top, min(top + SHARD_PX, shape[0]))
            yield rows, slice(left, min(left + SHARD_PX, shape[1]))


class SlabWriter:
    """Writes arrays over one plane, slab by slab; use it in a ``with`` statement.

    What was written is brought to the disk at the end of the statement, unless it ends with an
    error.  Threads may write different slabs at the same time.

    Attributes
    ----------
    slabs
        The regions to write, each once, in any order.
    """

    def __init__(
        self, root: Path, targets: dict[Path, tuple[tuple[int, ...], type]], *, new: bool = True
    ) -> None:
        """Arrays at the paths ``targets``, of these shapes and types, in the store ``root``.

        They are made, or with ``new`` false, those that an earlier writer has made.
        """
        import zarr

        self._root = root
        self._paths = tuple(targets)
        shape = next(iter(targets.values()))[0]
        self.slabs = tuple(slabs((shape[-2], shape[-1])))
        with durable.writing(root):
            made = [_created(path, *layout) for path, layout in targets.items() if new]
            self._arrays = made or [zarr.open_array(store=str(path), mode="r+") for path in targets]

    def write(self, slab: Region, *values: np.ndarray) -> None:
        """Write one slab of every array; values (..., Y, X) in the order of the arrays.

        Raises
        ------
        StoreWriteError
            The disk cannot be written.
        """
        assert slab in self.slabs
        with durable.writing(self._root):
            for array, path, part in zip(self._arrays, self._paths, values, strict=True):
                assert part.dtype == array.dtype
                _write_shard(array, path, slab, part)

    def __enter__(self) -> SlabWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            with durable.writing(self._root):
                for path in self._paths:
                    durable.sync_tree(path)


def _write_shard(array: zarr.Array[Any], path: Path, slab: Region, values: np.ndarray) -> None:
    """Write the values (..., y, x) of one slab as the file of its shard."""
    assert array.shards is not None
    rows, columns = (side // CHUNK_PX for side in array.shards[-2:])
    place = [one.start // SHARD_PX for one in slab]
    target = path.joinpath("c", *["0"] * (array.ndim - 2), *map(str, place))
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(target, _shard(values, (rows, columns), _encoder(array)))


def _write_whole(target: Path, parts: Iterable[bytes]) -> None:
    """Write a file that appears complete, over any file of that name."""
    partial = target.with_suffix(f".{uuid.uuid4().hex}.partial")  # zarr's own name for it
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _shard(
    values: np.ndarray, chunks: tuple[int, int], encode: Callable[[np.ndarray], bytes]
) -> Iterator[bytes]:
    """The parts of a shard's file: chunks row by row, then where each lies, and a checksum of that.

    Chunks at the border are filled up with zeros; those outside of the values are left out.
    """
    import google_crc32c

    index = np.full((*chunks, 2), _ABSENT, "<u8")  # where it begins, and how many bytes
    chunk = np.empty((*values.shape[:-2], CHUNK_PX, CHUNK_PX), values.dtype.newbyteorder("<"))
    end = 0
    for row, top in enumerate(range(0, values.shape[-2], CHUNK_PX)):
        for column, left in enumerate(range(0, values.shape[-1], CHUNK_PX)):
            part = values[..., top : top + CHUNK_PX, left : left + CHUNK_PX]
            if part.shape != chunk.shape:
                chunk[...] = 0
            chunk[..., : part.shape[-2], : part.shape[-1]] = part
            encoded = encode(chunk)
            index[row, column] = end, len(encoded)
            end += len(encoded)
            yield encoded
    where = index.tobytes()
    yield where
    yield google_crc32c.value(where).to_bytes(4, "little")


def _encoder(array: zarr.Array[Any]) -> Callable[[np.ndarray], bytes]:
    """What makes the bytes of a chunk out of its values, by the codecs of :func:`create`.

    They follow from the array, not from its dtype: one that an earlier version has made and this
    one goes on with has Zstandard for all.
    """
    import google_crc32c
    from numcodecs import Blosc, Zstd
    from zarr.codecs import ZstdCodec

    if isinstance(array.compressors[0], ZstdCodec):
        zstd = Zstd(level=1, checksum=True)
        return lambda chunk: bytes(zstd.encode(chunk))
    blosc = Blosc("lz4", 5, Blosc.BITSHUFFLE)

    def encode(chunk: np.ndarray) -> bytes:
        packed = bytes(blosc.encode(chunk))
        return packed + google_crc32c.value(packed).to_bytes(4, "little")

    return encode


def _require_shards(array: zarr.Array[Any], path: Path, region: Region) -> None:
    """Raise OSError if the file of a shard is missing: zarr itself would return zeros."""
    shard = (array.shards or array.chunks)[-2:]
    first, last = (
        [end // side for end, side in zip(ends, shard, strict=True)]
        for ends in ([one.start for one in region], [one.stop - 1 for one in region])
    )
    channels = ["0"] * (array.ndim - 2)
    for row in range(first[0], last[0] + 1):
        for column in range(first[1], last[1] + 1):
            shard_file = path.joinpath("c", *channels, str(row), str(column))
            if not shard_file.is_file():
                raise OSError(f"shard {shard_file.relative_to(path)} is missing")
