"""Large fields from the store and back: equal to whole ones, refused, interrupted, killed."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.errors import ConfigError, StoreWriteError
from cellseg_cli.labels import same_partition
from cellseg_cli.pipeline import tiles
from cellseg_cli.pipeline.cluster import cluster_store
from cellseg_cli.pipeline.embed import embed
from cellseg_cli.pipeline.events import Event, Noted
from cellseg_cli.pipeline.lines import read_lines
from cellseg_cli.pipeline.plan import field_fingerprint
from cellseg_cli.pipeline.sinks import StoreLabels
from cellseg_cli.pipeline.tiles import WHOLE_FIELD_PX, Place, Tiles, cluster_tiles
from cellseg_cli.store import FieldRow, Store

Field = Callable[..., np.ndarray]

ONE = RunSettings(threads=1)
SMALL = ClusterSettings(tile_px=96, overlap_px=24)


def ignore(event: Event) -> None:
    """Take an event and do nothing."""


def embedded(path: Path, kind: str, **fields: np.ndarray) -> Store:
    """A store that holds these embeddings, as ``embed`` would leave it."""
    identity = {"model": "made up"}
    attributes = {"embed": identity, "model": {"kind": kind}, "cluster": {}}
    store = Store.create(path, attributes)
    rows = []
    for name, values in fields.items():
        rows.append(FieldRow(name, f"/{name}.tif", 1, 1, *values.shape[1:], 1, "uint8"))
        store.write_embedding(name, values)
        store.mark_done(name, "embed", field_fingerprint(rows[-1], identity))
    store.write_fields(rows)
    return store


@pytest.fixture
def store(tmp_path: Path, ellipses: Field, spatial: Field) -> Store:
    """A field of 200 × 220 px and one of 90 × 80 px."""
    large, small = ellipses(0, (200, 220), 120), ellipses(1, (90, 80), 20)
    return embedded(
        tmp_path / "emb.zarr", "spatial", large=spatial(large, 0.5), small=spatial(small, 0.5)
    )


def scratch_of(store: Store) -> list[Path]:
    return list((store.path / ".cellseg/tmp").iterdir())


def record_of(store: Store) -> dict[str, Any]:
    """The newest run record, with what came of each field under ``fields``."""
    newest = max((store.path / ".cellseg/runs").glob("*.json"))
    document: dict[str, Any] = json.loads(newest.read_text())
    lines = read_lines(newest.parent / document["fields"])
    return {**document, "fields": {line["field"]: line for line in lines}}


# ------------------------------------------------------------------- equal to whole


def test_a_field_in_tiles_is_the_field_clustered_whole(store: Store) -> None:
    cluster_store(store.path, ClusterSettings(), ONE, ignore)
    wholes = {name: store.read_labels(name) for name in ("large", "small")}
    assert store.mark("large", "cluster").keys().isdisjoint({"tiles", "redone", "disputed"})  # type: ignore[union-attr]
    assert cluster_store(store.path, SMALL, ONE, ignore).done == 1
    assert same_partition(store.read_labels("large"), wholes["large"])
    mark = store.mark("large", "cluster")
    assert mark and (mark["tiles"], mark["redone"], mark["disputed"]) == (16, 0, 0)
    assert mark["instances"] == wholes["large"].max() > 40
    assert (mark["settings"]["tile_px"], mark["settings"]["overlap_px"]) == (96, 24)
    fate = record_of(store)["fields"]["large"]
    assert (fate["tiles"], fate["redone"], fate["disputed"]) == (16, 0, 0)
    assert scratch_of(store) == []


def test_only_fields_that_are_cut_depend_on_the_tiles(store: Store) -> None:
    assert cluster_store(store.path, SMALL, ONE, ignore).done == 2
    assert cluster_store(store.path, SMALL, ONE, ignore).skipped == 2
    other = replace(SMALL, overlap_px=16)
    summary = cluster_store(store.path, other, ONE, ignore)
    assert (summary.done, summary.skipped) == (1, 1)
    longer = replace(SMALL, tile_px=220)  # as long as the longer side: clustered whole
    assert cluster_store(store.path, longer, ONE, ignore).done == 1
    assert cluster_store(store.path, ClusterSettings(), ONE, ignore).skipped == 2


@pytest.mark.parametrize("size", ["full", "half"])
def test_what_is_background_is_decided_by_the_whole_field(tmp_path: Path, size: str) -> None:
    """One cell nearly fills the window at 48, 48, which would take it for background."""
    labels = np.zeros((300, 300), np.int32)
    labels[40:150, 40:150], labels[200:210, 20:60], labels[190:198, 100:160] = 1, 2, 3
    values = np.eye(4, dtype=np.float16)[labels].transpose(2, 0, 1)
    store = embedded(tmp_path / "emb.zarr", "contrastive", a=values)
    settings = ClusterSettings(size=size, tile_px=96, overlap_px=24)  # type: ignore[arg-type]
    cluster_store(store.path, settings, ONE, ignore)
    assert same_partition(store.read_labels("a"), labels)


def test_half_of_an_odd_side_agrees_in_all_windows(
    tmp_path: Path, ellipses: Field, spatial: Field
) -> None:
    truth = ellipses(4, (201, 233), 130)
    store = embedded(tmp_path / "emb.zarr", "spatial", a=spatial(truth, 0.5))
    settings = replace(SMALL, method="grid", size="half")
    cluster_store(store.path, settings, ONE, ignore)
    labels, mark = store.read_labels("a"), store.mark("a", "cluster")
    assert mark and mark["disputed"] == 0 and mark["instances"] == truth.max()
    assert np.mean((labels > 0) == (truth > 0)) > 0.98


def test_real_nuclei(real_data: Path, tmp_path: Path) -> None:
    """Images of the bundled model side by side: whole and in small tiles, no pixel differs."""
    with (real_data / "dsb2018" / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    folder = real_data / "dsb2018" / "val"
    square = [row["id"] for row in rows if (row["height"], row["width"]) == ("256", "256")][:6]
    (tmp_path / "in").mkdir()
    for name in square:
        (image,) = (path for path in folder.rglob(f"{name}.*") if path.parent.name != "labels")
        shutil.copy(image, tmp_path / "in")
    embed(tmp_path / "in", tmp_path / "one.zarr", EmbedSettings(device="cpu"), ONE, ignore)
    ones = Store.open(tmp_path / "one.zarr")
    parts = [ones.read_embedding(name)[0] for name in square]
    mosaic = np.concatenate(
        [np.concatenate(parts[start : start + 3], axis=2) for start in (0, 3)], axis=1
    )
    store = embedded(tmp_path / "emb.zarr", "spatial", a=mosaic)
    cluster_store(store.path, ClusterSettings(), ONE, ignore)
    labels = store.read_labels("a")
    assert labels.max() > 50
    cluster_store(store.path, ClusterSettings(tile_px=192, overlap_px=32), ONE, ignore)
    assert same_partition(store.read_labels("a"), labels)
    mark = store.mark("a", "cluster")
    assert mark and mark["disputed"] == 0 and mark["tiles"] > 10


# ----------------------------------------------------------------- when, and whether


def test_fields_are_cut_above_a_number_of_pixels_or_a_side() -> None:
    from cellseg_cli.clustering import resolve
    from cellseg_cli.clustering.settings import Clustering

    def cut(height: int, width: int, settings: ClusterSettings, method: str = "seeds") -> Any:
        row = FieldRow("a", "/a.tif", height=height, width=width)
        kind = "spatial" if method == "seeds" else "contrastive"
        return Tiles.of(settings).for_field(row, resolve(Clustering(method), kind))

    plain, short = ClusterSettings(), ClusterSettings(tile_px=100, overlap_px=10)
    assert WHOLE_FIELD_PX == 4096 * 4096
    assert cut(4096, 4096, plain) is None
    large = cut(4097, 4096, plain)
    assert (large.tile_px, large.overlap_px, large.largest_px) == (2048, 128, 4096)
    assert cut(100, 100, short) is None
    assert (cut(1, 101, short).tile_px, cut(1, 101, short).largest_px) == (100, 200)
    assert cut(5000, 5000, ClusterSettings(tile_px=5000)) is None
    assert cut(5000, 5000, plain, "linkage") is None
    assert cut(5000, 5000, plain, "grid") == large


def test_sides_that_do_not_go_together_end_the_run(store: Store) -> None:
    with pytest.raises(ConfigError) as caught:
        cluster_store(store.path, ClusterSettings(overlap_px=1024), ONE, ignore)
    assert str(caught.value) == "tile_px must be more than twice overlap_px; got 2048 and 1024"


def test_what_needs_the_whole_field_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "WHOLE_FIELD_PX", 1000)
    values = np.zeros((2, 40, 30), np.float16)
    values[0] = 1
    store = embedded(tmp_path / "emb.zarr", "contrastive", a=values, b=values[:, :20])
    reasons = {}
    for how in (ClusterSettings(method="linkage"), ClusterSettings(size="160x128")):
        summary = cluster_store(store.path, how, ONE, ignore)
        assert summary.done == 1
        reasons |= {how.method: summary.failed[0].reason}
    assert reasons == {
        "linkage": "linkage compares all pixels of a field with each other and takes at most 1000 "
        "px; the field has 40 × 30 px: use --method grid",
        "auto": "--size 160x128 shrinks the whole field and takes at most 1000 px; the field has "
        "40 × 30 px: use --size full or half",
    }


def test_an_instance_that_no_window_holds_fails_its_field(tmp_path: Path, spatial: Field) -> None:
    truth = np.zeros((60, 500), np.int32)
    truth[20:26, 50:450] = 1
    other = np.zeros((60, 200), np.int32)
    other[20:30, 90:102] = 1  # across a border
    store = embedded(tmp_path / "emb.zarr", "spatial", long=spatial(truth), short=spatial(other))
    summary = cluster_store(store.path, SMALL, ONE, ignore)
    assert summary.done == 1 and store.read_labels("short").max() == 1
    assert [failure.reason for failure in summary.failed] == [
        "the instance in rows 20 to 25 and columns 50 to 191 goes on beyond that, and windows "
        "grow to 192 px; raise tile_px to 192 or more"
    ]
    assert cluster_store(store.path, replace(SMALL, tile_px=250), ONE, ignore).failed == ()
    assert scratch_of(store) == []


def test_disputes_are_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that sees the cells of a window moved by its place: tiles never agree."""

    def unsteady(values: np.ndarray, **_: Any) -> np.ndarray:
        labels = np.zeros(values.shape[1:], np.uint32)
        labels[10:-10:7, 10:-10] = np.arange(1, len(labels[10:-10:7]) + 1)[:, None]
        return labels

    monkeypatch.setattr(tiles, "cluster", unsteady)
    events: list[Event] = []
    settings = replace(SMALL, min_area_px=1)
    cluster_store(store.path, settings, ONE, events.append)
    mark = store.mark("large", "cluster")
    assert mark and mark["disputed"] > 0
    (note,) = (event for event in events if isinstance(event, Noted))
    assert note == Noted(
        "cluster",
        f"large: {mark['disputed']} instances looked different from two tiles and may be cut "
        "between them; raise overlap_px or tile_px",
    )


# ------------------------------------------------------------- stopped, full, killed


def test_an_interrupt_leaves_no_scratch_and_no_mark(store: Store) -> None:
    row = store.fields()[0]
    calls = 0

    def stop_at_the_fifth() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    from cellseg_cli.clustering import resolve
    from cellseg_cli.clustering.settings import Clustering

    how = resolve(Clustering(), "spatial")
    tiling = Tiles.of(SMALL).tiling
    with pytest.raises(KeyboardInterrupt):
        place = Place(StoreLabels(store), stop_at_the_fifth)
        cluster_tiles(row, store, "spatial", how, tiling, place)
    assert calls == 5
    assert scratch_of(store) == []
    assert not store.has("large", "cluster")


def test_a_full_disk_ends_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_2_0", full)
    with pytest.raises(StoreWriteError) as caught:
        cluster_store(store.path, SMALL, ONE, ignore)
    assert str(caught.value) == (
        f"{store.path} cannot be written: No space left on device; make room or fix the "
        "permissions, then run the same command again: finished fields are kept"
    )
    assert scratch_of(store) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_in_the_middle_and_run_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen tiles put two arrays aside each; after these the label image is written."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import children

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cellseg_cli.pipeline.cluster", "zarr", "dask.delayed"])
    undisturbed = Store.open(shutil.copytree(store.path, tmp_path / "undisturbed.zarr"))
    cluster_store(undisturbed.path, SMALL, ONE, ignore)
    steps = [(children.cluster_until_kept, 25)]
    steps += [(children.cluster_until_sync, number) for number in (1, 4)]
    for step, number in steps:
        process = context.Process(target=step, args=(number, store.path, SMALL, ONE))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert not store.has("large", "cluster")
    assert scratch_of(store) != []
    cluster_store(store.path, SMALL, ONE, ignore)
    for name in ("large", "small"):
        np.testing.assert_array_equal(store.read_labels(name), undisturbed.read_labels(name))
        assert store.mark(name, "cluster") == undisturbed.mark(name, "cluster")
    assert [path for path in scratch_of(store) if path.is_dir()] == []
