"""What a person sees while a stage runs: the one place that draws events.

All of it goes to stderr, so that results on stdout can be piped.  On a terminal
a live view; otherwise, as in a batch system's log, one plain line now and then.
With a log of JSON lines on stderr, that log alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from cellseg_cli.cli.log_json import STDERR, json_log
from cellseg_cli.cli.pace import Pace, duration, one_line, size

if TYPE_CHECKING:
    from cellseg_cli.pipeline.events import (
        Beat,
        Dashboard,
        Emit,
        Event,
        Failure,
        FieldDone,
        FieldFailed,
        Noted,
        StageFinished,
        StagePlanned,
        StageStarted,
    )

#: Seconds between two lines of progress where there is no terminal.
LINE_EVERY_S = 15.0

#: Gives seconds that never go back.
Clock = Callable[[], float]


class _View(Protocol):
    """What shows how far a stage has come, and prints lines that stay."""

    def start(self, event: StageStarted) -> None: ...

    def done(self, pixels: int) -> None: ...

    def failed(self, failure: Failure) -> None: ...

    def beat(self, event: Beat) -> None: ...

    def dashboard(self, event: Dashboard) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self) -> None: ...


@contextmanager
def screen(
    *,
    quiet: bool = False,
    verbose: int = 0,
    log_json: Path | None = None,
    clock: Clock = time.monotonic,
) -> Iterator[Emit]:
    """Yield the function that draws events, and logs them if asked.

    Parameters
    ----------
    quiet
        Draw failures only.
    verbose
        1: a line for every finished field; 2: tracebacks of failures too.
    log_json
        Where to log every event too, as :func:`cellseg_cli.cli.log_json.json_log` does; with
        ``-`` nothing is drawn.
    clock
        What rates and times are counted by.

    Raises
    ------
    ConfigError
        The log cannot be opened.
    """
    with ExitStack() as stack:
        emits: list[Emit] = []
        if log_json != STDERR:
            view = _view(quiet, clock)
            stack.callback(view.stop)
            emits.append(_while_it_takes(Drawing(view, quiet=quiet, verbose=verbose).emit))
        if log_json is not None:
            say = None if log_json == STDERR else view.say
            emits.append(stack.enter_context(json_log(log_json, say)))
        yield emits[0] if len(emits) == 1 else _both(emits)


def _while_it_takes(draw: Emit) -> Emit:
    """Draw until stderr takes no more, as when its disk is full or its reader is gone.

    The run goes on: what came of each field is in its record, and the exit code says the rest.
    """

    def emit(event: Event) -> None:
        try:
            draw(event)
        except OSError:
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the program ends

    return emit


def _both(emits: list[Emit]) -> Emit:
    def emit(event: Event) -> None:
        for one in emits:
            one(event)

    return emit


def _view(quiet: bool, clock: Clock) -> _View:
    """The view for where stderr goes."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM", "").lower() in _NO_CURSOR:
        return LineView(clock, None if quiet else LINE_EVERY_S)
    from rich.console import Console

    from cellseg_cli.cli.live import LiveView

    return LiveView(Console(stderr=True, highlight=False), clock)


_NO_CURSOR = {"dumb", "unknown"}  # terminals that cannot draw over what they have drawn


class Drawing:
    """Puts events into words and hands numbers to a view."""

    def __init__(self, view: _View, *, quiet: bool = False, verbose: int = 0) -> None:
        self._view, self._quiet, self._verbose = view, quiet, verbose

    def emit(self, event: Event) -> None:
        """Draw one event."""
        name = type(event).__name__
        draw: dict[str, Callable[[Any], None]] = {
            "StagePlanned": self._planned,
            "StageStarted": self._started,
            "Noted": self._noted,
            "Dashboard": self._dashboard,
            "Beat": self._view.beat,
            "FieldDone": self._field_done,
            "FieldFailed": self._field_failed,
            "StageFinished": self._finished,
        }
        draw[name](event)

    def _planned(self, event: StagePlanned) -> None:
        if self._quiet or not (event.dry_run or self._verbose):
            return
        self._view.say(
            f"{event.stage}: {event.fields} fields, {event.to_do} to do, {event.skipped} done "
            f"before, {len(event.unusable)} unusable; at most {size(event.bytes_to_write)} to "
            f"write into {event.store}, {size(event.free_bytes)} free"
        )
        if forecast := _forecast(event):
            self._view.say(f"{event.stage}: {forecast}")
        if event.dry_run:
            for failure in event.unusable:
                self._view.say(one_line(f"{failure.field_id}: {failure.reason}"))

    def _started(self, event: StageStarted) -> None:
        if not self._quiet and event.total:
            self._view.say(_opening(event))
        self._view.start(event)

    def _noted(self, event: Noted) -> None:
        if not self._quiet:
            self._view.say(f"{event.stage}: {event.text}")

    def _dashboard(self, event: Dashboard) -> None:
        if not self._quiet:
            self._view.dashboard(event)

    def _field_done(self, event: FieldDone) -> None:
        if self._verbose:
            found = "" if event.instances is None else f", {event.instances} instances"
            self._view.say(
                one_line(f"{event.stage} {event.field_id}: {event.seconds:.2f} s{found}")
            )
        self._view.done(event.pixels)

    def _field_failed(self, event: FieldFailed) -> None:
        failure = event.failure
        self._view.say(one_line(f"cellseg: {failure.field_id}: {failure.reason}"))
        if self._verbose > 1 and failure.traceback:
            self._view.say(failure.traceback)
        self._view.failed(failure)

    def _finished(self, event: StageFinished) -> None:
        self._view.stop()
        if not self._quiet:
            self._view.say(_ending(event))


class LineView:
    """A line every ``every_s`` seconds while events come; None: no line of progress."""

    def __init__(self, clock: Clock, every_s: float | None) -> None:
        self._clock, self._every_s = clock, every_s
        self._pace: Pace | None = None
        self._spoke = 0.0

    def start(self, event: StageStarted) -> None:
        """Begin to count another stage."""
        self._pace = Pace(event, self._clock)
        self._spoke = self._clock()

    def done(self, pixels: int) -> None:
        """One field is done."""
        if self._pace:
            self._pace.done(pixels)
            self._now_and_then(self._pace)

    def failed(self, failure: Failure) -> None:
        """One field has failed, and its line was printed."""
        if self._pace:
            self._pace.failed()
            self._now_and_then(self._pace)

    def beat(self, event: Beat) -> None:
        """How busy the run is."""
        if self._pace:
            self._pace.beat(event)
            self._now_and_then(self._pace)

    def dashboard(self, event: Dashboard) -> None:
        """Where the dashboard is, once."""
        self.say(f"{event.stage}: dashboard at {event.address}")

    def say(self, text: str) -> None:
        """Print a line."""
        typer.echo(text, err=True)

    def stop(self) -> None:
        """Nothing to take away."""

    def _now_and_then(self, pace: Pace) -> None:
        now = self._clock()
        if self._every_s is None or now - self._spoke < self._every_s:
            return
        self._spoke = now
        self.say(_progress(pace))


def _progress(pace: Pace) -> str:
    """One line of progress; what nobody has told is left out."""
    now = pace.look()
    line = (
        f"{now.stage}: {now.done} of {now.total} fields, {now.failed} failed, "
        f"{now.whole.fields:.2f} fields/s, {now.whole.megapixels:.2f} MP/s"
    )
    if now.left_s is not None:
        line += f", {duration(now.left_s)} left"
    if now.device_busy is not None:
        line += f", device busy {100 * now.device_busy:.0f} %"
    if now.capacity:
        line += f", queue {now.in_flight} of {now.capacity}"
    return line


def _forecast(event: StagePlanned) -> str:
    """What the plan says beyond fields and bytes; what it does not know is left out."""
    from cellseg_cli.engine.memory import shown  # in the units of --memory

    parts = []
    if event.plates:
        parts.append(f"{_several(event.plates, 'plate')} with {_several(event.wells, 'well')}")
    if event.tiles:
        parts.append(_several(event.tiles, "tile"))
    if event.bytes_per_worker is not None:
        memory = f"at most {shown(event.bytes_per_worker)} of memory in each process"
        if event.bytes_total is not None:
            memory += f", {shown(event.bytes_total)} in all"
        if event.memory_bytes is not None:
            memory += f"; {event.memory_by} grants {shown(event.memory_bytes)}"
        parts.append(memory)
    if event.seconds_estimated is not None:
        parts.append(f"about {duration(event.seconds_estimated)}")
    return "; ".join(parts)


def _several(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


def _opening(event: StageStarted) -> str:
    where = f" on {event.device}" if event.device else ""
    before = f", {event.skipped} done before" if event.skipped else ""
    carried = event.carried or _several(event.workers, "thread")
    return f"{event.stage}: {event.total} fields{before}, {carried}{where}"


def _ending(event: StageFinished) -> str:
    """The end of a stage; rates are of the fields that are done, over all of its time."""
    summary = event.summary
    line = (
        f"{summary.stage}: {summary.done} done, {summary.skipped} done before, "
        f"{len(summary.failed)} failed in {summary.seconds:.1f} s"
    )
    if event.pixels and summary.seconds > 0:
        fields, pixels = summary.done / summary.seconds, event.pixels / summary.seconds
        line += f"; {fields:.2f} fields/s, {pixels / 1e6:.2f} MP/s"
        if event.device_busy is not None:
            line += f", device busy {100 * event.device_busy:.0f} %"
    return f"{line}; record: {event.record}" if event.record else line
