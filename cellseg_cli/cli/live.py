"""The live view of a stage on a terminal: a few lines that are drawn anew, and taken away.

    embed      ━━━━━───────   40 %  812 of 2000 fields, 1 failed
    speed      2.46 fields/s, 0.90 MP/s
    lately     2.51 fields/s, 0.92 MP/s in the last minute
    time       5.5 min, 8.0 min left
    busy       device 93 %, 4 of 6 in flight
    failed     A/f0: empty.tif: is empty (0 bytes)

No line is longer than :data:`WIDEST` columns: a terminal that is made narrower, but not
narrower than that, wraps nothing, and so nothing of an older picture is left on it.  Drawn
twice a second by a thread of rich, also while no event comes; one frame takes 0.3 ms of
a CPU.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from cellseg_cli.cli.pace import RECENT_S, Pace, Progress, Rate, duration, one_line

if TYPE_CHECKING:
    from cellseg_cli.pipeline.events import Beat, Dashboard, Failure, StageStarted

#: Columns, at most.
WIDEST = 60
#: Failures that stay in view.
FAILURES = 3
_NAME = 11  # columns of the names on the left


class LiveView:
    """Shows one stage at a time on ``console``.

    Every function may be called at any time; before :meth:`start` and after :meth:`stop`
    nothing is drawn, and lines are printed all the same.
    """

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._lock = threading.Lock()  # the thread that draws looks while events come
        self._live: Live | None = None
        self._pace: Pace | None = None
        self._address: str | None = None
        self._failures: deque[str] = deque(maxlen=FAILURES)

    def start(self, event: StageStarted) -> None:
        """Show a stage, in place of the one before."""
        self.stop()
        self._pace, self._address = Pace(event, self._clock), None
        self._failures.clear()
        if not event.total:
            return
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # results that go elsewhere still go there
        )
        self._live.start()

    def done(self, pixels: int) -> None:
        """One field is done."""
        with self._lock:
            if self._pace:
                self._pace.done(pixels)

    def failed(self, failure: Failure) -> None:
        """One field has failed."""
        with self._lock:
            if self._pace:
                self._pace.failed()
            self._failures.append(one_line(f"{failure.field_id}: {failure.reason}"))

    def beat(self, event: Beat) -> None:
        """How busy the run is."""
        with self._lock:
            if self._pace:
                self._pace.beat(event)

    def dashboard(self, event: Dashboard) -> None:
        """Where the dashboard is."""
        self._address = event.address

    def say(self, text: str) -> None:
        """Print lines that stay, above the view."""
        self._console.print(Text(text), soft_wrap=True)

    def stop(self) -> None:
        """Take the view away."""
        if self._live:
            self._live.stop()
            self._live = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines as they are now, cut to the width of the terminal."""
        with self._lock:
            if self._pace is None:
                return
            progress, failures = self._pace.look(), list(self._failures)
        width = min(options.max_width, WIDEST)
        for line in _lines(progress, self._address, failures, width, options.ascii_only):
            line.truncate(width, overflow="crop" if options.ascii_only else "ellipsis")
            line.no_wrap = True
            yield line


def _lines(
    progress: Progress, address: str | None, failures: list[str], width: int, ascii_only: bool
) -> list[Text]:
    left = "" if progress.left_s is None else f", {duration(progress.left_s)} left"
    lines = [_head(progress, width, ascii_only), _row("speed", _rate(progress.whole))]
    if progress.elapsed_s >= RECENT_S:
        lines.append(_row("lately", f"{_rate(progress.recent)} in the last minute"))
    lines.append(_row("time", f"{duration(progress.elapsed_s)}{left}"))
    busy = []
    if progress.device_busy is not None:
        busy.append(f"device {100 * progress.device_busy:.0f} %")
    if progress.capacity:
        busy.append(f"{progress.in_flight} of {progress.capacity} in flight")
    if busy:
        lines.append(_row("busy", ", ".join(busy)))
    if address:
        lines.append(_row("dashboard", address))
    return lines + [_row("failed", one, style="red") for one in failures]


def _head(progress: Progress, width: int, ascii_only: bool) -> Text:
    """The stage, a bar in what room there is, and how many fields."""
    share = min(1.0, progress.ended / progress.total) if progress.total else 1.0
    count = f"{progress.done} of {progress.total} fields"
    failed = f", {progress.failed} failed" if progress.failed else ""
    name = _name(progress.stage)
    room = width - len(name) - len(count) - len(failed) - len("  100 %  ")
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    filled = int(share * max(0, room))
    return Text.assemble(
        (name, "bold"),
        (full * filled, "green"),
        (empty * (max(0, room) - filled), "dim"),
        f"  {int(share * 100):3d} %  {count}",
        (failed, "red"),
    )


def _row(name: str, text: str, style: str = "") -> Text:
    return Text.assemble((_name(name), "dim"), (text, style))


def _name(name: str) -> str:
    return f"{name:<{_NAME - 1}} "


def _rate(rate: Rate) -> str:
    return f"{rate.fields:.2f} fields/s, {rate.megapixels:.2f} MP/s"
