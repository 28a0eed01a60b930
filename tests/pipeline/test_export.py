"""Exporting a store: what is finished is written, what is not is listed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cellseg_cli.cli.export import export
from cellseg_cli.errors import ConfigError, ExitCode, OutputExistsError, StoreError
from cellseg_cli.exports import Written
from cellseg_cli.images.annotations import open_annotations
from cellseg_cli.pipeline.events import Event, Failure, FieldDone, FieldFailed, StageStarted
from cellseg_cli.pipeline.export import Export, Exported, export_store
from cellseg_cli.runlength import paint
from cellseg_cli.store import FieldRow, Store

LABELS = np.array([[0, 1, 1, 0], [2, 2, 0, 0], [0, 0, 0, 3]], dtype=np.uint32)
NOTHING = np.zeros((3, 4), dtype=np.uint32)


def store_of(
    path: Path, attributes: dict[str, object] | None = None, **labels: np.ndarray | None
) -> Store:
    """A store of fields p/NAME; None is a field that has no label image."""
    store = Store.create(path, attributes or {})
    rows = [FieldRow(f"p/{name}", f"/images/p/{name}.ome.tif") for name in labels]
    store.write_fields(rows)
    for name, image in labels.items():
        if image is not None:
            store.write_labels(f"p/{name}", image)
            store.mark_done(f"p/{name}", "cluster", "fingerprint")
    return store


def ignore(event: Event) -> None:
    del event


def refused(kind: type[Exception], message: str):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("format", ["label-tiff", "coco", "kaggle"])
def test_a_whole_store(tmp_path: Path, format: str) -> None:
    store = store_of(tmp_path / "emb.zarr", b=NOTHING, a=LABELS)
    suffix = {"label-tiff": "", "coco": ".json", "kaggle": ".csv"}[format]
    out = tmp_path / f"out{suffix}"
    events: list[Event] = []
    exported = export_store(store.path, Export(format, out), events.append)
    assert exported.written == Written(2, 3)
    assert (exported.summary.exit_code, exported.summary.done) == (ExitCode.DONE, 2)
    found = open_annotations(out)
    assert found.field_ids == ("p/a", "p/b")
    cells = [paint(runs, (3, 4)).tolist() for runs in found.read("p/a", (3, 4)).runs]
    assert cells == [np.equal(LABELS, key).tolist() for key in (1, 2, 3)]
    assert len(found.read("p/b", (3, 4))) == 0
    assert events[0] == StageStarted("export", 2, 0, 1)
    told = [(e.field_id, e.instances) for e in events[1:] if isinstance(e, FieldDone)]
    assert told == [("p/a", 3), ("p/b", 0)]


def test_file_names_keep_the_suffix_of_the_image(tmp_path: Path) -> None:
    store = store_of(tmp_path / "emb.zarr", a=LABELS)
    export_store(store.path, Export("coco", tmp_path / "c.json"), ignore)
    document = json.loads((tmp_path / "c.json").read_text())
    assert [entry["file_name"] for entry in document["images"]] == ["p/a.ome.tif"]


def test_the_place_on_a_plate_is_exported(tmp_path: Path) -> None:
    store = store_of(tmp_path / "emb.zarr", {"embed": {"channel": [1]}}, a=LABELS)
    (row,) = store.fields()
    place = {"plate": "P", "well": "B02", "field": "f001", "t": 0}
    store.write_fields([replace(row, **place, channel_names=("FITC", "DAPI"))])
    export_store(store.path, Export("coco", tmp_path / "c.json"), ignore)
    (image,) = json.loads((tmp_path / "c.json").read_text())["images"]
    assert [image[key] for key in ("plate", "well", "field", "t", "channels")] == [
        "P",
        "B02",
        "f001",
        0,
        ["DAPI"],
    ]
    exported = export_store(store.path, Export("table", tmp_path / "c.csv"), ignore)
    assert exported.written == Written(1, 3)
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert [line.split(",")[:7] for line in lines[1:]] == [
        ["p/a", "P", "B02", "f001", "0", "DAPI", label] for label in ("1", "2", "3")
    ]


def test_unfinished_fields_are_listed(tmp_path: Path) -> None:
    store = store_of(tmp_path / "emb.zarr", a=None, b=LABELS)
    broken = FieldRow("p/c", "/images/p/c.tif", error="/images/p/c.tif: is empty (0 bytes)")
    store.write_fields([*store.fields(), broken])
    events: list[Event] = []
    exported = export_store(store.path, Export("kaggle", tmp_path / "s.csv"), events.append)
    assert exported.summary.exit_code == ExitCode.SOME_FAILED
    reasons = (
        Failure("p/a", f"its label image is not finished: run cellseg cluster {store.path}"),
        Failure("p/c", "/images/p/c.tif: is empty (0 bytes)"),
    )
    assert exported.summary.failed == reasons
    assert [e.failure for e in events if isinstance(e, FieldFailed)] == list(reasons)
    assert open_annotations(tmp_path / "s.csv").field_ids == ("p/b",)


def test_a_damaged_label_image_does_not_stop_the_others(tmp_path: Path) -> None:
    store = store_of(tmp_path / "emb.zarr", a=LABELS, b=LABELS)
    for chunk in (store.path / "p" / "a" / "labels" / "cells" / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damage")
    exported = export_store(store.path, Export("coco", tmp_path / "c.json"), ignore)
    assert [failure.field_id for failure in exported.summary.failed] == ["p/a"]
    assert exported.written == Written(1, 3)


def test_nothing_to_export_writes_nothing(tmp_path: Path) -> None:
    store = store_of(tmp_path / "emb.zarr", a=None)
    exported = export_store(store.path, Export("coco", tmp_path / "c.json"), ignore)
    assert exported.summary.exit_code == ExitCode.NOTHING_DONE
    assert exported.written == Written(0, 0)
    assert not (tmp_path / "c.json").exists()


def test_a_store_without_fields(tmp_path: Path) -> None:
    store = store_of(tmp_path / "emb.zarr")
    with refused(StoreError, f"{store.path} lists no fields: run cellseg embed first"):
        export_store(store.path, Export("coco", tmp_path / "c.json"), ignore)


def test_an_order_for_a_format_without_one(tmp_path: Path) -> None:
    with refused(ConfigError, "an order is for the format kaggle only, not for coco"):
        export_store(tmp_path, Export("coco", tmp_path / "c.json", "row_major"), ignore)


def test_an_existing_output_is_refused_before_the_store_is_read(tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    out.write_text("mine")
    message = f"{out} exists; choose another output, or --overwrite"
    with refused(OutputExistsError, message):
        export_store(tmp_path / "no.zarr", Export("coco", out), ignore)


# --- the command ---


@pytest.fixture
def command() -> Callable[..., object]:
    """Run the command alone; its return value is the exit code."""
    app = typer.Typer(add_completion=False)

    @app.callback(invoke_without_command=True)
    def nothing() -> None:
        """A second command is needed for Typer to ask for the name of the first."""

    app.command("export")(export)
    runner = CliRunner()
    return lambda *words: runner.invoke(
        app, ["export", *map(str, words)], standalone_mode=False, catch_exceptions=False
    )


def test_the_command_lists_what_is_missing(tmp_path: Path, command) -> None:
    store = store_of(tmp_path / "emb.zarr", a=None, b=LABELS)
    out = tmp_path / "s.csv"
    result = command(store.path, "--format", "kaggle", "--out", out)
    assert result.return_value == 1
    assert result.stdout == f"{out}: 1 field, 3 cells\n"
    *told, ending = result.stderr.splitlines()
    assert told == [
        "export: 2 fields, 1 thread",
        f"cellseg: p/a: its label image is not finished: run cellseg cluster {store.path}",
    ]
    assert re.fullmatch(r"export: 1 done, 0 done before, 1 failed in \d+\.\d s", ending)


def test_the_command_speaks_json(tmp_path: Path, command) -> None:
    store = store_of(tmp_path / "emb.zarr", a=LABELS)
    out = tmp_path / "labels"
    result = command(store.path, "--format", "label-tiff", "--out", out, "--json")
    said = json.loads(result.stdout)
    assert said.pop("seconds") >= 0
    expected = {"stage": "export", "format": "label-tiff", "out": str(out), "fields": 1}
    assert said == {**expected, "cells": 3, "failed": []}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--format", "coco"], Export("coco", Path("x"))),
        (["--format", "kaggle", "--order", "row-major"], Export("kaggle", Path("x"), "row_major")),
        (
            ["--format", "kaggle", "--order", "column-major", "--overwrite"],
            Export("kaggle", Path("x"), "column_major", True),
        ),
        (["--format", "label-tiff"], Export("label-tiff", Path("x"))),
    ],
)
def test_flags_become_one_call(monkeypatch, command, flags: list[str], expected) -> None:
    calls: list[tuple[Path, Export]] = []

    def record(path: Path, asked: Export, emit: object) -> Exported:
        calls.append((path, asked))
        raise StoreError("recorded")

    monkeypatch.setattr("cellseg_cli.pipeline.export.export_store", record)
    with refused(StoreError, "recorded"):
        command("emb.zarr", "--out", "x", *flags)
    assert calls == [(Path("emb.zarr"), expected)]


SEED = np.array([[0, 1, 0.5, 0], [0.25, 0.75, 0, 0], [0, 0, 0, 0.5]], dtype=np.float16)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        # means of SEED under LABELS: (1 + 0.5) / 2, (0.25 + 0.75) / 2, 0.5
        (["offset_y_px", "offset_x_px", "bandwidth_px", "seed"], [0.75, 0.5, 0.5]),
        # background 51 / 255 everywhere
        (["unit_0", "unit_1", "unit_2", "unit_3"], [0.8, 0.8, 0.8]),
    ],
)
def test_coco_carries_the_score_of_each_cell(
    tmp_path: Path, channels: list[str], expected: list[float]
) -> None:
    store = Store.create(tmp_path / "emb.zarr", {"model": {"channels": channels}})
    store.write_fields([FieldRow("a", "/images/a.tif")])
    values = np.stack([SEED * 0, SEED * 0, SEED * 0, SEED])
    classes = np.full((3, 3, 4), 51, np.uint8)
    store.write_embedding("a", values, classes)
    store.mark_done("a", "embed", "fingerprint")
    store.write_labels("a", LABELS)
    store.mark_done("a", "cluster", "fingerprint")
    out = tmp_path / "cells.json"
    export_store(store.path, Export("coco", out), ignore)
    annotations = json.loads(out.read_text())["annotations"]
    assert [annotation["score"] for annotation in annotations] == expected


def test_coco_without_embeddings_has_no_scores(tmp_path: Path) -> None:
    store = store_of(tmp_path / "emb.zarr", a=LABELS)
    export_store(store.path, Export("coco", tmp_path / "cells.json"), ignore)
    annotations = json.loads((tmp_path / "cells.json").read_text())["annotations"]
    assert len(annotations) == 3
    assert not any("score" in annotation for annotation in annotations)
