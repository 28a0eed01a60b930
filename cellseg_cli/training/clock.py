"""Where the time of a run goes, measured without slowing it.

A run is cut into laps, each of which ends with the name of the part that it was spent on; so
the parts add up to the wall time, and nothing is counted twice.  On CUDA a lap ends when the
device gets there: the marks are events in its stream, and nobody waits for them before they are
read.  While the device works on what it was given before, the host's own work costs nothing
there; only when the device runs dry do waiting for data and launching show.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

#: What a run spends its time on, in the order of a step.
STEP_PARTS = ("waiting", "copy", "forward", "loss", "backward", "optimiser")
PARTS = (*STEP_PARTS, "validation", "writing")


@dataclass
class Spent:
    """Seconds by part, and the crops that were learned from in them.

    Attributes
    ----------
    seconds
        By name out of :data:`PARTS`.  ``waiting`` is for data, ``copy`` from the host to the
        device with what is varied there, ``optimiser`` holds clipping and averaging too.
    crops
        Of all processes.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    crops: int = 0

    def add(self, other: Spent) -> None:
        """Count `other` in."""
        for part, seconds in other.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.crops += other.crops

    def crops_per_s(self) -> float:
        """Crops per second of the steps; validation and writing do not count.

        >>> Spent({"forward": 1.5, "backward": 2.5, "validation": 9.0}, crops=12).crops_per_s()
        3.0
        """
        seconds = sum(self.seconds.get(part, 0.0) for part in STEP_PARTS)
        return self.crops / seconds if seconds > 0 else 0.0

    def shares(self) -> dict[str, float]:
        """Part of the time that each part took, those that took none left out.

        >>> Spent({"forward": 1.0, "backward": 3.0}).shares()
        {'forward': 0.25, 'backward': 0.75}
        """
        total = sum(self.seconds.values())
        return {part: self.seconds[part] / total for part in PARTS if self.seconds.get(part)}

    def as_json(self) -> dict[str, object]:
        """Return what :meth:`from_json` reads."""
        return {"seconds": dict(self.seconds), "crops": self.crops}

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Spent:
        """Return what :meth:`as_json` wrote; nothing is spent where `content` is empty."""
        seconds, crops = content.get("seconds", {}), content.get("crops", 0)
        if not isinstance(seconds, dict) or not isinstance(crops, int):
            raise ValueError(f"{content!r} does not say what time was spent on")
        return cls({str(part): float(value) for part, value in seconds.items()}, crops)


class Clock:
    """Measures laps on one device, from when it is made on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self._last = self._now()

    def lap(self, part: str) -> None:
        """Count the time since the last lap to `part`."""
        assert part in PARTS, part
        self._marks.append((part, self._now()))

    def read(self) -> dict[str, float]:
        """Return the seconds of each part since the last reading; on CUDA waits for the device."""
        seconds: dict[str, float] = {}
        if self._marks and isinstance(last := self._marks[-1][1], torch.cuda.Event):
            last.synchronize()
        for part, mark in self._marks:
            seconds[part] = seconds.get(part, 0.0) + _between(self._last, mark)
            self._last = mark
        self._marks.clear()
        return seconds

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _between(first: float | torch.cuda.Event, second: float | torch.cuda.Event) -> float:
    if isinstance(first, torch.cuda.Event) and isinstance(second, torch.cuda.Event):
        return float(first.elapsed_time(second)) / 1000
    assert isinstance(first, float) and isinstance(second, float)
    return second - first
