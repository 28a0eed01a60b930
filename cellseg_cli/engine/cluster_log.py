"""What dask logs while a cluster is used, as single lines that a user can do something with.

The death of a worker is one line instead of a page; bookkeeping of dask that the engine takes
care of itself is left out; any other warning or error keeps its first line.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
from collections.abc import Iterator
from queue import Empty, SimpleQueue

#: Of :mod:`distributed.nanny`, which logs it below the level of warnings.
_DIED = re.compile(r"Worker process (\d+) (was killed by signal (\d+)|.*)")
#: Of :mod:`distributed.worker_memory`.
_TOO_LARGE = re.compile(r"Worker \S+ \(pid=(\d+)\) exceeded \d+% memory budget")
#: The same module, when the machine is so busy that the process takes its time to end.
_SLOW = re.compile(r"Worker \S+ \(pid=\d+\) is slow to ")

#: Of :mod:`distributed.scheduler`, also where its workers are on other machines.
_LEFT = re.compile(r"Remove worker addr: \S+ name: (\S+)")

#: Said about deaths of workers and the tasks they take along, which are told or counted already.
_BOOKKEEPING = (
    "Restarting worker",
    "Removing worker",
    "Task ",  # marked as failed because N workers died
    "Worker process still alive",
    "Failed to communicate with scheduler during heartbeat",
    "Scheduler was unaware of this worker",
    "Received heartbeat from unregistered worker",
    "Couldn't gather ",  # the result of a task whose worker died just after it
    "Run Failed",  # the versions of workers, which are told
)

_AGAIN = "a new one is started, and its fields are tried again"


class ClusterLog(logging.Handler):
    """Collects lines; safe for threads.

    Parameters
    ----------
    processes_here
        Workers are processes of this machine, which say themselves how they end.
    """

    def __init__(self, *, processes_here: bool) -> None:
        super().__init__(logging.INFO)
        self._processes_here = processes_here
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._replaced: set[str] = set()
        self._open = True

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line that a record amounts to, if there is one."""
        line = self._line(record) if self._open else None
        if line:
            self._lines.put(line)

    def close(self) -> None:
        """Hear no more; what was kept stays."""
        self._open = False
        super().close()

    def drained(self) -> tuple[str, ...]:
        """The lines since the last call."""
        lines = []
        with contextlib.suppress(Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return tuple(lines)

    def _line(self, record: logging.LogRecord) -> str | None:
        message = record.getMessage()
        if too_large := _TOO_LARGE.match(message):
            self._replaced.add(too_large[1])
            return f"worker process {too_large[1]} has reached its memory limit; {_AGAIN}"
        if died := _DIED.match(message):
            told = died[1] in self._replaced
            return None if told else f"worker process {died[1]} {_end(died)}; {_AGAIN}"
        if (left := _LEFT.match(message)) and not self._processes_here:
            return f"worker {left[1]} has left; its fields are tried again elsewhere"
        if record.levelno < logging.WARNING or message.startswith(_BOOKKEEPING):
            return None
        if _SLOW.match(message):
            return None
        return f"dask: {message.strip().splitlines()[0]}" if message.strip() else None


def _end(died: re.Match[str]) -> str:
    if died[3] is None:
        return died[2]
    with contextlib.suppress(ValueError):
        name = signal.Signals(int(died[3])).name
        often = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"was killed by {name}{often}"
    return died[2]


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of tornado's is more than the echo of an interruption.

    Who interrupts :func:`distributed.utils.sync` before its coroutine has begun makes it cancel
    a future that is not there yet (distributed 2026.8).  The interruption itself is not lost.
    """
    return "<function sync.<locals>.cancel" not in record.getMessage()


@contextlib.contextmanager
def listening(*, processes_here: bool) -> Iterator[ClusterLog]:
    """Collect what :mod:`distributed` logs in place of its own output."""
    import distributed  # noqa: F401 - it sets up its loggers when it is loaded first

    logger = logging.getLogger("distributed")
    before = (logger.handlers[:], logger.propagate, logger.level)
    log = ClusterLog(processes_here=processes_here)
    logger.handlers[:], logger.propagate = [log], False
    logger.setLevel(logging.INFO)
    callbacks = logging.getLogger("tornado.application")
    callbacks.addFilter(_is_news)
    try:
        yield log
    finally:
        callbacks.removeFilter(_is_news)
        logger.handlers[:], logger.propagate = before[:2]
        logger.setLevel(before[2])
