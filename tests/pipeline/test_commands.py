"""``cellseg embed`` and ``cellseg cluster`` as typed: flags, messages, JSON and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_cli.cli.app import run
from cellseg_cli.store import Store


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "emb.zarr"


def test_both_stages_and_their_json(
    plate: Path, out: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plate / "bad.png").touch()
    embed = ["embed", str(plate), "--out", str(out), "--model", str(model), "--device", "cpu"]
    embed += ["--threads", "2", "--batch-size", "2", "--tile", "256", "--set", "halo_px=32"]
    assert run([*embed, "--json", "--quiet"]) == 1
    told = capsys.readouterr()
    reason = f"{plate / 'bad.png'}: is empty (0 bytes)"
    result = json.loads(told.out)
    assert result.pop("seconds") > 0
    assert result == {
        "stage": "embed",
        "store": str(out),
        "dry_run": False,
        "done": 6,
        "skipped": 0,
        "failed": [{"field": "bad", "reason": reason}],
    }
    assert told.err == f"cellseg: bad: {reason}\n"
    made = Store.open(out).attributes["embed"]
    assert (made["tile_px"], made["halo_px"]) == (256, 32)

    (plate / "bad.png").unlink()
    assert run([*embed, "--quiet"]) == 0
    assert run([*embed, "--exclude", "A/*", "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["dry_run"], result["to_do"], result["skipped"]) == (True, 0, 3)

    cluster = ["cluster", str(out), "--method", "seeds", "--min-area", "7", "--foreground", "0.1"]
    cluster += ["--set", "seed_level=0.2", "--part", "1/2", "--json"]
    assert run(cluster) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["stage"], result["done"], result["failed"]) == ("cluster", 3, [])
    mark = Store.open(out).mark("A/f0", "cluster")
    assert mark is not None
    names = ("method", "min_area_px", "foreground", "seed_level")
    assert [mark["settings"][name] for name in names] == ["seeds", 7, 0.1, 0.2]


@pytest.mark.parametrize("side", [48, 4104])
def test_three_stains_are_not_taken_for_colours(
    tmp_path: Path, out: Path, model: Path, side: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """What decides is what the file says, in a field embedded at once and in one of slabs."""
    image = np.random.default_rng(0).integers(0, 200, (3, 24, side), dtype=np.uint8)
    (images := tmp_path / "images").mkdir()
    tifffile.imwrite(images / "stains.tif", image, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(images / "colours.tif", image.transpose(1, 2, 0), photometric="rgb")
    embed = ["embed", str(images), "--model", str(model), "--device", "cpu", "--json", "--quiet"]
    embed += ["--tile", "256", "--set", "halo_px=32", "--out"]
    assert run([*embed, str(out)]) == 1
    reason = "the image has 3 channels, the model takes 1; choose them, e.g. --channel 0"
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["failed"]) == (1, [{"field": "stains", "reason": reason}])
    assert run([*embed, str(tmp_path / "chosen.zarr"), "--channel", "0"]) == 0


@pytest.mark.parametrize("name", ["cells", "cells.zarr"])
def test_pictures_of_mistakes_show_the_planes_that_were_segmented(
    tmp_path: Path, model: Path, name: str
) -> None:
    stack = np.random.default_rng(0).integers(0, 200, (3, 2, 40, 48), dtype=np.uint8)
    (images := tmp_path / "images").mkdir()
    tifffile.imwrite(images / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    cells = str(tmp_path / name)
    segment = ["segment", str(images), "--out", cells, "--model", str(model), "--device", "cpu"]
    assert run([*segment, "--z", "max", "--channel", "1", "--quiet"]) == 0
    evaluate = ["evaluate", cells, "--truth", cells, "--quiet", "--images", str(images)]
    assert run([*evaluate, "--pictures", str(tmp_path / "mistakes")]) == 0
    assert (tmp_path / "mistakes" / "a.png").is_file()


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        (["--channel", "red"], "--channel 'red' is not one number from 0, or several with commas"),
        (["--z", "best"], "--z must be max, mid or a number from 0, got 'best'"),
        (["--part", "3/2"], "--part 3/2: i must lie in 1..n; number array tasks from 1"),
        (["--set", "colour=red"], "unknown setting colour; known: batch_size, channel, device"),
        (["--model", "absent"], "no model 'absent': neither a file nor one of the bundled models"),
        (["--device", "tpu"], "--device 'tpu' is none of auto, cpu, cuda, cuda:I"),
        (["--set", "tile_px=0", "--dry-run"], "tile_px=0 and halo_px=64 must be multiples of 4"),
        (["--tile", "100"], "tile_px=100 and halo_px=64 must be multiples of 4"),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_no_store(
    plate: Path,
    out: Path,
    model: Path,
    extra: list[str],
    error: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["embed", str(plate), "--out", str(out), "--model", str(model), *extra]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"cellseg: {error}")
    assert told.err.count("\n") == 1
    assert not out.exists()


def test_settings_from_a_file(plate: Path, out: Path, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "plate.toml"
    file.write_text(
        f'[embed]\nmodel = "{model}"\ndevice = "cpu"\ninclude = ["B/*"]\n'
        "[cluster]\nmin_area_px = 11\nforeground = 0.2\n"
    )
    assert run(["embed", str(plate), "--out", str(out), "--config", str(file), "-q"]) == 0
    assert run(["cluster", str(out), "--config", str(file), "--foreground", "0.1", "-q"]) == 0
    store = Store.open(out)
    assert [row.id for row in store.fields()] == ["B/f1", "B/f3", "B/f5"]
    mark = store.mark("B/f1", "cluster")
    assert mark is not None
    assert (mark["settings"]["min_area_px"], mark["settings"]["foreground"]) == (11, 0.1)


def test_a_store_of_another_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = {"attributes": {"cellseg": {"format_version": 7}}}
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    assert run(["cluster", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"cellseg: {tmp_path} has store format 7, this cellseg reads format 1; use the cellseg "
        "that made it, or embed anew into another store\n"
    )


@pytest.mark.parametrize("command", ["embed", "cluster"])
def test_help_ends_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"cellseg {command} " in text[text.index("Examples:") :]


def test_the_least_area_is_a_pixel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", str(tmp_path), "--min-area", "0"]) == 2
    assert "Error: Invalid value for '--min-area': " in capsys.readouterr().err
