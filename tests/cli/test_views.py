"""`embed --scale --tta`: what a store says of them, and that they do not mix."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cellseg_cli.cli.app import run
from cellseg_cli.config import EmbedSettings
from cellseg_cli.errors import ExitCode
from cellseg_cli.pipeline.embedding import view_of
from cellseg_cli.store import Store


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A 16-bit TIFF and an 8-bit PNG."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(folder / "deep.tif", rng.integers(300, 4000, (48, 64)).astype(np.uint16))
    assert cv2.imwrite(str(folder / "grey.png"), rng.integers(0, 255, (45, 70)).astype(np.uint8))
    return folder


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    shown: dict[str, object] = json.loads(capsys.readouterr().out)
    return shown


def test_a_store_tells_its_view_and_refuses_another(
    images: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "emb.zarr"
    command = ["embed", str(images), "--out", str(out), "--model", str(model), "--device", "cpu"]
    looking = ["--scale", "1.5", "--tta", "flips"]
    assert run([*command, *looking, "--json", "--quiet"]) == ExitCode.DONE
    assert told(capsys)["done"] == 2
    made = Store.open(out).attributes["embed"]
    assert (made["scale"], made["tta"]) == (1.5, "flips")
    seen, _ = Store.open(out).read_embedding("deep")
    assert seen.shape == (4, 48, 64)

    assert run([*command, *looking, "--json", "--quiet"]) == ExitCode.DONE
    again = told(capsys)
    assert (again["done"], again["skipped"]) == (0, 2)

    for words, difference in (
        ([], "scale was 1.5 and is now 1, tta was flips and is now none"),
        (["--scale", "2", "--tta", "flips"], "scale was 1.5 and is now 2"),
        (["--scale", "1.5", "--tta", "dihedral"], "tta was flips and is now dihedral"),
    ):
        assert run([*command, *words, "--quiet"]) == ExitCode.USAGE
        assert capsys.readouterr().err == (
            f"cellseg: {out} was made with other settings: {difference}; choose another --out, or "
            "--overwrite to embed every field anew\n"
        )

    assert run([*command, "--overwrite", "--json", "--quiet"]) == ExitCode.DONE
    plain, _ = Store.open(out).read_embedding("deep")
    assert np.abs(plain.astype(float) - seen).max() > 0
    # as before there were such settings, so that earlier stores go on
    assert not {"scale", "tta"} & set(Store.open(out).attributes["embed"])
    told(capsys)
    assert run([*command, "--scale", "1", "--tta", "none", "--json", "--quiet"]) == ExitCode.DONE
    assert told(capsys)["skipped"] == 2


def test_segment_takes_them_too(
    images: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.zarr"
    command = ["segment", str(images), "--out", str(out), "--model", str(model), "--device", "cpu"]
    assert run([*command, "--scale", "2", "--tta", "dihedral", "--quiet"]) == ExitCode.DONE
    made = Store.open(out).attributes["embed"]
    assert (made["scale"], made["tta"]) == (2.0, "dihedral")
    assert Store.open(out).read_labels("grey").shape == (45, 70)
    capsys.readouterr()
    assert run([*command, "--quiet"]) == ExitCode.USAGE
    assert "scale was 2 and is now 1, tta was dihedral and is now none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "1.3"], "scale=1.3 is not a multiple of 0.25 in 0.25..4"),
        (
            ["--scale", "1.25", "--set", "halo_px=24"],
            "tile_px=1024 and halo_px=24 must be multiples of 16 (at scale=1.25 of a network of "
            "stride 4) with tile_px > 2 × halo_px ≥ 0",
        ),
        (
            ["--tta", "turns"],
            "bad settings: tta='turns': Input should be 'none', 'flips' or 'dihedral'",
        ),
    ],
)
def test_what_cannot_be_is_a_usage_error(
    words: list[str],
    message: str,
    images: Path,
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "emb.zarr"
    command = ["embed", str(images), "--out", str(out), "--model", str(model), *words]
    assert run(command) == ExitCode.USAGE
    assert capsys.readouterr().err == f"cellseg: {message}\n"
    assert not out.exists()


def test_the_model_decides_unless_it_is_said() -> None:
    assert view_of(EmbedSettings()).of(1.5).factor == 1.5
    assert view_of(EmbedSettings(scale=2.0)).of(1.5).factor == 2.0
    assert view_of(EmbedSettings()).scale is None
