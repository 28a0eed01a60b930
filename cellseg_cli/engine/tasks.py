"""The work on one field, in tasks that any thread of any process can carry out.

A small field is one task.  A field that is worked on in parts is begun (checked, measured, its
arrays made), done part by part, and finished (marked); the parts may run anywhere and in any
order.  :mod:`~cellseg_cli.engine.threads` carries tasks out in this process and
:mod:`~cellseg_cli.engine.remote` on a dask cluster; what a task does is the same.

A field that fails is an outcome, not the end: the one broad catch of the program stands here.
What ends the run is an error of the run itself (a store that cannot be written any more).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from cellseg_cli.cores import granted_cores
from cellseg_cli.errors import CellsegError, StoreWriteError
from cellseg_cli.store import FieldRow

Job = tuple[FieldRow, str]


@dataclass(frozen=True)
class Failure:
    """One field that could not be done: why, for people; the traceback, for the run record."""

    field_id: str
    reason: str
    traceback: str | None = None


@dataclass(frozen=True)
class Produced:
    """What one task gave, for the events and the run record.

    Attributes
    ----------
    pixels, instances
        Of the field or of the part; instances where labels were made.
    counts
        Kept in the run record.
    note
        Told at once.
    seconds
        By part of the work: read, network, cluster, write.
    bytes_read, bytes_written
        Size of the image files, and of the arrays before compression.
    """

    pixels: int
    instances: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True)
class Outcome:
    """The end of one field: either ``produced`` or ``failure`` is there.

    ``seconds`` is the time of its tasks, one after the other; ``peak_rss_bytes`` is that of
    the process ``worker`` so far, and ``device_busy_s`` how long the device of that process
    was busy since it last told.
    """

    field_id: str
    seconds: float
    produced: Produced | None = None
    failure: Failure | None = None
    peak_rss_bytes: int | None = None
    device_busy_s: float = 0.0
    worker: str | None = None


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


class Use(NamedTuple):
    """How long a device has been busy, and how many tiles it takes in a pass."""

    busy_s: float = 0.0
    batch_size: int | None = None


class Work(Protocol):
    """What a stage does to a field; values that can be sent to another process."""

    def parts(self, row: FieldRow) -> int:
        """Into how many parts the work on a field is cut; 0: it is one task."""

    def whole(self, row: FieldRow, mark: str, stop: Stop) -> Produced:
        """Do all of it, and mark the field."""

    def begin(self, row: FieldRow, mark: str, stop: Stop) -> Any:
        """Prepare a field that is done in parts; what comes back is given to the parts."""

    def part(self, row: FieldRow, begun: Any, index: int, stop: Stop) -> Produced:
        """Do one part."""

    def finish(self, row: FieldRow, mark: str, begun: Any, stop: Stop) -> Produced:
        """Do what is left when all parts are done, and mark the field."""

    def is_done(self, row: FieldRow, mark: str) -> bool:
        """Whether the field has this mark: a task that is repeated elsewhere asks first."""

    def check_place(self) -> None:
        """Raise StoreError where this process does not see what the run writes to."""

    def use(self) -> Use:
        """What the device of this process has done in all."""


@dataclass(frozen=True)
class FieldWork:
    """The work of a stage whose fields are always one task, in this process."""

    do: Callable[[FieldRow, str, Stop], Produced]

    def parts(self, row: FieldRow) -> int:
        """No field has parts."""
        del row
        return 0

    def whole(self, row: FieldRow, mark: str, stop: Stop) -> Produced:
        """What the function does."""
        return self.do(row, mark, stop)

    def begin(self, row: FieldRow, mark: str, stop: Stop) -> Any:
        """Never called."""
        raise AssertionError((row.id, mark, stop))

    def part(self, row: FieldRow, begun: Any, index: int, stop: Stop) -> Produced:
        """Never called."""
        raise AssertionError((row.id, begun, index, stop))

    def finish(self, row: FieldRow, mark: str, begun: Any, stop: Stop) -> Produced:
        """Never called."""
        raise AssertionError((row.id, mark, begun, stop))

    def is_done(self, row: FieldRow, mark: str) -> bool:
        """Nothing is repeated."""
        del row, mark
        return False

    def check_place(self) -> None:
        """It is this process."""

    def use(self) -> Use:
        """No device."""
        return Use()


@dataclass(frozen=True)
class Task:
    """One step of the work on a field; ``begun`` is what its first step gave."""

    row: FieldRow
    mark: str
    step: Literal["whole", "begin", "part", "finish"] = "whole"
    index: int = 0
    begun: Any = None


@dataclass(frozen=True)
class Ended:
    """The end of one task: ``value`` is a :class:`Produced`, or what a field was begun with."""

    field_id: str
    seconds: float
    value: Any = None
    failure: Failure | None = None
    peak_rss_bytes: int | None = None
    device_busy_s: float = 0.0
    worker: str | None = None


def perform(work: Work, task: Task, stop: Stop) -> Ended:
    """Carry out one task; a field that fails is a value, the end of the run is an exception.

    Raises
    ------
    StoreWriteError
        The store cannot be written any more.
    Stopped
        The run is ending.
    """
    began, failure, value = time.perf_counter(), None, None
    try:
        stop.check()
        value = _step(work, task, stop)
    except StoreWriteError as error:
        stop.set(error)
        raise
    except Stopped:
        raise
    except Exception as error:  # noqa: BLE001 - the one place: a field fails, the run goes on
        failure = Failure(task.row.id, reason(error), traceback.format_exc())
    return Ended(
        task.row.id,
        time.perf_counter() - began,
        value,
        failure,
        peak_rss_bytes(),
        _BUSY.since_last(work.use().busy_s),
        worker_name(),
    )


def _step(work: Work, task: Task, stop: Stop) -> Any:
    row, mark, begun = task.row, task.mark, task.begun
    if task.step == "whole":
        return work.whole(row, mark, stop)
    if task.step == "begin":
        return work.begin(row, mark, stop)
    if task.step == "part":
        return work.part(row, begun, task.index, stop)
    return work.finish(row, mark, begun, stop)


def outcome_of(ended: Sequence[Ended]) -> Outcome:
    """What came of a field whose tasks have all ended; the first failure counts."""
    last = ended[-1]
    failures = [one.failure for one in ended if one.failure]
    given = [one.value for one in ended if isinstance(one.value, Produced)]
    return Outcome(
        last.field_id,
        sum(one.seconds for one in ended),
        produced=None if failures else _joined(given),
        failure=failures[0] if failures else None,
        peak_rss_bytes=max((one.peak_rss_bytes or 0 for one in ended), default=0) or None,
        device_busy_s=sum(one.device_busy_s for one in ended),
        worker=last.worker,
    )


def _joined(given: Sequence[Produced]) -> Produced:
    """The sum over the tasks of a field; counts, instances and notes are those of the last."""
    if len(given) == 1:
        return given[0]
    seconds: Counter[str] = Counter()
    for one in given:
        seconds.update(one.seconds)
    return replace(
        given[-1],
        pixels=sum(one.pixels for one in given),
        seconds=dict(seconds),
        bytes_read=sum(one.bytes_read for one in given),
        bytes_written=sum(one.bytes_written for one in given),
    )


class Clock:
    """Seconds by part of the work on one field."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count the time of the statement under a name."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class _Busy:
    """What of the busy time of this process's device has been told already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = 0.0

    def since_last(self, total: float) -> float:
        """The seconds that no earlier call was told; 0 at first for another device."""
        with self._lock:
            new, self._told = max(0.0, total - self._told), total
        return new


_BUSY = _Busy()


def worker_name() -> str:
    """This process, by host and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def peak_rss_bytes() -> int | None:
    """The largest resident memory of this process so far; None where it cannot be asked."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def thread_count(wanted: int) -> int:
    """``wanted``, or for 0 the number of cores that this process may use."""
    return wanted or granted_cores()


def reason(error: Exception) -> str:
    """One line that says why: our own message, or the class and first line of another's."""
    lines = str(error).splitlines()
    text = lines[0] if lines else ""
    if isinstance(error, CellsegError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
