"""Images to label images in one stream: what ``embed`` and ``cluster`` give, without embeddings."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cellseg_cli.cli.app import run as run_cli
from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.engine.tasks import Produced, Stop
from cellseg_cli.errors import ConfigError, InputError, OutputExistsError, StoreError
from cellseg_cli.images.decode import Planes
from cellseg_cli.images.normalise import Normalisation
from cellseg_cli.networks.checkpoint import fingerprint
from cellseg_cli.pipeline.cluster import ClusterWork, How, cluster_store
from cellseg_cli.pipeline.embed import embed
from cellseg_cli.pipeline.embedding import EmbedWork, Network
from cellseg_cli.pipeline.events import Event, FieldDone, Noted, Summary
from cellseg_cli.pipeline.export import Export, export_store
from cellseg_cli.pipeline.labelling import Labeller
from cellseg_cli.pipeline.plan import Plan
from cellseg_cli.pipeline.request import filling
from cellseg_cli.pipeline.segment import STATE, SegmentSettings, SegmentWork, segment
from cellseg_cli.pipeline.settings import CellTypes, settings_of_fields
from cellseg_cli.pipeline.sinks import StoreLabels
from cellseg_cli.pipeline.tiles import Tiles
from cellseg_cli.store import FieldRow, Store

ONE = RunSettings(threads=1)
#: Small enough that a field of 4200 px is cut into many tiles by both stages.
CUT = ClusterSettings(tile_px=512, overlap_px=32)


@pytest.fixture(scope="module")
def settings(model: Path) -> EmbedSettings:
    return EmbedSettings(model=str(model), device="cpu", tile_px=256, halo_px=32)


def ignore(event: Event) -> None:
    """Take an event and do nothing."""


def expected(plate: Path, out: Path, settings: EmbedSettings, how: ClusterSettings) -> Store:
    """The store that the two stages make, one after the other."""
    assert embed(plate, out, settings, ONE, ignore).exit_code == 0
    assert cluster_store(out, how, ONE, ignore).exit_code == 0
    return Store.open(out)


def segmented(
    plate: Path,
    out: Path,
    settings: EmbedSettings,
    how: ClusterSettings = ClusterSettings(),
    run: RunSettings = ONE,
) -> Summary:
    return segment(plate, out, SegmentSettings(settings, how), run, ignore)


def test_equal_to_embed_and_cluster(
    long_plate: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    """As TIFF files and as a store, with a field in parts; no embedding is left."""
    both = expected(long_plate, tmp_path / "both.zarr", settings, CUT)
    for out in (tmp_path / "labels", tmp_path / "labels.zarr"):
        summary = segmented(long_plate, out, settings, CUT, RunSettings(threads=2))
        assert (summary.done, summary.failed) == (7, ())
    state, kept = Store.open(tmp_path / "labels" / STATE), Store.open(tmp_path / "labels.zarr")
    for row in both.fields():
        labels = both.read_labels(row.id)
        assert labels.any()
        np.testing.assert_array_equal(kept.read_labels(row.id), labels)
        written = tifffile.imread(tmp_path / "labels" / f"{row.id}.tif")
        assert written.dtype == np.uint16
        np.testing.assert_array_equal(written, labels)
        for store in (state, kept):
            assert store.mark(row.id, "cluster") == both.mark(row.id, "cluster")
            assert not store.has(row.id, "embed")
    for store in (state, kept):
        assert not list(store.path.rglob("embedding"))
        assert not list((store.path / ".cellseg/tmp").iterdir())
    names = {path.relative_to(tmp_path / "labels").as_posix() for path in tifs(tmp_path)}
    assert names == {f"{row.id}.tif" for row in both.fields()}


def tifs(folder: Path) -> list[Path]:
    return [path for path in (folder / "labels").rglob("*.tif") if path.is_file()]


def test_a_second_run_does_what_is_missing(
    plate: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    assert segmented(plate, out, settings).done == 6
    again = segmented(plate, out, settings)
    assert (again.done, again.skipped) == (0, 6)
    (out / "A/f0.tif").unlink()
    before = {path: path.stat().st_mtime_ns for path in tifs(tmp_path)}
    third = segmented(plate, out, settings)
    assert (third.done, third.skipped) == (1, 5)
    assert (out / "A/f0.tif").is_file()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_of_clustering_replace_the_label_images(
    plate: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    segmented(plate, out, settings)
    other = ClusterSettings(min_area_px=60)
    both = expected(plate, tmp_path / "both.zarr", settings, other)
    assert segmented(plate, out, settings, other).done == 6
    for row in both.fields():
        written = tifffile.imread(out / f"{row.id}.tif")
        np.testing.assert_array_equal(written, both.read_labels(row.id))


def test_overwriting_takes_away_what_is_not_selected(
    plate: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    segmented(plate, out, settings)
    run = replace(ONE, overwrite=True)
    assert segmented(plate, out, replace(settings, include=("A/*",)), run=run).done == 3
    assert sorted(path.name for path in tifs(tmp_path)) == ["f0.tif", "f2.tif", "f4.tif"]


def test_what_is_refused(plate: Path, settings: EmbedSettings, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("dear")
    with pytest.raises(OutputExistsError) as caught:
        segmented(plate, foreign, settings)
    assert str(caught.value) == (
        f"{foreign} holds files that cellseg segment did not make; choose another --out"
    )
    with pytest.raises(ConfigError, match="is a file; give a folder, or a name that ends in"):
        segmented(plate, foreign / "thesis.doc", settings)
    embeddings = tmp_path / "emb.zarr"
    embed(plate, embeddings, settings, ONE, ignore)
    with pytest.raises(StoreError) as refused:
        segmented(plate, embeddings, settings)
    assert str(refused.value) == (
        f"{embeddings} is a store of embeddings (cellseg cluster works on it), not one of labels; "
        "choose another --out"
    )
    out = tmp_path / "labels"
    segmented(plate, out, settings)
    with pytest.raises(StoreError, match="halo_px was 32 and is now 64; choose another --out"):
        segmented(plate, out, replace(settings, halo_px=64))


def test_bad_fields_fail_alone(plate: Path, settings: EmbedSettings, tmp_path: Path) -> None:
    (plate / "A/f0.png").write_bytes((plate / "A/f0.png").read_bytes()[:400])
    cv2.imwrite(str(plate / "A/flat.png"), np.full((32, 32), 9, np.uint8))
    summary = segmented(plate, tmp_path / "labels", settings)
    reasons = {one.field_id: one.reason for one in summary.failed}
    assert set(reasons) == {"A/f0", "A/flat"}
    assert reasons["A/flat"] == "the image is constant: every pixel is 9"
    assert (summary.done, summary.exit_code) == (5, 1)
    assert not (tmp_path / "labels/A/flat.tif").exists()
    only = segmented(plate, tmp_path / "labels", settings, run=replace(ONE, retry_failed=True))
    assert (only.done, len(only.failed)) == (0, 2)


def test_the_store_of_labels_exports(plate: Path, settings: EmbedSettings, tmp_path: Path) -> None:
    out = tmp_path / "labels.zarr"
    segmented(plate, out, settings)
    made = export_store(out, Export("coco", tmp_path / "cells.json"), ignore)
    assert made.summary.exit_code == 0
    document = json.loads((tmp_path / "cells.json").read_text())
    count = sum(int(Store.open(out).read_labels(row.id).max()) for row in Store.open(out).fields())
    assert len(document["annotations"]) == count > 0
    told = cluster_store(out, ClusterSettings(), ONE, ignore)
    assert {one.reason for one in told.failed} == {"not embedded"}


def test_on_a_device_the_labels_are_the_same(
    plate: Path, model: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    """The way of an accelerator, on torch's CPU backend: the embedding stays in tensors."""
    both = expected(plate, tmp_path / "both.zarr", settings, ClusterSettings())
    out = Store.create(tmp_path / "device.zarr", dict(both.attributes) | {"keeps": "labels"})
    chosen = settings_of_fields(out, ClusterSettings(), CellTypes(), [])
    how = How(chosen, Tiles.of(ClusterSettings()), Labeller("cpu:0"))
    network = Network(model, fingerprint(model), settings, Planes())
    work = SegmentWork(EmbedWork(out, network), ClusterWork(out, how, StoreLabels(out)))
    for row in both.fields():
        work.whole(row, "mark", Stop())
        np.testing.assert_array_equal(out.read_labels(row.id), both.read_labels(row.id))


def test_what_the_command_says(
    plate: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels"
    command = ["segment", str(plate), "--out", str(out), "--model", str(model), "--device", "cpu"]
    command += ["--threads", "1", "--set", "halo_px=32", "--set", "embed.tile_px=256"]
    assert run_cli([*command, "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result.pop("seconds") > 0
    assert result == {
        "stage": "segment",
        "store": str(out),
        "dry_run": False,
        "done": 6,
        "skipped": 0,
        "failed": [],
    }
    lines = told.err.splitlines()
    assert lines[0] == "segment: 6 fields, 1 thread on cpu"
    assert lines[-1].startswith("segment: 6 done, 0 done before, 0 failed in ")
    assert run_cli([*command, "--set", "tile_px=64"]) == 2
    assert capsys.readouterr().err == (
        "cellseg: --set tile_px: say embed.tile_px or cluster.tile_px; both have it\n"
    )


def test_notes_reach_the_user(plate: Path, settings: EmbedSettings, tmp_path: Path) -> None:
    """Types without settings of their own are said, as by cluster."""
    table = tmp_path / "types.csv"
    ids = [f"{'AB'[index % 2]}/f{index}" for index in range(6)]
    table.write_text("id,kind\n" + "".join(f"{one},x\n" for one in ids))
    seen: list[Event] = []
    wanted = SegmentSettings(settings, types=CellTypes(table=f"{table}:kind"))
    segment(plate, tmp_path / "labels", wanted, ONE, seen.append)
    notes = [one.text for one in seen if isinstance(one, Noted)]
    assert notes == [
        "the settings for all are taken for fields of types without settings of their own (x: 6)"
    ]


def test_a_spare_thread_reads_and_writes_where_fields_are_small(
    plate: Path,
    model: Path,
    settings: EmbedSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the record: a thread more than cores, of which no more than cores are in the network."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    embed(plate, tmp_path / "a.zarr", settings, RunSettings(), ignore)
    embed(plate, tmp_path / "b.zarr", settings, RunSettings(threads=2), ignore)
    (record,) = (tmp_path / "a.zarr/.cellseg/runs").glob("*.json")
    told = json.loads(record.read_text())
    assert told["carried"] == "3 threads"
    ours, others = Store.open(tmp_path / "a.zarr"), Store.open(tmp_path / "b.zarr")
    for row in ours.fields():
        for one, other in zip(
            ours.read_embedding(row.id), others.read_embedding(row.id), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_which_runs_get_a_spare_thread(
    model: Path, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    network = Network(model, fingerprint(model), settings, Planes())

    def threads(count: int, side: int, run: RunSettings = RunSettings()) -> int:
        rows = (FieldRow(f"f{n}", f"{n}.tif", 1, 1, side, side) for n in range(count))
        return filling(run, network, Plan(tuple((row, "") for row in rows), (), (), ())).threads

    assert threads(9, 1448) == 3
    assert threads(9, 1449) == 0  # over 2 Mpx: as many as cores
    assert threads(2, 520) == 0  # no more fields than cores
    assert threads(9, 520, RunSettings(threads=2)) == 2
    assert threads(9, 520, RunSettings(workers=2)) == 0  # each process counts its own
    assert threads(9, 5000) == 0  # slabs


# ------------------------------------------------------------------ failure


def work_on(store: Store, model: Path, settings: EmbedSettings) -> SegmentWork:
    how = How(settings_of_fields(store, CUT, CellTypes(), []), Tiles.of(CUT), Labeller(None))
    network = Network(model, fingerprint(model), settings, Planes())
    return SegmentWork(EmbedWork(store, network), ClusterWork(store, how, StoreLabels(store)))


def test_a_last_step_that_is_repeated(
    long_plate: Path,
    model: Path,
    settings: EmbedSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that dies after the embedding has gone, and before the mark is set."""
    whole, out = tmp_path / "whole.zarr", tmp_path / "again.zarr"
    segmented(long_plate, whole, settings, CUT)
    undisturbed = Store.open(whole)
    (row,) = (one for one in undisturbed.fields() if one.id == "long")
    store = Store.create(out, dict(undisturbed.attributes))
    work, stop = work_on(store, model, settings), Stop()
    begun = work.begin(row, "mark", stop)
    for index in range(work.parts(row)):
        work.part(row, begun, index, stop)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ClusterWork, "mark", die)
        work.finish(row, "mark", begun, stop)
    assert not (out / "long/embedding").exists()
    assert not store.has("long", "cluster")
    work.finish(row, "mark", begun, stop)
    np.testing.assert_array_equal(store.read_labels("long"), undisturbed.read_labels("long"))
    assert sorted(path.name for path in (out / "long").iterdir()) == [
        "cluster.done.json",
        "labels",
        "zarr.json",
    ]


def test_a_large_field_that_fails_leaves_no_embedding(
    long_plate: Path, settings: EmbedSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its second part, when the first one is written."""
    part = EmbedWork.part

    def second_fails(
        work: EmbedWork, row: FieldRow, begun: Normalisation, index: int, stop: Stop
    ) -> Produced:
        if index == 1:
            raise InputError("the disk of the images is gone")
        return part(work, row, begun, index, stop)

    monkeypatch.setattr(EmbedWork, "part", second_fails)
    out = tmp_path / "labels.zarr"
    summary = segmented(long_plate, out, settings, CUT)
    assert [(one.field_id, one.reason) for one in summary.failed] == [
        ("long", "the disk of the images is gone")
    ]
    assert {path.name for path in (out / "long").iterdir()} <= {"zarr.json"}


def test_label_images_of_other_settings_go_first(
    plate: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    """A run that is stopped early leaves only files of its own settings."""
    out = tmp_path / "labels"
    segmented(plate, out, settings)

    def stop_at_once(event: Event) -> None:
        if isinstance(event, FieldDone):
            raise KeyboardInterrupt

    wanted = SegmentSettings(settings, ClusterSettings(min_area_px=9))
    with pytest.raises(KeyboardInterrupt):
        segment(plate, out, wanted, ONE, stop_at_once)
    marks = (out / STATE).rglob("cluster.done.json")
    done = {path.parent.relative_to(out / STATE).as_posix() for path in marks}
    files = {path.relative_to(out).with_suffix("").as_posix() for path in out.rglob("*.tif")}
    assert files == done
    assert 1 <= len(done) < 6


def test_a_folder_that_another_part_fills_meanwhile(
    plate: Path, settings: EmbedSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another part makes the store and a first label image while this one looks."""
    out, other = tmp_path / "labels", tmp_path / "other"
    segmented(plate, other, settings, run=RunSettings(threads=1, part="1/2"))
    real = Store.is_at

    def then_filled(path: str | Path) -> bool:
        there = real(path)
        if Path(path) == out / STATE and not there:
            shutil.copytree(other, out, dirs_exist_ok=True)
        return there

    monkeypatch.setattr(Store, "is_at", staticmethod(then_filled))
    summary = segmented(plate, out, settings, run=RunSettings(threads=1, part="2/2"))
    assert (summary.done, summary.exit_code) == (3, 0)
    assert len(list(out.rglob("*.tif"))) == 6


@pytest.mark.parametrize("name", ["out", "out.zarr"])
def test_overwriting_with_another_model_is_as_if_nothing_had_been_there(
    plate: Path, settings: EmbedSettings, other_model: Path, tmp_path: Path, name: str
) -> None:
    """The thresholds are those of the new model, not those that the old one was tuned to."""
    other = replace(settings, model=str(other_model))
    segmented(plate, tmp_path / "fresh" / name, other)
    segmented(plate, tmp_path / name, settings)
    assert segmented(plate, tmp_path / name, other, run=replace(ONE, overwrite=True)).done == 6
    assert segmented(plate, tmp_path / name, other).skipped == 6
    fresh, again = (
        Store.open(folder / name / STATE if name == "out" else folder / name)
        for folder in (tmp_path / "fresh", tmp_path)
    )
    for row in fresh.fields():
        mine, theirs = (store.mark(row.id, "cluster") for store in (again, fresh))
        assert mine is not None and theirs is not None
        assert (mine["fingerprint"], mine["settings"]) == (
            theirs["fingerprint"],
            theirs["settings"],
        )


def test_an_output_within_the_input_is_no_input(
    plate: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    events: list[Event] = []
    for done in (6, 0):
        summary = segment(plate, plate / "labels", SegmentSettings(settings), ONE, events.append)
        assert (summary.done, summary.skipped, summary.failed) == (done, 6 - done, ())
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert "labels is a folder of label images of cellseg and left out" in notes
    assert not (plate / "labels" / "labels").exists()


def test_what_was_made_of_an_image_that_is_no_more_is_not_exported(
    plate: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    segmented(plate, tmp_path / "out", settings)
    assert (tmp_path / "out/A/f0.tif").exists()
    (plate / "A/f0.png").write_bytes(b"")
    assert len(segmented(plate, tmp_path / "out", settings).failed) == 1
    assert not (tmp_path / "out/A/f0.tif").exists()
    assert (tmp_path / "out/A/f2.tif").exists()


@pytest.mark.parametrize("name", ["out", "out.zarr"])
def test_an_output_without_a_finished_field_holds_nobody_to_its_settings(
    settings: EmbedSettings, tmp_path: Path, name: str
) -> None:
    (tmp_path / "in").mkdir()
    stack = np.random.default_rng(0).integers(0, 200, (3, 40, 50), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "in/a.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    assert segmented(tmp_path / "in", tmp_path / name, settings).done == 0
    chosen = replace(settings, z="max")
    assert segmented(tmp_path / "in", tmp_path / name, chosen).done == 1
    with pytest.raises(StoreError, match="z was max and is now unset; choose another --out"):
        segmented(tmp_path / "in", tmp_path / name, settings)


@pytest.mark.parametrize("parts", [(None,), ("1/2", "2/2"), ("2/2", "1/2")])
def test_each_part_takes_away_what_was_made_of_its_images(
    plate: Path, settings: EmbedSettings, tmp_path: Path, parts: tuple[str | None, ...]
) -> None:
    segmented(plate, tmp_path / "out", settings)
    for name in ("A/f0", "A/f2"):
        (plate / f"{name}.png").write_bytes(b"")
    for part in parts:
        segmented(plate, tmp_path / "out", settings, run=replace(ONE, part=part))
    left = {path.stem for path in (tmp_path / "out").rglob("*.tif")}
    assert left == {"f1", "f3", "f4", "f5"}
    assert not Store.open(tmp_path / "out" / STATE).has("A/f2", "cluster")


def test_what_failed_is_retried_with_the_setting_that_it_wanted(
    settings: EmbedSettings, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    stack = np.random.default_rng(0).integers(0, 200, (3, 40, 50), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "in/a.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    assert len(segmented(tmp_path / "in", tmp_path / "out", settings).failed) == 1
    chosen, retry = replace(settings, z="max"), replace(ONE, retry_failed=True)
    assert segmented(tmp_path / "in", tmp_path / "out", chosen, run=retry).done == 1
