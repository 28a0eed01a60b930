"""`cellseg pretrain` from the shell: what it says, what it leaves, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cellseg_cli.cli.app import run

TINY = [
    *("--steps", "2", "--batch-size", "2", "--encoder", "resnet10t", "--device", "cpu"),
    *("--set", "levels=3", "--set", "crop_px=32", "--set", "queue_length=8"),
    *("--set", "precision=fp32"),
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of bright squares."""
    folder = tmp_path / "squares" / "images"
    folder.mkdir(parents=True)
    values = np.full((64, 64), 10, np.uint8)
    values[10:30, 10:30], values[35:50, 35:50] = 90, 170
    for name in ("a", "b"):
        cv2.imwrite(str(folder / f"{name}.png"), values)
    return folder


def test_a_run_says_what_it_does_and_goes_on_where_it_stopped(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pre"
    arguments = ["pretrain", str(images), "--out", str(out), *TINY]
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out / 'encoder.safetensors'}: learned from 2 fields in 2 steps  ")
    first, last = said.err.splitlines()
    assert first == "pretrain: 2 fields, on cpu in fp32, 2 steps"
    assert last.startswith("step 2/2  global ")
    assert last.endswith(" places/s")
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert said.out == f"{out / 'encoder.safetensors'}: learned from 2 fields in 2 steps\n"
    assert said.err == "pretrain: 2 fields, on cpu in fp32, 2 steps, 2 done before\n"
    written = {path.name for path in out.iterdir() if not path.name.startswith("events")}
    assert written == {"encoder.safetensors", "state.safetensors", "metrics.csv"}


def test_a_damaged_image_is_told_and_ends_with_1(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "c.png").write_bytes(b"")
    out = tmp_path / "pre"
    assert run(["pretrain", str(images), "--out", str(out), *TINY, "--json", "--quiet"]) == 1
    said = capsys.readouterr()
    reason = f"{images / 'c.png'}: is empty (0 bytes)"
    assert said.err == f"cellseg: c is left out: {reason}\n"
    result = json.loads(said.out)
    assert result["encoder"] == str(out / "encoder.safetensors")
    assert (result["fields"], result["steps"]) == (2, 2)
    assert result["failed"] == [{"field_id": "c", "reason": reason}]


def test_settings_come_from_the_table_pretrain_and_faults_end_with_2(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "cellseg.toml"
    config.write_text("[pretrain]\ntemperature = 0\nmomentum = 2\n")
    arguments = ["pretrain", str(images), "--out", str(tmp_path / "pre"), "--config", str(config)]
    assert run(arguments) == 2
    assert capsys.readouterr().err == (
        "cellseg: temperature=0.0 is not in 0.0001..inf; momentum=2.0 is not in 0..1\n"
    )
    assert not (tmp_path / "pre").exists()


def test_no_image_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["pretrain", str(tmp_path / "empty"), "--out", str(tmp_path / "pre")]
    assert run(arguments) == 3
    assert capsys.readouterr().err.startswith(f"cellseg: {tmp_path / 'empty'}: no image found")


def test_train_takes_the_encoder_over_and_says_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = images.parent / "labels"
    labels.mkdir()
    for path in images.iterdir():
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(labels / path.name), values // 80)
    pre = tmp_path / "pre"
    assert run(["pretrain", str(images), "--out", str(pre), *TINY, "--quiet"]) == 0
    common = ["--init", str(pre), "--device", "cpu", "--steps", "1", "--batch-size", "1"]
    small = ["--set", "levels=3", "--set", "decoder_channels=4", "--set", "crop_px=48"]
    arguments = ["train", str(images.parent), *common, *small, "--set", "precision=fp32"]
    right = [*arguments, "--encoder", "resnet10t", "--out", str(tmp_path / "run")]
    capsys.readouterr()
    assert run(right) == 0
    assert f"tensors are taken from the encoder {pre / 'encoder.safetensors'}\n" in (
        capsys.readouterr().err
    )
    assert run([*arguments, "--out", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err == (
        f"cellseg: {pre / 'encoder.safetensors'} does not fit: its encoder is resnet10t for 3 "
        "image channels with 3 stages; set encoder=resnet10t, or leave --init out\n"
    )
