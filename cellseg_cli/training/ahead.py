"""Batches that are made on threads, a few steps before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cellseg_cli.cores import granted_cores

#: Threads that make batches for a CPU, which has the cores to do with itself, and the most for an
#: accelerator.
CPU_THREADS, MOST_THREADS = 2, 16

Made = TypeVar("Made")


def threads_ahead(device: str, processes: int = 1) -> int:
    """Return how many threads make batches for a `device` (``cpu``, ``cuda``).

    For an accelerator all granted cores but one, at least :data:`CPU_THREADS` and at most
    :data:`MOST_THREADS`, shared among the `processes` that they are granted to.
    """
    if device == "cpu":
        return CPU_THREADS
    cores = granted_cores() // max(processes, 1)
    return min(max(cores - 1, CPU_THREADS), MOST_THREADS)


def prepared(
    make: Callable[[int], Made], first: int, last: int, threads: int = CPU_THREADS
) -> Iterator[tuple[int, Made]]:
    """Yield (step, ``make(step)``) for the steps from `first` to before `last`, in order.

    They are made on `threads` threads, at most one more batch than threads ahead.  An error in
    ``make`` is raised when its step is reached.

    >>> list(prepared(lambda step: step * step, 2, 5))
    [(2, 4), (3, 9), (4, 16)]
    """
    ahead = threads + 1
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="batches") as pool:
        waiting: list[Future[Made]] = [
            pool.submit(make, step) for step in range(first, min(first + ahead, last))
        ]
        try:
            for step in range(first, last):
                made = waiting.pop(0).result()
                if step + ahead < last:
                    waiting.append(pool.submit(make, step + ahead))
                yield step, made
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
