"""Cores of this process that fields share: tiles of a field side by side where others leave room.

On the CPU a pass takes one tile and one core.  A field of one tile is passed by the thread that
brings it.  The tiles of a larger field go to threads of their own, so that a field that is alone
has all cores.  There are never more passes at a time than cores, whoever brings them, which
bounds their memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Crew:
    """As many calls at a time as there are cores.

    Parameters
    ----------
    cores
        At least 1.
    """

    def __init__(self, cores: int) -> None:
        self._free = threading.Semaphore(cores)
        self._threads = ThreadPoolExecutor(cores, thread_name_prefix="tile")

    def here(self, work: Callable[[], Result]) -> Result:
        """Wait for a core and do the work on the calling thread."""
        with self._free:
            return work()

    def there(self, work: Callable[[], Result]) -> Future[Result]:
        """Wait for a core and begin the work on a thread of the crew."""
        self._free.acquire()

        def and_leave() -> Result:
            try:
                return work()
            finally:
                self._free.release()

        try:
            return self._threads.submit(and_leave)
        except BaseException:  # no thread can be started, or Python is ending
            self._free.release()
            raise
