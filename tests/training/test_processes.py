"""Several processes train one model, whoever has started them."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError
from cellseg_cli.networks.architecture import Embedder, Output
from cellseg_cli.networks.checkpoint import read_header
from cellseg_cli.training import loop
from cellseg_cli.training.crops import draw_batch
from cellseg_cli.training.data import open_split
from cellseg_cli.training.objective import Target
from cellseg_cli.training.objective import spatial as spatial_objective
from cellseg_cli.training.processes import Launch, launch_of
from cellseg_cli.training.reports import Report
from cellseg_cli.training.windows import Windows

#: Windows of points one pixel apart: which instances are looked at, and where, is not random.
SETTINGS = TrainSettings(
    encoder="resnet10t",
    levels=3,
    decoder_channels=4,
    in_channels=1,
    crop_px=48,
    batch_size=1,
    steps=4,
    grid_points=64,
    validate_every=0,
    device="cpu",
    precision="fp32",
)
COMMAND = [
    *("--steps", "4", "--batch-size", "1", "--encoder", "resnet10t", "--device", "cpu"),
    *("--set", "levels=3", "--set", "decoder_channels=4", "--set", "crop_px=48"),
    *("--set", "grid_points=64", "--set", "precision=fp32", "--set", "in_channels=1"),
    *("--set", "validate_every=0"),
]

CHILD = """
import json, sys
from pathlib import Path
from cellseg_cli.config import TrainSettings
from cellseg_cli.training import loop
from cellseg_cli.training.data import open_split

data, out, settings = sys.argv[1], Path(sys.argv[2]), TrainSettings(**json.loads(sys.argv[3]))
network = loop.Embedder
loop.Embedder = lambda architecture: network(architecture).eval()  # kept statistics
frozen = loop.train(open_split([data]), out / "frozen", settings)
loop.Embedder = network
loop.train(open_split([data]), out / "own", settings)
print(frozen.rank)
"""


def environment(**more: str) -> dict[str, str]:
    """That of this process, one thread for each child, no launcher."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    root = str(Path(loop.__file__).parents[2])
    return ours | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", **more}


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def slurm(rank: int, port: str) -> dict[str, str]:
    """What srun tells each of two tasks on one node."""
    return {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "MASTER_PORT": port,
    }


def losses_of(run: Path) -> dict[str, float]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert len({tuple(row[:2]) for row in rows}) == len(rows), "one process writes"
    names = {"overlap", "smoothness", "seed", "classes"}
    return {row[1]: float(row[2]) for row in rows if row[0] == "4" and row[1] in names}


def crop_by_crop(
    output: Output, target: Target, settings: TrainSettings
) -> dict[str, torch.Tensor]:
    """The mean over crops of the loss of each alone, as processes with one crop each have it."""
    each = []
    for one in range(len(target.labels)):
        part = slice(one, one + 1)
        assert output.classes is not None
        alone = Output(output.embedding[part], output.classes[part])
        assert isinstance(target.drawn, Windows)
        its = target.drawn.crop == one
        drawn = Windows(*(tensor[its] for tensor in target.drawn))
        given = target._replace(
            labels=target.labels[part],
            under=None if target.under is None else target.under[part],
            drawn=drawn._replace(crop=drawn.crop - one),
        )
        each.append(spatial_objective(alone, given, settings))
    return {name: torch.stack([terms[name] for terms in each]).mean() for name in each[0]}


def test_two_slurm_tasks_learn_what_one_process_learns_of_both_batches(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal up to rounding but for the statistics of batch norms, which are each process's own."""
    port = free_port()
    given = json.dumps(dataclasses.asdict(SETTINGS))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(discs), str(tmp_path / "two"), given],
            env=environment(**slurm(rank, port)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    assert sorted(out.split()[-1] for out, _ in told) == ["0", "1"]

    def both(examples: Any, draw: Any, settings: TrainSettings, **named: Any) -> Any:
        one = dataclasses.replace(settings, batch_size=1)
        first, second = (
            draw_batch(examples, draw, one, **{**named, "rank": rank}) for rank in range(2)
        )
        return dataclasses.replace(
            first,
            images=torch.cat([first.images, second.images]),
            labels=np.concatenate([first.labels, second.labels]),
            under=np.concatenate([first.under, second.under]),
            field_ids=first.field_ids + second.field_ids,
        )

    monkeypatch.setattr(loop, "draw_batch", both)
    monkeypatch.setitem(loop.OBJECTIVES, "spatial", crop_by_crop)
    settings = dataclasses.replace(SETTINGS, batch_size=2)
    loop.train(open_split([str(discs)]), tmp_path / "own", settings)
    monkeypatch.setattr(loop, "Embedder", lambda network: Embedder(network).eval())
    loop.train(open_split([str(discs)]), tmp_path / "frozen", settings)

    theirs, ours = losses_of(tmp_path / "two" / "frozen"), losses_of(tmp_path / "frozen")
    assert theirs == pytest.approx(ours, rel=1e-4)
    weights, expected = (
        load_file(folder / "frozen" / "last.safetensors") for folder in (tmp_path / "two", tmp_path)
    )
    torch.manual_seed(SETTINGS.seed)
    initial = Embedder(loop.architecture_of(SETTINGS)).state_dict()
    moved = sum(float((expected[name] - initial[name]).square().sum()) for name in expected)
    apart = sum(float((expected[name] - weights[name]).square().sum()) for name in expected)
    assert apart < 1e-4 * moved  # a hundredth of the way: optimisers enlarge what is near zero
    assert losses_of(tmp_path / "two" / "own") == pytest.approx(
        losses_of(tmp_path / "own"), rel=0.2
    )
    assert read_header(tmp_path / "two" / "own" / "last.safetensors").training["devices"] == 2


def test_torchrun_goes_on_with_a_run_that_one_process_began(discs: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(report: object) -> None:
        if isinstance(report, Report) and report.step == 3:
            raise Stopped

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SAVE_EVERY", 1)
        with pytest.raises(Stopped):
            loop.train(open_split([str(discs)]), out, SETTINGS, emit=stop)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = ["-m", "cellseg_cli", "train", str(discs), "--out", str(out), *COMMAND, "--json"]
    ended = subprocess.run(
        [sys.executable, *launch, *run],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["rank"], result["steps"], result["device"]) == (0, 4, "cpu")
    told = [line for line in ended.stderr.splitlines() if line.startswith("train: 4 fields")]
    assert told == [
        "train: 4 fields, 0 held out, on cpu × 2 in fp32, 4 steps, 2 done before",
    ]
    assert read_header(out / "best.safetensors").training["devices"] == 2
    assert losses_of(out).keys() == {"overlap", "smoothness", "seed", "classes"}


def test_who_has_started_the_processes_says_how_many_there_are() -> None:
    assert launch_of({}, devices=3) == Launch("", 3)
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    assert launch_of(torchrun, devices=1) == Launch("torchrun", 4, 2)
    assert launch_of(torchrun, devices=4).processes == 8
    srun = {"SLURM_NTASKS": "6", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "2"}
    assert launch_of(srun, devices=1) == Launch("srun", 3, 2)
    assert launch_of({**srun, "SLURM_STEP_NUM_TASKS": "1"}, devices=2) == Launch("", 2)


def test_a_number_of_devices_that_was_not_started_is_refused() -> None:
    srun = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "2"}
    with pytest.raises(ConfigError) as error:
        launch_of(srun, devices=2)
    assert str(error.value) == (
        "--devices 2: srun has started 3 processes on each node; leave --devices out, or give 3"
    )
    with pytest.raises(ConfigError) as error:
        launch_of({**srun, "SLURM_STEP_NUM_TASKS": "5"}, devices=1)
    assert str(error.value) == (
        "srun has started 5 tasks on 2 nodes; each node must have as many: use --ntasks-per-node"
    )


def test_a_batch_script_without_srun_waits_for_nobody(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM tells it the tasks of its job, of which it is the only process."""
    for name, value in slurm(0, "1").items():
        if "STEP" not in name:
            monkeypatch.setenv(name, value)
    settings = dataclasses.replace(SETTINGS, steps=1)
    assert loop.train(open_split([str(discs)]), tmp_path / "run", settings).rank == 0
    assert read_header(tmp_path / "run" / "last.safetensors").training["devices"] == 1
