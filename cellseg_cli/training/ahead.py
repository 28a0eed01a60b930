"""Batches that are made on threads, a few steps before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

#: Batches prepared ahead of the step that needs them.
PREFETCH = 3

Made = TypeVar("Made")


def prepared(make: Callable[[int], Made], first: int, last: int) -> Iterator[tuple[int, Made]]:
    """Yield (step, ``make(step)``) for the steps from `first` to before `last`, in order.

    An error in ``make`` is raised when its step is reached.

    >>> list(prepared(lambda step: step * step, 2, 5))
    [(2, 4), (3, 9), (4, 16)]
    """
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="batches") as pool:
        waiting: list[Future[Made]] = [
            pool.submit(make, step) for step in range(first, min(first + PREFETCH, last))
        ]
        try:
            for step in range(first, last):
                made = waiting.pop(0).result()
                if step + PREFETCH < last:
                    waiting.append(pool.submit(make, step + PREFETCH))
                yield step, made
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
