"""The demo: every stage on a rendered plate, and nothing removed but an earlier demo."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from cellseg_cli.cli.app import run
from cellseg_cli.errors import (
    CellsegError,
    CheckpointError,
    ConfigError,
    ExitCode,
    OutputExistsError,
)
from cellseg_cli.images.annotations import open_annotations
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, save_model
from cellseg_cli.pipeline import demo as demo_module
from cellseg_cli.pipeline.demo import Demo, DemoSettings, demo
from cellseg_cli.pipeline.events import Event, FieldDone, StageStarted
from cellseg_cli.store import Store

IDS = ["A01/field1", "B02/field1"]


def ignore(event: Event) -> None:
    """Take an event and do nothing."""


def small(model: Path, seed: int = 0) -> DemoSettings:
    """Two small fields instead of eight."""
    return DemoSettings(
        seed=seed,
        wells=("A01", "B02"),
        fields_per_well=1,
        size=(160, 192),
        model=str(model),
        device="cpu",
        threads=1,
    )


def refused(out: Path, settings: DemoSettings, *, overwrite: bool) -> str:
    with pytest.raises(OutputExistsError) as caught:
        demo(out, settings, emit=ignore, overwrite=overwrite)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Demo, list[Event]]:
    """A demo that nothing changes any more, and what it told."""
    told: list[Event] = []
    return demo(tmp_path_factory.mktemp("demo") / "out", small(model), emit=told.append), told


def test_everything_is_where_it_says(finished: tuple[Demo, list[Event]]) -> None:
    result, _ = finished
    out = result.store.parent
    assert {path.name for path in out.iterdir()} == {
        *("plate", "truth", "emb.zarr", "labels", "cells.json", "demo.png", "demo.json")
    }
    assert result.exit_code == ExitCode.DONE
    assert list(result.plate.nuclei) == IDS
    assert list(result.evaluation.fields) == IDS
    assert list(result.seconds) == ["render", "embed", "cluster", "evaluate", "export", "picture"]
    truth = open_annotations(out / "truth")
    for field_id, score in result.evaluation.fields.items():
        assert score.truth == result.plate.nuclei[field_id] == len(truth.read(field_id))


def test_exports_and_scores_are_of_the_same_cells(finished: tuple[Demo, list[Event]]) -> None:
    result, _ = finished
    store, coco = Store.open(result.store), open_annotations(result.coco)
    for field_id in IDS:
        labels = store.read_labels(field_id)
        exported = tifffile.imread(result.labels / f"{field_id}.tif")
        np.testing.assert_array_equal(exported, labels)
        count = len(np.unique(labels[labels > 0]))
        assert result.evaluation.fields[field_id].predicted == count == len(coco.read(field_id))


def test_the_picture_has_a_row_of_four_for_each_well(finished: tuple[Demo, list[Event]]) -> None:
    result, _ = finished
    picture = cv2.imread(str(result.picture))
    height, width = picture.shape[:2]
    assert 2 * 160 < height < 2 * 220 and 4 * 192 < width < 4 * 220
    # The image in the first column is the rendered one: the same pixels are bright.
    image = tifffile.imread(result.plate.images / "A01/field1.tif").astype(float)
    seen = picture[:220, :220, 0].astype(np.float32)
    bright = np.clip(image / np.percentile(image, 99.8), 0, 1) * 255
    assert cv2.matchTemplate(seen, bright.astype(np.float32), cv2.TM_CCOEFF_NORMED).max() > 0.95


def test_the_record_says_what_came_out(finished: tuple[Demo, list[Event]]) -> None:
    result, _ = finished
    record = json.loads((result.store.parent / "demo.json").read_text())
    assert record["made_by"].startswith("cellseg demo ")
    assert record["finished"] is True
    assert record["nuclei"] == dict(result.plate.nuclei)
    assert record["store"] == str(result.store)
    assert record["evaluation"]["fields"] == 2


def test_every_stage_is_told(finished: tuple[Demo, list[Event]]) -> None:
    _, told = finished
    started = [event.stage for event in told if isinstance(event, StageStarted)]
    assert started == ["render", "embed", "cluster", "export", "export"]
    rendered = [e.field_id for e in told if isinstance(e, FieldDone) and e.stage == "render"]
    assert rendered == IDS


def test_a_demo_is_replaced_when_asked_and_only_itself(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    demo(out, small(model), emit=ignore)
    before = (out / "plate/A01/field1.tif").read_bytes()
    (out / "notes.txt").write_text("mine")
    assert refused(out, small(model), overwrite=False) == (
        f"{out} holds a demo already; to run it anew: cellseg demo --out {out} --overwrite"
    )
    again = demo(out, small(model, seed=1), emit=ignore, overwrite=True)
    assert again.exit_code == ExitCode.DONE
    assert (out / "plate/A01/field1.tif").read_bytes() != before
    assert (out / "notes.txt").read_text() == "mine"


def test_a_demo_that_was_stopped_can_be_run_anew(tmp_path: Path, model: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "cluster":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path / "out", small(model), emit=stop)
    assert json.loads((tmp_path / "out/demo.json").read_text())["finished"] is False
    again = demo(tmp_path / "out", small(model), emit=ignore, overwrite=True)
    assert again.exit_code == ExitCode.DONE


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("mark", [None, "not JSON", "[1]", '{"made_by": "someone"}'])
def test_a_foreign_folder_is_never_touched(
    tmp_path: Path, model: Path, mark: str | None, overwrite: bool
) -> None:
    (tmp_path / "plate").mkdir()
    (tmp_path / "plate" / "precious.tif").write_bytes(b"mine")
    if mark is not None:
        (tmp_path / "demo.json").write_text(mark)
    there = sorted(tmp_path.rglob("*"))
    first = "demo.json" if mark is not None else "plate"
    assert refused(tmp_path, small(model), overwrite=overwrite) == (
        f"{tmp_path} holds files that no demo made, such as {first}; choose another --out"
    )
    assert sorted(tmp_path.rglob("*")) == there
    assert (tmp_path / "plate" / "precious.tif").read_bytes() == b"mine"


def test_a_file_is_no_folder(tmp_path: Path, model: Path) -> None:
    (tmp_path / "out").write_text("x")
    assert refused(tmp_path / "out", small(model), overwrite=True) == (
        f"{tmp_path / 'out'} is a file; the demo needs a folder, choose another --out"
    )


def test_below_a_file_no_folder_can_be(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError) as caught:
        demo(tmp_path / "file" / "out", small(model), emit=ignore)
    assert str(caught.value) == f"{tmp_path / 'file' / 'out'} cannot be written: Not a directory"


def test_without_a_model_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        demo(tmp_path / "out", small(tmp_path / "none.safetensors"), emit=ignore)
    assert not (tmp_path / "out").exists()


def test_a_contrastive_model_is_shown_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = Architecture(
        kind="contrastive", encoder="test_resnet", levels=2, decoder_channels=4, in_channels=1
    )
    save_model(tmp_path / "m.safetensors", Embedder(architecture), ModelHeader("m", architecture))
    result = demo(tmp_path / "out", small(tmp_path / "m.safetensors"), emit=ignore)
    assert result.picture.is_file()


# --- the command ---


def replayed(monkeypatch: pytest.MonkeyPatch, answer: Demo | CellsegError) -> list[tuple]:
    """Let the command call something that notes its arguments and gives one answer."""
    calls: list[tuple] = []

    def noted(out: Path, settings: DemoSettings, *, emit: object, overwrite: bool) -> Demo:
        calls.append((out, settings, overwrite))
        if isinstance(answer, CellsegError):
            raise answer
        return answer

    monkeypatch.setattr(demo_module, "demo", noted)
    return calls


def test_the_command_says_where_how_good_and_what_next(
    finished: tuple[Demo, list[Event]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result, _ = finished
    calls = replayed(monkeypatch, result)
    assert run(["demo"]) == 0
    assert calls == [(Path("cellseg-demo"), DemoSettings(), False)]
    lines = capsys.readouterr().out.splitlines()
    total, out = result.plate.total, result.store.parent
    assert lines[0] == f"2 fields with {total} nuclei, segmented by the model nuclei"
    assert [line.split()[-1] for line in lines if line.startswith("images")] == ["TIFF"]
    for name in ("plate", "truth", "emb.zarr", "labels", "cells.json", "demo.png"):
        assert any(str(out / name) in line.split() for line in lines)
    table = {
        line.split()[0]: line.split()[1] for line in lines if line[:3] in ("A01", "B02", "all")
    }
    assert table == {
        "A01": str(result.plate.nuclei["A01/field1"]),
        "B02": str(result.plate.nuclei["B02/field1"]),
        "all": str(total),
    }
    assert lines[-3:] == [
        "    cellseg embed FOLDER --out cells.zarr",
        "    cellseg cluster cells.zarr",
        "    cellseg export cells.zarr --format label-tiff --out labels",
    ]


def test_every_flag_reaches_the_call(
    finished: tuple[Demo, list[Event]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = replayed(monkeypatch, finished[0])
    flags = (
        "demo --out d --seed 5 --model m.safetensors --device cpu --threads 3 --overwrite --json"
    )
    assert run(flags.split()) == 0
    settings = DemoSettings(seed=5, model="m.safetensors", device="cpu", threads=3)
    assert calls == [(Path("d"), settings, True)]
    shown = json.loads(capsys.readouterr().out)
    assert shown["nuclei"] == dict(finished[0].plate.nuclei)
    assert list(shown["seconds"]) == list(finished[0].seconds)


def test_an_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed(monkeypatch, OutputExistsError("d holds a demo already; ..."))
    assert run(["demo", "--out", "d"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "cellseg: d holds a demo already; ...\n")
