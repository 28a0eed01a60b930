"""The zarr store of a run: one group per field, finished exactly when its mark says so.

This is the only module that knows zarr and the names inside a store::

    emb.zarr/
      zarr.json                     root: format version, settings, the model's essentials
      fields.parquet                the plan: one row per field
      .cellseg/                     run records, temporary files, why fields failed
      <field id>/
        zarr.json                   OME-Zarr 0.5 multiscales, axes c, y, x
        embedding                   (E, Y, X) float16, chunks (E, 256, 256) in one shard per 4096²
        classes                     (3, Y, X) uint8: background, interior, border; may be absent
        labels/cells/0              (Y, X) uint32, 0 = background
        embed.done.json             written after the arrays: their fingerprint
        cluster.done.json           written after the labels: their fingerprint

Invariants: a mark is written last, after the data has reached the disk, and
atomically, so that a crash at any moment leaves either a finished field or one
without a mark; an array without its mark is never read.  Processes that work
on different fields of one store never write the same file with different
content, so they need no locks.

The module never decides *whether* a field is to be done (that is
:mod:`cellseg_cli.pipeline`).  It gives up with :class:`StoreError` on a folder
that is no store of this format, and with :class:`StoreWriteError` when the
disk refuses to be written: then the other fields cannot be written either.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from cellseg_cli import durable, ome
from cellseg_cli.errors import OutputExistsError, StoreError

if TYPE_CHECKING:
    import pyarrow as pa
    import zarr

FORMAT_VERSION = 1
CHUNK_PX = 256
SHARD_PX = 4096
#: Names that a store keeps for itself; no component of a field id may be one of them.
RESERVED = frozenset(
    {"embedding", "classes", "labels", "zarr.json", "fields.parquet", ".cellseg"}
    | {"embed.done.json", "cluster.done.json", "embed.failed.json", "cluster.failed.json"}
)

Stage: TypeAlias = Literal["embed", "cluster"]
Json: TypeAlias = Mapping[str, Any]

_STAGES: tuple[Stage, ...] = ("embed", "cluster")
_OWN = ".cellseg"
# What says "this disk or folder cannot be written", whatever the field.
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)


class StoreWriteError(StoreError):
    """The store cannot be written any more: disk full, no permission, device error."""


@dataclass(frozen=True)
class FieldRow:
    """One row of ``fields.parquet``: what the header of a field's image says.

    ``size_bytes`` and ``mtime_ns`` are those of the file ``source``.  Where the
    header cannot be read, ``error`` is the reason and the rest may be None.
    """

    id: str
    source: str
    size_bytes: int | None = None
    mtime_ns: int | None = None
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    dtype: str | None = None
    error: str | None = None

    @property
    def pixels(self) -> int:
        """Height × width; 0 where they are not known."""
        return (self.height or 0) * (self.width or 0)


def refusal(field_id: str) -> str | None:
    """Why ``field_id`` cannot be a group of a store, or None if it can.

    >>> refusal("plate1/A01") is None
    True
    >>> refusal("plate1/labels/A01")
    "'labels' is a name that the store keeps for itself"
    """
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in field_id):
        return "it has control characters or is not valid UTF-8"
    if "\\" in field_id or field_id.startswith("/"):
        return "it must be a relative path with forward slashes"
    for part in field_id.split("/"):
        if part in {"", ".", ".."}:
            return f"{part!r} is no name for a folder"
        if part in RESERVED:
            return f"{part!r} is a name that the store keeps for itself"
        if part.startswith("__"):
            return f"{part!r}: zarr keeps names that begin with '__' for itself"
    return None


class Store:
    """A store that exists and is of this format; holds no open files.

    Safe for threads and processes that work on different fields.
    """

    def __init__(self, path: Path, attributes: Json) -> None:
        self.path = path
        self.attributes = attributes

    @classmethod
    def create(cls, path: str | Path, attributes: Json, *, overwrite: bool = False) -> Store:
        """A store at ``path`` with these root attributes.

        With ``overwrite`` the attributes of a store that is there already are
        replaced; its fields stay until :meth:`clear` removes them.  What is
        there and no store is never touched.

        Raises
        ------
        OutputExistsError
            A store is there and ``overwrite`` is false.
        StoreError
            Something else is there, or a store of another format.
        """
        path = Path(path)
        if cls.is_at(path):
            cls.open(path)
            if not overwrite:
                raise OutputExistsError(f"{path} exists; choose another output, or --overwrite")
        _refuse_foreign(path)
        root = {"cellseg": {"format_version": FORMAT_VERSION, **attributes}}
        store = cls(path, root["cellseg"])
        try:
            with _writing(path):
                store._write_json("zarr.json", ome.group_document(root))
        except OSError as error:  # a file where a folder is needed, a name that is too long
            raise StoreError(
                f"{path} cannot be made: {error.strerror}; choose another path"
            ) from error
        return store

    @classmethod
    def is_at(cls, path: str | Path) -> bool:
        """Whether ``path`` holds a zarr root, of whatever origin."""
        return (Path(path) / "zarr.json").is_file()

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """The store at ``path``.

        Raises
        ------
        StoreError
            Nothing is there, it is no store of ours, or its format version is another.
        """
        path = Path(path)
        if not path.is_dir():
            there = "a file" if path.exists() else "nothing"
            raise StoreError(f"{path} is no cellseg store: {there} is there, not a folder")
        if not cls.is_at(path):
            raise StoreError(f"{path} is no cellseg store: it has no zarr.json ({_contents(path)})")
        root = _read_json(path / "zarr.json").get("attributes")
        attributes = root.get("cellseg") if isinstance(root, dict) else None
        if not isinstance(attributes, dict) or "format_version" not in attributes:
            raise StoreError(f"{path} is a zarr store, but not one that cellseg made")
        found = attributes["format_version"]
        if found != FORMAT_VERSION:
            raise StoreError(
                f"{path} has store format {found}, this cellseg reads format {FORMAT_VERSION}; "
                "use the cellseg that made it, or embed anew into another store"
            )
        for name in ("embed", "model", "cluster"):  # what the stages keep there
            if not isinstance(attributes.get(name, {}), dict):
                raise StoreError(f"{path / 'zarr.json'} is damaged: {name} is no JSON object")
        return cls(path, attributes)

    def write_fields(self, rows: Iterable[FieldRow]) -> None:
        """Replace ``fields.parquet``, atomically; rows are sorted by id."""
        import pyarrow as pa
        from pyarrow import parquet

        with _writing(self.path), self._temporary() as temporary:
            table = [asdict(row) for row in sorted(rows, key=lambda row: row.id)]
            parquet.write_table(pa.Table.from_pylist(table, schema=_schema()), temporary)
            durable.replace(temporary, self.path / "fields.parquet")

    def fields(self) -> tuple[FieldRow, ...]:
        """The plan, sorted by id; empty if none was written yet.

        Raises
        ------
        StoreError
            ``fields.parquet`` is damaged.
        """
        import pyarrow as pa
        from pyarrow import parquet

        path = self.path / "fields.parquet"
        if not path.is_file():
            return ()
        names = [field.name for field in fields(FieldRow)]
        try:
            table = parquet.read_table(path, columns=names)
            return _distinct(tuple(FieldRow(**row) for row in table.to_pylist()))
        except (pa.ArrowException, OSError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{path} is damaged ({reason}); run cellseg embed again") from error

    def mark_done(
        self, field_id: str, stage: Stage, fingerprint: str, details: Json | None = None
    ) -> None:
        """Say that a stage of a field is finished: last, durable, and at once.

        ``details`` are kept with the mark (normalisation, settings, times).
        """
        mark = {"stage": stage, "fingerprint": fingerprint, **(details or {})}
        with _writing(self.path):
            self._write_json(f"{_checked(field_id)}/{stage}.done.json", mark)
            (self.path / self._failure(field_id, stage)).unlink(missing_ok=True)

    def note_failure(self, field_id: str, stage: Stage, reason: str) -> None:
        """Keep why a stage of a field failed, for the stages after it, until it is done."""
        with _writing(self.path):
            self._write_json(self._failure(field_id, stage), {"reason": reason})

    def failure(self, field_id: str, stage: Stage) -> str | None:
        """Why a stage of a field failed when it was last tried; None if it did not fail."""
        try:
            return str(_read_json(self.path / self._failure(field_id, stage)).get("reason"))
        except (FileNotFoundError, NotADirectoryError, StoreError):
            return None

    def done_fingerprint(self, field_id: str, stage: Stage) -> str | None:
        """The fingerprint that the stage of a field was finished with; None if it is not."""
        mark = self.mark(field_id, stage)
        return None if mark is None else str(mark.get("fingerprint"))

    def mark(self, field_id: str, stage: Stage) -> dict[str, Any] | None:
        """The whole done-mark, or None; a mark that is not JSON counts as none."""
        try:
            return _read_json(self._group(field_id) / f"{stage}.done.json")
        except (FileNotFoundError, NotADirectoryError, StoreError):
            return None

    def has(self, field_id: str, stage: Stage) -> bool:
        """Whether a stage of a field is finished, with whatever settings."""
        return self.mark(field_id, stage) is not None

    def clear(self, field_id: str, stage: Stage) -> None:
        """Remove what a stage of a field wrote, and what was made from it; the mark first.

        Clearing ``embed`` clears ``cluster`` too.  Fields whose id continues
        this one (``a/b`` under ``a``) stay.
        """
        group = self._group(field_id)
        stages = _STAGES[_STAGES.index(stage) :]
        with _writing(self.path):
            for one in reversed(stages):
                (group / f"{one}.done.json").unlink(missing_ok=True)
            for name in ("labels",) if stage == "cluster" else ("labels", "embedding", "classes"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(group / name)

    def write_embedding(
        self, field_id: str, values: np.ndarray, classes: np.ndarray | None = None
    ) -> None:
        """Write what the network says of one field, replacing what is there.

        Parameters
        ----------
        field_id
            Where.
        values : (E, Y, X) float16
        classes : (3, Y, X) uint8, optional
            Probabilities of background, interior and border, times 255.

        Notes
        -----
        The mark is the caller's to set, by :meth:`mark_done`.
        """
        assert values.ndim == 3 and values.dtype == np.float16
        arrays = {"embedding": values}
        if classes is not None:
            assert classes.shape == (3, *values.shape[1:]) and classes.dtype == np.uint8
            arrays["classes"] = classes
        with _writing(self.path):
            self.clear(field_id, "embed")
            self._make_parents(field_id)
            self._write_json(
                f"{field_id}/zarr.json", ome.group_document(ome.field_metadata(arrays))
            )
            for name, array in arrays.items():
                self._write_array(f"{field_id}/{name}", array, ("c", "y", "x"))

    def read_embedding(self, field_id: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The embedding (E, Y, X) float16 and the classes (3, Y, X) uint8, or None for these.

        Raises
        ------
        StoreError
            The field is not embedded, or its arrays are damaged, or the model has classes
            and they are lost.
        """
        self._require(field_id, "embed")
        values = self._read_array(field_id, "embedding", "embed")
        promised = bool(self.attributes.get("model", {}).get("classes"))
        has_classes = promised or (self._group(field_id) / "classes").is_dir()
        return values, self._read_array(field_id, "classes", "embed") if has_classes else None

    def write_labels(self, field_id: str, labels: np.ndarray) -> None:
        """Write the label image (Y, X) uint32 of one field, replacing what is there.

        The mark of an earlier label image goes first; the new one is the
        caller's to set.
        """
        assert labels.ndim == 2 and labels.dtype == np.uint32
        with _writing(self.path):
            self.clear(field_id, "cluster")
            self._make_parents(f"{field_id}/labels")
            for name, metadata in ome.label_metadata().items():
                self._write_json(f"{field_id}/{name}/zarr.json", ome.group_document(metadata))
            self._write_array(f"{field_id}/labels/cells/0", labels, ("y", "x"))

    def read_labels(self, field_id: str) -> np.ndarray:
        """The label image (Y, X) uint32 of one field.

        Raises
        ------
        StoreError
            The field is not clustered, or its label image is damaged.
        """
        self._require(field_id, "cluster")
        return self._read_array(field_id, "labels/cells/0", "cluster")

    def write_record(self, name: str, record: Json) -> Path:
        """Write a run record to ``.cellseg/runs/<name>.json``, atomically; its path."""
        relative = f"{_OWN}/runs/{name}.json"
        with _writing(self.path):
            self._write_json(relative, record)
        return self.path / relative

    def _group(self, field_id: str) -> Path:
        return self.path / _checked(field_id)

    def _failure(self, field_id: str, stage: Stage) -> str:
        return f"{_OWN}/failed/{_checked(field_id)}/{stage}.failed.json"

    def _require(self, field_id: str, stage: Stage) -> None:
        if not self.has(field_id, stage):
            what = {"embed": "embedded", "cluster": "clustered"}[stage]
            raise StoreError(
                f"{field_id} is not {what} in {self.path}; run cellseg {stage} (again)"
            )

    def _make_parents(self, name: str) -> None:
        """Plain groups above ``name``, where none is yet; never over a field's own group."""
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            if not (self.path / parent / "zarr.json").exists():
                with self._temporary() as temporary:
                    durable.write_json(temporary, ome.group_document({}))
                    durable.place_if_absent(temporary, self.path / parent / "zarr.json")

    def _write_array(self, name: str, array: np.ndarray, axes: tuple[str, ...]) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        plane = array.shape[-2:]
        rest = array.shape[:-2]
        shard = tuple(min(SHARD_PX, CHUNK_PX * max(1, math.ceil(n / CHUNK_PX))) for n in plane)
        target = zarr.create_array(
            store=str(self.path / name),
            shape=array.shape,
            chunks=(*rest, CHUNK_PX, CHUNK_PX),
            shards=(*rest, *shard),
            dtype=array.dtype,
            fill_value=0,
            # the checksum makes silent damage an error, not other numbers
            compressors=ZstdCodec(level=1, checksum=True),
            dimension_names=axes,
            # a missing shard must mean damage, not a shard of zeros
            config={"write_empty_chunks": True},
        )
        target[...] = array
        durable.sync_tree(self.path / name)

    def _read_array(self, field_id: str, name: str, stage: Stage) -> np.ndarray:
        import zarr

        path = self._group(field_id) / name
        try:
            array = zarr.open_array(store=str(path), mode="r")
            _require_shards(array, path)
            return np.asarray(array[...])
        # zarr has no error class of its own for damage: codecs raise what they like
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            mark = self._group(field_id) / f"{stage}.done.json"
            raise StoreError(
                f"{field_id}: {name} is damaged in {self.path} ({error}); "
                f"delete {mark} and run cellseg {stage} again"
            ) from error

    def _write_json(self, relative: str, document: Json) -> None:
        with self._temporary() as temporary:
            durable.write_json(temporary, document)
            durable.replace(temporary, self.path / relative)

    def _temporary(self) -> contextlib.AbstractContextManager[Path]:
        return durable.temporary_path(self.path / _OWN / "tmp")


def _schema() -> pa.Schema:
    import pyarrow as pa

    numbers = {"size_bytes", "mtime_ns", "height", "width", "channels"}
    names = [field.name for field in fields(FieldRow)]
    return pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in names])


def _distinct(rows: tuple[FieldRow, ...]) -> tuple[FieldRow, ...]:
    """The rows; TypeError unless each has an id of its own and a source."""
    if not all(row.id and row.source for row in rows) or len({r.id for r in rows}) < len(rows):
        raise TypeError("a field has no id of its own, or no source")
    return rows


def _checked(field_id: str) -> str:
    if reason := refusal(field_id):
        raise StoreError(f"{field_id!r} cannot be a field of a store: {reason}")
    return field_id


def _refuse_foreign(path: Path) -> None:
    """Raise StoreError unless ``path`` is free, an empty folder, or a store just being made."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; a store is a folder: choose another output")
    # Listed before the root is looked for: a store that another process makes meanwhile is one.
    foreign = path.is_dir() and {p.name for p in path.iterdir()} - {_OWN}
    if foreign and not Store.is_at(path):
        raise StoreError(
            f"{path} is no cellseg store ({_contents(path)}); choose another output: "
            "a folder that cellseg did not make is never overwritten"
        )


def _contents(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _require_shards(array: zarr.Array[Any], path: Path) -> None:
    """Raise OSError if the file of a shard is missing: zarr itself would return zeros."""
    shards = array.shards or array.chunks
    counts = [math.ceil(n / shard) for n, shard in zip(array.shape, shards, strict=True)]
    for index in np.ndindex(*counts):
        shard_file = path.joinpath("c", *map(str, index))
        if not shard_file.is_file():
            raise OSError(f"shard {shard_file.relative_to(path)} is missing")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise StoreError(f"{path} is damaged: it holds no JSON object")
    return document


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn "the disk cannot be written" into one error that ends the run."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise StoreWriteError(
            f"{path} cannot be written: {error.strerror}; make room or fix the permissions, then "
            "run the same command again: finished fields are kept"
        ) from error
