"""`cellseg train` from the shell: what it says, what it leaves, how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cellseg_cli.cli.app import run
from cellseg_cli.errors import ExitCode
from cellseg_cli.networks.checkpoint import read_header

TINY = [
    *("--steps", "2", "--batch-size", "1", "--encoder", "resnet10t", "--device", "cpu"),
    *("--set", "levels=3", "--set", "decoder_channels=4", "--set", "crop_px=48"),
    *("--set", "grid_points=16", "--set", "precision=fp32"),
]


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Two fields of bright squares with truth."""
    root = tmp_path / "squares"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    labels = np.zeros((64, 64), np.uint8)
    labels[10:30, 10:30], labels[35:50, 35:50] = 1, 2
    for name in ("a", "b"):
        cv2.imwrite(str(root / "images" / f"{name}.png"), labels * 80 + 10)
        cv2.imwrite(str(root / "labels" / f"{name}.png"), labels)
    return root


def test_a_run_leaves_models_and_says_where(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", str(squares), "--val", str(squares), "--out", str(out), *TINY]
    assert run([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["best"] == str(out / "best.safetensors")
    assert result["steps"] == 2
    assert result["failed"] == []
    assert {"mean_ap", "ap50", "ap75", "step"} <= set(result["score"])
    assert {path.name for path in out.iterdir() if not path.name.startswith("events")} == {
        "best.safetensors",
        "last.safetensors",
        "state.safetensors",
        "metrics.csv",
    }


def test_another_run_in_the_folder_stops_every_process_with_one_line(
    squares: Path, tmp_path: Path
) -> None:
    arguments = ["train", str(squares), "--out", str(tmp_path / "run"), *TINY]
    assert run([*arguments, "--quiet"]) == 0
    bf16 = ("--set", "precision=bf16")
    result = subprocess.run(
        [sys.executable, "-m", "cellseg_cli", *arguments, "--devices", "2", "--seed", "7", *bf16],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert result.returncode == ExitCode.USAGE
    assert "holds a run with other settings (seed)" in result.stderr
    assert "Mixed Precision" not in result.stderr, "libraries do not speak"
    assert "Traceback" not in result.stderr


def test_fields_that_fail_are_named_and_the_code_tells(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = squares / "images" / "b.png"
    bad.write_bytes(b"")
    code = run(["train", str(squares), "--out", str(tmp_path / "run"), *TINY, "--quiet"])
    captured = capsys.readouterr()
    assert code == ExitCode.SOME_FAILED
    assert captured.err == f"cellseg: b is left out: {bad}: is empty (0 bytes)\n"
    assert captured.out == (
        f"{tmp_path / 'run' / 'best.safetensors'}: no held-out data to score it on\n"
    )


def test_a_folder_without_images_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "empty" / folder).mkdir(parents=True)
    code = run(["train", str(tmp_path / "empty"), "--out", str(tmp_path / "run"), *TINY])
    assert code == ExitCode.NOTHING_DONE
    assert capsys.readouterr().err == (
        f"cellseg: {tmp_path / 'empty' / 'images'}: no image found "
        "(.png .jpg .jpeg .bmp .tif .tiff); there: no file at all\n"
    )


def test_an_encoder_that_timm_does_not_know_ends_with_2(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(squares), "--out", str(tmp_path / "run"), *TINY]
    code = run([*arguments, "--encoder", "no_such_net"])
    assert code == ExitCode.USAGE
    assert "timm knows no encoder named 'no_such_net'" in capsys.readouterr().err


def test_two_processes_train_one_model_and_one_of_them_speaks(
    squares: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["train", str(squares), "--out", str(out), *TINY, "--devices", "2", "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-m", "cellseg_cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rank"] == 0
    assert read_header(out / "best.safetensors").training["devices"] == 2
    rows = (out / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]].count(["2", "overlap"]) == 1


def test_steps_and_minutes_are_not_both(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(squares), "--out", str(tmp_path / "run"), *TINY]
    assert run([*arguments, "--minutes", "2"]) == ExitCode.USAGE
    assert capsys.readouterr().err == (
        "cellseg: --steps and --minutes exclude each other: choose one\n"
    )


def test_steps_go_over_the_minutes_of_a_file_and_the_end_tells_the_pace(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("[train]\nminutes = 600\n")
    arguments = ["train", str(squares), "--out", str(tmp_path / "run"), *TINY]
    assert run([*arguments, "--config", str(config)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 2 fields, 0 held out, on cpu in fp32, 2 steps"
    assert re.fullmatch(
        r"train: \d+\.\d crops/s, \d+\.\d\d megapixels/s; time: (\w+ \d+\.\d%(, )?)+", lines[-1]
    )
    assert "backward" in lines[-1]


def test_a_time_budget_says_how_many_steps_it_allows(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(squares), "--out", str(tmp_path / "run"), *TINY[2:]]
    assert run([*arguments, "--minutes", "0.01"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(
        r"train: 2 fields, 0 held out, on cpu in fp32, \d+ steps, as 0\.01 minutes allow", first
    )
