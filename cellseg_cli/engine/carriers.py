"""By whom the tasks of a run are carried out: threads of this process, or a dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from cellseg_cli.config import RunSettings
from cellseg_cli.engine.tasks import Job, Work, thread_count
from cellseg_cli.engine.threads import Pulse, Seen, run_fields

Carry: TypeAlias = Callable[[Sequence[Job], Work, Seen, Pulse], None]


@dataclass(frozen=True)
class Carrier:
    """Who does the work.

    Attributes
    ----------
    carry
        Does a list of jobs; see :func:`cellseg_cli.engine.threads.run_fields`.
    processes, threads
        Processes that have a network each, and threads of all of them, as the run begins.
    words
        The same, for people.
    here, local
        Whether all of it happens in this process; on this machine.
    dashboard
        Address of dask's dashboard.
    news
        What the user should know of the workers since the last call, line by line.
    """

    carry: Carry
    processes: int
    threads: int
    words: str
    here: bool = True
    local: bool = True
    dashboard: str | None = None
    news: Callable[[], Sequence[str]] = tuple


def is_here(run: RunSettings) -> bool:
    """Whether a run is carried out in this process."""
    return not (run.workers or run.scheduler or run.cluster)


def is_remote(run: RunSettings) -> bool:
    """Whether it is carried out by processes that were started elsewhere."""
    return bool(run.scheduler or run.cluster)


def threads_each(run: RunSettings) -> int | None:
    """Threads in each process of this machine; None where processes were started elsewhere."""
    if is_remote(run):
        return None
    return run.threads or max(1, thread_count(0) // max(1, run.workers))


@contextmanager
def carrier(run: RunSettings, device: str, tell: Callable[[str], None]) -> Iterator[Carrier]:
    """Who carries out a run, while the statement lasts.

    Parameters
    ----------
    run
        Where, and how many at a time.
    device
        What the work is going to compute on, as the user has said it.
    tell
        Called with what takes long.

    Raises
    ------
    ClusterError
        The scheduler or batch system cannot be used.
    """
    if is_here(run):
        threads = thread_count(run.threads)

        def on_threads(jobs: Sequence[Job], work: Work, seen: Seen, pulse: Pulse) -> None:
            run_fields(jobs, work, threads, seen, pulse)

        yield Carrier(on_threads, 1, threads, f"{threads} thread{'s' * (threads != 1)}")
        return
    from cellseg_cli.engine.clusters import connected  # loads distributed
    from cellseg_cli.engine.remote import run_remotely

    with connected(run, thread_count(run.threads), device=device, tell=tell) as connection:
        client = connection.client

        def on_cluster(jobs: Sequence[Job], work: Work, seen: Seen, pulse: Pulse) -> None:
            run_remotely(jobs, work, client, seen, pulse)

        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        threads = sum(int(one["nthreads"]) for one in workers)
        yield Carrier(
            on_cluster,
            max(1, len(workers)),
            max(1, threads),
            connection.description,
            here=False,
            local=connection.local,
            dashboard=connection.dashboard,
            news=connection.news,
        )
