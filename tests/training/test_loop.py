"""The loop learns, resumes to the same weights, and says what stops it."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import hypothesis
import hypothesis.strategies as st
import pytest
import tifffile
import torch
from safetensors import safe_open
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
from cellseg_cli.training import loop, metrics, processes
from cellseg_cli.training.clock import PARTS
from cellseg_cli.training.data import Failed, open_split
from cellseg_cli.training.loop import learning_rate, steps_within, train
from cellseg_cli.training.objective import OBJECTIVES
from cellseg_cli.training.reports import Labelling, Report, Started

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
    reached = header.training["tuned_mean_ap"]
    assert result.tuned == {"scale": header.scale, **header.cluster, "mean_ap": reached}
    assert set(header.training["validation"]) == {"mean_ap", "ap50", "ap75", "mean_ap/all"}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "name", "value"]
    assert {"overlap", "seed", "classes", "mean_ap"} <= {row[1] for row in rows[1:]}


KILLED = """
import json, os, signal, sys
from pathlib import Path
from cellseg_cli.config import TrainSettings
from cellseg_cli.training import loop
from cellseg_cli.training.data import open_split
from cellseg_cli.training.reports import Report

loop.SAVE_EVERY, loop.SAVE_AFTER_S = int(sys.argv[4]), float(sys.argv[5])
data, out, settings = sys.argv[1], Path(sys.argv[2]), TrainSettings(**json.loads(sys.argv[3]))

def kill(report):
    if isinstance(report, Report) and report.step == 8 and report.score:
        os.kill(os.getpid(), signal.SIGKILL)

loop.train(open_split([data], validation=[data]), out, settings, emit=kill)
"""


@pytest.mark.parametrize(
    ("recipe", "optimizer", "every", "after_s", "kept"),
    [
        *((recipe, "muon", 5, 1e9, 5) for recipe in OBJECTIVES),
        ("spatial", "adamw", 5, 1e9, 5),
        ("spatial", "muon", 250, 0.0, 4),
    ],
)
def test_a_run_killed_with_9_ends_as_if_it_had_not_been(
    recipe: str,
    optimizer: str,
    every: int,
    after_s: float,
    kept: int,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, their average, the optimiser, the schedule, the best score and the curves.

    The killed sitting has written a model of step 8, and a state at step 5, or, where steps are
    so slow that every report writes one, at step 4.
    """
    monkeypatch.setattr(loop, "SAVE_EVERY", 5)
    settings = dataclasses.replace(
        TINY, recipe=recipe, optimizer=optimizer, steps=12, validate_every=4
    )
    split = open_split([str(discs)], validation=[str(discs)])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(split, whole, settings)
    asdict = dataclasses.asdict(settings)
    child = subprocess.run(
        [
            *(sys.executable, "-c", KILLED, str(discs), str(cut), json.dumps(asdict)),
            *(str(every), str(after_s)),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(loop.__file__).parents[2])},
        stderr=subprocess.PIPE,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert read_header(cut / "last.safetensors").training["step"] == 8
    sitting: list[int] = []
    train(split, cut, settings, emit=lambda report: sitting.append(report.step))  # type: ignore[union-attr]
    assert sitting[0] == kept
    for name in ("state.safetensors", "best.safetensors", "last.safetensors"):
        assert_same(whole / name, cut / name)
    ours, theirs = (content_of(folder / "state.safetensors") for folder in (whole, cut))
    assert ours["best"] == theirs["best"]
    assert ours["spent"]["crops"] == theirs["spent"]["crops"] == 12 * TINY.batch_size
    assert learned_curves(whole) == learned_curves(cut)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_the_step_it_was_at(
    number: int, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held back to the end of a step, and of the handler that was there nothing is left over."""
    monkeypatch.setattr(loop, "REPORT_EVERY", 2)
    settings = dataclasses.replace(TINY, steps=9)
    split = open_split([str(discs)])
    train(split, tmp_path / "whole", settings)

    def interrupt(report: object) -> None:
        if isinstance(report, Report) and report.step == 4:
            signal.raise_signal(number)

    def terminated(*_: object) -> None:
        raise AssertionError("not held back")

    before = {one: signal.signal(one, terminated) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            train(split, tmp_path / "cut", settings, emit=interrupt)
        assert signal.getsignal(number) is terminated
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert content_of(tmp_path / "cut" / "state.safetensors")["step"] == 5
    train(split, tmp_path / "cut", settings)
    for name in ("state.safetensors", "best.safetensors", "last.safetensors"):
        assert_same(tmp_path / "whole" / name, tmp_path / "cut" / name)


def content_of(state: Path) -> dict[str, Any]:
    with safe_open(state, framework="pt") as file:
        return dict(json.loads(file.metadata()["state"]))


def learned_curves(run: Path) -> list[list[str]]:
    """What metrics.csv says of losses and scores; rates and shares are never the same twice."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [row for row in rows if "_per_s" not in row[1] and not row[1].startswith("share/")]


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


def _spoil_a_label(data: Path) -> None:
    labels = tifffile.imread(data / "labels" / "f1.tif")
    labels[labels == labels.max()] = 0
    tifffile.imwrite(data / "labels" / "f1.tif", labels)


def _spoil_a_pixel(data: Path) -> None:
    (path,) = (data / "images").glob("f1.*")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image[3, 4] ^= 1
    cv2.imwrite(str(path), image)


@pytest.mark.parametrize("spoil", [_spoil_a_label, _spoil_a_pixel])
@pytest.mark.parametrize(("part", "told"), [("mine", "fields"), ("held", "held_out")])
def test_other_content_under_the_same_names_is_another_run(
    tmp_path: Path, discs: Path, spoil: Callable[[Path], None], part: str, told: str
) -> None:
    for name in ("mine", "held"):
        shutil.copytree(discs, tmp_path / name)
    data, held = str(tmp_path / "mine"), str(tmp_path / "held")
    train(open_split([data], validation=[held]), tmp_path / "run", TINY)
    train(open_split([data], validation=[held]), tmp_path / "run", TINY)  # goes on
    spoil(tmp_path / part)
    with pytest.raises(OutputExistsError, match=rf"other settings \({told}\);"):
        train(open_split([data], validation=[held]), tmp_path / "run", TINY)


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
    monkeypatch.setattr(processes, "resolve_device", lambda name: torch.device(name))
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


def test_what_the_time_went_to_is_told_and_kept(discs: Path, tmp_path: Path) -> None:
    """Every report's shares add up to one; what a device has to do, none of them leaves out."""
    settings = dataclasses.replace(TINY, steps=21, validate_every=20)
    told: list[Report] = []

    def keep(report: object) -> None:
        if isinstance(report, Report) and report.score is None:
            told.append(report)

    split = open_split([str(discs)], validation=[str(discs)])
    result = train(split, tmp_path / "run", settings, emit=keep)
    assert [report.step for report in told] == [20, 21]
    for report in told:
        assert sum(report.shares.values()) == pytest.approx(1)
        assert report.crops_per_s > 0
        assert report.megapixels_per_s == pytest.approx(report.crops_per_s * 48 * 48 / 1e6)
    assert "validation" in told[1].shares  # the one after step 20
    assert set(result.shares) == set(PARTS)
    header = read_header(result.last).training
    assert set(header["shares"]) == set(PARTS)
    assert sum(header["shares"].values()) == pytest.approx(1, abs=1e-3)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = {(row[0], row[1]): row[2] for row in list(csv.reader(file))[1:]}
    assert float(rows["21", "crops_per_s"]) == pytest.approx(told[1].crops_per_s, rel=1e-4)
    assert float(rows["21", "share/forward"]) == pytest.approx(told[1].shares["forward"], rel=1e-4)


def test_a_time_budget_finds_steps_that_a_second_sitting_keeps(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured leaves no trace: the weights are those of as many steps asked for."""
    monkeypatch.setattr(loop, "TIMED_STEPS", 3)
    budget = dataclasses.replace(TINY, minutes=0.03, seed=3)
    split = open_split([str(discs)])
    found = train(split, tmp_path / "minutes", budget)
    assert found.steps >= 1
    asked = dataclasses.replace(TINY, steps=found.steps, seed=3)
    assert_same(found.last, train(split, tmp_path / "steps", asked).last)
    trained = read_header(found.last).training["settings"]
    assert (trained["steps"], trained["minutes"]) == (found.steps, 0.03)
    monkeypatch.setattr(loop._Runner, "_steps_in", lambda *given: pytest.fail("measured again"))
    started: list[object] = []
    train(split, tmp_path / "minutes", dataclasses.replace(budget, steps=99), emit=started.append)
    assert started == [
        Started(
            device="cpu",
            precision="fp32",
            fields=4,
            held_out=0,
            step=found.steps,
            steps=found.steps,
            minutes=0.03,
        )
    ]
    with pytest.raises(OutputExistsError, match=r"other settings \(minutes\);"):
        train(split, tmp_path / "minutes", dataclasses.replace(budget, minutes=0.04))


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.floats(1, 1e6), st.floats(1e-4, 1e2))
def test_a_budget_is_kept_and_used(seconds: float, per_step: float) -> None:
    steps = steps_within(seconds, per_step)
    assert steps >= 1
    assert steps == 1 or steps * per_step <= seconds
    assert (steps + 1) * per_step > 0.95 * seconds


def test_no_state_is_written_of_weights_that_are_not_numbers(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of step 6 is infinite, its loss is not; the state of step 5 stays."""
    real = loop.OBJECTIVES["spatial"]
    steps = itertools.count()

    def steep(output: Any, *rest: Any) -> dict[str, torch.Tensor]:
        terms = real(output, *rest)
        if next(steps) == 6:
            terms["seed"] = terms["seed"] + torch.sqrt((output.embedding * 0).sum())
        return terms

    monkeypatch.setattr(loop, "SAVE_EVERY", 5)
    monkeypatch.setitem(loop.OBJECTIVES, "spatial", steep)
    with pytest.raises(TrainingError, match=r"gradient of the loss is not finite at step 6: .*f\d"):
        train(open_split([str(discs)]), tmp_path / "run", dataclasses.replace(TINY, steps=12))
    assert content_of(tmp_path / "run" / "state.safetensors")["step"] == 5
    assert all(
        tensor.isfinite().all()
        for tensor in weights(tmp_path / "run" / "state.safetensors").values()
    )
