"""The loop learns, resumes to the same weights, and says what stops it."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tifffile
import torch
from safetensors.torch import load_file

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    InputError,
    OutputExistsError,
    TrainingError,
)
from cellseg_cli.networks.checkpoint import load_model, read_header
from cellseg_cli.training import loop, metrics
from cellseg_cli.training.data import Failed, open_split
from cellseg_cli.training.loop import Labelling, Report, Started, learning_rate, train

TINY = TrainSettings(
    encoder="resnet10t",
    levels=3,
    decoder_channels=4,
    in_channels=1,
    crop_px=48,
    batch_size=2,
    steps=6,
    grid_points=16,
    sampled_pixels=100,
    window_px=12,
    validate_every=0,
    device="cpu",
    precision="fp32",
)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("recipe", "sampler"),
    [("spatial", "window")]
    + [("contrastive", sampler) for sampler in ("window", "foreground", "uniform")],
)
def test_every_recipe_and_sampler_trains(
    recipe: str, sampler: str, discs: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(TINY, recipe=recipe, sampler=sampler, steps=2)
    result = train(open_split([str(discs)]), tmp_path / "run", settings)
    assert result.steps == 2
    assert read_header(result.best).kind == recipe


def test_the_spatial_recipe_learns_discs(discs: Path, tmp_path: Path) -> None:
    """The mean overlap loss of the last reports is well below that of the first."""
    settings = dataclasses.replace(
        TINY, steps=160, decoder_channels=8, learning_rate=4e-3, ema_decay=0.9
    )
    overlaps: list[float] = []

    def keep(report: Report | Failed) -> None:
        if isinstance(report, Report) and "overlap" in report.losses:
            overlaps.append(report.losses["overlap"])

    train(open_split([str(discs)]), tmp_path / "run", settings, emit=keep)
    assert len(overlaps) == 8
    assert sum(overlaps[-2:]) < 0.7 * sum(overlaps[:2])


def test_validation_chooses_the_best_and_fills_the_header(discs: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, validate_every=3)
    result = train(
        open_split([str(discs)], validation=[str(discs)]),
        tmp_path / "run",
        settings,
        labelling=Labelling("discs", "CC0-1.0", "rendered discs"),
    )
    _, header = load_model(result.best)
    assert (header.name, header.licence, header.data) == ("discs", "CC0-1.0", "rendered discs")
    assert header.label_statistics["instances"] == 4 * 9
    assert header.label_statistics["fields_per_type"] == {"all": 4}
    assert header.training["settings"]["steps"] == 6
    assert header.cluster["method"] == "seeds"
    assert result.tuned == {**header.cluster, "mean_ap": header.training["tuned_mean_ap"]}
    assert set(header.training["validation"]) == {"mean_ap", "ap50", "ap75", "mean_ap/all"}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "name", "value"]
    assert {"overlap", "seed", "classes", "mean_ap"} <= {row[1] for row in rows[1:]}


def test_a_run_killed_with_9_resumes_to_the_same_weights(discs: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, steps=60)
    whole = train(open_split([str(discs)]), tmp_path / "whole", settings)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from cellseg_cli.training import loop\nfrom cellseg_cli.training.data import open_split\n"
        "from tests_training_settings import SETTINGS\n"
        "loop.SAVE_EVERY = 5\n"
        "loop.train(open_split([sys.argv[1]]), Path(sys.argv[2]), SETTINGS)\n"
    )
    (tmp_path / "tests_training_settings.py").write_text(
        f"from cellseg_cli.config import TrainSettings\nSETTINGS = {settings!r}\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(loop.__file__).parents[2]}"}
    command = [sys.executable, "-c", script, str(discs), str(tmp_path / "cut")]
    state = tmp_path / "cut" / "state.safetensors"
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    written: set[int] = set()  # the first state is that of step 0
    while len(written) < 2 and child.poll() is None and time.monotonic() < deadline:
        if state.exists():
            written.add(state.stat().st_mtime_ns)
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(written) == 2
    assert not (tmp_path / "cut" / "last.safetensors").exists(), "it was killed too late"
    cut = train(open_split([str(discs)]), tmp_path / "cut", settings)
    assert_same(whole.last, cut.last)


def test_other_settings_on_the_same_folder_are_refused(discs: Path, tmp_path: Path) -> None:
    split = open_split([str(discs)])
    train(split, tmp_path / "run", TINY)
    other = dataclasses.replace(TINY, learning_rate=1e-4, seed=5)
    with pytest.raises(OutputExistsError) as error:
        train(split, tmp_path / "run", other)
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds a run with other settings (learning_rate, seed); "
        "use another --out, or --overwrite to start anew"
    )
    assert train(split, tmp_path / "run", other, overwrite=True).steps == TINY.steps


def test_a_model_without_the_state_of_its_run_is_not_replaced_unasked(
    discs: Path, tmp_path: Path
) -> None:
    split = open_split([str(discs)])
    best = train(split, tmp_path / "run", TINY).best
    (tmp_path / "run" / "state.safetensors").unlink()
    (tmp_path / "run" / "last.safetensors").unlink()
    before = best.read_bytes()
    with pytest.raises(OutputExistsError) as error:
        train(split, tmp_path / "run", TINY)
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds best.safetensors without the state of their run; "
        "use another --out, or --overwrite to replace them"
    )
    assert best.read_bytes() == before
    train(split, tmp_path / "run", TINY, overwrite=True)


def test_a_sitting_says_where_it_computes_and_where_it_goes_on(discs: Path, tmp_path: Path) -> None:
    split = open_split([str(discs)], validation=[str(discs)])
    started: list[object] = []

    def keep(report: object) -> None:
        if isinstance(report, Started):
            started.append(report)

    for _ in range(2):
        train(split, tmp_path / "run", TINY, emit=keep)
    first = Started(device="cpu", precision="fp32", fields=4, held_out=4, step=0, steps=6)
    assert started == [first, dataclasses.replace(first, step=6)]


def test_one_device_and_several_are_not_both(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "resolve_device", lambda name: torch.device(name))
    split = open_split([str(discs)])
    with pytest.raises(ConfigError) as error:
        train(split, tmp_path, dataclasses.replace(TINY, device="cuda:1", devices=2))
    assert str(error.value) == (
        "--device cuda:1 is one device, --devices 2 asks for several; "
        "use --device cuda, or --devices 1"
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(DeviceError) as error:
        train(split, tmp_path, dataclasses.replace(TINY, device="cuda", devices=4))
    assert str(error.value) == (
        "--devices 4: PyTorch sees 3 CUDA devices; use --devices 3 or fewer"
    )


def test_the_curves_are_closed_and_cut_where_a_sitting_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    class Board:
        def add_scalar(self, *values: object) -> None:
            calls.append(values)

        def close(self) -> None:
            calls.append("closed")

    def board(folder: Path, after_step: int) -> Board:
        calls.append(after_step)
        return Board()

    monkeypatch.setattr(metrics, "_board", board)
    path = tmp_path / "metrics.csv"
    path.write_text("step,name,value\n20,seed,1\n40,seed,0.5\n")
    curves = metrics.Metrics(path, after_step=20)
    curves.write(40, {"seed": 0.25})
    curves.close()
    assert calls == [20, ("seed", 0.25, 40), "closed"]
    assert path.read_text().split() == ["step,name,value", "20,seed,1", "40,seed,0.25"]


def test_a_damaged_state_is_refused(discs: Path, tmp_path: Path) -> None:
    split = open_split([str(discs)])
    train(split, tmp_path / "run", TINY)
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="--overwrite starts anew"):
        train(split, tmp_path / "run", TINY)


def test_a_loss_that_is_not_finite_names_the_fields(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(output: object, *rest: object) -> dict[str, torch.Tensor]:
        return {"overlap": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setitem(loop.OBJECTIVES, "spatial", broken)
    with pytest.raises(TrainingError, match=r"not finite at step 0: .*fields of the batch: f\d, f"):
        train(open_split([str(discs)]), tmp_path / "run", TINY)


def test_bad_fields_are_left_out_and_the_run_goes_on(discs: Path, tmp_path: Path) -> None:
    (discs / "images" / "f1.png").write_bytes(b"no image")
    result = train(open_split([str(discs)]), tmp_path / "run", TINY)
    assert [failure.field_id for failure in result.failed] == ["f1"]
    assert read_header(result.best).label_statistics["fields"] == 3


def test_nothing_to_learn_is_an_error(discs: Path, tmp_path: Path) -> None:
    for path in (discs / "labels").glob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path) * 0)
    with pytest.raises(InputError) as error:
        train(open_split([str(discs)]), tmp_path / "run", TINY)
    assert str(error.value) == "the training fields hold no instance: there is nothing to learn"
    for path in (discs / "images").glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError) as error:
        train(open_split([str(discs)]), tmp_path / "run2", TINY)
    assert str(error.value) == (
        "not one training field can be read: there is nothing to learn from"
    )


def test_an_image_without_instances_trains_too(discs: Path, tmp_path: Path) -> None:
    path = discs / "labels" / "f0.tif"
    tifffile.imwrite(path, tifffile.imread(path) * 0)
    assert train(open_split([str(discs)]), tmp_path / "run", TINY).steps == TINY.steps


def test_the_learning_rate_rises_and_falls_once() -> None:
    settings = TrainSettings(steps=100, learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in range(100)]
    peak = rates.index(max(rates))
    assert peak == 10
    assert max(rates) == pytest.approx(1.0)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.01
