"""Batches made ahead: all of them, in order, on as many threads as there are cores to spare."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cellseg_cli.training import ahead
from cellseg_cli.training.ahead import prepared, threads_ahead


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_batches_come_in_order_however_long_each_takes(threads: int) -> None:
    """The first batch waits until the last of those that may be made beside it has begun."""
    begun = threading.Semaphore(0)

    def make(step: int) -> int:
        begun.release()
        if step == 3 and threads > 1:
            for _ in range(threads):
                assert begun.acquire(timeout=60)
        return step * step

    assert list(prepared(make, 3, 30, threads)) == [(step, step * step) for step in range(3, 30)]


def test_no_more_are_asked_for_than_one_for_each_thread_and_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, make: Any, /, step: int) -> Any:  # type: ignore[override]
            asked.append(step)
            return super().submit(make, step)

    monkeypatch.setattr(ahead, "ThreadPoolExecutor", Counting)
    batches = prepared(lambda step: step, 10, 100, 3)
    for step in range(10, 14):
        assert next(batches) == (step, step)
        assert asked == list(range(10, step + 5))
    batches.close()


@pytest.mark.parametrize(
    ("cores", "device", "processes", "threads"),
    [
        (16, "cpu", 1, 2),
        (1, "cpu", 1, 2),
        (16, "cuda", 1, 15),
        (16, "cuda", 4, 3),
        (64, "cuda", 1, 16),
        (1, "cuda", 8, 2),
    ],
)
def test_threads_of_a_device(
    cores: int, device: str, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "granted_cores", lambda: cores)
    assert threads_ahead(device, processes) == threads
