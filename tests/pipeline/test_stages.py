"""``embed`` and ``cluster`` on real files: bad ones, second runs, other settings, the record."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from cellseg_cli import durable
from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.errors import (
    CellsegError,
    ConfigError,
    ExitCode,
    InputError,
    StoreError,
    StoreWriteError,
)
from cellseg_cli.pipeline.cluster import cluster_store
from cellseg_cli.pipeline.embed import embed
from cellseg_cli.pipeline.events import Event, FieldDone, StagePlanned, Summary
from cellseg_cli.pipeline.lines import read_lines
from cellseg_cli.store import Store

GOOD = ["A/f0", "A/f2", "A/f4", "B/f1", "B/f3", "B/f5"]
ONE = RunSettings(threads=1)


def ignore(event: Event) -> None:
    """Take an event and do nothing."""


@pytest.fixture
def settings(model: Path) -> EmbedSettings:
    return EmbedSettings(model=str(model), device="cpu")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "emb.zarr"


def message(function: Callable[[], Any], kind: type[CellsegError]) -> str:
    """The whole message that a call ends with."""
    with pytest.raises(kind) as caught:
        function()
    return str(caught.value)


def marked(out: Path, stage: str) -> dict[str, int]:
    """Field ids and the time of their marks, ns."""
    name = f"{stage}.done.json"
    found = out.rglob(name)
    return {path.parent.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in found}


def record_of(out: Path) -> dict[str, Any]:
    """The newest run record, with what came of each field under ``fields``."""
    newest = max((out / ".cellseg/runs").glob("*.json"))
    document: dict[str, Any] = json.loads(newest.read_text())
    lines = read_lines(newest.parent / document["fields"])
    return {**document, "fields": {line["field"]: line for line in lines}}


def reasons(summary: Summary) -> dict[str, str]:
    return {failure.field_id: failure.reason for failure in summary.failed}


def arrays_of(out: Path) -> dict[str, list[np.ndarray]]:
    """Every array of a store, by field."""
    store = Store.open(out)
    found = {}
    for row in store.fields():
        values, classes = store.read_embedding(row.id)
        assert classes is not None
        found[row.id] = [values, classes, store.read_labels(row.id)]
    return found


def assert_same(one: dict[str, list[np.ndarray]], other: dict[str, list[np.ndarray]]) -> None:
    assert one.keys() == other.keys()
    for field_id, arrays in one.items():
        for ours, theirs in zip(arrays, other[field_id], strict=True):
            np.testing.assert_array_equal(ours, theirs)


# -------------------------------------------------------------------- bad files


def spoil(plate: Path) -> dict[str, str]:
    """Put bad files of many kinds on the plate; id and the reason that must be given."""
    whole = (plate / "A/f0.png").read_bytes()
    (plate / "cut.png").write_bytes(whole[: len(whole) // 2])
    (plate / "empty.tif").touch()
    (plate / "text.png").write_text("plate 7, see notebook")
    dark = np.zeros((20, 30), np.uint8)
    bright = np.arange(600, dtype=np.uint16).reshape(20, 30)
    assert cv2.imwrite(str(plate / "constant.png"), dark)
    assert cv2.imwrite(str(plate / "dot.png"), dark[:1, :1])
    lost = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    lost[3, :4] = np.nan
    tifffile.imwrite(plate / "nan.tif", lost)
    tifffile.imwrite(
        plate / "two.tif",
        np.dstack([bright, bright + 1]),
        photometric="minisblack",
        planarconfig="contig",
    )
    (plate / "gone.png").symlink_to(plate / "nowhere.png")
    return {
        "constant": "the image is constant: every pixel is 0",
        "cut": "PNG is truncated",
        "dot": "the image is 1×1 px, a side needs at least 8 px",
        "empty": "is empty (0 bytes)",
        "gone": "there is no such file",
        "nan": "the image has 4 NaN and 0 infinite values of 600",
        "text": "is not an image",
        "two": "the image has 2 channels, the model takes 1",
    }


def test_bad_files_fail_alone(plate: Path, out: Path, settings: EmbedSettings) -> None:
    expected = spoil(plate)
    summary = embed(plate, out, settings, RunSettings(threads=2), ignore)
    assert (summary.done, summary.skipped) == (6, 0)
    assert summary.exit_code is ExitCode.SOME_FAILED
    found = reasons(summary)
    assert list(found) == sorted(expected)
    for field_id, part in expected.items():
        assert part in found[field_id], field_id
    assert sorted(marked(out, "embed")) == GOOD
    told = record_of(out)
    assert told["counts"] == {"planned": 14, "done": 6, "skipped": 0, "failed": 8}
    assert {name for name, fate in told["fields"].items() if fate["outcome"] == "done"} == {*GOOD}
    assert {name: told["fields"][name]["reason"] for name in found} == found

    clustered = cluster_store(out, ClusterSettings(), RunSettings(threads=2), ignore)
    assert (clustered.done, clustered.exit_code) == (6, ExitCode.SOME_FAILED)
    assert list(reasons(clustered)) == sorted(expected)
    assert reasons(clustered) == {name: f"not embedded: {why}" for name, why in found.items()}
    assert reasons(clustered)["empty"] == f"not embedded: {plate / 'empty.tif'}: is empty (0 bytes)"


def test_failed_fields_are_tried_again(plate: Path, out: Path, settings: EmbedSettings) -> None:
    good = (plate / "A/f0.png").read_bytes()
    (plate / "A/f0.png").write_bytes(b"")
    first = embed(plate, out, settings, ONE, ignore)
    before = marked(out, "embed")
    (plate / "A/f0.png").write_bytes(good)
    second = embed(plate, out, settings, ONE, ignore)
    assert [first.done, second.done, second.skipped, len(second.failed)] == [5, 1, 5, 0]
    after = marked(out, "embed")
    assert {name: after[name] for name in before} == before
    assert sorted(after) == GOOD


def test_what_was_made_of_an_image_goes_with_it(
    plate: Path, out: Path, settings: EmbedSettings
) -> None:
    """As it does where the damage shows only when the pixels are read."""
    embed(plate, out, settings, ONE, ignore)
    reason = f"{plate / 'A/f0.png'}: is empty (0 bytes)"
    (plate / "A/f0.png").write_bytes(b"")
    summary = embed(plate, out, settings, ONE, ignore)
    assert reasons(summary) == {"A/f0": reason}
    row = Store.open(out).fields()[0]
    assert (row.id, row.height, row.error) == ("A/f0", None, reason)
    clustered = cluster_store(out, ClusterSettings(), ONE, ignore)
    assert (clustered.done, reasons(clustered)) == (5, {"A/f0": f"not embedded: {reason}"})


def test_retrying_with_other_settings_leaves_what_did_not_fail(
    plate: Path, out: Path, settings: EmbedSettings
) -> None:
    embed(plate, out, settings, ONE, ignore)
    cluster_store(out, ClusterSettings(), ONE, ignore)
    Store.open(out).clear("A/f0", "cluster")
    Store.open(out).note_failure("A/f0", "cluster", "a cosmic ray")
    retry = replace(ONE, retry_failed=True)
    again = cluster_store(out, ClusterSettings(foreground=0.2), retry, ignore)
    assert (again.done, again.failed) == (1, ())
    assert sorted(marked(out, "cluster")) == GOOD


def test_an_image_that_cannot_be_looked_at_keeps_its_field(
    plate: Path, out: Path, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(plate, out, settings, ONE, ignore)
    path, real = plate / "A/f0.png", Path.stat

    def stat(self: Path, **options: Any) -> os.stat_result:
        if self == path:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    summary = embed(plate, out, settings, ONE, ignore)
    assert reasons(summary) == {"A/f0": f"{path}: cannot be read (Input/output error)"}
    assert Store.open(out).fields()[0].height == 48
    assert cluster_store(out, ClusterSettings(), ONE, ignore).done == 6


def test_nothing_but_bad_files(tmp_path: Path, out: Path, settings: EmbedSettings) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").touch()
    summary = embed(tmp_path / "in", out, settings, ONE, ignore)
    assert summary.exit_code is ExitCode.NOTHING_DONE
    assert cluster_store(out, ClusterSettings(), ONE, ignore).exit_code is ExitCode.NOTHING_DONE


def test_an_empty_folder_leaves_no_store(
    tmp_path: Path, out: Path, settings: EmbedSettings
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="no image found"):
        embed(tmp_path / "in", out, settings, ONE, ignore)
    assert not out.exists()


def test_ids_that_clash_with_the_store(plate: Path, out: Path, settings: EmbedSettings) -> None:
    (plate / "A").rename(plate / "labels")
    assert message(lambda: embed(plate, out, settings, ONE, ignore), InputError) == (
        "3 of 6 fields cannot be kept in a store under their id: labels/f0 ('labels' is a name "
        "that the store keeps for itself); labels/f2 ('labels' is a name that the store keeps "
        "for itself); labels/f4 ('labels' is a name that the store keeps for itself); rename "
        "them, or leave them out with --exclude"
    )
    only = replace(settings, exclude=("labels/**",))
    assert embed(plate, out, only, ONE, ignore).done == 3


# ------------------------------------------------------------------ second runs


def test_a_second_run_does_nothing(plate: Path, out: Path, settings: EmbedSettings) -> None:
    embed(plate, out, settings, ONE, ignore)
    cluster_store(out, ClusterSettings(), ONE, ignore)
    before = marked(out, "embed"), marked(out, "cluster")
    other_pace = replace(settings, batch_size=2)
    again = embed(plate, out, other_pace, RunSettings(threads=3), ignore)
    clustered = cluster_store(out, ClusterSettings(), RunSettings(threads=3), ignore)
    assert (again.done, again.skipped, again.exit_code) == (0, 6, ExitCode.DONE)
    assert (clustered.done, clustered.skipped) == (0, 6)
    assert (marked(out, "embed"), marked(out, "cluster")) == before


def test_a_changed_image_is_done_anew_with_its_labels(
    plate: Path, out: Path, settings: EmbedSettings
) -> None:
    embed(plate, out, settings, ONE, ignore)
    cluster_store(out, ClusterSettings(), ONE, ignore)
    shutil.copyfile(plate / "A/f2.png", plate / "A/f0.png")
    assert embed(plate, out, settings, ONE, ignore).done == 1
    assert sorted(marked(out, "cluster")) == GOOD[1:]
    assert cluster_store(out, ClusterSettings(), ONE, ignore).done == 1
    found = arrays_of(out)
    assert_same({"x": found["A/f0"]}, {"x": found["A/f2"]})


def test_another_model_is_refused_and_overwritten(
    plate: Path, out: Path, settings: EmbedSettings, other_model: Path
) -> None:
    embed(plate, out, settings, ONE, ignore)
    first = Store.open(out).attributes["embed"]["model"]
    other = replace(settings, model=str(other_model), z="max")
    text = message(lambda: embed(plate, out, other, ONE, ignore), StoreError)
    assert marked(out, "embed").keys() == {*GOOD}
    assert embed(plate, out, other, replace(ONE, overwrite=True), ignore).done == 6
    second = Store.open(out).attributes["embed"]["model"]
    assert text == (
        f"{out} was made with other settings: model was tiny ({first[:8]}) and is now tiny "
        f"({second[:8]}), z was unset and is now max; choose another --out, or --overwrite to "
        "embed every field anew"
    )
    assert embed(plate, out, other, ONE, ignore).skipped == 6


def test_parts_of_another_model_are_not_clustered_together(
    plate: Path, out: Path, settings: EmbedSettings, other_model: Path
) -> None:
    """Between the two parts of a new run half of the store is still of the old model."""
    other = replace(settings, model=str(other_model))
    embed(plate, out, settings, ONE, ignore)
    embed(plate, out, other, replace(ONE, overwrite=True, part="1/2"), ignore)
    half = cluster_store(out, ClusterSettings(), ONE, ignore)
    reason = "its embedding is of another model or image: run cellseg embed (every part)"
    assert half.done == 3 and reasons(half) == dict.fromkeys(GOOD[1::2], reason)
    assert embed(plate, out, other, replace(ONE, part="2/2"), ignore).done == 3
    whole = cluster_store(out, ClusterSettings(), ONE, ignore)
    assert (whole.done, whole.skipped, whole.failed) == (3, 3, ())


def test_overwrite_forgets_fields_of_earlier_runs(
    plate: Path, out: Path, settings: EmbedSettings
) -> None:
    """Without it, two selections into one store add up."""
    embed(plate, out, replace(settings, include=("A/*",)), ONE, ignore)
    only_b = replace(settings, include=("B/*",))
    embed(plate, out, only_b, ONE, ignore)
    assert [row.id for row in Store.open(out).fields()] == GOOD
    embed(plate, out, only_b, replace(ONE, overwrite=True), ignore)
    assert [row.id for row in Store.open(out).fields()] == GOOD[3:]
    assert sorted(marked(out, "embed")) == GOOD[3:]


def test_another_folder_with_the_same_names_is_refused(
    plate: Path, out: Path, settings: EmbedSettings, tmp_path: Path
) -> None:
    embed(plate, out, settings, ONE, ignore)
    copied, other = tmp_path / "copied", tmp_path / "other"
    shutil.copytree(plate, copied)  # keeps times: the same images in another place
    shutil.copytree(plate, other)
    os.utime(other / "B/f1.png", ns=(1, 1))
    assert embed(copied, out, settings, ONE, ignore).skipped == 6
    assert message(lambda: embed(other, out, settings, ONE, ignore), StoreError) == (
        f"{out} holds fields of {plate}; 1 of {other} have the same id but are other files, such "
        "as B/f1; choose another --out, or --overwrite to replace them"
    )


def test_a_folder_that_is_no_store_is_never_overwritten(
    plate: Path, settings: EmbedSettings
) -> None:
    run = replace(ONE, overwrite=True)
    text = message(lambda: embed(plate, plate, settings, run, ignore), StoreError)
    assert text.startswith(f"{plate} is no cellseg store (it holds A, B); choose another output")


def test_labels_do_not_depend_on_workers_batch_or_order(
    plate: Path, tmp_path: Path, settings: EmbedSettings
) -> None:
    one, many, listed = (tmp_path / f"{name}.zarr" for name in ("one", "many", "listed"))
    embed(plate, one, settings, ONE, ignore)
    cluster_store(one, ClusterSettings(), ONE, ignore)
    embed(plate, many, replace(settings, batch_size=1), RunSettings(threads=4), ignore)
    cluster_store(many, ClusterSettings(), RunSettings(threads=4), ignore)
    (plate / "list.txt").write_text("".join(f"{name}.png\n" for name in reversed(GOOD)))
    for part in ("2/2", "1/2"):
        run = RunSettings(threads=2, part=part)
        embed(plate / "list.txt", listed, settings, run, ignore)
        cluster_store(listed, ClusterSettings(), run, ignore)
    first = arrays_of(one)
    assert all(labels.max() > 1 for *_, labels in first.values())
    assert_same(first, arrays_of(many))
    assert_same(first, arrays_of(listed))


# -------------------------------------------------------------------- clustering


def test_other_settings_replace_the_labels(plate: Path, out: Path, settings: EmbedSettings) -> None:
    embed(plate, out, settings, ONE, ignore)
    cluster_store(out, ClusterSettings(), ONE, ignore)
    before = arrays_of(out)
    summary = cluster_store(out, ClusterSettings(min_area_px=10**6), ONE, ignore)
    assert (summary.done, summary.skipped) == (6, 0)
    assert not any(labels.any() for *_, labels in arrays_of(out).values())
    mark = Store.open(out).mark("A/f0", "cluster")
    assert mark and mark["settings"]["min_area_px"] == 10**6 and mark["instances"] == 0
    cluster_store(out, ClusterSettings(), ONE, ignore)
    assert_same(arrays_of(out), before)


def test_no_old_label_is_left_when_settings_change_halfway(
    plate: Path, out: Path, settings: EmbedSettings
) -> None:
    embed(plate, out, settings, ONE, ignore)
    cluster_store(out, ClusterSettings(), ONE, ignore)

    def interrupt(event: Event) -> None:
        if isinstance(event, FieldDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster_store(out, ClusterSettings(min_area_px=50), ONE, interrupt)
    store = Store.open(out)
    left = [mark for name in GOOD if (mark := store.mark(name, "cluster"))]
    assert 0 < len(left) < 6
    assert {mark["settings"]["min_area_px"] for mark in left} == {50}
    assert record_of(out)["ended"] == "interrupted"
    assert record_of(out)["counts"]["done"] == len(left)


def test_impossible_settings_are_refused_before_any_field(
    plate: Path, out: Path, settings: EmbedSettings
) -> None:
    embed(plate, out, settings, ONE, ignore)
    with pytest.raises(ConfigError):
        cluster_store(out, ClusterSettings(min_area_px=-1), ONE, ignore)
    assert marked(out, "cluster") == {}


def test_cluster_needs_an_embedded_store(tmp_path: Path) -> None:
    nowhere = tmp_path / "no.zarr"
    text = message(lambda: cluster_store(nowhere, ClusterSettings(), ONE, ignore), StoreError)
    assert text == f"{nowhere} is no cellseg store: nothing is there, not a folder"
    bare = Store.create(tmp_path / "bare.zarr", {"model": {"kind": "spatial"}}).path
    text = message(lambda: cluster_store(bare, ClusterSettings(), ONE, ignore), StoreError)
    assert text == f"{bare} lists no fields: run cellseg embed first"


def test_a_damaged_embedding_fails_alone(plate: Path, out: Path, settings: EmbedSettings) -> None:
    embed(plate, out, settings, ONE, ignore)
    (out / "A/f0/embedding/c/0/0/0").unlink()
    summary = cluster_store(out, ClusterSettings(), ONE, ignore)
    assert (summary.done, summary.exit_code) == (5, ExitCode.SOME_FAILED)
    assert reasons(summary) == {
        "A/f0": f"A/f0: embedding is damaged in {out} (shard c/0/0/0 is missing); delete "
        f"{out / 'A/f0/embed.done.json'} and run cellseg embed again"
    }
    (out / "A/f0/embed.done.json").unlink()
    assert embed(plate, out, settings, ONE, ignore).done == 1
    assert cluster_store(out, ClusterSettings(), ONE, ignore).done == 1


# ------------------------------------------------- dry runs, interrupts, full disks


def test_a_dry_run_writes_nothing(plate: Path, out: Path, settings: EmbedSettings) -> None:
    (plate / "bad.png").touch()
    events: list[Event] = []
    summary = embed(plate, out, settings, replace(ONE, dry_run=True), events.append)
    assert not out.exists()
    (planned,) = events
    assert isinstance(planned, StagePlanned)
    # 6 fields of 48 × 64 px, four float16 components and three uint8 classes each
    assert planned.bytes_to_write == 6 * 48 * 64 * (4 * 2 + 3)
    assert (planned.fields, planned.to_do, planned.skipped) == (7, 6, 0)
    assert [failure.field_id for failure in planned.unusable] == ["bad"]
    assert planned.free_bytes > 0
    assert (summary.planned, summary.exit_code) == (6, ExitCode.SOME_FAILED)

    embed(plate, out, settings, ONE, ignore)
    before = sorted(out.rglob("*"))
    events.clear()
    cluster_store(out, ClusterSettings(), replace(ONE, dry_run=True), events.append)
    assert sorted(out.rglob("*")) == before
    (planned,) = events
    assert isinstance(planned, StagePlanned) and planned.bytes_to_write == 6 * 48 * 64 * 4


def test_an_interrupt_keeps_done_work(plate: Path, out: Path, settings: EmbedSettings) -> None:
    done: list[str] = []

    def interrupt_after_two(event: Event) -> None:
        if isinstance(event, FieldDone):
            done.append(event.field_id)
            if len(done) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(plate, out, settings, ONE, interrupt_after_two)
    kept = marked(out, "embed")
    told = record_of(out)
    assert told["ended"] == "interrupted"
    assert {*done} <= kept.keys() == told["fields"].keys()
    rest = embed(plate, out, settings, ONE, ignore)
    assert (rest.done, rest.skipped) == (6 - len(kept), len(kept))


def test_a_full_disk_ends_the_run(
    plate: Path, out: Path, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error, not one per field; after room was made, the run goes on."""
    real, calls = durable.sync_tree, 0

    def full_after_four(folder: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_tree", full_after_four)
        text = message(lambda: embed(plate, out, settings, ONE, ignore), StoreWriteError)
    assert text == (
        f"{out} cannot be written: No space left on device; make room or fix the permissions, "
        "then run the same command again: finished fields are kept"
    )
    assert len(marked(out, "embed")) == 2  # two arrays each
    told = record_of(out)
    assert told["ended"] == f"stopped: StoreWriteError: {text}"
    assert told["counts"] == {"planned": 6, "done": 2, "skipped": 0, "failed": 0}
    assert embed(plate, out, settings, ONE, ignore).done == 4


def test_the_record_says_what_ran_and_nothing_secret(
    plate: Path, out: Path, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "hunter2")
    embed(plate, out, settings, RunSettings(threads=2, part="1/2"), ignore)
    told = record_of(out)
    path, lines = sorted((out / ".cellseg/runs").iterdir(), reverse=True)
    assert path.name.endswith(f"-embed-part1of2-{os.getpid()}.json")
    assert lines.name.endswith(f"-embed-part1of2-{os.getpid()}.fields.jsonl")
    assert "hunter2" not in path.read_text() + lines.read_text()
    assert (told["stage"], told["part"], told["ended"]) == ("embed", "1/2", "finished")
    assert (told["device"], told["workers"]) == ("cpu", 2)
    assert told["model_fingerprint"] == Store.open(out).attributes["embed"]["model"]
    assert told["settings"]["tile_px"] == 1024
    assert {"python", "cellseg", "numpy", "torch", "zarr", "dask"} <= told["versions"].keys()
    assert told["peak_rss_bytes"] > 10**7
    # by id: A/f0 A/f2 A/f4 B/f1 B/f3 B/f5; part 1 of 2 begins with the first
    assert sorted(told["fields"]) == ["A/f0", "A/f4", "B/f3"]
