"""Bounded in flight, failures that stay with their field, and ends that lose nothing."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.config import RunSettings
from cellseg_cli.engine.tasks import FieldWork, Outcome, Produced, Stop, thread_count
from cellseg_cli.engine.threads import WINDOW, run_fields
from cellseg_cli.errors import ConfigError, ExitCode, InputError, StoreWriteError
from cellseg_cli.pipeline.events import Failure, Summary
from cellseg_cli.pipeline.plan import of_part
from cellseg_cli.store import FieldRow


def jobs(count: int) -> list[tuple[FieldRow, str]]:
    return [(FieldRow(f"f{index:04}", "/nowhere"), "print") for index in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_every_field_once_and_never_more_than_threads(threads: int) -> None:
    """More than two windows, so that their borders are crossed."""
    lock = threading.Lock()
    running = most = 0

    def work(row: FieldRow, mark: str, stop: Stop) -> Produced:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.0005)
        with lock:
            running -= 1
        return Produced(pixels=1)

    seen: list[Outcome] = []
    todo = jobs(2 * WINDOW * threads + 1)
    run_fields(todo, FieldWork(work), threads, seen.append)
    assert sorted(outcome.field_id for outcome in seen) == [row.id for row, _ in todo]
    assert most <= threads


def test_a_failing_field_is_an_outcome() -> None:
    def work(row: FieldRow, mark: str, stop: Stop) -> Produced:
        if row.id == "f0001":
            raise InputError("too dark\nand more")
        if row.id == "f0002":
            raise ZeroDivisionError("a bug")
        if row.id == "f0003":
            raise MemoryError
        return Produced(pixels=7)

    seen: list[Outcome] = []
    run_fields(jobs(5), FieldWork(work), 2, seen.append)
    reasons = {one.field_id: one.failure.reason for one in seen if one.failure}
    assert reasons == {
        "f0001": "too dark",
        "f0002": "ZeroDivisionError: a bug",
        "f0003": "MemoryError",
    }
    (bug,) = [one.failure for one in seen if one.field_id == "f0002"]
    assert bug and bug.traceback and 'raise ZeroDivisionError("a bug")' in bug.traceback


@pytest.mark.parametrize("threads", [1, 4])
def test_a_full_disk_ends_the_run_once(threads: int) -> None:
    """The other fields are not failed one after another, and what ended is reported."""
    begun = []

    def work(row: FieldRow, mark: str, stop: Stop) -> Produced:
        begun.append(row.id)
        if len(begun) == 5:
            raise StoreWriteError("full")
        time.sleep(0.002)
        stop.check()
        return Produced(pixels=1)

    seen: list[Outcome] = []
    with pytest.raises(StoreWriteError, match=r"^full$"):
        run_fields(jobs(200), FieldWork(work), threads, seen.append)
    assert len(begun) < 5 + 2 * threads
    assert all(outcome.produced for outcome in seen)
    assert 4 - threads < len(seen) < len(begun)


def test_an_interrupt_keeps_what_has_ended() -> None:
    finished = []

    def work(row: FieldRow, mark: str, stop: Stop) -> Produced:
        finished.append(row.id)
        return Produced(pixels=1)

    seen: list[Outcome] = []

    def interrupt_after_three(outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fields(jobs(100), FieldWork(work), 2, interrupt_after_three)
    assert sorted(finished) == sorted(outcome.field_id for outcome in seen)
    assert len(finished) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("field")]


def test_thread_count() -> None:
    assert thread_count(3) == 3
    assert thread_count(RunSettings().threads) >= 1


@given(count=st.integers(0, 50), parts=st.integers(1, 9))
@settings(deadline=None, max_examples=50)
def test_parts_cover_every_field_once(count: int, parts: int) -> None:
    items = list(range(count))
    taken = [of_part(items, f"{index}/{parts}") for index in range(1, parts + 1)]
    assert sorted(item for part in taken for item in part) == items
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "a/b", "1/0"])
def test_parts_that_are_none(part: str) -> None:
    with pytest.raises(ConfigError, match=r"^--part "):
        of_part([1, 2], part)


@pytest.mark.parametrize(
    ("done", "skipped", "failed", "code"),
    [
        (0, 0, 0, ExitCode.DONE),
        (3, 0, 0, ExitCode.DONE),
        (0, 3, 0, ExitCode.DONE),
        (1, 0, 2, ExitCode.SOME_FAILED),
        (0, 1, 2, ExitCode.SOME_FAILED),
        (0, 0, 2, ExitCode.NOTHING_DONE),
    ],
)
def test_exit_codes(done: int, skipped: int, failed: int, code: ExitCode) -> None:
    failures = tuple(Failure(str(index), "bad") for index in range(failed))
    assert Summary("embed", done, skipped, failures, 0.0).exit_code is code
