"""The store: what is written is read, what is unfinished is never read, ids stay inside."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cellseg_cli import arrays as layout
from cellseg_cli import durable
from cellseg_cli.arrays import CHUNK_PX
from cellseg_cli.errors import OutputExistsError, StoreError, StoreWriteError
from cellseg_cli.store import FieldRow, Store, refusal

ATTRIBUTES = {"embed": {"model": "aa"}, "model": {"kind": "spatial"}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "emb.zarr", ATTRIBUTES)


def ramp(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def embedded(store: Store, field_id: str, shape: tuple[int, int] = (10, 12)) -> np.ndarray:
    values = ramp((4, *shape), np.float16)
    store.write_embedding(field_id, values)
    store.mark_done(field_id, "embed", "print")
    return values


# ------------------------------------------------------------------ round trips


@settings(max_examples=30, deadline=None)
@given(
    values=arrays.arrays(
        np.float16,
        st.tuples(st.integers(1, 8), st.integers(1, 300), st.integers(1, 300)),
        elements=st.floats(-100, 100, width=16),
        fill=st.floats(-1, 1, width=16),
    ),
    with_classes=st.booleans(),
)
def test_embedding_is_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, with_classes: bool
) -> None:
    store = Store.create(tmp_path_factory.mktemp("s") / "emb.zarr", ATTRIBUTES)
    classes = ramp((3, *values.shape[1:]), np.uint8) if with_classes else None
    store.write_embedding("a/b", values, classes)
    store.mark_done("a/b", "embed", "print")
    read, read_classes = store.read_embedding("a/b")
    assert read.dtype == np.float16
    np.testing.assert_array_equal(read, values)
    if classes is None:
        assert read_classes is None
    else:
        np.testing.assert_array_equal(read_classes, classes)


@settings(max_examples=30, deadline=None)
@given(
    labels=arrays.arrays(
        np.uint32,
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
        elements=st.integers(0, 2**32 - 1),
        fill=st.integers(0, 2**32 - 1),
    )
)
def test_labels_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray
) -> None:
    store = Store.create(tmp_path_factory.mktemp("s") / "emb.zarr", ATTRIBUTES)
    store.write_labels("a", labels)
    store.mark_done("a", "cluster", "print")
    read = store.read_labels("a")
    assert read.dtype == np.uint32
    np.testing.assert_array_equal(read, labels)


def test_a_second_write_replaces_another_shape(store: Store) -> None:
    embedded(store, "a", (300, 20))
    values = embedded(store, "a", (5, 7))
    np.testing.assert_array_equal(store.read_embedding("a")[0], values)


def test_fields_are_read_as_written_and_sorted(store: Store) -> None:
    whole = FieldRow("b", "/data/b.tif", 12, 1_700_000_000_123_456_789, 520, 704, 1, "uint16")
    broken = FieldRow("a é", "/data/a é.tif", error="zero bytes")
    store.write_fields([whole, broken])
    assert Store.open(store.path).fields() == (broken, whole)
    assert (whole.pixels, broken.pixels) == (520 * 704, 0)


def test_equal_plans_are_equal_bytes(store: Store) -> None:
    rows = [FieldRow("a", "/a.png", 1, 2, 3, 4, 1, "uint8"), FieldRow("b", "/b.png", error="no")]
    store.write_fields(rows)
    first = (store.path / "fields.parquet").read_bytes()
    store.write_fields(reversed(rows))
    assert (store.path / "fields.parquet").read_bytes() == first


# ------------------------------------------------------------- slab by slab, in regions


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of 512 px, so that small fields have several."""
    monkeypatch.setattr(layout, "SHARD_PX", 512)


@pytest.mark.usefixtures("small_shards")
def test_slabs_of_an_embedding_are_read_in_regions(store: Store) -> None:
    values, classes = ramp((2, 700, 900), np.float16), ramp((3, 700, 900), np.uint8)
    with store.embedding_writer("a/b", (2, 700, 900), classes=True) as writer:
        assert len(writer.slabs) == 4
        for slab in reversed(writer.slabs):
            writer.write(slab, values[(slice(None), *slab)], classes[(slice(None), *slab)])
    assert not store.has("a/b", "embed")
    store.mark_done("a/b", "embed", "print")
    assert store.embedding_shape("a/b") == (2, 700, 900)
    for region in ((slice(0, 1), slice(0, 900)), (slice(500, 520), slice(300, 800))):
        part = (slice(None), *region)
        for found, wanted in zip(
            store.read_embedding("a/b", region), (values, classes), strict=True
        ):
            assert found is not None
            np.testing.assert_array_equal(found, wanted[part])
    np.testing.assert_array_equal(store.read_embedding("a/b")[0], values)


@pytest.mark.usefixtures("small_shards")
def test_slabs_of_labels_are_read_in_regions(store: Store) -> None:
    labels = ramp((600, 530), np.uint32)
    store.write_labels("a", labels[:5, :5])
    store.mark_done("a", "cluster", "old")
    with store.labels_writer("a", (600, 530)) as writer:
        for slab in writer.slabs:
            writer.write(slab, labels[slab])
        np.testing.assert_array_equal(store.read_labels("a"), labels[:5, :5])
    assert not store.has("a", "cluster")
    store.mark_done("a", "cluster", "print")
    region = (slice(510, 514), slice(511, 513))
    np.testing.assert_array_equal(store.read_labels("a", region), labels[region])
    np.testing.assert_array_equal(store.read_labels("a"), labels)


@pytest.mark.usefixtures("small_shards")
def test_a_region_needs_its_own_shards_only(store: Store) -> None:
    embedded(store, "a", (600, 600))
    (store.path / "a/embedding/c/0/1/0").unlink()
    assert store.read_embedding("a", (slice(0, 512), slice(0, 600)))[0].shape == (4, 512, 600)
    with pytest.raises(
        StoreError, match=r"embedding is damaged in .* \(shard c/0/1/0 is missing\)"
    ):
        store.read_embedding("a", (slice(511, 513), slice(0, 10)))


def test_shape_of_what_is_not_there_or_damaged(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        store.embedding_shape("a")
    assert str(caught.value) == f"a is not embedded in {store.path}; run cellseg embed (again)"
    embedded(store, "a")
    (store.path / "a/embedding/zarr.json").write_text("{")
    with pytest.raises(StoreError, match="a: embedding is damaged in"):
        store.embedding_shape("a")


def test_a_full_disk_at_a_slab(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(StoreWriteError, match="No space left on device; make room"),
        store.labels_writer("a", (10, 12)) as writer,
    ):
        monkeypatch.setattr(Path, "replace", full)
        writer.write(writer.slabs[0], np.zeros((10, 12), np.uint32))
    assert not (store.path / "a").exists()  # nothing half written
    assert list((store.path / ".cellseg/tmp").iterdir()) == []


@pytest.mark.parametrize("killed_at", ["write", "rename"])
def test_a_second_run_leaves_what_a_first_one_has_finished(
    store: Store, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ramp((10, 12), np.uint32)
    second = store.labels_writer("a", (10, 12))
    with contextlib.suppress(KeyboardInterrupt), second as writer:
        writer.write(writer.slabs[0], labels)
        store.write_labels("a", labels)
        store.mark_done("a", "cluster", "print")
        if killed_at == "write":
            raise KeyboardInterrupt
    if killed_at == "rename":  # it came so far: it has its own mark to set
        assert not store.has("a", "cluster")
        store.mark_done("a", "cluster", "print")
    np.testing.assert_array_equal(store.read_labels("a"), labels)
    assert list((store.path / ".cellseg/tmp").iterdir()) == []


def test_processes_that_write_the_same_fields_over_and_over(store: Store) -> None:
    script = """
import sys
import numpy as np
from cellseg_cli.store import Store
store = Store.open(sys.argv[1])
values = np.ones((2, 30, 40), np.float16)
for _ in range(60):
    store.write_embedding("p/a", values, np.ones((3, 30, 40), np.uint8))
    store.mark_done("p/a", "embed", "print")
    store.write_labels("p/b", np.ones((30, 40), np.uint32))
    store.mark_done("p/b", "cluster", "print")
"""
    command = [sys.executable, "-c", script, str(store.path)]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        assert run.communicate()[1] == ""
        assert run.returncode == 0
    assert store.read_embedding("p/a")[0].shape == (2, 30, 40)
    assert int(store.read_labels("p/b").sum()) == 1200
    assert list((store.path / ".cellseg/tmp").iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.uint32])
@pytest.mark.parametrize("shape", [(3, 10, 12), (1, 600, 1100), (2, 256, 300), (700, 513)])
def test_shards_hold_what_zarr_itself_would_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: type
) -> None:
    monkeypatch.setattr(layout, "SHARD_PX", 512)
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    with layout.SlabWriter(tmp_path, {tmp_path / "ours": (shape, dtype)}) as writer:
        for slab in writer.slabs:
            writer.write(slab, values[(..., *slab)])
    ours = zarr.open_array(str(tmp_path / "ours"), mode="r")
    np.testing.assert_array_equal(ours[...], values)
    (tmp_path / "theirs").mkdir()
    shutil.copy(tmp_path / "ours/zarr.json", tmp_path / "theirs")
    theirs = zarr.open_array(str(tmp_path / "theirs"), mode="r+")
    theirs.with_config({"write_empty_chunks": True})[...] = values

    def sizes(name: str) -> dict[str, int]:
        files = (one for one in (tmp_path / name).rglob("*") if one.is_file())
        return {one.relative_to(tmp_path / name).as_posix(): one.stat().st_size for one in files}

    assert sizes("ours") == sizes("theirs")  # zarr orders chunks otherwise, the bytes are the same


def test_an_array_of_other_codecs_goes_on_with_them(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 300, 270)).astype(np.float16)
    array = zarr.create_array(
        store=str(tmp_path / "a"), shape=values.shape, chunks=(2, 256, 256), shards=(2, 512, 512),
        dtype=values.dtype, compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
    )  # fmt: skip
    targets = {tmp_path / "a": (values.shape, np.float16)}
    with layout.SlabWriter(tmp_path, targets, new=False) as writer:
        writer.write(writer.slabs[0], values)
    np.testing.assert_array_equal(array[...], values)


# ---------------------------------------------------------------- what is on disk


def test_large_field_is_one_shard_per_slab_of_4096(store: Store) -> None:
    store.write_embedding("a", np.zeros((1, 4100, 300), np.float16))
    array = zarr.open_array(str(store.path / "a/embedding"), mode="r")
    assert (array.chunks, array.shards) == ((1, CHUNK_PX, CHUNK_PX), (1, 4096, 512))
    shards = sorted(p for p in (store.path / "a/embedding/c").rglob("*") if p.is_file())
    assert [p.relative_to(store.path / "a/embedding/c").as_posix() for p in shards] == [
        "0/0/0",
        "0/1/0",
    ]


def test_metadata_is_ome_zarr(store: Store) -> None:
    store.write_embedding("p/a", ramp((4, 8, 9), np.float16), ramp((3, 8, 9), np.uint8))
    store.write_labels("p/a", ramp((8, 9), np.uint32))
    root = zarr.open_group(str(store.path), mode="r")
    ome: Any = root["p/a"].attrs["ome"]
    assert ome["version"] == "0.5"
    axes = [axis["name"] for axis in ome["multiscales"][0]["axes"]]
    assert axes == ["c", "y", "x"]
    for entry in ome["multiscales"]:
        (dataset,) = entry["datasets"]
        array = root[f"p/a/{dataset['path']}"]
        assert isinstance(array, zarr.Array)
        assert array.metadata.dimension_names == ("c", "y", "x")
        assert len(dataset["coordinateTransformations"][0]["scale"]) == array.ndim
    assert root["p/a/labels"].attrs["ome"] == {"version": "0.5", "labels": ["cells"]}
    cells: Any = root["p/a/labels/cells"].attrs["ome"]
    assert cells["image-label"] == {"source": {"image": "../../"}}
    path = cells["multiscales"][0]["datasets"][0]["path"]
    np.testing.assert_array_equal(root[f"p/a/labels/cells/{path}"][...], ramp((8, 9), np.uint32))


def test_a_field_above_another_field_keeps_its_group(store: Store) -> None:
    """``a`` and ``a/b`` can both be fields, written in either order and cleared alone."""
    embedded(store, "a/b")
    embedded(store, "a")
    embedded(store, "a/c")
    assert "ome" in zarr.open_group(str(store.path / "a"), mode="r").attrs
    store.clear("a", "embed")
    assert [store.has(one, "embed") for one in ("a", "a/b", "a/c")] == [False, True, True]


# ------------------------------------------------------------------------- marks


def test_what_is_not_marked_is_not_read(store: Store) -> None:
    store.write_embedding("a", ramp((4, 5, 6), np.float16))
    with pytest.raises(StoreError) as caught:
        store.read_embedding("a")
    assert str(caught.value) == (f"a is not embedded in {store.path}; run cellseg embed (again)")
    with pytest.raises(StoreError, match="a is not clustered in"):
        store.read_labels("a")


def test_mark_keeps_fingerprint_and_details(store: Store) -> None:
    assert store.done_fingerprint("a", "embed") is None
    store.mark_done("a", "embed", "123", {"device": "cpu"})
    assert store.done_fingerprint("a", "embed") == "123"
    assert store.mark("a", "embed") == {"stage": "embed", "fingerprint": "123", "device": "cpu"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_mark_is_no_mark(store: Store, content: bytes) -> None:
    embedded(store, "a")
    (store.path / "a/embed.done.json").write_bytes(content)
    assert not store.has("a", "embed")


def test_writing_takes_the_old_marks_away(store: Store) -> None:
    values = embedded(store, "a")
    store.write_labels("a", np.ones((10, 12), np.uint32))
    store.mark_done("a", "cluster", "print")
    store.write_labels("a", np.ones((10, 12), np.uint32))
    assert (store.has("a", "embed"), store.has("a", "cluster")) == (True, False)
    store.mark_done("a", "cluster", "print")
    store.write_embedding("a", values)
    assert (store.has("a", "embed"), store.has("a", "cluster")) == (False, False)
    assert not (store.path / "a/labels").exists()


def test_lost_and_cut_shards_are_errors_not_zeros(store: Store) -> None:
    embedded(store, "a")
    shard = store.path / "a/embedding/c/0/0/0"
    whole = shard.read_bytes()
    for damaged in (whole[:-5], whole[:40] + bytes([whole[40] ^ 255]) + whole[41:]):
        shard.write_bytes(damaged)
        with pytest.raises(StoreError, match="a: embedding is damaged in"):
            store.read_embedding("a")
    shard.unlink()
    with pytest.raises(StoreError) as caught:
        store.read_embedding("a")
    assert str(caught.value) == (
        f"a: embedding is damaged in {store.path} (shard c/0/0/0 is missing); "
        f"delete {store.path / 'a/embed.done.json'} and run cellseg embed again"
    )


def test_lost_classes_are_an_error_where_the_model_has_some(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "emb.zarr", {"model": {"classes": True}})
    classes = ramp((3, 10, 12), np.uint8)
    store.write_embedding("a", ramp((2, 10, 12), np.float16), classes)
    store.mark_done("a", "embed", "mark")
    found = store.read_embedding("a")[1]
    assert found is not None and np.array_equal(found, classes)
    shutil.rmtree(store.path / "a" / "classes")
    with pytest.raises(StoreError, match=r"^a: classes is damaged in "):
        store.read_embedding("a")


def test_an_empty_label_image_has_its_shard(store: Store) -> None:
    """Without it, a lost file and an empty field would look the same."""
    store.write_labels("a", np.zeros((10, 12), np.uint32))
    assert (store.path / "a/labels/cells/0/c/0/0").is_file()


# ------------------------------------------------------------------ what is refused


def test_open_says_what_is_there_instead(tmp_path: Path) -> None:
    missing, file, empty, foreign = (tmp_path / name for name in ("no", "file", "empty", "foreign"))
    file.write_text("x")
    empty.mkdir()
    foreign.mkdir()
    for name in "dcba":
        (foreign / f"{name}.png").touch()
    messages = []
    for path in (missing, file, empty, foreign):
        with pytest.raises(StoreError) as caught:
            Store.open(path)
        messages.append(str(caught.value))
    assert messages == [
        f"{missing} is no cellseg store: nothing is there, not a folder",
        f"{file} is no cellseg store: a file is there, not a folder",
        f"{empty} is no cellseg store: it has no zarr.json (it is empty)",
        f"{foreign} is no cellseg store: it has no zarr.json (it holds a.png, b.png, c.png, ...)",
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"attributes": {}}, "{path} is a zarr store, but not one that cellseg made"),
        ({"attributes": None}, "{path} is a zarr store, but not one that cellseg made"),
        (
            {"attributes": {"cellseg": {"format_version": 2}}},
            "{path} has store format 2, this cellseg reads format 1; use the cellseg that made "
            "it, or embed anew into another store",
        ),
    ],
)
def test_open_refuses_other_stores(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    for attempt in (Store.open, lambda path: Store.create(path, {}, overwrite=True)):
        with pytest.raises(StoreError) as caught:
            attempt(tmp_path)
        assert str(caught.value) == message.format(path=tmp_path)


def test_create_never_touches_what_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(StoreError) as caught:
        Store.create(tmp_path, {}, overwrite=True)
    assert str(caught.value) == (
        f"{tmp_path} is no cellseg store (it holds thesis.docx); choose another output: "
        "a folder that cellseg did not make is never overwritten"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


def test_two_that_create_one_store_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one finishes while this one looks at what is there."""
    path = tmp_path / "emb.zarr"
    path.mkdir()
    listing = Path.iterdir

    def late(folder: Path) -> Iterator[Path]:
        monkeypatch.undo()
        Store.create(path, {"made": 1})
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", late)
    Store.create(path, {"made": 1}, overwrite=True)
    assert Store.open(path).attributes["made"] == 1


def test_create_refuses_an_existing_store(store: Store) -> None:
    with pytest.raises(OutputExistsError) as caught:
        Store.create(store.path, {})
    assert str(caught.value) == f"{store.path} exists; choose another output, or --overwrite"
    Store.create(store.path, {"embed": {"model": "bb"}}, overwrite=True)
    assert Store.open(store.path).attributes["embed"] == {"model": "bb"}


@pytest.mark.parametrize(
    ("field_id", "reason"),
    [
        ("../a", "'..' is no name for a folder"),
        ("a/../../b", "'..' is no name for a folder"),
        ("", "'' is no name for a folder"),
        ("a//b", "'' is no name for a folder"),
        ("/etc/a", "it must be a relative path with forward slashes"),
        ("a\\b", "it must be a relative path with forward slashes"),
        ("plate/labels/a", "'labels' is a name that the store keeps for itself"),
        ("zarr.json", "'zarr.json' is a name that the store keeps for itself"),
        (".cellseg", "'.cellseg' is a name that the store keeps for itself"),
        ("__a", "'__a': zarr keeps names that begin with '__' for itself"),
        ("a\nb", "it has control characters or is not valid UTF-8"),
        ("a\udcff", "it has control characters or is not valid UTF-8"),
    ],
)
def test_ids_that_a_store_cannot_hold(store: Store, field_id: str, reason: str) -> None:
    assert refusal(field_id) == reason
    for attempt in (
        lambda: store.write_labels(field_id, np.zeros((2, 2), np.uint32)),
        lambda: store.clear(field_id, "embed"),
        lambda: store.mark_done(field_id, "embed", ""),
    ):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert str(caught.value) == f"{field_id!r} cannot be a field of a store: {reason}"


@pytest.mark.parametrize(
    "field_id", ["a", "Platte 1/Ähre", "图像/场\u30001", "a.b/c-d_e", "c", "0/0"]
)
def test_ids_that_a_store_can_hold(store: Store, field_id: str) -> None:
    values = embedded(store, field_id)
    np.testing.assert_array_equal(store.read_embedding(field_id)[0], values)


def test_damaged_list_of_fields(store: Store) -> None:
    assert store.fields() == ()
    (store.path / "fields.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"fields\.parquet is damaged .*; run cellseg embed again"):
        store.fields()


def test_full_disk_is_one_clear_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "sync_tree", full)
    with pytest.raises(StoreWriteError) as caught:
        embedded(store, "a")
    assert str(caught.value) == (
        f"{store.path} cannot be written: No space left on device; make room or fix the "
        "permissions, then run the same command again: finished fields are kept"
    )
    assert not store.has("a", "embed")


def test_nothing_temporary_stays(store: Store) -> None:
    embedded(store, "a/b")
    store.write_fields([FieldRow("a/b", "/b.png")])
    assert list((store.path / ".cellseg/tmp").iterdir()) == []


def test_what_a_killed_run_left_goes_after_a_day(store: Store) -> None:
    """Not what may be in use: younger files, and folders that a living process has locked."""
    folder = store.path / ".cellseg/tmp"
    with store.scratch():
        held = {path.name for path in folder.iterdir()}
        (folder / "host-1-a.scratch").mkdir()
        for name in ("1-a", "2-b", "host-1-a.lock"):
            (folder / name).touch()
        for name in (*held, "1-a", "host-1-a.scratch", "host-1-a.lock"):
            os.utime(folder / name, (0, time.time() - 90_000))  # 25 hours
        store.remove_abandoned()
        assert {path.name for path in folder.iterdir()} == {"2-b", *held}


# ------------------------------------------------------------------ failures and edited stores


def test_a_failure_is_kept_until_the_stage_is_done(store: Store) -> None:
    store.note_failure("a/b", "embed", "truncated")
    assert (store.failure("a/b", "embed"), store.failure("a/b", "cluster")) == ("truncated", None)
    assert store.failure("a", "embed") is None
    assert not store.has("a/b", "embed")
    embedded(store, "a/b")
    assert store.failure("a/b", "embed") is None


@pytest.mark.parametrize("name", ["embed", "model", "cluster"])
def test_attributes_that_are_no_tables(tmp_path: Path, name: str) -> None:
    store = Store.create(tmp_path / "s.zarr", {name: [1]})
    with pytest.raises(StoreError) as caught:
        Store.open(store.path)
    assert str(caught.value) == f"{store.path / 'zarr.json'} is damaged: {name} is no JSON object"


def test_a_root_nested_too_deeply(store: Store) -> None:
    (store.path / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match=r"zarr\.json is damaged: it is not JSON \(maximum recurs"):
        Store.open(store.path)


@pytest.mark.parametrize(
    "rows",
    [
        [FieldRow("a", "a.png"), FieldRow("a", "b.png")],
        [FieldRow(None, "a.png")],  # type: ignore[arg-type]
        [FieldRow("a", None)],  # type: ignore[arg-type]
    ],
)
def test_rows_that_are_no_fields(store: Store, rows: list[FieldRow]) -> None:
    store.write_fields(rows)
    with pytest.raises(StoreError) as caught:
        store.fields()
    assert str(caught.value) == (
        f"{store.path / 'fields.parquet'} is damaged (a field has no id of its own, or no source); "
        "run cellseg embed again"
    )


def test_a_place_where_no_store_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        Store.create(tmp_path / "file/s.zarr", {})
    assert str(caught.value) == (
        f"{tmp_path / 'file/s.zarr'} cannot be made: Not a directory; choose another path"
    )


# ------------------------------------------------------------------------ plates


def well_row(field_id: str, well: str = "B02", plate: str = "screen", **more: Any) -> FieldRow:
    return FieldRow(field_id, f"/data/{field_id}.tif", plate=plate, well=well, **more)


def attributes_of(store: Store, group: str) -> Any:
    return json.loads((store.path / group / "zarr.json").read_text())["attributes"]


def test_plates_and_wells_say_what_they_are(store: Store) -> None:
    rows = [
        well_row("run/screen/B/02/f002"),
        well_row("run/screen/B/02/f001"),
        well_row("run/screen/AA/10/f001", "AA10"),
        well_row("run/screen/B/10/f001", "B10", error="zero bytes"),
        FieldRow("other/B/02/f001", "/data/other.tif"),
    ]
    embedded(store, "run/screen/B/02/f001")
    store.write_plates(rows)
    plate = attributes_of(store, "run/screen")["ome"]
    assert plate == {
        "version": "0.5",
        "plate": {
            "version": "0.5",
            "name": "screen",
            "rows": [{"name": "B"}, {"name": "AA"}],
            "columns": [{"name": "02"}, {"name": "10"}],
            "wells": [
                {"path": "B/02", "rowIndex": 0, "columnIndex": 0},
                {"path": "AA/10", "rowIndex": 1, "columnIndex": 1},
            ],
            "field_count": 2,
        },
    }
    well = attributes_of(store, "run/screen/B/02")["ome"]
    assert well == {"version": "0.5", "well": {"images": [{"path": "f001"}, {"path": "f002"}]}}
    assert attributes_of(store, "run") == {}
    assert not (store.path / "other").exists()
    assert not (store.path / "run/screen/B/10").exists()
    # fields that come later find their groups there and leave them alone
    embedded(store, "run/screen/AA/10/f001")
    assert attributes_of(store, "run/screen/AA/10")["ome"]["well"] == {"images": [{"path": "f001"}]}
    assert "multiscales" in attributes_of(store, "run/screen/AA/10/f001")["ome"]


def test_a_store_may_be_a_plate_itself(store: Store) -> None:
    store.write_plates([well_row("B/02/f001")])
    assert attributes_of(store, "")["ome"]["plate"]["name"] == "screen"
    assert Store.open(store.path).attributes == store.attributes


def test_groups_that_are_fields_stay_fields(store: Store) -> None:
    for field_id in ("a", "a/B/02"):
        embedded(store, field_id)
    store.write_plates([FieldRow("a", "/a.tif"), FieldRow("a/B/02", "/b.tif")])
    store.write_plates(
        [FieldRow("a", "/a.tif"), FieldRow("a/B/02", "/b.tif"), well_row("a/B/02/f001")]
    )
    for field_id in ("a", "a/B/02"):
        assert "multiscales" in attributes_of(store, field_id)["ome"]


def test_fields_that_are_not_laid_out_as_plates_are_passed_over(store: Store) -> None:
    before = sorted(store.path.rglob("*"))
    store.write_plates(
        [well_row("f001"), well_row("B/02"), well_row("p/B02/f001"), well_row("a/C/3/f")]
    )
    assert sorted(store.path.rglob("*.json")) == [path for path in before if path.suffix == ".json"]


@settings(max_examples=20, deadline=None)
@given(
    places=st.sets(
        st.tuples(
            st.sampled_from(["p", "q/r"]),
            st.sampled_from(["A", "B", "AB"]),
            st.sampled_from(["1", "02", "12"]),
            st.integers(0, 3),
        ),
        min_size=1,
    ),
    order=st.randoms(use_true_random=False),
)
def test_equal_plates_are_equal_bytes_and_every_field_is_in_its_well(
    tmp_path_factory: pytest.TempPathFactory, places: set[tuple[str, str, str, int]], order: Any
) -> None:
    rows = [well_row(f"{p}/{r}/{c}/f{f}", r + c, p) for p, r, c, f in places]
    stores = []
    for _ in range(2):
        one = Store.create(tmp_path_factory.mktemp("s") / "emb.zarr", ATTRIBUTES)
        order.shuffle(rows)
        one.write_plates(rows)
        stores.append({p.relative_to(one.path): p.read_bytes() for p in one.path.rglob("*.json")})
        listed = set()
        for plate in ("p", "q/r"):
            if not (one.path / plate).exists():
                continue
            inside = attributes_of(one, plate)["ome"]["plate"]
            for well in inside["wells"]:
                images = attributes_of(one, f"{plate}/{well['path']}")["ome"]["well"]["images"]
                row = inside["rows"][well["rowIndex"]]["name"]
                column = inside["columns"][well["columnIndex"]]["name"]
                assert well["path"] == f"{row}/{column}"
                listed |= {f"{plate}/{well['path']}/{image['path']}" for image in images}
        assert listed == {row.id for row in rows}
    assert stores[0] == stores[1]


def test_what_is_there_already_is_not_written_again(store: Store) -> None:
    rows = [well_row("p/B/02/f001"), well_row("p/B/03/f001", "B03")]
    store.write_plates(rows)
    paths = [store.path / name / "zarr.json" for name in ("p", "p/B/02", "p/B/03")]
    before = [path.stat().st_ino for path in paths]
    store.write_plates(rows)
    assert [path.stat().st_ino for path in paths] == before
    assert not list((store.path / ".cellseg" / "tmp").iterdir())


def test_a_plate_is_read_back_as_one(store: Store) -> None:
    from cellseg_cli.images.ome_zarr import images_in

    for field_id in ("p/B/02/f001", "p/C/03/f002"):
        embedded(store, field_id)
    store.write_plates([well_row("p/B/02/f001"), well_row("p/C/03/f002", "C03")])
    found = {image.relative: image.place for image in images_in(store.path / "p")}
    assert {name: place.well for name, place in found.items() if place} == {
        "B/02/f001": "B02",
        "C/03/f002": "C03",
    }
