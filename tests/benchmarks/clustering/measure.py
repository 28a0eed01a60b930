"""CPU seconds and peak memory of a call, in the process that runs it."""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

_Result = TypeVar("_Result")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RUNS, _ENOUGH_S, _TOO_LONG_S = 3, 0.3, 10.0


@dataclass(frozen=True)
class Cost:
    """Median CPU seconds of a call, and the most memory it held at once beyond what was there.

    ``extra_bytes`` is NaN where the system does not tell it (all but Linux).
    """

    cpu_s: float
    extra_bytes: float


def cost(
    work: Callable[[], _Result], warm_up: Callable[[], object] | None = None
) -> tuple[Cost, _Result]:
    """Cost and result of a call, after a run of ``warm_up`` (by default the call itself).

    The first run is for memory and the rest for time: at least 3 and 0.3 s, but none is begun
    after 10 s.
    """
    (warm_up or work)()
    _begin_peak()
    before = _memory("VmRSS")
    seconds, result = _timed(work)
    extra = _memory("VmHWM") - before
    runs: list[float] = []
    while (len(runs) < _RUNS or sum(runs) < _ENOUGH_S) and seconds + sum(runs) < _TOO_LONG_S:
        runs.append(_timed(work)[0])
    return Cost(float(np.median(runs or [seconds])), max(extra, 0.0)), result


def process() -> ProcessPoolExecutor:
    """A fresh process that stays until it is shut down, for one contender."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _timed(work: Callable[[], _Result]) -> tuple[float, _Result]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _begin_peak() -> None:
    """Give unused heap back, so that a run must ask for it anew, and forget the old peak."""
    gc.collect()
    if _CLEAR.exists():
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")


def _memory(entry: str) -> float:
    """Resident bytes now (VmRSS), or the most since the last reset (VmHWM)."""
    if _CLEAR.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(entry):
                return 1024.0 * int(line.split()[1])
    return math.nan
