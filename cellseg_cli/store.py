"""The zarr store of a run: one group per field, finished exactly when its mark says so.

This is the only module that knows the names inside a store; how its zarr
arrays are laid out is decided in :mod:`cellseg_cli.arrays`::

    emb.zarr/
      zarr.json                     root: format version, settings, the model's essentials
      fields.parquet                the plan: one row per field
      .cellseg/                     run records, tuned settings, temporary files, why fields failed
      <plate>/zarr.json             of fields of plates, OME-Zarr 0.5: the wells that there are
      <plate>/B/02/zarr.json        the fields of a well
      <field id>/
        zarr.json                   OME-Zarr 0.5 multiscales, axes c, y, x
        embedding                   (E, Y, X) float16
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
import json
import platform
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

import numpy as np

from cellseg_cli import arrays, durable, hcs, ome
from cellseg_cli.arrays import Region, SlabWriter
from cellseg_cli.errors import OutputExistsError, StoreError
from cellseg_cli.rows import FieldRow, read_rows, write_rows
from cellseg_cli.scratch import Scratch, own_folder, remove_stale, scratch

FORMAT_VERSION = 1
#: Names that a store keeps for itself; no component of a field id may be one of them.
RESERVED = frozenset(
    {"embedding", "classes", "labels", "zarr.json", "fields.parquet", ".cellseg"}
    | {"embed.done.json", "cluster.done.json", "embed.failed.json", "cluster.failed.json"}
)

Stage: TypeAlias = Literal["embed", "cluster"]
Json: TypeAlias = Mapping[str, Any]
#: Shape and type of arrays, by their path below a field.
Layouts: TypeAlias = Mapping[str, tuple[tuple[int, ...], type]]

_STAGES: tuple[Stage, ...] = ("embed", "cluster")
_OWN = ".cellseg"


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
            with durable.writing(path):
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

    def absolute(self) -> Store:
        """The same store by a path that holds in every folder, for processes elsewhere."""
        return Store(self.path.absolute(), self.attributes)

    def check_seen(self) -> None:
        """Make sure that this process sees the store itself, and no other folder of its name.

        Raises
        ------
        StoreError
            Nothing is there, or another store: the path is not shared with this machine.
        """
        ours = json.loads(json.dumps(self.attributes))  # as it is read: lists for tuples
        if self.is_at(self.path) and Store.open(self.path).attributes == ours:
            return
        raise StoreError(
            f"{self.path} on {platform.node()} is not the store that the run was started with; "
            "put it on a file system that all machines share, under the same path"
        )

    def write_fields(self, rows: Iterable[FieldRow]) -> None:
        """Replace ``fields.parquet``, atomically; rows are sorted by id."""
        with durable.writing(self.path), self._temporary() as temporary:
            write_rows(temporary, rows)
            durable.replace(temporary, self.path / "fields.parquet")

    def write_plates(self, rows: Iterable[FieldRow]) -> None:
        """Say which groups above the fields are plates and wells; after :meth:`write_fields`."""
        with durable.writing(self.path):
            hcs.write_plates(self.path, rows, {"cellseg": self.attributes}, self._temporary)

    def fields(self) -> tuple[FieldRow, ...]:
        """The plan, sorted by id; empty if none was written yet.

        Raises
        ------
        StoreError
            ``fields.parquet`` is damaged.
        """
        path = self.path / "fields.parquet"
        return read_rows(path) if path.is_file() else ()

    def mark_done(
        self, field_id: str, stage: Stage, fingerprint: str, details: Json | None = None
    ) -> None:
        """Say that a stage of a field is finished: last, durable, and at once.

        ``details`` are kept with the mark (normalisation, settings, times).
        """
        mark = {"stage": stage, "fingerprint": fingerprint, **(details or {})}
        with durable.writing(self.path):
            self._write_json(f"{_checked(field_id)}/{stage}.done.json", mark)
            (self.path / self._failure(field_id, stage)).unlink(missing_ok=True)

    def note_failure(self, field_id: str, stage: Stage, reason: str) -> None:
        """Keep why a stage of a field failed, for the stages after it, until it is done.

        Not brought to the disk at once: there may be a hundred thousand of them.
        """
        with durable.writing(self.path), self._temporary() as temporary:
            durable.write_json(temporary, {"reason": reason})
            durable.replace(temporary, self.path / self._failure(field_id, stage), synced=False)

    def failure(self, field_id: str, stage: Stage) -> str | None:
        """Why a stage of a field failed when it was last tried; None if it did not fail."""
        try:
            return str(_read_json(self.path / self._failure(field_id, stage)).get("reason"))
        except (FileNotFoundError, NotADirectoryError, StoreError):
            return None

    def failed_ids(self, stage: Stage) -> frozenset[str]:
        """The ids of all fields whose stage failed when it was last tried."""
        root, name = self.path / _OWN / "failed", f"{stage}.failed.json"
        return frozenset(path.parent.relative_to(root).as_posix() for path in root.rglob(name))

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
        names = ("labels",) if stage == "cluster" else ("labels", "embedding", "classes")
        with durable.writing(self.path):
            self._remove_marks(field_id, stage)
            _remove_folders(self._group(field_id), names)

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
        assert values.ndim == 3 and (classes is None or classes.shape == (3, *values.shape[1:]))
        planes = [values] if classes is None else [values, classes]
        channels, height, width = values.shape
        layouts = _embedding_layouts((channels, height, width), classes=classes is not None)
        with self._placed(field_id, "embed", layouts) as writer:
            for slab in writer.slabs:
                writer.write(slab, *(plane[(slice(None), *slab)] for plane in planes))

    def embedding_writer(
        self, field_id: str, shape: tuple[int, int, int], *, classes: bool
    ) -> SlabWriter:
        """As :meth:`write_embedding`, for fields that are larger than memory: slab by slab.

        Parameters
        ----------
        field_id
            Where; what is there goes at once.
        shape
            E, Y, X.
        classes
            Whether (3, Y, X) uint8 classes are written with the (E, Y, X) float16 embedding.
        """
        layouts = _embedding_layouts(shape, classes=classes)
        with durable.writing(self.path):
            self.clear(field_id, "embed")
            self._write_groups(field_id, "embed", layouts)
        return self._embedding_slabs(field_id, layouts, new=True)

    def embedding_part_writer(
        self, field_id: str, shape: tuple[int, int, int], *, classes: bool
    ) -> SlabWriter:
        """The writer of arrays that :meth:`embedding_writer` has made before, anywhere.

        What it writes is on the disk after :meth:`sync_embedding`.
        """
        layouts = _embedding_layouts(shape, classes=classes)
        return self._embedding_slabs(field_id, layouts, new=False)

    def sync_embedding(self, field_id: str) -> None:
        """Bring the arrays of a field, written in parts, to the disk."""
        with durable.writing(self.path):
            for name in ("embedding", "classes"):
                durable.sync_tree(self._group(field_id) / name)

    def forget_embedding(self, field_id: str) -> None:
        """Remove the embedding of a field and keep its label image; the mark goes first."""
        group = self._group(field_id)
        with durable.writing(self.path):
            (group / "embed.done.json").unlink(missing_ok=True)
            self._write_json(f"{field_id}/zarr.json", ome.group_document({}))
            _remove_folders(group, ("embedding", "classes"))

    def holds_embedding(self, field_id: str) -> bool:
        """Whether arrays were made for the embedding of a field, and not forgotten since.

        Says nothing of what is in them: that is the mark's to say.
        """
        try:
            document = _read_json(self._group(field_id) / "zarr.json")
        except FileNotFoundError:
            return False
        return "ome" in document.get("attributes", {})

    @contextlib.contextmanager
    def _placed(self, field_id: str, stage: Stage, layouts: Layouts) -> Iterator[SlabWriter]:
        """Arrays that are written aside, and take their place when they are whole.

        So that a second run of the same store, started by mistake, finds or leaves whole arrays
        wherever it is.
        """
        group = self._group(field_id)
        with own_folder(self.path, self.path / _OWN / "tmp") as folder:
            targets = {folder / name: layout for name, layout in layouts.items()}
            with SlabWriter(self.path, targets) as writer:
                yield writer
            with durable.writing(self.path):
                self._remove_marks(field_id, stage)
                self._write_groups(field_id, stage, layouts)
                for name in layouts:
                    durable.replace_folder(folder / name, group / name, folder)
                if stage == "embed":  # what was made of an earlier embedding goes
                    _remove_folders(group, {"labels", "classes"} - layouts.keys())

    def _write_groups(self, field_id: str, stage: Stage, layouts: Layouts) -> None:
        """The groups that hold the arrays of a stage, and plain ones above."""
        if stage == "embed":
            groups = {field_id: ome.field_metadata(layouts)}
        else:
            groups = {f"{field_id}/{name}": one for name, one in ome.label_metadata().items()}
        self._make_parents(next(iter(groups)))
        for name, metadata in groups.items():
            self._write_json(f"{name}/zarr.json", ome.group_document(metadata))

    def _remove_marks(self, field_id: str, stage: Stage) -> None:
        """Of a stage, and before it those of what is made from it."""
        for one in reversed(_STAGES[_STAGES.index(stage) :]):
            (self._group(field_id) / f"{one}.done.json").unlink(missing_ok=True)

    def _embedding_slabs(self, field_id: str, layouts: Layouts, *, new: bool) -> SlabWriter:
        group = self._group(field_id)
        return SlabWriter(self.path, {group / name: one for name, one in layouts.items()}, new=new)

    def embedding_shape(self, field_id: str) -> tuple[int, int, int]:
        """E, Y, X of the embedding of a field.

        Raises
        ------
        StoreError
            The field is not embedded, or its array is damaged.
        """
        self._require(field_id, "embed")
        with self._damage(field_id, "embedding", "embed"):
            channels, height, width = arrays.shape_of(self._group(field_id) / "embedding")
        return channels, height, width

    def read_embedding(
        self, field_id: str, region: Region | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The embedding (E, Y, X) float16 and the classes (3, Y, X) uint8, or None for these.

        Of the whole field, or of the rows and columns of ``region``.

        Raises
        ------
        StoreError
            The field is not embedded, or its arrays are damaged, or the model has classes
            and they are lost.
        """
        self._require(field_id, "embed")
        values = self._read_array(field_id, "embedding", "embed", region)
        promised = bool(self.attributes.get("model", {}).get("classes"))
        if not (promised or (self._group(field_id) / "classes").is_dir()):
            return values, None
        return values, self._read_array(field_id, "classes", "embed", region)

    def write_labels(self, field_id: str, labels: np.ndarray) -> None:
        """Write the label image (Y, X) uint32 of one field, replacing what is there.

        The mark of an earlier label image goes first; the new one is the
        caller's to set.
        """
        height, width = labels.shape
        with self.labels_writer(field_id, (height, width)) as writer:
            for slab in writer.slabs:
                writer.write(slab, labels[slab])

    def labels_writer(
        self, field_id: str, shape: tuple[int, int]
    ) -> contextlib.AbstractContextManager[SlabWriter]:
        """As :meth:`write_labels`, for fields that are larger than memory: slab by slab."""
        return self._placed(field_id, "cluster", {"labels/cells/0": (shape, np.uint32)})

    def read_labels(self, field_id: str, region: Region | None = None) -> np.ndarray:
        """The label image (Y, X) uint32 of one field, or a region of it.

        Raises
        ------
        StoreError
            The field is not clustered, or its label image is damaged.
        """
        self._require(field_id, "cluster")
        return self._read_array(field_id, "labels/cells/0", "cluster", region)

    def scratch(self) -> contextlib.AbstractContextManager[Scratch]:
        """Room for arrays that do not fit in memory, until the end of the ``with`` statement."""
        return scratch(self.path, self.path / _OWN / "tmp")

    @property
    def tuned_path(self) -> Path:
        """Where the clustering settings lie that were tuned on the store's fields, if they were."""
        return self.path / _OWN / "tuned.toml"

    def write_tuned(self, text: str) -> Path:
        """Replace the clustering settings that were tuned on the store's fields, atomically."""
        with durable.writing(self.path), self._temporary() as temporary:
            temporary.write_text(text, encoding="utf-8")
            durable.replace(temporary, self.tuned_path)
        return self.tuned_path

    def remove_abandoned(self) -> None:
        """Remove temporary files that killed runs have left."""
        durable.remove_abandoned(self.path / _OWN / "tmp")
        remove_stale(self.path / _OWN / "tmp")

    def write_record(self, name: str, record: Json) -> Path:
        """Write a run record to ``.cellseg/runs/<name>.json``, atomically; its path."""
        relative = f"{_OWN}/runs/{name}.json"
        with durable.writing(self.path):
            self._write_json(relative, record)
        return self.path / relative

    def record_path(self, name: str) -> Path:
        """Where a run may leave a file of its own beside its record, such as a line per field."""
        return self.path / _OWN / "runs" / name

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

    def _read_array(
        self, field_id: str, name: str, stage: Stage, region: Region | None
    ) -> np.ndarray:
        with self._damage(field_id, name, stage):
            return arrays.read(self._group(field_id) / name, region)

    @contextlib.contextmanager
    def _damage(self, field_id: str, name: str, stage: Stage) -> Iterator[None]:
        """Say what to do about an array that cannot be read."""
        try:
            yield
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


def _embedding_layouts(shape: tuple[int, int, int], *, classes: bool) -> Layouts:
    layouts: Layouts = {"embedding": (shape, np.float16)}
    return {**layouts, "classes": ((3, *shape[1:]), np.uint8)} if classes else layouts


def _remove_folders(parent: Path, names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(parent / name)


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise StoreError(f"{path} is damaged: it holds no JSON object")
    return document
