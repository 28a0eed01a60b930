"""Options of batch jobs, the scripts made of them, and, where there is SLURM, real jobs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellseg_cli.config import RunSettings
from cellseg_cli.engine import jobs
from cellseg_cli.engine.clusters import connected
from cellseg_cli.engine.jobs import JobSettings, certificates_in, keywords, read_jobs, submitted
from cellseg_cli.errors import ClusterError, ConfigError

needs_hpc = pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None, reason="the extra hpc is not installed"
)


def written(folder: Path, text: str) -> Path:
    file = folder / "c.toml"
    file.write_text(text)
    return file


# --- the file ---


def test_options_are_read(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        'jobs = 4\ncores = 8\nmemory = "32GB"\njob_extra_directives = ["--gres=gpu:1"]\n',
    )
    assert read_jobs(file) == JobSettings(
        jobs=4, cores=8, memory="32GB", job_extra_directives=("--gres=gpu:1",)
    )
    assert read_jobs(None) == JobSettings()


def test_all_unknown_keys_are_told_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, 'core = 8\npartition = "x"\njobs = 1\n')
    with pytest.raises(ConfigError) as caught:
        read_jobs(file)
    assert str(caught.value) == (
        f"--cluster-config {file} has unknown keys core, partition; known: account, cores, "
        "encrypt, interface, job_directives_skip, job_extra_directives, job_name, "
        "job_script_prologue, jobs, local_directory, log_directory, memory, processes, python, "
        "queue, resource_spec, scheduler_interface, shared_directory, start_timeout_s, walltime, "
        "worker_extra_args"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("jobs = 0\nprocesses = -1", "jobs = 0, processes = -1: must be 1 at least"),
        ("cores = 2\nprocesses = 4", "4 processes share 2 cores; every process needs one"),
    ],
)
def test_numbers_must_make_sense(tmp_path: Path, text: str, fault: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_jobs(file)
    assert str(caught.value) == f"--cluster-config {file}: {fault}"


def test_all_bad_values_are_told_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, 'cores = "many"\nqueue = ["a"]\n')
    with pytest.raises(ConfigError) as caught:
        read_jobs(file)
    assert "cores = 'many'" in str(caught.value)
    assert "queue = ['a']" in str(caught.value)


@pytest.mark.parametrize("content", [b"cores = ", b"\xff", b"[slurm\n"])
def test_what_is_no_toml_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_jobs(file)
    assert str(caught.value).startswith(f"--cluster-config {file} is not valid TOML: ")


def test_a_file_that_is_missing_or_no_page_is_told(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    with pytest.raises(ConfigError) as caught:
        read_jobs(file)
    assert str(caught.value) == f"--cluster-config {file}: No such file or directory"
    file.write_bytes(b"#" * (jobs.LIMIT_BYTES + 1))
    with pytest.raises(ConfigError) as caught:
        read_jobs(file)
    assert str(caught.value) == f"--cluster-config {file} is larger than 1048576 bytes"


# --- packages ---


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("dask_jobqueue", "--cluster pbs needs dask-jobqueue, which is missing"),
        ("cryptography", "encrypt = true needs cryptography, which is missing"),
    ],
)
def test_packages_that_are_missing_are_told(
    monkeypatch: pytest.MonkeyPatch, missing: str, message: str
) -> None:
    def there(name: str) -> object:
        return None if name == missing else object()

    monkeypatch.setattr(importlib.util, "find_spec", there)
    with pytest.raises(ConfigError) as caught:
        submitted("pbs", JobSettings(), None)
    assert str(caught.value) == f"{message}; install it with: pip install 'cellseg-cli[hpc]'"


# --- what is asked for ---


def test_certificates_are_for_their_user_and_this_run_only(tmp_path: Path) -> None:
    with certificates_in(JobSettings(shared_directory=str(tmp_path))) as folder:
        assert folder is not None
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "key.pem").touch()
    assert list(tmp_path.iterdir()) == []
    with certificates_in(JobSettings(encrypt=False)) as none:
        assert none is None


def test_a_folder_for_certificates_that_is_missing_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with (
        pytest.raises(ConfigError) as caught,
        certificates_in(JobSettings(shared_directory=str(missing))),
    ):
        pass
    assert str(caught.value) == (
        f"no certificates can be kept in {missing}: No such file or directory; name a folder "
        "that the nodes can read too by shared_directory in --cluster-config"
    )


ASKED = JobSettings(
    cores=8,
    memory="32GB",
    processes=2,
    walltime="02:00",
    queue="short",
    account="lab",
    job_extra_directives=("--extra=1",),
    job_script_prologue=("module load python",),
    encrypt=False,
)


@needs_hpc
@pytest.mark.parametrize(
    ("system", "program", "lines"),
    [
        (
            "slurm",
            "sbatch",
            [
                "#SBATCH -J cellseg",
                "#SBATCH -p short",
                "#SBATCH -A lab",
                "#SBATCH -t 02:00",
                "#SBATCH --cpus-per-task=8",
                "#SBATCH --mem=30G",
                "#SBATCH --extra=1",
            ],
        ),
        (
            "pbs",
            "qsub",
            [
                "#PBS -N cellseg",
                "#PBS -q short",
                "#PBS -A lab",
                "#PBS -l walltime=02:00",
                "#PBS --extra=1",
            ],
        ),
        (
            "lsf",
            "bsub",
            [
                "#BSUB -J cellseg",
                "#BSUB -q short",
                '#BSUB -P "lab"',
                "#BSUB -W 02:00",
                "#BSUB -n 8",
                "#BSUB --extra=1",
            ],
        ),
    ],
)
def test_the_job_scripts_of_three_systems(
    system: str,
    program: str,
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """32 GB are 29.8 GiB, of which SLURM is asked for the next whole number."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in (program, "lsadmin"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    with submitted(system, ASKED, None) as cluster:
        script = cluster.job_script().splitlines()  # type: ignore[attr-defined]
    assert set(lines) <= set(script)
    worker = next(index for index, line in enumerate(script) if "dask_worker" in line)
    assert script.index("module load python") < worker
    assert script.index("export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False") < worker
    assert script.index("export OMP_NUM_THREADS=1") < worker
    assert "--nthreads 4 --memory-limit 14.90GiB --nworkers 2 --nanny" in script[worker]


@needs_hpc
def test_what_a_job_needs_must_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(ConfigError) as caught:
        submitted("slurm", JobSettings(encrypt=False), None)
    assert str(caught.value) == (
        "--cluster slurm needs the cores of a job: put cores into --cluster-config"
    )
    with pytest.raises(ConfigError) as caught:
        submitted("lsf", JobSettings(resource_spec="x", encrypt=False), None)
    assert str(caught.value) == "resource_spec is an option of pbs, not of lsf"


# --- real jobs ---


def queue() -> list[str]:
    told = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    return told.stdout.splitlines()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Options of small jobs, where SLURM runs."""
    if shutil.which("sbatch") is None:
        pytest.skip("there is no SLURM on this machine")
    if subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("SLURM does not run")
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.chdir(tmp_path)
    yield written(
        tmp_path,
        'jobs = 2\ncores = 1\nmemory = "1GB"\nlog_directory = "logs"\nstart_timeout_s = 60\n',
    )


@needs_hpc
def test_slurm_runs_workers_and_their_jobs_are_gone_afterwards(slurm: Path) -> None:
    before = set(queue())
    with connected(RunSettings(cluster="slurm", cluster_config=slurm), 1) as connection:
        assert connection.description == "2 jobs of slurm"
        job = connection.client.submit(os.getenv, "SLURM_JOB_ID").result(timeout=60)
        assert job is not None and job.isdecimal()
        assert connection.client.scheduler_info()["address"].startswith("tls://")
    end = time.monotonic() + 20
    while set(queue()) - before and time.monotonic() < end:
        time.sleep(0.2)
    assert set(queue()) <= before
    assert list(slurm.parent.glob(".cellseg-tls-*")) == []


@needs_hpc
def test_a_job_that_slurm_refuses_is_told(slurm: Path) -> None:
    slurm.write_text('cores = 1\nmemory = "1GB"\nqueue = "no such queue"\n')
    with (
        pytest.raises(ClusterError, match=r"^slurm has refused a job: sbatch: error: "),
        connected(RunSettings(cluster="slurm", cluster_config=slurm), 1),
    ):
        pass


def test_keywords_leave_out_what_is_not_given() -> None:
    given = keywords("slurm", JobSettings(cores=2, memory="4GB"), None)
    assert set(given) == {
        "cores",
        "memory",
        "processes",
        "job_name",
        "job_script_prologue",
        "scheduler_options",
    }
