"""The scripts in examples/: whole, portable, and doing what they say."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
import torch
import typer

from cellseg_cli.cli.app import build_app
from cellseg_cli.engine.jobs import read_jobs
from cellseg_cli.images.synthetic import render_field, render_plate
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, save_model

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.sh"))

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the examples are for bash")

#: Runs a script with a `cellseg` of the test's own in front of the path.
Runner = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """Run a script with `cellseg` replaced by a given shell script."""

    def run(
        script: str, *args: object, cellseg: str, variables: Mapping[str, object] | None = None
    ) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "cellseg").write_text(f"#!/usr/bin/env bash\n{cellseg}\n")
        (folder / "cellseg").chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        environment |= {name: str(value) for name, value in (variables or {}).items()}
        command = ["bash", str(EXAMPLES / script), *map(str, args)]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def logging_cellseg(log: Path, codes: Mapping[str, int] | None = None) -> str:
    """A `cellseg` that writes its arguments, one call a line, and ends with a code by command."""
    cases = "".join(f"{command}) exit {code} ;; " for command, code in (codes or {}).items())
    return f"printf '%q ' \"$@\" >> {shlex.quote(str(log))}; echo >> {shlex.quote(str(log))}\n" + (
        f"case $1 in {cases} *) exit 0 ;; esac"
    )


def calls(log: Path) -> list[list[str]]:
    return [shlex.split(line) for line in log.read_text().splitlines()]


def assert_valid(call: list[str]) -> None:
    """Fail unless the program of this version takes this command line."""
    command = typer.main.get_command(build_app()).commands[call[0]]  # type: ignore[attr-defined]
    command.make_context(call[0], call[1:])


# --- as text ---


def test_there_is_an_example_for_each_promise() -> None:
    assert {"local.sh", "sartorius.sh", "slurm_array.sh"} <= set(SCRIPTS)
    assert {"slurm_cluster.sh", "scheduler_file.sh"} <= set(SCRIPTS)
    told = (EXAMPLES / "README.md").read_text()
    assert all(script in told for script in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_strict_and_executable(script: str) -> None:
    path = EXAMPLES / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(path, os.X_OK)
    assert "\t" not in text and "\r" not in text
    # What shellcheck would say of unquoted variables, in the lines that call cellseg.
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith(("cellseg ", "stage cellseg ")):
            assert not re.search(r"\$\w", re.sub(r'"[^"]*"', "", line)), line


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_is_content(script: str) -> None:
    subprocess.run(["shellcheck", str(EXAMPLES / script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_arguments_the_usage_is_told(runner: Runner, script: str) -> None:
    done = runner(script, cellseg="exit 99")
    assert done.returncode in (1, 2)  # 1 is bash's own for ${1:?...}
    assert done.stdout == ""
    assert re.search(rf"usage: .*{script} [A-Z \[\]]+\n$", done.stderr)


# --- local.sh ---


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network: its label images are noise, but not empty."""
    torch.manual_seed(0)
    architecture = Architecture(
        encoder="test_resnet", levels=2, decoder_channels=4, in_channels=1, classes_head=True
    )
    tuned = {"foreground": 0.05, "seed_level": 0.1, "min_area_px": 4}
    path = tmp_path_factory.mktemp("model") / "tiny model.safetensors"
    save_model(path, Embedder(architecture), ModelHeader("tiny", architecture, cluster=tuned))
    return path


def test_local_runs_on_real_files_with_one_damaged(
    runner: Runner, tmp_path: Path, tiny_model: Path
) -> None:
    """Folder names with spaces; one field is damaged and fails alone: exit code 1."""
    plate = render_plate(
        tmp_path / "my data", wells=("A01",), fields_per_well=2, size=(128, 128), seed=1
    )
    (plate.images / "A01" / "field2.tif").write_bytes(b"II*\0 and no more")
    python = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)}"
    done = runner(
        "local.sh",
        *(plate.images, "my out", plate.truth),
        cellseg=f'{python} -m cellseg_cli "$@"',
        variables={"CELLSEG_MODEL": tiny_model, "OMP_NUM_THREADS": 1},
    )
    assert done.returncode == 1, done.stderr
    assert "A01/field2" in done.stderr
    out = tmp_path / "my out"
    labels = tifffile.imread(out / "labels/A01/field1.tif")
    assert labels.shape == (128, 128) and labels.max() > 0
    assert not (out / "labels/A01/field2.tif").exists()
    assert (out / "cells.json").is_file()
    assert "mean AP" in done.stdout


def test_local_goes_on_after_failed_fields_and_ends_with_1(runner: Runner, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = runner("local.sh", "in", "out", cellseg=logging_cellseg(log, {"embed": 1}))
    assert done.returncode == 1
    assert [call[0] for call in calls(log)] == ["embed", "cluster", "export", "export"]
    for call in calls(log):
        assert_valid(call)


@pytest.mark.parametrize(("stage", "code"), [("embed", 2), ("embed", 130), ("cluster", 3)])
def test_local_stops_at_anything_worse(
    runner: Runner, tmp_path: Path, stage: str, code: int
) -> None:
    log = tmp_path / "log"
    done = runner("local.sh", "in", "out", "truth", cellseg=logging_cellseg(log, {stage: code}))
    assert done.returncode == code
    assert calls(log)[-1][0] == stage


# --- slurm_array.sh ---


def test_a_task_of_the_array_does_its_part(runner: Runner, tmp_path: Path) -> None:
    log = tmp_path / "log"
    task = {"SLURM_ARRAY_TASK_ID": 3, "SLURM_ARRAY_TASK_COUNT": 16, "SLURM_CPUS_PER_TASK": 4}
    done = runner(
        "slurm_array.sh", "in put", "emb.zarr", cellseg=logging_cellseg(log), variables=task
    )
    assert done.returncode == 0
    assert calls(log) == [
        shlex.split(
            "embed 'in put' --out emb.zarr --model nuclei --part 3/16 --threads 4", posix=True
        ),
        shlex.split("cluster emb.zarr --part 3/16 --threads 4"),
    ]
    for call in calls(log):
        assert_valid(call)


@pytest.mark.parametrize(("code", "stages"), [(1, ["embed", "cluster"]), (3, ["embed"])])
def test_a_task_with_failed_fields_clusters_the_others(
    runner: Runner, tmp_path: Path, code: int, stages: list[str]
) -> None:
    log = tmp_path / "log"
    task = {"SLURM_ARRAY_TASK_ID": 1, "SLURM_ARRAY_TASK_COUNT": 2}
    done = runner(
        "slurm_array.sh",
        *("in", "emb.zarr"),
        cellseg=logging_cellseg(log, {"embed": code}),
        variables=task,
    )
    assert done.returncode == code
    assert [call[0] for call in calls(log)] == stages


def test_the_array_counts_from_one() -> None:
    """`--part i/n` is 1-based; an array from 0 would be refused."""
    text = (EXAMPLES / "slurm_array.sh").read_text()
    assert re.search(r"^#SBATCH --array=1-\d+$", text, re.MULTILINE)


# --- slurm_cluster.sh ---


def test_jobs_are_asked_for_by_the_file_beside_the_script(runner: Runner, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("in put", "labels", "cluster.toml")
    done = runner("slurm_cluster.sh", *arguments, cellseg=logging_cellseg(log, {"segment": 1}))
    assert done.returncode == 1
    (call,) = calls(log)
    assert call == shlex.split(
        "segment 'in put' --out labels --model nuclei --cluster slurm --cluster-config cluster.toml"
    )
    assert_valid(call)


def test_the_options_of_jobs_are_known_also_those_in_comments(tmp_path: Path) -> None:
    text = (EXAMPLES / "cluster.toml").read_text()
    assert read_jobs(EXAMPLES / "cluster.toml").jobs == 8
    file = tmp_path / "all.toml"
    file.write_text(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    settings = read_jobs(file)
    assert settings.job_extra_directives == ("--gres=gpu:1",)
    assert settings.start_timeout_s == 3600


# --- scheduler_file.sh ---


@pytest.fixture
def beside_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dask` of this environment is found, and finds this version of cellseg."""
    here = Path(sys.executable).parent
    if not (here / "dask").exists():
        pytest.skip("the program dask is not beside this python")
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def left_in(folder: Path) -> list[str]:
    """The command lines of processes that work in a folder, or below it."""
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                lines.append(" ".join(process.cmdline()))
    return lines


def test_workers_find_their_scheduler_by_its_file(
    runner: Runner, tmp_path: Path, tiny_model: Path, beside_dask: None
) -> None:
    """The script as on a cluster, but for srun: scheduler and workers are real processes."""
    plate = render_plate(
        tmp_path / "my data", wells=("A01",), fields_per_well=2, size=(128, 128), seed=1
    )
    done = runner(
        "scheduler_file.sh",
        *(plate.images, "e m.zarr"),
        cellseg=f'exec {shlex.quote(sys.executable)} -m cellseg_cli "$@"',
        variables={"CELLSEG_MODEL": tiny_model, "WORKERS": 1},
    )
    assert done.returncode == 0, done.stderr
    assert "1 worker, 1 thread" in done.stderr
    assert done.stderr.count("2 done") == 2
    assert left_in(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "my data", "e m.zarr"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_the_script_has_started_ends_with_it(
    tmp_path: Path, beside_dask: None, number: int
) -> None:
    started = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    cellseg = tmp_path / "bin" / "cellseg"
    cellseg.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(started))}\nexec sleep 60\n")
    cellseg.chmod(0o755)
    path = f"{cellseg.parent}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", str(EXAMPLES / "scheduler_file.sh"), "images", "emb.zarr"]
    with subprocess.Popen(script, cwd=tmp_path, env=os.environ | {"PATH": path}) as process:
        end = time.monotonic() + 30
        while not started.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert len(left_in(tmp_path)) >= 4  # bash, scheduler, two workers, cellseg
        process.send_signal(number)
        assert process.wait(timeout=20) == 130
    assert left_in(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "started"}


# --- sartorius.sh ---


def kaggle_folder(folder: Path, *, test: bool) -> Path:
    """A download of three images, of which `index.csv` holds one back."""
    for name in ("a1", "b2", "c3"):
        image, _ = render_field("A01", 1, size=(128, 128))
        (folder / "train").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / "train" / f"{name}.png", (image / 16).astype(np.uint8))
    (folder / "train.csv").write_text("id,annotation,width,height,cell_type\n")
    if test:
        (folder / "test").mkdir()
    else:
        rows = ["id,cell_type,split", "a1,cort,train", "b2,astro,val", "c3,cort,train"]
        (folder / "index.csv").write_bytes("\r\n".join([*rows, ""]).encode())
    return folder


def test_sartorius_scores_what_was_held_back(runner: Runner, tmp_path: Path) -> None:
    data, log = kaggle_folder(tmp_path / "the data", test=False), tmp_path / "log"
    done = runner("sartorius.sh", data, "run", cellseg=logging_cellseg(log), variables={"STEPS": 7})
    assert done.returncode == 0, done.stderr
    train, embed, cluster, export, evaluate = calls(log)
    assert train[:4] == ["train", f"{data}/train={data}/train.csv", "--index", f"{data}/index.csv"]
    assert train[train.index("--steps") + 1] == "7"
    assert embed == ["embed", "run/val.txt", "--model", "run/model", "--out", "run/emb.zarr"]
    assert (tmp_path / "run/val.txt").read_text() == f"{data}/train/b2.png\n"
    assert cluster == ["cluster", "run/emb.zarr"]
    assert export[:4] == ["export", "run/emb.zarr", "--format", "kaggle"]
    assert evaluate[:2] == ["evaluate", "run/submission.csv"]
    for call in (train, embed, cluster, export, evaluate):
        assert_valid(call)


def test_sartorius_submits_the_test_images(runner: Runner, tmp_path: Path) -> None:
    data, log = kaggle_folder(tmp_path / "data", test=True), tmp_path / "log"
    done = runner("sartorius.sh", data, "run", cellseg=logging_cellseg(log))
    assert done.returncode == 0, done.stderr
    train, embed, _, export = calls(log)
    assert "--index" not in train
    assert embed[1] == f"{data}/test"
    assert export[export.index("--out") + 1] == "run/submission.csv"


def test_sartorius_needs_to_know_what_to_segment(runner: Runner, tmp_path: Path) -> None:
    data, log = kaggle_folder(tmp_path / "data", test=False), tmp_path / "log"
    (data / "index.csv").unlink()
    done = runner("sartorius.sh", data, "run", cellseg=logging_cellseg(log))
    assert done.returncode == 2
    assert done.stderr == (
        f"{data} has neither test/ nor index.csv: nothing says which images to segment\n"
    )
    assert not log.exists()


def test_sartorius_ends_where_training_fails(runner: Runner, tmp_path: Path) -> None:
    data, log = kaggle_folder(tmp_path / "data", test=False), tmp_path / "log"
    done = runner("sartorius.sh", data, "run", cellseg=logging_cellseg(log, {"train": 3}))
    assert done.returncode == 3
    assert [call[0] for call in calls(log)] == ["train"]


# --- pretrain_curve.sh ---


def test_the_curve_trains_each_share_with_and_without_the_encoder(
    runner: Runner, tmp_path: Path
) -> None:
    """The score of a row is the last one of its run's metrics.csv."""
    log = tmp_path / "log"
    rows = ("9,mean_ap,0.1", "9,ap50,0.2", "30,mean_ap,0.4", "30,ap50,0.6", "30,ap75,0.5")
    metrics = "\\n".join(("step,name,value", *rows, ""))
    writing = (
        'while [[ $1 != --out ]]; do shift; done; mkdir -p "$2"; '
        f"printf '{metrics}' >\"$2/metrics.csv\""
    )
    done = runner(
        "pretrain_curve.sh",
        *("my data", "out"),
        cellseg=f"{logging_cellseg(log).rpartition('case')[0]}\n{writing}",
        variables={"SHARES": "0.05 1.0", "STEPS": 30, "OPTIONS": "--device cpu"},
    )
    assert done.returncode == 0, done.stderr
    runs = ["0.05,no", "0.05,yes", "1.0,no", "1.0,yes"]
    assert (tmp_path / "out" / "curve.csv").read_text().splitlines() == [
        "share,pretrained,seed,steps,mean_ap,ap50,ap75",
        *(f"{run},0,30,0.4,0.6,0.5" for run in runs),
    ]
    pretrain, *trainings = calls(log)
    assert pretrain == shlex.split(
        "pretrain 'my data/train/images' --out out/pretrained --steps 2000 --device cpu"
    )
    assert [call[call.index("--out") + 1] for call in trainings] == [
        f"out/share-{run.replace(',', '-')}-0" for run in runs
    ]
    assert ["--init" in call for call in trainings] == [False, True, False, True]
    assert "fields_share=0.05" in trainings[1]
    for call in (pretrain, *trainings):
        assert_valid(call)
