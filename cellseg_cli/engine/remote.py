"""Carry out the tasks of a run on the workers of a dask cluster, of this machine or of many.

A bounded number of fields is in flight, so that neither the scheduler nor this process holds
more for a larger folder.  Results are values of a few hundred bytes; pixels go from the worker
to the store.  The tasks of a field in parts are submitted as their turn comes, by this process:
what a worker has finished is never done again because another one dies.

A worker that dies costs the tasks it was at: the scheduler tries them elsewhere, and what dies
again is suspected, together with what ran beside it.  When all else is done, every suspect is
tried alone, so that only a field that kills its worker by itself is a failure.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from cellseg_cli.engine.clusters import cancelled
from cellseg_cli.engine.tasks import (
    Ended,
    Failure,
    Job,
    Outcome,
    Produced,
    Stop,
    Stopped,
    Task,
    Work,
    outcome_of,
    perform,
    reason,
    worker_name,
)
from cellseg_cli.engine.threads import Pulse, Seen
from cellseg_cli.errors import ClusterLostError, StoreWriteError

if TYPE_CHECKING:
    from distributed import Client, Future

#: Tasks in flight per thread: one at work and one on its way.
AHEAD = 2

#: How long a run waits for a worker when the last one is gone.
WORKERLESS_S = 300.0

_POLL_S = 0.5


@dataclass
class _Flight:
    """A field whose tasks are under way."""

    job: Job
    parts: int
    begun: Any = None
    ended: list[Ended] = field(default_factory=list)
    waiting: deque[Task] = field(default_factory=deque)
    under_way: int = 0

    def first(self) -> Task:
        """What the work on the field begins with."""
        return Task(*self.job, "begin" if self.parts else "whole")

    def add(self, task: Task, ended: Ended) -> bool:
        """Note the end of a task and what is to be done after it; whether it was the last one."""
        self.ended.append(ended)
        if ended.failure:
            self.waiting.clear()
            return not self.under_way
        if task.step == "begin":
            self.begun = ended.value
            self.waiting.extend(
                Task(*self.job, "part", index, self.begun) for index in range(self.parts)
            )
        elif task.step == "part" and not self.waiting and not self.under_way:
            if any(one.failure for one in self.ended):
                return True
            self.waiting.append(Task(*self.job, "finish", 0, self.begun))
        return not self.waiting and not self.under_way


class _Run:
    """The fields in flight, and what has come of their tasks."""

    def __init__(self, client: Client, work: Work, seen: Seen) -> None:
        self.flights: dict[str, _Flight] = {}
        self.suspects: list[Job] = []
        self._client, self._work, self._seen = client, work, seen
        self._tasks: dict[Any, Task] = {}
        self._ended: SimpleQueue[Any] = SimpleQueue()

    @property
    def tasks(self) -> int:
        """The number of tasks under way."""
        return len(self._tasks)

    def launch(self, job: Job) -> None:
        """Begin a field."""
        flight = self.flights[job[0].id] = _Flight(job, self._work.parts(job[0]))
        flight.waiting.append(flight.first())
        self._submit(flight)

    def advance(self, room: int) -> None:
        """Submit more parts of the fields in flight, at most ``room`` of them."""
        for flight in list(self.flights.values()):
            while flight.waiting and room > 0:
                self._submit(flight)
                room -= 1

    def wait(self, timeout_s: float) -> bool:
        """Take note of the tasks that have ended; whether there was one within the time."""
        try:
            future = self._ended.get(timeout=timeout_s)
        except Empty:
            return False
        while future is not None:
            self._note(future)
            future = None if self._ended.empty() else self._ended.get()
        return True

    def cancel(self) -> None:
        """Give up what is under way; nobody hears of it."""
        futures, self._tasks = list(self._tasks), {}
        if futures and self._client.status == "running":
            self._client.cancel(futures, force=True)

    def _submit(self, flight: _Flight) -> None:
        task = flight.waiting.popleft()
        flight.under_way += 1
        future = self._client.submit(_remotely, self._work, task, pure=False)
        self._tasks[future] = task
        future.add_done_callback(self._ended.put)

    def _note(self, future: Future) -> None:
        task = self._tasks.pop(future, None)
        if task is None:  # given up
            return
        flight = self.flights[task.row.id]
        flight.under_way -= 1
        ended = _result(future, task)
        if ended is None:
            flight.waiting.clear()
            if task.row.id not in {job[0].id for job in self.suspects}:
                self.suspects.append(flight.job)
        elif flight.job in self.suspects:
            pass  # another of its tasks has killed a worker; all of it is done again
        elif flight.add(task, ended):
            self._seen(outcome_of(flight.ended))
            del self.flights[task.row.id]
            return
        if flight.job in self.suspects and not flight.under_way:
            del self.flights[task.row.id]


def run_remotely(
    jobs: Sequence[Job], work: Work, client: Client, seen: Seen, pulse: Pulse | None = None
) -> None:
    """Do ``work`` on every job on the workers of a cluster, and report each outcome.

    Parameters and errors are those of :func:`cellseg_cli.engine.threads.run_fields`; the
    work and its results must be values that can be sent to another process.

    Raises
    ------
    ClusterLostError
        The cluster is gone: no scheduler, or no worker for :data:`WORKERLESS_S`.
    """
    run = _Run(client, work, seen)
    try:
        _carry(run, jobs, client, lambda: AHEAD * _threads(client), pulse)
        suspects, run.suspects = run.suspects, []
        for job in suspects:
            _carry(run, [job], client, lambda: 1, pulse)
            if run.suspects:
                run.suspects = []
                seen(Outcome(job[0].id, 0.0, failure=_killed(job)))
    finally:
        run.cancel()


def _carry(
    run: _Run, jobs: Iterable[Job], client: Client, capacity: Callable[[], int], pulse: Pulse | None
) -> None:
    waiting = deque(jobs)
    alone_since = None
    while waiting or run.flights:
        room = capacity()
        run.advance(room - run.tasks)
        while waiting and run.tasks < room:
            run.launch(waiting.popleft())
        happened = run.wait(_POLL_S)
        if pulse:
            pulse(run.tasks, max(room, run.tasks))
        alone_since = None if happened or room else alone_since or time.monotonic()
        _check_cluster(client, alone_since)


def _threads(client: Client) -> int:
    """Threads of all workers that are there now."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return sum(int(worker["nthreads"]) for worker in workers.values())


def _check_cluster(client: Client, alone_since: float | None) -> None:
    if client.status not in {"running", "connecting"}:
        raise ClusterLostError(
            "the connection to the dask scheduler is lost; finished fields are kept: start the "
            "scheduler again, and the same command resumes"
        )
    if alone_since is not None and time.monotonic() - alone_since > WORKERLESS_S:
        raise ClusterLostError(
            f"no dask worker is left and none has come for {WORKERLESS_S:.0f} s; finished fields "
            "are kept: start workers again, and the same command resumes"
        )


def _result(future: Future, task: Task) -> Ended | None:
    """What came of a task; None if its worker has died more often than it may.

    Raises
    ------
    StoreWriteError
        The store cannot be written any more.
    ClusterLostError
        The scheduler does not know the task any more.
    """
    from distributed.scheduler import KilledWorker

    if future.status == "cancelled":
        raise ClusterLostError(
            "the dask scheduler has dropped tasks of this run (was it started anew?); finished "
            "fields are kept, and the same command resumes"
        )
    try:
        ended = future.result()
    except (KilledWorker, Stopped):
        return None
    except StoreWriteError:
        raise
    except Exception as error:  # noqa: BLE001 - what a worker could not even begin
        failure = Failure(task.row.id, reason(error), traceback.format_exc())
        return Ended(task.row.id, 0.0, failure=failure)
    assert isinstance(ended, Ended)
    return ended


class _RemoteStop(Stop):
    """Ends a task when the scheduler has been told that nobody waits for it."""

    def check(self) -> None:
        if cancelled():
            raise Stopped
        super().check()


def _remotely(work: Work, task: Task) -> Ended:
    """Carry out a task on a worker, unless an earlier attempt has finished its field."""
    row = task.row
    work.check_place()
    if task.step in {"whole", "finish"} and work.is_done(row, task.mark):
        return Ended(row.id, 0.0, Produced(row.pixels), worker=worker_name())
    return perform(work, task, _RemoteStop())


def _killed(job: Job) -> Failure:
    return Failure(
        job[0].id,
        "the worker process died twice while it worked on this field alone (killed, or out of "
        "memory); give workers more memory, or a smaller --tile",
    )
