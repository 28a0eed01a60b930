"""What a person sees while a stage runs: the one place that draws events.

All of it goes to stderr, so that results on stdout can be piped.  On a terminal
a bar; otherwise, as in a batch system's log, one plain line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from cellseg_cli.pipeline.events import (
        Emit,
        Event,
        FieldDone,
        Noted,
        StageFinished,
        StagePlanned,
        StageStarted,
    )

#: Seconds between two lines of progress where there is no terminal.
LINE_EVERY_S = 15.0


class _Bar(Protocol):
    """What shows how far a stage has come."""

    def start(self, event: StageStarted) -> None: ...

    def advance(self, done: int, failed: int) -> None: ...

    def stop(self) -> None: ...


@contextmanager
def screen(*, quiet: bool = False, verbose: int = 0) -> Iterator[Emit]:
    """Yield the function that draws events.

    Parameters
    ----------
    quiet
        Draw failures only.
    verbose
        1: a line for every finished field; 2: tracebacks of failures too.
    """
    drawing = _Drawing(quiet, verbose)
    try:
        yield drawing.emit
    finally:
        drawing.bar.stop()


class _Drawing:
    """Counts what events say and hands it to a bar."""

    def __init__(self, quiet: bool, verbose: int) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._done = self._failed = 0
        terminal = sys.stderr.isatty() and not quiet
        self.bar: _Bar = _TerminalBar() if terminal else _LineBar(quiet)

    def emit(self, event: Event) -> None:
        """Draw one event."""
        name = type(event).__name__
        draw: dict[str, Any] = {
            "StagePlanned": self._planned,
            "StageStarted": self._started,
            "Noted": self._noted,
            "FieldDone": self._field_done,
            "FieldFailed": self._field_failed,
            "StageFinished": self._finished,
        }
        draw[name](event)

    def _planned(self, event: StagePlanned) -> None:
        if self._quiet or not (event.dry_run or self._verbose):
            return
        _say(
            f"{event.stage}: {event.fields} fields, {event.to_do} to do, {event.skipped} done "
            f"before, {len(event.unusable)} unusable; at most {_size(event.bytes_to_write)} to "
            f"write into {event.store}, {_size(event.free_bytes)} free"
        )
        if event.dry_run:
            for failure in event.unusable:
                _say(f"{failure.field_id}: {failure.reason}")

    def _started(self, event: StageStarted) -> None:
        self._done = self._failed = 0
        self.bar.start(event)

    def _noted(self, event: Noted) -> None:
        if not self._quiet:
            _say(f"{event.stage}: {event.text}")

    def _field_done(self, event: FieldDone) -> None:
        self._done += 1
        if self._verbose:
            found = "" if event.instances is None else f", {event.instances} instances"
            _say(f"{event.stage} {event.field_id}: {event.seconds:.2f} s{found}")
        self.bar.advance(self._done, self._failed)

    def _field_failed(self, event: Any) -> None:
        self._failed += 1
        _say(f"cellseg: {event.failure.field_id}: {event.failure.reason}")
        if self._verbose > 1 and event.failure.traceback:
            _say(event.failure.traceback)
        self.bar.advance(self._done, self._failed)

    def _finished(self, event: StageFinished) -> None:
        self.bar.stop()
        if self._quiet:
            return
        summary = event.summary
        record = f"; record: {event.record}" if event.record else ""
        _say(
            f"{summary.stage}: {summary.done} done, {summary.skipped} done before, "
            f"{len(summary.failed)} failed in {summary.seconds:.1f} s{record}"
        )


class _LineBar:
    """One line every :data:`LINE_EVERY_S` seconds."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._stage, self._total = "", 0
        self._began = self._spoke = 0.0

    def start(self, event: StageStarted) -> None:
        self._stage, self._total = event.stage, event.total
        self._began = self._spoke = time.monotonic()
        if not self._quiet and event.total:
            _say(_opening(event))

    def advance(self, done: int, failed: int) -> None:
        now = time.monotonic()
        if self._quiet or now - self._spoke < LINE_EVERY_S:
            return
        self._spoke = now
        rate = (done + failed) / (now - self._began)
        left = (self._total - done - failed) / rate if rate else float("inf")
        _say(
            f"{self._stage}: {done} of {self._total} fields, {failed} failed, "
            f"{rate:.2f} fields/s, {left / 60:.1f} min left"
        )

    def stop(self) -> None:
        """Nothing to take away."""


class _TerminalBar:
    """A bar by rich, taken away when the stage ends."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def start(self, event: StageStarted) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.stop()
        _say(_opening(event))
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(event.stage, total=event.total, failed=0)
        self._progress.start()

    def advance(self, done: int, failed: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=done + failed, failed=failed)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _opening(event: StageStarted) -> str:
    where = f" on {event.device}" if event.device else ""
    before = f", {event.skipped} done before" if event.skipped else ""
    return f"{event.stage}: {event.total} fields{before}, {event.workers} workers{where}"


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _size(count: int) -> str:
    """Return a number of bytes for people.

    >>> _size(3 * 2**20)
    '3.0 MiB'
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.1f} {unit}" if unit != "B" else f"{count} B"
        value /= 1024
    return f"{value:.1f} GiB"
