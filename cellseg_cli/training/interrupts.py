"""Ctrl-C and SIGTERM, held back until a step is whole: then its state can be kept.

An exception in the middle of a step would leave weights, moments and averages of two different
steps.  Whoever asks twice is not held back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back(*, holds: bool = True) -> Iterator[Callable[[], bool]]:
    """Give what tells whether an interrupt has been asked for since the statement began.

    Only the main thread of a process hears signals; elsewhere, and without `holds`, nothing is
    held back.
    """
    if not holds or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    asked = threading.Event()

    def hold(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    # what is ignored (nohup), or heard by something that is not Python, stays so
    heard = [number for number, handler in before.items() if callable(handler)]
    try:
        for number in heard:
            signal.signal(number, hold)
        yield asked.is_set
    finally:
        for number in heard:
            signal.signal(number, before[number])
