"""Run one piece of work per field on a bounded number of dask threads.

A field that fails is an outcome, not the end: the one broad catch of the
program stands here.  What ends the run is an error of the run itself (a store
that cannot be written any more) and an interrupt; both stop the
other threads at their next :meth:`Stop.check` and lose no finished field.

Memory: every worker holds one field at a time and nothing but small outcomes
is kept, so the peak does not grow with the number of fields.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from cellseg_cli.errors import CellsegError, StoreWriteError
from cellseg_cli.pipeline.events import Failure
from cellseg_cli.store import FieldRow

#: Fields per worker in one dask graph.  A graph ends when its last field does, so workers
#: wait at its end for up to one field: 1/64 of the time at most.
WINDOW = 64


@dataclass(frozen=True)
class Produced:
    """What one field gave, for the events: pixels, and instances where labels were made.

    ``counts`` are kept in the run record, ``note`` is told at once.
    """

    pixels: int
    instances: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of one field: either ``produced`` or ``failure`` is there."""

    field_id: str
    seconds: float
    produced: Produced | None = None
    failure: Failure | None = None


class Stopped(Exception):
    """The run is ending; the field is left unfinished and without a mark."""


class Stop:
    """Tells the work on every field that the run is ending, and why if it was one of them."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.cause: StoreWriteError | None = None

    def set(self, cause: StoreWriteError | None = None) -> None:
        """End the run; the first cause counts."""
        self.cause = self.cause or cause
        self._event.set()

    def check(self) -> None:
        """Raise :class:`Stopped` if the run is ending; called between read, compute and write."""
        if self._event.is_set():
            raise Stopped


Job = tuple[FieldRow, str]
Work = Callable[[FieldRow, str, Stop], Produced]


def worker_count(wanted: int) -> int:
    """``wanted``, or for 0 the number of cores that this process may use."""
    if wanted:
        return wanted
    if hasattr(os, "sched_getaffinity"):  # Linux: what a batch system has granted
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_fields(
    jobs: Sequence[Job], work: Work, workers: int, seen: Callable[[Outcome], None]
) -> None:
    """Do ``work`` on every job, ``workers`` at a time, and report each outcome.

    ``seen`` is called on the caller's thread, in the order in which fields end.

    Raises
    ------
    StoreWriteError
        The store cannot be written any more.
    KeyboardInterrupt
        As it came.  In both cases the outcomes of fields that ended are reported first.
    """
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    stop = Stop()

    def report() -> None:
        for outcome in _drained(outcomes):
            seen(outcome)

    def one(index: int) -> None:
        outcomes.put(_outcome(*jobs[index], work, stop))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="field")
    try:
        for start in range(0, len(jobs), WINDOW * workers):
            window = range(start, min(start + WINDOW * workers, len(jobs)))
            _run_window(window, one, pool, report)
    except Stopped as error:  # another field has ended the run
        assert stop.cause is not None
        raise stop.cause from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        report()


def _run_window(
    window: range,
    one: Callable[[int], None],
    pool: ThreadPoolExecutor,
    report: Callable[[], None],
) -> None:
    from dask import compute, delayed
    from dask.callbacks import Callback
    from dask.threaded import get  # by name, dask would load all of distributed first

    def after_each(*_: Any) -> None:
        report()

    tasks = [delayed(one, pure=False)(index) for index in window]
    with Callback(posttask=after_each):
        compute(*tasks, scheduler=get, pool=pool, optimize_graph=False)


def _outcome(row: FieldRow, mark: str, work: Work, stop: Stop) -> Outcome:
    started = time.perf_counter()
    try:
        stop.check()
        produced = work(row, mark, stop)
    except StoreWriteError as error:
        stop.set(error)
        raise
    except Stopped:
        raise
    except Exception as error:  # noqa: BLE001 - the one place: a field fails, the run goes on
        failure = Failure(row.id, reason(error), traceback.format_exc())
        return Outcome(row.id, time.perf_counter() - started, failure=failure)
    return Outcome(row.id, time.perf_counter() - started, produced=produced)


def reason(error: Exception) -> str:
    """One line that says why: our own message, or the class and first line of another's."""
    lines = str(error).splitlines()
    text = lines[0] if lines else ""
    if isinstance(error, CellsegError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _drained(queue: SimpleQueue[Outcome]) -> Iterator[Outcome]:
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return
