"""The log of JSON lines: whole lines, appended, and a full disk that stops the log alone."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cellseg_cli.cli.log_json import json_log
from cellseg_cli.cli.screen import screen
from cellseg_cli.errors import ConfigError
from cellseg_cli.pipeline.events import (
    Beat,
    Dashboard,
    Event,
    Failure,
    FieldDone,
    FieldFailed,
    Noted,
    StageFinished,
    StagePlanned,
    StageStarted,
    Summary,
)
from cellseg_cli.pipeline.lines import LineFile, read_lines

FULL = Path("/dev/full")  # every write to it finds no space
BAD = Failure("a", "is empty", "Traceback")


def ticking() -> Callable[[], datetime]:
    """A quarter of a second later at every call."""
    start, count = datetime(2026, 3, 1, 9, 30, tzinfo=UTC), itertools.count()
    return lambda: start + timedelta(milliseconds=250 * next(count))


def test_every_event(tmp_path: Path) -> None:
    events: list[Event] = [
        StagePlanned("embed", "e.zarr", 3, 2, 0, (Failure("x", "bad"),), 100, 200, False, 5),
        StageStarted("embed", 2, 0, 4, "cpu", 1, "4 threads"),
        Dashboard("embed", "http://h:8787"),
        Noted("embed", "fünf"),
        Beat("embed", 1, 4, 0.5),
        FieldDone("embed", "b", 0.5, 12, None),
        FieldFailed("embed", BAD),
        StageFinished(Summary("embed", 1, 0, (BAD,), 2.5), "r.json", 12, 0.25),
    ]
    with json_log(tmp_path / "new" / "log.jsonl", now=ticking()) as emit:
        for event in events:
            emit(event)
    lines = (tmp_path / "new" / "log.jsonl").read_text("ascii").splitlines()
    expected = [
        '{"time": "2026-03-01T09:30:00.000Z", "event": "stage_planned", "stage": "embed", '
        '"store": "e.zarr", "fields": 3, "to_do": 2, "skipped": 0, '
        '"unusable": [{"field_id": "x", "reason": "bad", "traceback": null}], '
        '"bytes_to_write": 100, "free_bytes": 200, "dry_run": false, "tiles": 5, '
        '"bytes_per_worker": null, "bytes_total": null, "memory_bytes": null, '
        '"memory_by": null, "seconds_estimated": null, "plates": 0, "wells": 0}',
        '{"time": "2026-03-01T09:30:00.250Z", "event": "stage_started", "stage": "embed", '
        '"total": 2, "skipped": 0, "workers": 4, "device": "cpu", "unusable": 1, '
        '"carried": "4 threads"}',
        '{"time": "2026-03-01T09:30:00.500Z", "event": "dashboard", "stage": "embed", '
        '"address": "http://h:8787"}',
        '{"time": "2026-03-01T09:30:00.750Z", "event": "noted", "stage": "embed", '
        '"text": "f\\u00fcnf"}',
        '{"time": "2026-03-01T09:30:01.000Z", "event": "beat", "stage": "embed", '
        '"in_flight": 1, "capacity": 4, "device_busy": 0.5}',
        '{"time": "2026-03-01T09:30:01.250Z", "event": "field_done", "stage": "embed", '
        '"field_id": "b", "seconds": 0.5, "pixels": 12, "instances": null}',
        '{"time": "2026-03-01T09:30:01.500Z", "event": "field_failed", "stage": "embed", '
        '"field_id": "a", "reason": "is empty", "traceback": "Traceback"}',
        '{"time": "2026-03-01T09:30:01.750Z", "event": "stage_finished", "stage": "embed", '
        '"done": 1, "skipped": 0, "failed": 1, "seconds": 2.5, "planned": 0, '
        '"record": "r.json", "pixels": 12, "device_busy": 0.25}',
    ]
    assert lines == expected


def test_lines_are_there_at_once_and_a_second_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for run in (1, 2):
        with json_log(path) as emit:
            emit(Noted("embed", f"run {run}"))
            assert [one["text"] for one in read_lines(path)] == ["run 1", "run 2"][:run]


def test_the_time_is_now_in_utc(tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    with json_log(tmp_path / "log") as emit:
        emit(Noted("embed", "x"))
    (told,) = read_lines(tmp_path / "log")
    assert before <= datetime.fromisoformat(told["time"]) <= datetime.now(UTC)


def test_names_that_are_no_text_can_be_logged(tmp_path: Path) -> None:
    """A file name of bytes that are not UTF-8, as Python gives it."""
    name = os.fsdecode(b"caf\xe9")
    with json_log(tmp_path / "log") as emit:
        emit(FieldDone("embed", name, 1.0, 1))
    assert [one["field_id"] for one in read_lines(tmp_path / "log")] == [name]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_log_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with screen(log_json=FULL) as emit:
        for number in range(3):
            emit(Noted("embed", f"{number}"))
    assert capsys.readouterr().err.splitlines() == [
        "embed: 0",
        "cellseg: /dev/full: No space left on device; nothing more is logged there",
        "embed: 1",
        "embed: 2",
    ]


def test_a_log_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path, "Is a directory"),
        (tmp_path / "file" / "log", "File exists"),
    ):
        with pytest.raises(ConfigError) as caught, screen(log_json=path):
            pass
        assert str(caught.value) == (
            f"the log {path} cannot be written: {why}; choose another --log-json"
        )


def test_the_screen_draws_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with screen(log_json=tmp_path / "log") as emit:
        emit(Noted("embed", "told"))
    assert capsys.readouterr().err == "embed: told\n"
    assert [one["text"] for one in read_lines(tmp_path / "log")] == ["told"]


def test_stderr_carries_the_log_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with screen(log_json=Path("-")) as emit:
        emit(StageStarted("embed", 2, 0, 4))
        emit(FieldFailed("embed", BAD))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["event"] for one in lines] == ["stage_started", "field_failed"]


def test_a_closed_stderr_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    closed = io.StringIO()
    closed.close()
    with monkeypatch.context() as patch, screen(log_json=Path("-")) as emit:
        patch.setattr(sys, "stderr", closed)
        emit(Noted("embed", "x"))
        emit(Noted("embed", "y"))


# --------------------------------------------------------------------- the lines


def test_half_a_line_is_left_alone_and_out(tmp_path: Path) -> None:
    """What a kill has left: the next run begins a line of its own."""
    path = tmp_path / "log"
    path.write_text('{"a": 1}\n{"a": 2')
    assert list(read_lines(path)) == [{"a": 1}]
    lines = LineFile(path)
    lines.append({"a": 3})
    lines.append({"a": 4})
    lines.close()
    assert path.read_text() == '{"a": 1}\n{"a": 2\n{"a": 3}\n{"a": 4}\n'


@pytest.mark.skipif(sys.platform == "win32", reason="limits are those of Unix")
def test_a_line_that_fits_in_half_is_taken_away(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk: 10 bytes of the line still fit."""
    import resource
    import signal

    path = tmp_path / "log"
    lines = LineFile(path)
    lines.append({"a": 1})
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        with pytest.raises(OSError, match="No space left on device"):
            lines.append({"a": "longer than what is left"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    lines.append({"a": 2})
    lines.close()
    assert list(read_lines(path)) == [{"a": 1}, {"a": 2}]
