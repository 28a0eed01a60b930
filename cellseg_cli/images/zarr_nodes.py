"""The metadata files of zarr groups and arrays that other programs wrote, format 2 or 3.

They are read as JSON, without zarr: what a plan of a hundred thousand fields can afford, and
what can be checked before anything is decoded.  Messages are without the path of the image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from operator import mod
from pathlib import Path
from typing import Any

import numpy as np

from cellseg_cli.errors import InputError, LimitError

#: A plate of 1536 wells of 9 fields has metadata of 0.3 MiB.
MAX_METADATA_BYTES = 64 << 20
#: Most chunks in a shard: their index alone takes 16 bytes each.
MAX_CHUNKS_IN_SHARD = 1 << 22
_AGAIN = "copy or export it again"
_DTYPE_2 = re.compile(r"[<>|][biuf][1248]")
_DTYPES_3 = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64"}
)
#: Codecs that only decode; numcodecs also has some that run what is in the file (pickle).
_COMPRESSORS_2 = frozenset({"blosc", "zlib", "gzip", "zstd", "lz4"})
_FILTERS_2 = frozenset({"delta", "shuffle", "bitround", "crc32", "adler32", "fletcher32"})
_CODECS_3 = frozenset({"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c"})
_COMPRESSORS_3 = _COMPRESSORS_2 & _CODECS_3


@dataclass(frozen=True)
class Shards:
    """How the files of an array are made of chunks: an index of 16 bytes each, and they.

    ``index_bytes`` are those at the start or the end of a file, a checksum of 4 among them.
    """

    shape: tuple[int, ...]
    index_at_end: bool
    index_bytes: int


@dataclass(frozen=True)
class ArrayNode:
    """What the metadata of an array says.

    Attributes
    ----------
    zarr_format
        2 or 3.
    shape
        Length of each axis.
    dtype
        As stored.
    chunks
        Shape of what is decoded together: of a chunk, or of a chunk within a shard.
    prefix, separator
        What the names of chunk files begin with, and what stands between their numbers.
    codec
        What compressed the bytes of a chunk; empty if nothing did.
    filtered
        Whether other codecs may have made the values longer before that.
    shards
        Where a file holds many chunks: how.
    """

    zarr_format: int
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    prefix: str
    separator: str
    codec: str
    filtered: bool
    shards: Shards | None = None

    @property
    def shown_dtype(self) -> np.dtype:
        """Of the values in memory: native byte order, uint8 for truth values."""
        return np.dtype(np.uint8) if self.dtype.kind == "b" else self.dtype.newbyteorder("=")


def attributes_of(folder: Path) -> dict[str, Any]:
    """The OME attributes of a group: those under ``ome`` in format 3.

    Raises
    ------
    InputError
        The metadata is damaged.
    OSError
        It cannot be read.
    """
    third = folder / "zarr.json"
    if third.is_file():
        attributes = _object(_json(third).get("attributes", {}), third)
        return _object(attributes.get("ome", attributes), third)
    second = folder / ".zattrs"
    return _json(second) if second.is_file() else {}


def node_at(folder: Path) -> ArrayNode:
    """What the metadata of the array in ``folder`` says, checked.

    Raises
    ------
    InputError
        There is none, it is damaged, or it says what is not read.
    LimitError
        More chunks in a shard than :data:`MAX_CHUNKS_IN_SHARD`.
    """
    try:
        if (folder / "zarr.json").is_file():
            node = _third(_json(folder / "zarr.json"))
        elif (folder / ".zarray").is_file():
            node = _second(_json(folder / ".zarray"))
        else:
            raise InputError(f"OME-Zarr is damaged: its array {folder.name} is missing; {_AGAIN}")
    except (KeyError, TypeError, AttributeError) as fault:
        raise InputError(
            f"OME-Zarr is damaged: the metadata of its array {folder.name} lacks {fault}; {_AGAIN}"
        ) from fault
    if not len(node.shape) == len(node.chunks) or min((*node.chunks, 1)) < 1:
        raise InputError(
            f"OME-Zarr is damaged: chunks {node.chunks} do not suit the shape {node.shape}; "
            f"{_AGAIN}"
        )
    return node


def _second(document: dict[str, Any]) -> ArrayNode:
    dtype = document["dtype"]
    if not (isinstance(dtype, str) and _DTYPE_2.fullmatch(dtype)):
        raise InputError(f"OME-Zarr holds {dtype} values, which are not intensities")
    compressor = document.get("compressor")
    compressors = [] if compressor is None else [compressor["id"]]
    _check_codecs(compressors, _COMPRESSORS_2)
    filters = [one["id"] for one in document.get("filters") or ()]
    _check_codecs(filters, _FILTERS_2)
    return ArrayNode(
        2,
        _sizes(document["shape"]),
        np.dtype(dtype),
        _sizes(document["chunks"]),
        prefix="",
        separator=_separator(document.get("dimension_separator", ".")),
        codec=compressors[0] if compressors else "",
        filtered=bool(filters),
    )


def _third(document: dict[str, Any]) -> ArrayNode:
    if document.get("node_type") != "array":
        raise InputError(f"OME-Zarr is damaged: its level 0 is no array; {_AGAIN}")
    dtype = document["data_type"]
    if dtype not in _DTYPES_3:
        raise InputError(f"OME-Zarr holds {dtype} values, which are not intensities")
    if document["chunk_grid"]["name"] != "regular":
        raise InputError("OME-Zarr is of a kind that is not read (chunks of several sizes)")
    chunks = _sizes(document["chunk_grid"]["configuration"]["chunk_shape"])
    codecs, shards = list(document["codecs"]), None
    if [one["name"] for one in codecs] == ["sharding_indexed"]:
        inside = codecs[0]["configuration"]
        codecs, inner = list(inside["codecs"]), _sizes(inside["chunk_shape"])
        shards, chunks = _shards(chunks, inner, inside), inner
    names = [one["name"] for one in codecs]
    _check_codecs(names, _CODECS_3)
    packing = [name for name in names if name in _COMPRESSORS_3]
    if len(packing) > 1 or "blosc" in names[:-1]:
        raise InputError(f"OME-Zarr is of a kind that is not read (a codec around {packing[0]})")
    keys = document["chunk_key_encoding"]
    first = keys["name"] == "default"
    separator = keys.get("configuration", {}).get("separator", "/" if first else ".")
    return ArrayNode(
        3,
        _sizes(document["shape"]),
        np.dtype(dtype),
        chunks,
        prefix=f"c{_separator(separator)}" if first else "",
        separator=_separator(separator),
        codec=packing[0] if packing else "",
        filtered=bool(packing) and "crc32c" in names[: names.index(packing[0])],
        shards=shards,
    )


def _separator(text: object) -> str:
    if text not in ("/", "."):
        raise InputError(f"OME-Zarr is damaged: {text!r} separates no names of chunks; {_AGAIN}")
    return str(text)


def _check_codecs(names: Iterable[Any], known: frozenset[str]) -> None:
    foreign = sorted({str(name) for name in names} - known)
    if foreign:
        raise InputError(
            f"OME-Zarr is of a kind that is not read (codec {', '.join(foreign)}); "
            "save it with zstd, gzip or blosc"
        )


def _shards(shape: tuple[int, ...], inner: tuple[int, ...], inside: dict[str, Any]) -> Shards:
    if len(shape) != len(inner) or min((*inner, 1)) < 1 or any(map(mod, shape, inner)):
        raise InputError(f"OME-Zarr is damaged: shards {shape} of chunks {inner}; {_AGAIN}")
    count = prod(side // part for side, part in zip(shape, inner, strict=True))
    if count > MAX_CHUNKS_IN_SHARD:
        raise LimitError(
            f"has {count} chunks in a shard, the limit (MAX_CHUNKS_IN_SHARD) is "
            f"{MAX_CHUNKS_IN_SHARD}; save it with larger chunks"
        )
    names = [one["name"] for one in inside["index_codecs"]]
    order = inside["index_codecs"][0].get("configuration", {}).get("endian", "little")
    if names not in (["bytes"], ["bytes", "crc32c"]) or order != "little":
        raise InputError("OME-Zarr is of a kind that is not read (a coded index of shards)")
    at_end = inside.get("index_location", "end") == "end"
    return Shards(shape, at_end, 16 * count + 4 * (len(names) - 1))


def _sizes(values: Sequence[Any]) -> tuple[int, ...]:
    sizes = tuple(values)
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**40 for n in sizes):
        raise InputError(f"OME-Zarr is damaged: {list(sizes)} are no sizes; {_AGAIN}")
    return sizes


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise LimitError(
            f"has metadata of {path.stat().st_size} bytes in {path.name}; "
            f"the limit (MAX_METADATA_BYTES) is {MAX_METADATA_BYTES}"
        )
    try:
        return _object(json.loads(path.read_bytes()), path)
    except (ValueError, RecursionError) as fault:
        if isinstance(fault, InputError):
            raise
        reason = " ".join(str(fault).split())
        raise InputError(f"OME-Zarr is damaged: {path.name}: {reason}; {_AGAIN}") from fault


def _object(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"OME-Zarr is damaged: {path.name} holds no JSON object; {_AGAIN}")
    return value
