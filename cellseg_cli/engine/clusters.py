"""Where the tasks of a run are carried out when not on threads of this process.

Three places, one way in (:func:`connected`): processes of this machine, a dask scheduler that
somebody has started, and jobs of a batch system.  Whatever was started here is gone when the
statement ends, in whichever way; a scheduler that was there before is left as it was.

Rules.  Nothing here knows what a field is.  dask.distributed is loaded when a connection is
asked for, not with this module.  Whoever reaches a dask scheduler can run any code with the
rights of its user, and so can a scheduler in the programs that connect to it: the scheduler of
local processes listens on the loopback interface only, that of a batch system speaks TLS
(:mod:`cellseg_cli.engine.jobs`), and ``--scheduler`` is for schedulers one trusts.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg_cli.config import RunSettings
from cellseg_cli.engine.addresses import scheduler_address
from cellseg_cli.engine.cluster_log import ClusterLog, listening
from cellseg_cli.engine.jobs import (
    WORKER_MEMORY,
    WORKER_VARIABLES,
    JobSettings,
    certificates_in,
    read_jobs,
    submitted,
)
from cellseg_cli.engine.memory import granted_memory, parse_memory
from cellseg_cli.engine.versions import check_versions, first_line
from cellseg_cli.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.spec import SpecCluster

#: Told one line about the start; called on the thread that connects.
Tell = Callable[[str], None]

#: Deaths of workers that a task outlives: the engine tries it again alone after that.
ALLOWED_FAILURES = 1

#: How often the wait for the jobs of a batch system is told.
_REMIND_S = 60.0
#: How often jobs that have ended are submitted again.
_RESUBMIT_S = 30.0
_POLL_S = 0.1
_CLOSE_S = 10


@dataclass(frozen=True)
class Connection:
    """A way to workers.

    Attributes
    ----------
    client
        Submits tasks; not the default of dask.
    dashboard
        Address of the scheduler's web page, where there is one.
    description
        For the log and the run record: ``2 processes of 1 thread``.
    local
        Whether the workers run on this machine and were started here.
    log
        What has been heard of workers since (:meth:`news`).
    """

    client: Client
    dashboard: str | None
    description: str
    local: bool
    log: ClusterLog

    def news(self) -> tuple[str, ...]:
        """Lines for the user since the last call: workers that died, errors of dask itself."""
        return self.log.drained()


@dataclass(frozen=True)
class Patience:
    """How long to wait, s: for an answer of a scheduler, and for its first worker."""

    connect_s: float = 10.0
    workers_s: float = 60.0


def _unheard(line: str) -> None:
    del line


@contextlib.contextmanager
def connected(
    run: RunSettings,
    threads: int,
    *,
    device: str = "auto",
    tell: Tell = _unheard,
    patience: Patience = Patience(),
) -> Iterator[Connection]:
    """Connect to the place that ``run`` names; what was started for it ends with the statement.

    Parameters
    ----------
    run
        One of ``workers``, ``scheduler`` and ``cluster`` is set; ``memory`` is shared among
        the processes of this machine.
    threads
        Shared among the processes of this machine, unless ``run.threads`` says how many each
        has; elsewhere the workers have been started with a number of their own.
    device
        What the work is going to compute on.  Processes of this machine get an accelerator
        each, in turn, for ``auto`` and ``cuda``: its number is ``cuda:0`` in all of them.
        They see none for ``cpu``, and all of them for ``cuda:I``.
    tell
        Called with what takes long, such as the queue of a batch system.
    patience
        The queue of a batch system has its own: ``start_timeout_s`` of ``cluster_config``.

    Raises
    ------
    ClusterError
        No scheduler answers, no worker comes, or they run other versions than this process.
    ConfigError
        An address, scheduler file or option that is not one; a package that is missing.
    """
    assert run.workers or run.scheduler or run.cluster, "there is nothing to connect to"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment_kept())
        log = stack.enter_context(listening(processes_here=bool(run.workers)))
        if run.workers:
            each = run.threads or max(1, threads // run.workers)
            yield _processes(run, each, device, log, stack)
        elif run.scheduler:
            yield _existing(run.scheduler, patience, log, stack)
        else:
            yield _jobs(run, log, tell, stack)
        log.close()  # what ends from here on was meant to


# --- processes of this machine ---


def _processes(
    run: RunSettings, threads: int, device: str, log: ClusterLog, stack: contextlib.ExitStack
) -> Connection:
    import dask
    from distributed import Nanny, Scheduler
    from distributed.deploy.spec import SpecCluster

    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="cellseg-workers-", ignore_cleanup_errors=True)
    )
    stack.enter_context(dask.config.set(_local_configuration(folder)))
    shared = {
        "nthreads": threads,
        "memory_limit": _memory_of(run),
        "host": "127.0.0.1",
        "dashboard": False,
    }
    places = _accelerators(run.workers, device)
    cluster = _started(
        lambda: SpecCluster(
            scheduler={"cls": Scheduler, "options": _local_scheduler()}, name="cellseg"
        ),
        stack,
    )
    for index, place in enumerate(places):
        options = {**shared, "env": place}
        cluster.worker_spec[index] = {"cls": Nanny, "options": options}
    try:
        _settle(cluster)
    except (OSError, RuntimeError) as error:
        raise ClusterError(f"a worker process cannot start: {first_line(error)}") from error
    client = _client(cluster, stack)
    description = f"{_several(run.workers, 'process')} of {_several(threads, 'thread')}"
    return Connection(client, _dashboard(client), description, True, log)


def _local_configuration(folder: str) -> dict[str, Any]:
    """What is not dask's default, and why."""
    return {
        "temporary-directory": folder,
        **{f"distributed.worker.memory.{name}": part for name, part in WORKER_MEMORY.items()},
        # Fields differ by orders of magnitude: none waits at a worker that has one at work.
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        # The death of a local process is seen at once, and one task may keep the interpreter
        # to itself for minutes: silence says nothing.
        "distributed.scheduler.worker-ttl": None,
        # After this time dask gives up a process that it is just starting again.
        "distributed.deploy.lost-worker-timeout": "5 minutes",
        # Ctrl-C reaches every process of a terminal: this one ends the workers in good order.
        "distributed.worker.preload": [
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        ],
        # Set before a process starts: later it comes too late for libraries and the allocator.
        "distributed.nanny.pre-spawn-environ": {
            **WORKER_VARIABLES,
            # Tasks return their errors; what a worker prints about them is said twice.
            "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical",
        },
    }


def _local_scheduler() -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": 0,
        "dashboard_address": "127.0.0.1:0",
    }


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what dask sets in the environment of this process for the sake of its children."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _memory_of(run: RunSettings) -> int | str:
    """Bytes that one process of a run may take; above it, it is replaced."""
    if run.memory:
        return parse_memory(run.memory) // run.workers
    granted = granted_memory()
    return granted.bytes // run.workers if granted else "auto"


def _accelerators(processes: int, device: str) -> list[dict[str, str]]:
    """The environment of each process that says which accelerators it sees."""
    if device == "cpu":
        return [{"CUDA_VISIBLE_DEVICES": ""}] * processes
    visible = _visible_accelerators() if device in {"auto", "cuda"} else []
    if not visible:
        return [{}] * processes
    return [{"CUDA_VISIBLE_DEVICES": visible[i % len(visible)]} for i in range(processes)]


def _visible_accelerators() -> list[str]:
    if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg")):
        return []  # spares the 2 s that loading torch takes
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(index) for index in range(count)]
    return [name.strip() for name in names[:count]]


# --- a scheduler that is there ---


def _existing(
    wanted: str, patience: Patience, log: ClusterLog, stack: contextlib.ExitStack
) -> Connection:
    address, named = scheduler_address(wanted)
    _check_answers(address, named, patience.connect_s)
    client = _client(address, stack)
    hint = f"start some with `dask worker {named}`"
    _await_worker(client, address, patience.workers_s, hint)
    check_versions(client)
    workers = client.nthreads()
    description = (
        f"dask scheduler {address}: {_several(len(workers), 'worker')}, "
        f"{_several(sum(workers.values()), 'thread')}"
    )
    return Connection(client, _dashboard(client), description, False, log)


def _check_answers(address: str, named: str, seconds: float) -> None:
    """Raise ClusterError unless a dask scheduler answers at the address."""
    told = address if named == address else f"{address} (from {named.rpartition(' ')[2]})"
    try:
        kind = asyncio.run(asyncio.wait_for(_kind(address, seconds), seconds + 1))
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"no dask scheduler answers at {told} within {seconds:g} s; start one with `dask "
            "scheduler`, or give the address or --scheduler-file of one that runs"
        ) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--scheduler {told} cannot be used: {first_line(error)}") from error
    if kind != "Scheduler":
        raise ClusterError(f"at {told} is no dask scheduler but a {kind}")


async def _kind(address: str, seconds: float) -> str:
    from distributed.core import rpc
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    async with rpc(address, timeout=seconds, connection_args=arguments) as peer:
        identity = await peer.identity()
    return str(identity.get("type"))


# --- jobs of a batch system ---


def _jobs(run: RunSettings, log: ClusterLog, tell: Tell, stack: contextlib.ExitStack) -> Connection:
    import dask

    assert run.cluster is not None
    settings = read_jobs(run.cluster_config)
    stack.enter_context(
        dask.config.set(
            {
                "distributed.scheduler.worker-saturation": 1.0,
                "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
            }
        )
    )
    system = run.cluster
    certificates = stack.enter_context(certificates_in(settings))
    cluster = _started(lambda: submitted(system, settings, certificates), stack)
    _submit(cluster, system, settings)
    client = _client(cluster, stack)
    hint = f"see the queue and the logs of the jobs ({settings.logs})"
    name = f"the jobs of {system}"
    _await_worker(client, name, settings.start_timeout_s, hint, tell)
    check_versions(client)
    description = f"{_several(settings.jobs, 'job')} of {system}"
    return Connection(client, _dashboard(client), description, False, log)


def _submit(cluster: SpecCluster, system: str, settings: JobSettings) -> None:
    """Submit the jobs, and again those that end while the run goes on."""
    from tornado.ioloop import PeriodicCallback

    for _ in range(settings.jobs):
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        _settle(cluster)
    except (OSError, RuntimeError, ValueError) as error:
        _give_up_unsubmitted(cluster)
        said = str(error).rpartition("stderr:")[2]
        raise ClusterError(f"{system} has refused a job: {' '.join(said.split())}") from error
    # A job that reaches its time limit is forgotten; asked for as many, dask submits another.
    workers = settings.jobs * settings.processes
    again = PeriodicCallback(lambda: cluster.scale(workers), _RESUBMIT_S * 1000)
    assert cluster.loop is not None
    cluster.loop.add_callback(again.start)


def _give_up_unsubmitted(cluster: SpecCluster) -> None:
    """Mark jobs that were refused: dask cannot close a cluster that is still to start one."""
    from distributed.core import Status

    for job in cluster.workers.values():
        if job.status == Status.created:
            job.status = Status.failed


# --- what the three have in common ---


def _started(start: Callable[[], SpecCluster], stack: contextlib.ExitStack) -> SpecCluster:
    """Start a cluster without workers; it is closed by the stack, also if it only half stood."""
    from distributed.deploy.spec import close_clusters

    try:
        cluster = start()
    except BaseException:  # an interrupt too: what stands already has no name yet
        close_clusters()
        raise
    stack.callback(_closed, cluster)
    return cluster


def _settle(cluster: SpecCluster) -> None:
    """Start the workers of the specification; raises what stops one of them.

    An interrupt waits for those that are about to start, since dask loses track of a process or
    a job that is stopped in that moment.
    """
    assert cluster.loop is not None
    starting = asyncio.run_coroutine_threadsafe(_all_of(cluster), cluster.loop.asyncio_loop)  # type: ignore[attr-defined]
    try:
        starting.result()
    except KeyboardInterrupt:
        concurrent.futures.wait([starting], timeout=_CLOSE_S)
        raise


async def _all_of(cluster: SpecCluster) -> None:
    await cluster


def _closed(cluster: SpecCluster) -> None:
    # What does not end in time is killed with this process; dask asserts that it has.
    cluster.shutdown_on_close = False  # it would try once more at the end of the process
    with contextlib.suppress(TimeoutError, AssertionError):
        cluster.close(timeout=_CLOSE_S)


def _client(where: SpecCluster | str, stack: contextlib.ExitStack) -> Client:
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)  # check_versions is stricter
        client = Client(where, set_as_default=False)
    stack.callback(client.close, timeout=2)
    return client


def _await_worker(
    client: Client, where: str, seconds: float, hint: str, tell: Tell = _unheard
) -> None:
    began = told = time.monotonic()
    while not client.nthreads():
        now = time.monotonic()
        if now - began > seconds:
            raise ClusterError(f"no worker has joined {where} after {seconds:g} s; {hint}")
        if now - told > _REMIND_S:
            told = now
            tell(f"waiting for {where}: {now - began:.0f} s")
        time.sleep(_POLL_S)


def _dashboard(client: Client) -> str | None:
    """Address of the scheduler's dashboard; without bokeh its page only says what is missing."""
    from distributed.versions import get_package_info

    services = client.scheduler_info().get("services", {})
    packages = client.run_on_scheduler(get_package_info, ["bokeh"])
    return str(client.dashboard_link) if "dashboard" in services and packages["bokeh"] else None


def _several(count: int, noun: str) -> str:
    """Count and noun, such as ``1 process`` and ``2 processes``."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


# --- inside a task ---


def cancelled() -> bool:
    """Whether nobody waits for the task any more that this thread of a worker carries out.

    True when the scheduler was told so, has lost its client, or is lost itself.  False outside
    of a task, and wherever the worker does not say.
    """
    try:
        from distributed.worker import get_worker, thread_state

        worker, key = get_worker(), thread_state.key
        if str(getattr(worker.status, "name", "")).startswith(("clos", "fail")):
            return True
        task = worker.state.tasks.get(key)
    except (ImportError, AttributeError, ValueError):
        return False
    return task is not None and task.state == "cancelled"
