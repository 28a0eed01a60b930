"""How far a stage has come and how fast it goes: numbers for the screen, and words for them.

Rates count fields that are done; the time left counts every field that has ended, and
assumes that the rest take as long as those did.  Knows no terminal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellseg_cli.pipeline.events import Beat, StageStarted

#: Seconds that "lately" looks back.
RECENT_S = 60


@dataclass(frozen=True)
class Rate:
    """Fields and megapixels per second."""

    fields: float
    megapixels: float


@dataclass(frozen=True)
class Progress:
    """One look at a stage.

    Attributes
    ----------
    done, failed, total
        Fields; ``failed`` counts those that were unusable before the start too, ``total`` not.
    ended
        Fields of ``total`` that need no more work.
    elapsed_s, left_s
        ``left_s`` is None until the first field has ended.
    whole, recent
        Rates since the start, and over the last minute.
    device_busy
        Fraction over the last minute; None where nobody told.
    in_flight, capacity
        Of the queue; ``capacity`` is 0 where nobody told.
    """

    stage: str
    done: int
    failed: int
    ended: int
    total: int
    elapsed_s: float
    left_s: float | None
    whole: Rate
    recent: Rate
    device_busy: float | None
    in_flight: int
    capacity: int


class Pace:
    """Counts what the events of one stage say; ``clock`` gives seconds."""

    def __init__(self, event: StageStarted, clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()
        self._stage, self._total = event.stage, event.total
        self._unusable = event.unusable
        self._done = self._failed = self._pixels = 0
        self._lately: deque[tuple[int, int, int]] = deque()  # second, fields, pixels
        self._busy: deque[tuple[float, float]] = deque()  # time, fraction
        self._in_flight = self._capacity = 0

    def done(self, pixels: int) -> None:
        """One field is done."""
        self._done += 1
        self._pixels += pixels
        second, fields = int(self._clock()), 0
        if self._lately and self._lately[-1][0] == second:
            _, fields, before = self._lately.pop()
            pixels += before
        self._lately.append((second, fields + 1, pixels))
        while self._lately[0][0] <= second - RECENT_S:
            self._lately.popleft()

    def failed(self) -> None:
        """One field has failed; the first ones are those that were unusable before the start."""
        self._failed += 1

    def beat(self, event: Beat) -> None:
        """The queue and the device, about once a second."""
        now = self._clock()
        self._in_flight, self._capacity = event.in_flight, event.capacity
        if event.device_busy is not None:
            self._busy.append((now, event.device_busy))
        while self._busy and self._busy[0][0] <= now - RECENT_S:
            self._busy.popleft()

    def look(self) -> Progress:
        """Where the stage stands now."""
        now = self._clock()
        elapsed = now - self._began
        ended = self._done + max(0, self._failed - self._unusable)
        lately = [one for one in self._lately if one[0] > now - RECENT_S]
        return Progress(
            stage=self._stage,
            done=self._done,
            failed=self._failed,
            ended=ended,
            total=self._total,
            elapsed_s=elapsed,
            left_s=max(0, self._total - ended) * elapsed / ended if ended else None,
            whole=_rate(self._done, self._pixels, elapsed),
            recent=_rate(
                sum(fields for _, fields, _ in lately),
                sum(pixels for _, _, pixels in lately),
                min(elapsed, RECENT_S),
            ),
            device_busy=_mean([fraction for _, fraction in self._busy]),
            in_flight=self._in_flight,
            capacity=self._capacity,
        )


def _rate(fields: int, pixels: int, seconds: float) -> Rate:
    return Rate(fields / seconds, pixels / seconds / 1e6) if seconds > 0 else Rate(0.0, 0.0)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(59.4), duration(90), duration(5400), duration(36 * 3600), duration(72 * 3600)
    ('59 s', '1.5 min', '90.0 min', '36.0 h', '3.0 days')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def size(count: int) -> str:
    """Return a number of bytes for people.

    >>> size(3 * 2**20)
    '3.0 MiB'
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.1f} {unit}" if unit != "B" else f"{count} B"
        value /= 1024
    return f"{value:.1f} GiB"


def one_line(text: str) -> str:
    r"""Return text that cannot move a terminal's cursor: what is not printable is escaped.

    >>> one_line("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )
