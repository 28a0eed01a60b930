"""Carry out the tasks of a run on a bounded number of dask threads of this process.

What ends the run, an error of the run itself or an interrupt, stops the other threads at their
next :meth:`~cellseg_cli.engine.tasks.Stop.check` and loses no finished field.

Memory: every thread holds one field, or one part of a field, at a time, and nothing but small
outcomes is kept, so the peak grows neither with the number of fields nor with their size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

from cellseg_cli.engine.tasks import (
    Ended,
    Job,
    Outcome,
    Stop,
    Stopped,
    Task,
    Work,
    outcome_of,
    perform,
)

#: Tasks per thread in one dask graph.  A graph ends when its last task does, so threads wait at
#: its end for up to one task: 1/64 of the time at most.
WINDOW = 64

Seen = Callable[[Outcome], None]
#: Told how many tasks are running, and how many may.
Pulse = Callable[[int, int], None]


def run_fields(
    jobs: Sequence[Job], work: Work, threads: int, seen: Seen, pulse: Pulse | None = None
) -> None:
    """Do ``work`` on every job, ``threads`` tasks at a time, and report each outcome.

    ``seen`` and ``pulse`` are called on the caller's thread, ``seen`` in the order in which
    fields end.

    Raises
    ------
    StoreWriteError
        The store cannot be written any more.
    KeyboardInterrupt
        As it came.  In both cases the outcomes of fields that ended are reported first.
    """
    stop = Stop()
    gang = _Gang(work, stop)

    def report() -> None:
        for outcome in _drained(gang.outcomes):
            seen(outcome)
        if pulse:  # the task that takes the place of the one that has ended counts
            pulse(min(gang.running + 1, threads), threads)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="field")
    try:
        for window in _windows(jobs, work, WINDOW * threads):
            _run_window(window, gang, pool, report)
    except Stopped as error:  # another field has ended the run
        assert stop.cause is not None
        raise stop.cause from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        report()


class _Gang:
    """What the threads share: the work, the way to stop, and where outcomes go."""

    def __init__(self, work: Work, stop: Stop) -> None:
        self.work = work
        self.outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.running = 0
        self._stop = stop
        self._lock = threading.Lock()

    def perform(self, task: Task) -> Ended:
        """Carry out a task, and count it while it runs."""
        with self._lock:
            self.running += 1
        try:
            return perform(self.work, task, self._stop)
        finally:
            with self._lock:
                self.running -= 1

    def whole(self, job: Job) -> None:
        """A field in one task."""
        self.outcomes.put(outcome_of([self.perform(Task(*job))]))

    def begin(self, job: Job) -> Ended:
        """The first task of a field in parts."""
        return self.perform(Task(*job, "begin"))

    def part(self, job: Job, begun: Ended, index: int) -> Ended:
        """One part of a field, if it could be begun."""
        return begun if begun.failure else self.perform(Task(*job, "part", index, begun.value))

    def finish(self, job: Job, begun: Ended, parts: Sequence[Ended]) -> None:
        """The last task of a field in parts, if they could be done."""
        ended = [begun, *(one for one in parts if one is not begun)]
        if not any(one.failure for one in ended):
            ended.append(self.perform(Task(*job, "finish", 0, begun.value)))
        self.outcomes.put(outcome_of(ended))


def _windows(jobs: Sequence[Job], work: Work, most: int) -> Iterator[list[Job]]:
    """Jobs that make one graph: at most ``most`` tasks, but at least one field."""
    window: list[Job] = []
    tasks = 0
    for job in jobs:
        new = max(1, work.parts(job[0]))
        if window and tasks + new > most:
            yield window
            window, tasks = [], 0
        window.append(job)
        tasks += new
    if window:
        yield window


def _run_window(
    window: Sequence[Job], gang: _Gang, pool: ThreadPoolExecutor, report: Callable[[], None]
) -> None:
    from dask import compute, delayed
    from dask.callbacks import Callback
    from dask.threaded import get  # by name, dask would load all of distributed first

    def whole(index: int) -> None:
        gang.whole(window[index])

    def begin(index: int) -> Ended:
        return gang.begin(window[index])

    def part(index: int, begun: Ended, number: int) -> Ended:
        return gang.part(window[index], begun, number)

    def finish(index: int, begun: Ended, parts: Sequence[Ended]) -> None:
        gang.finish(window[index], begun, parts)

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return delayed(function, pure=False, traverse=False)(*arguments)

    ends = []
    for index, job in enumerate(window):  # a place in the window: dask would look into a job
        if not (count := gang.work.parts(job[0])):
            ends.append(call(whole, index))
            continue
        begun = call(begin, index)
        ends.append(call(finish, index, begun, [call(part, index, begun, k) for k in range(count)]))

    def after_each(*_: Any) -> None:
        report()

    with Callback(posttask=after_each):
        compute(*ends, scheduler=get, pool=pool, optimize_graph=False)


def _drained(queue: SimpleQueue[Outcome]) -> Iterator[Outcome]:
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return
