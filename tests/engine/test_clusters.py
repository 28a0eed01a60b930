"""Processes of this machine, dask schedulers and batch systems: reached, used, and gone after."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cellseg_cli.config import RunSettings
from cellseg_cli.engine import clusters
from cellseg_cli.engine.addresses import LIMIT_BYTES, scheduler_address
from cellseg_cli.engine.cluster_log import ClusterLog, listening
from cellseg_cli.engine.clusters import Connection, Patience, cancelled, connected
from cellseg_cli.engine.memory import Granted
from cellseg_cli.errors import CellsegError, ClusterError, ConfigError, ExitCode

ROOT = Path(__file__).parents[2]
SHORT = Patience(connect_s=0.5, workers_s=0.3)


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it holds within the time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def refusal(run: RunSettings, patience: Patience = SHORT) -> CellsegError:
    """The error that a run meets where it is to be carried out."""
    with pytest.raises(CellsegError) as caught, connected(run, 1, patience=patience):
        pass
    return caught.value


# --- processes of this machine ---


@pytest.fixture(scope="module")
def local() -> Iterator[Connection]:
    """Two processes of two threads."""
    with connected(RunSettings(workers=2, memory="6GB"), 4) as connection:
        yield connection


def test_work_is_done_in_processes_of_few_threads(local: Connection) -> None:
    assert local.description == "2 processes of 2 threads"
    assert local.local
    assert set(local.client.nthreads().values()) == {2}
    processes = local.client.run(os.getpid).values()
    assert len({*processes, os.getpid()}) == 3
    assert set(local.client.gather(local.client.map(abs, range(-8, 0)))) == set(range(1, 9))


def test_workers_neither_spill_nor_pause_and_libraries_have_one_thread(local: Connection) -> None:
    def settings(dask_worker: object) -> tuple[object, ...]:
        memory = dask_worker.memory_manager  # type: ignore[attr-defined]
        return (
            memory.memory_target_fraction,
            memory.memory_spill_fraction,
            memory.memory_pause_fraction,
            memory.memory_limit,
            os.environ["OMP_NUM_THREADS"],
        )

    told = set(local.client.run(settings).values())
    assert told == {(False, False, False, 3 * 10**9, "1")}


def test_it_is_not_the_cluster_of_all_of_dask(local: Connection) -> None:
    from distributed import get_client

    with pytest.raises(ValueError, match="No global client"):
        get_client()


def test_a_task_learns_that_it_is_cancelled(local: Connection, tmp_path: Path) -> None:
    began, ended = tmp_path / "began", tmp_path / "ended"

    def task() -> None:
        began.touch()
        end = time.monotonic() + 20
        while not cancelled() and time.monotonic() < end:
            time.sleep(0.01)
        if cancelled():
            ended.touch()

    future = local.client.submit(task)
    assert eventually(began.exists)
    assert not ended.exists()
    local.client.cancel([future])
    assert eventually(ended.exists, seconds=1)


def test_outside_of_a_task_nothing_is_cancelled() -> None:
    assert not cancelled()


def test_a_worker_that_dies_is_one_line_and_replaced(
    local: Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    """A task whose worker dies twice is given up; the processes are there again afterwards."""
    from distributed.scheduler import KilledWorker

    def deadly() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    before = {*local.client.run(os.getpid).values()}
    local.news()
    future = local.client.submit(deadly)
    assert isinstance(future.exception(timeout=20), KilledWorker)
    assert eventually(lambda: len(local.client.nthreads()) == 2)
    after = {*local.client.run(os.getpid).values()}
    first, second = local.news()
    died = {line.split()[2] for line in (first, second)}
    assert len(died) == 2 and {int(pid) for pid in died} & before
    for line, pid in ((first, first.split()[2]), (second, second.split()[2])):
        assert line == (
            f"worker process {pid} was killed by SIGKILL (often: out of memory); a new one is "
            "started, and its fields are tried again"
        )
        assert int(pid) not in after
    assert capfd.readouterr().err == ""


def test_nothing_is_left_when_the_statement_ends() -> None:
    """Not even by a task that goes on: no process, folder, variable or logger."""
    import distributed  # noqa: F401 - sets up its loggers

    environment = dict(os.environ)
    logger = logging.getLogger("distributed")
    handlers = logger.handlers[:]
    folders = set(Path(tempfile.gettempdir()).glob("cellseg-workers-*"))
    with pytest.raises(ZeroDivisionError), connected(RunSettings(workers=1), 1) as connection:
        (pid,) = connection.client.run(os.getpid).values()
        connection.client.submit(time.sleep, 30)
        raise ZeroDivisionError
    assert eventually(lambda: not psutil.pid_exists(pid), seconds=1)
    assert set(Path(tempfile.gettempdir()).glob("cellseg-workers-*")) <= folders
    assert dict(os.environ) == environment
    assert logger.handlers == handlers


STOPPED = """
import signal, sys, time

def stop(number, frame):
    raise KeyboardInterrupt

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    from cellseg_cli.config import RunSettings
    from cellseg_cli.engine.clusters import connected
    with connected(RunSettings(workers=1), 1) as connection:
        print(connection.client.run(__import__("os").getpid), flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_one_that_is_stopped(tmp_path: Path, number: int) -> None:
    script = tmp_path / "run.py"
    script.write_text(STOPPED)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        errors = process.stderr.read()
        process.wait(timeout=10)
    assert len(children) >= 1
    assert psutil.wait_procs(children, timeout=5)[1] == []
    if number == signal.SIGTERM:
        assert errors.splitlines()[-1] == "KeyboardInterrupt"
        assert "distributed." not in errors
        assert list(tmp_path.iterdir()) == [script]


def test_processes_share_what_the_machine_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "granted_memory", lambda: Granted(12 * 10**9, "a batch system"))
    assert clusters._memory_of(RunSettings(workers=3)) == 4 * 10**9
    assert clusters._memory_of(RunSettings(workers=3, memory="6GB")) == 2 * 10**9


@pytest.mark.parametrize(
    ("device", "seen"),
    [
        ("auto", ["0", "3", "0"]),
        ("cuda", ["0", "3", "0"]),
        ("cpu", ["", "", ""]),
        ("cuda:1", [None, None, None]),
    ],
)
def test_processes_take_turns_at_accelerators(
    monkeypatch: pytest.MonkeyPatch, device: str, seen: list[str | None]
) -> None:
    monkeypatch.setattr(clusters, "_visible_accelerators", lambda: ["0", "3"])
    environments = clusters._accelerators(3, device)
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in environments] == seen


# --- a scheduler that is there ---


@pytest.fixture(scope="module")
def scheduler_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a scheduler with one worker, each a process of its own, as on a cluster."""
    folder = tmp_path_factory.mktemp("scheduler")
    file = folder / "scheduler.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    common = ["--scheduler-file", str(file), "--host", "127.0.0.1"]
    commands = [
        ["distributed.cli.dask_scheduler", *common, "--port", "0", "--dashboard-address", ":0"],
        ["distributed.cli.dask_worker", *common, "--nthreads", "3", "--no-dashboard"],
    ]
    commands[1] += ["--local-directory", str(folder)]
    processes = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *command], env=environment, stderr=subprocess.DEVNULL
                )
            )
            assert eventually(lambda: file.exists() and file.stat().st_size > 0)
        yield file
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=10)


def test_a_scheduler_is_found_by_its_file_and_left_running(scheduler_file: Path) -> None:
    address = json.loads(scheduler_file.read_text())["address"]
    for wanted in (str(scheduler_file), address):
        with connected(RunSettings(scheduler=wanted), 1) as connection:
            assert connection.description == f"dask scheduler {address}: 1 worker, 3 threads"
            assert not connection.local
            assert (connection.dashboard is None) == (importlib.util.find_spec("bokeh") is None)
            assert connection.client.submit(os.getpid).result() != os.getpid()


def test_workers_of_another_version_are_refused(
    scheduler_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cellseg_cli

    version = cellseg_cli.__version__
    with connected(RunSettings(scheduler=str(scheduler_file)), 1) as connection:
        (worker,) = connection.client.nthreads()
    monkeypatch.setattr(cellseg_cli, "__version__", "0.0.1")
    error = refusal(RunSettings(scheduler=str(scheduler_file)), Patience())
    assert str(error) == (
        f"workers run other versions: {worker} has cellseg {version}, this process 0.0.1; "
        "install the same environment for both"
    )
    assert error.exit_code == ExitCode.NOTHING_DONE


def test_the_address_of_a_worker_is_none_of_a_scheduler(scheduler_file: Path) -> None:
    with connected(RunSettings(scheduler=str(scheduler_file)), 1) as connection:
        (worker,) = connection.client.nthreads()
    error = refusal(RunSettings(scheduler=worker), Patience())
    assert str(error) == f"at {worker} is no dask scheduler but a Worker"


def test_a_scheduler_without_workers_is_waited_for_and_told() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster:
        address = cluster.scheduler_address
        error = refusal(RunSettings(scheduler=address), Patience(workers_s=0.3))
    assert isinstance(error, ClusterError)
    assert error.exit_code == ExitCode.NOTHING_DONE
    assert str(error) == (
        f"no worker has joined {address} after 0.3 s; start some with `dask worker {address}`"
    )


def test_a_scheduler_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
        file = tmp_path / "old.json"
        file.write_text(json.dumps({"address": address}))
        for wanted, told in ((address, address), (str(file), f"{address} (from {file})")):
            error = refusal(RunSettings(scheduler=wanted))
            assert isinstance(error, ClusterError)
            assert error.exit_code == ExitCode.NOTHING_DONE
            assert str(error) == (
                f"no dask scheduler answers at {told} within 0.5 s; start one with `dask "
                "scheduler`, or give the address or --scheduler-file of one that runs"
            )


def test_certificates_that_are_missing_are_told() -> None:
    error = refusal(RunSettings(scheduler="tls://127.0.0.1:9"))
    assert isinstance(error, ConfigError)
    assert str(error).startswith("--scheduler tls://127.0.0.1:9 cannot be used: TLS expects a ")


# --- addresses and scheduler files ---


@pytest.mark.parametrize(
    "address",
    ["tcp://node-1.cluster:8786", "tls://10.0.0.1:1", "tcp://[fe80::1%eth0]:65535"],
)
def test_addresses_are_taken(address: str, tmp_path: Path) -> None:
    assert scheduler_address(address) == (address, address)
    file = tmp_path / "scheduler file.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": address, "workers": {}}))
    assert scheduler_address(str(file)) == (address, f"--scheduler-file {file}")


@pytest.mark.parametrize(
    "wanted",
    [
        "tcp://",
        "tcp://host",
        "tcp://host:0",
        "tcp://host:65536",
        "http://host:80",
        "inproc://1/2/3",
        "tcp://a b:1",
        "tcp://host:1/x",
        "tcp://host:1\n",
    ],
)
def test_other_addresses_are_refused(wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scheduler_address(wanted)
    assert str(caught.value) == (
        f"--scheduler {wanted!r} is no address tcp://host:port or tls://host:port"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"address": "tcp://a:1"', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "it names no address tcp://host:port or tls://host:port"),
        (b"{}", "it names no address tcp://host:port or tls://host:port"),
        (b'{"address": 8786}', "it names no address tcp://host:port or tls://host:port"),
        (b'{"address": "/bin/sh"}', "it names no address tcp://host:port or tls://host:port"),
    ],
)
def test_other_files_are_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        scheduler_address(str(file))
    assert str(caught.value) == f"{file} is no scheduler file of dask: {reason}"


def test_a_scheduler_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(b" " * (LIMIT_BYTES + 1))
    with pytest.raises(ConfigError) as caught:
        scheduler_address(str(file))
    assert str(caught.value) == f"{file} is larger than 1048576 bytes: no scheduler file of dask"


def test_a_scheduler_file_that_is_missing_is_told(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    with pytest.raises(ConfigError) as caught:
        scheduler_address(str(file))
    assert str(caught.value) == (
        f"--scheduler {file}: No such file or directory; give tcp://host:port, or the file that "
        f"`dask scheduler --scheduler-file {file}` writes"
    )


# --- what is heard of dask ---


def heard(*messages: tuple[int, str], processes_here: bool = True) -> tuple[str, ...]:
    log = ClusterLog(processes_here=processes_here)
    for level, message in messages:
        log.emit(logging.LogRecord("distributed.x", level, "", 0, message, None, None))
    return log.drained()


AGAIN = "a new one is started, and its fields are tried again"


def test_a_death_is_told_once() -> None:
    limit = "Worker tcp://127.0.0.1:1 (pid=12) exceeded 95% memory budget. Restarting..."
    lines = heard(
        (logging.WARNING, limit),
        (
            logging.WARNING,
            "Worker tcp://127.0.0.1:1 (pid=12) is slow to accept SIGTERM; sending SIGKILL",
        ),
        (logging.INFO, "Worker process 12 was killed by signal 15"),
        (logging.WARNING, "Restarting worker (status=Status.running)"),
        (logging.WARNING, "Couldn't gather 1 keys, rescheduling ('_remotely-1',)"),
        (logging.INFO, "Worker process 13 exited with status 3"),
        (logging.INFO, "Worker process 14 was killed by signal 11"),
    )
    assert lines == (
        f"worker process 12 has reached its memory limit; {AGAIN}",
        f"worker process 13 exited with status 3; {AGAIN}",
        f"worker process 14 was killed by SIGSEGV; {AGAIN}",
    )


def test_workers_elsewhere_leave() -> None:
    message = "Remove worker addr: tls://10.0.0.1:5 name: SLURMCluster-3 (stimulus_id='x')"
    assert heard((logging.INFO, message)) == ()
    assert heard((logging.INFO, message), processes_here=False) == (
        "worker SLURMCluster-3 has left; its fields are tried again elsewhere",
    )


def test_other_errors_keep_their_first_line() -> None:
    lines = heard(
        (logging.INFO, "Starting"), (logging.ERROR, "No space left\nTraceback ..."), (40, "")
    )
    assert lines == ("dask: No space left",)


# --- what loads dask ---


def test_dask_is_loaded_when_it_is_needed() -> None:
    code = (
        "import sys, cellseg_cli.engine.clusters as c; c.cancelled\n"
        "print(sorted({'distributed', 'dask', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_batch_system_that_is_not_here_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue", reason="the extra hpc is not installed")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = tmp_path / "c.toml"
    config.write_text('cores = 1\nmemory = "1GB"\nencrypt = false\n')
    error = refusal(RunSettings(cluster="slurm", cluster_config=config))
    assert isinstance(error, ClusterError)
    assert str(error) == (
        "--cluster slurm: there is no sbatch here; start cellseg where jobs are submitted, "
        "or see --scheduler"
    )


def test_an_interruption_before_dask_has_begun_to_wait_is_not_told_as_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ctrl-C while the loop is busy: dask cancels a future that it has not made yet."""
    from distributed.utils import LoopRunner, sync

    def interrupted() -> None:
        runner = LoopRunner(asynchronous=False)
        runner.start()
        try:
            runner.loop.add_callback(time.sleep, 0.6)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                sync(runner.loop, asyncio.sleep, 0.1)
            sync(runner.loop, asyncio.sleep, 0.1)  # what was to be called back has been
        finally:
            runner.stop()

    with listening(processes_here=True):
        interrupted()
        logging.getLogger("tornado.application").error("another callback failed")
    told = [one.getMessage() for one in caplog.records if one.name == "tornado.application"]
    assert told == ["another callback failed"]
