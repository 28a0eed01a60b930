"""What is drawn: whole lines, from events and a clock that the tests hold in their hands."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cellseg_cli.cli.live import LiveView
from cellseg_cli.cli.pace import Pace, Rate
from cellseg_cli.cli.screen import Drawing, screen
from cellseg_cli.pipeline.events import (
    Beat,
    Dashboard,
    Emit,
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


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


START = StageStarted("embed", 100, 3, 2, "cpu")
BAD = FieldFailed("embed", Failure("A/f0", "empty.tif: is empty (0 bytes)", "Traceback: ..."))
END = StageFinished(
    Summary("embed", 2000, 0, (), 812.3), "emb.zarr/r.json", pixels=732_160_000, device_busy=0.934
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def done(number: int, pixels: int = 500_000) -> FieldDone:
    return FieldDone("embed", f"f{number}", 1.25, pixels)


def work(emit: Emit, clock: Clock, *, fields: int, seconds_each: float) -> None:
    for number in range(fields):
        clock.now += seconds_each
        emit(done(number))


# ------------------------------------------------------------------- lines


def test_a_line_every_15_s(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seconds a field: the eighth ends 16 s after the start, the sixteenth 16 s later."""
    with screen(clock=clock) as emit:
        emit(START)
        work(emit, clock, fields=17, seconds_each=2.0)
    assert capsys.readouterr().err.splitlines() == [
        "embed: 100 fields, 3 done before, 2 threads on cpu",
        # 92 fields are left, 2 s each
        "embed: 8 of 100 fields, 0 failed, 0.50 fields/s, 0.25 MP/s, 3.1 min left",
        "embed: 16 of 100 fields, 0 failed, 0.50 fields/s, 0.25 MP/s, 2.8 min left",
    ]


def test_lines_say_how_busy_the_run_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Beats count as events, and a line needs no field to end; the device is a mean."""
    with screen(clock=clock) as emit:
        emit(StageStarted("embed", 100, 0, 2, "cuda:0", carried="2 processes of 4 threads"))
        emit(Dashboard("embed", "http://127.0.0.1:8787/status"))
        clock.now += 10
        emit(Beat("embed", 2, 6, 0.8))
        clock.now += 10
        emit(Beat("embed", 5, 6, 1.0))
    assert capsys.readouterr().err.splitlines() == [
        "embed: 100 fields, 2 processes of 4 threads on cuda:0",
        "embed: dashboard at http://127.0.0.1:8787/status",
        "embed: 0 of 100 fields, 0 failed, 0.00 fields/s, 0.00 MP/s, device busy 90 %, "
        "queue 5 of 6",
    ]


def test_the_end_says_how_fast_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with screen() as emit:
        emit(END)
    # 2000 / 812.3 = 2.462; 732.16 / 812.3 = 0.9013
    assert capsys.readouterr().err == (
        "embed: 2000 done, 0 done before, 0 failed in 812.3 s; 2.46 fields/s, 0.90 MP/s, "
        "device busy 93 %; record: emb.zarr/r.json\n"
    )


def test_the_end_says_no_more_than_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with screen() as emit:
        emit(StageFinished(Summary("export", 1, 0, (BAD.failure,), 0.25)))
        emit(StageFinished(Summary("embed", 0, 7, (), 0.01), "r.json"))
        emit(StageFinished(Summary("cluster", 2, 0, (), 0.5), "r.json", pixels=10**6))
    assert capsys.readouterr().err.splitlines() == [
        "export: 1 done, 0 done before, 1 failed in 0.2 s",
        "embed: 0 done, 7 done before, 0 failed in 0.0 s; record: r.json",
        "cluster: 2 done, 0 done before, 0 failed in 0.5 s; 4.00 fields/s, 2.00 MP/s; "
        "record: r.json",
    ]


def test_failures_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    with screen() as emit:
        emit(BAD)
        emit(FieldFailed("embed", Failure("b\x1b[2J\nc", "bad")))
        emit(Noted("embed", "something to know"))
    assert capsys.readouterr().err.splitlines() == [
        "cellseg: A/f0: empty.tif: is empty (0 bytes)",
        r"cellseg: b\x1b[2J\nc: bad",
        "embed: something to know",
    ]


def test_quiet_draws_failures_only(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with screen(quiet=True, clock=clock) as emit:
        for event in (START, Noted("embed", "x"), Dashboard("embed", "http://h"), BAD):
            emit(event)
        work(emit, clock, fields=9, seconds_each=10)
        emit(Beat("embed", 1, 2))
        emit(END)
    assert capsys.readouterr().err == "cellseg: A/f0: empty.tif: is empty (0 bytes)\n"


def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    plan = StagePlanned("embed", "emb.zarr", 9, 4, 3, (BAD.failure,) * 2, 3 << 20, 5 << 30, False)
    with screen(verbose=2) as emit:
        emit(plan)
        emit(done(1))
        emit(FieldDone("cluster", "f1", 0.5, 1, instances=12))
        emit(BAD)
    assert capsys.readouterr().err.splitlines() == [
        "embed: 9 fields, 4 to do, 3 done before, 2 unusable; at most 3.0 MiB to write into "
        "emb.zarr, 5.0 GiB free",
        "embed f1: 1.25 s",
        "cluster f1: 0.50 s, 12 instances",
        "cellseg: A/f0: empty.tif: is empty (0 bytes)",
        "Traceback: ...",
    ]


def test_a_dry_run_names_what_is_unusable(capsys: pytest.CaptureFixture[str]) -> None:
    with screen() as emit:
        emit(StagePlanned("embed", "e.zarr", 1, 0, 0, (BAD.failure,), 100, 200, True))
    assert capsys.readouterr().err.splitlines() == [
        "embed: 1 fields, 0 to do, 0 done before, 1 unusable; at most 100 B to write into "
        "e.zarr, 200 B free",
        "A/f0: empty.tif: is empty (0 bytes)",
    ]


def test_a_plan_says_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    plan = StagePlanned("embed", "e.zarr", 9, 9, 0, (), 100, 200, True)
    first = "embed: 9 fields, 9 to do, 0 done before, 0 unusable; at most 100 B to write into "
    first += "e.zarr, 200 B free"
    full = replace(plan, tiles=12, bytes_per_worker=10**9, bytes_total=25 * 10**8)
    full = replace(full, memory_bytes=8 * 10**9, memory_by="--memory", plates=1, wells=96)
    with screen() as emit:
        emit(plan)
        emit(replace(plan, tiles=1, bytes_per_worker=10**9))
        emit(replace(full, seconds_estimated=600.0))
    assert capsys.readouterr().err.splitlines() == [
        first,
        first,
        "embed: 1 tile; at most 1 GB of memory in each process",
        first,
        "embed: 1 plate with 96 wells; 12 tiles; at most 1 GB of memory in each process, "
        "2.5 GB in all; --memory grants 8 GB; about 10.0 min",
    ]


# -------------------------------------------------------------------- rates


def test_rates_of_the_last_minute(clock: Clock) -> None:
    """A slow beginning: 10 fields in 100 s, then one field a second for 60 s."""
    pace = Pace(StageStarted("embed", 1000, 0, 1), clock)
    for _ in range(10):
        clock.now += 10
        pace.done(1_000_000)
    assert pace.look().recent == Rate(6 / 60, 6 / 60)
    for _ in range(60):
        clock.now += 1
        pace.done(2_000_000)
    now = pace.look()
    assert (now.done, now.elapsed_s) == (70, 160.0)
    assert now.whole == Rate(70 / 160, 130 / 160)
    assert now.recent == Rate(1.0, 2.0)
    assert now.left_s == 930 * 160 / 70
    clock.now += 1000
    assert pace.look().recent == Rate(0.0, 0.0)


def test_failures_end_fields_unless_they_were_unusable_before(clock: Clock) -> None:
    pace = Pace(StageStarted("embed", 10, 0, 1, unusable=2), clock)
    assert pace.look().left_s is None
    for _ in range(3):
        pace.failed()
    pace.done(10)
    clock.now += 6
    now = pace.look()
    assert (now.done, now.failed, now.ended, now.left_s) == (1, 3, 2, 24.0)


def test_counting_takes_no_more_memory_with_more_fields(clock: Clock) -> None:
    pace = Pace(StageStarted("embed", 10**6, 0, 1), clock)
    for _ in range(100_000):
        clock.now += 0.01
        pace.done(1)
    assert len(pace._lately) <= 61
    assert pace.look().recent.fields == pytest.approx(100, rel=0.02)


# ----------------------------------------------------------------- the live view


def terminal(width: int) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, color_system=None, width=width), file


@pytest.fixture
def view(clock: Clock) -> Iterator[LiveView]:
    """On a terminal of 80 columns."""
    live = LiveView(terminal(80)[0], clock)
    yield live
    live.stop()


def picture(view: LiveView, width: int = 80) -> list[str]:
    """What the view shows on a terminal of that width."""
    console, file = terminal(width)
    console.print(view)
    return file.getvalue().splitlines()


def test_the_view(view: LiveView, clock: Clock) -> None:
    emit = Drawing(view).emit
    emit(START)
    work(emit, clock, fields=20, seconds_each=2.0)
    assert picture(view) == [
        # 60 columns, less 11 (name), 9 (percentage) and 16 (count): a bar of 24
        "embed      ━━━━────────────────────   20 %  20 of 100 fields",
        "speed      0.50 fields/s, 0.25 MP/s",
        "time       40 s, 2.7 min left",
    ]
    work(emit, clock, fields=30, seconds_each=1.0)
    emit(Beat("embed", 4, 6, 0.93))
    emit(Dashboard("embed", "http://127.0.0.1:8787/status"))
    emit(BAD)
    assert picture(view) == [
        "embed      ━━━━━━━───────   51 %  50 of 100 fields, 1 failed",
        "speed      0.71 fields/s, 0.36 MP/s",
        # the second half of the first 20, those of seconds 10 to 40, and all 30 of the rest
        "lately     0.75 fields/s, 0.38 MP/s in the last minute",
        "time       1.2 min, 1.1 min left",
        "busy       device 93 %, 4 of 6 in flight",
        "dashboard  http://127.0.0.1:8787/status",
        "failed     A/f0: empty.tif: is empty (0 bytes)",
    ]


def test_the_view_keeps_the_last_three_failures_of_its_stage(view: LiveView) -> None:
    emit = Drawing(view).emit
    emit(START)
    for number in range(5):
        emit(FieldFailed("embed", Failure(f"[red]{number}", "line\nbreak")))
    assert picture(view)[3:] == [rf"failed     [red]{n}: line\nbreak" for n in (2, 3, 4)]
    emit(StageStarted("cluster", 4, 0, 2))
    assert [line.split()[0] for line in picture(view)] == ["cluster", "speed", "time"]


def test_narrow_terminals_cut_lines(view: LiveView, clock: Clock) -> None:
    emit = Drawing(view).emit
    emit(START)
    clock.now += 90
    emit(FieldFailed("embed", Failure("A/very/long/name/of/a/field", "a reason that is long too")))
    for width in (60, 40, 20):
        assert all(len(line) <= width for line in picture(view, width))
    assert picture(view, 40) == [
        "embed          1 %  0 of 100 fields, 1 …",
        "speed      0.00 fields/s, 0.00 MP/s",
        "lately     0.00 fields/s, 0.00 MP/s in …",
        "time       1.5 min, 2.5 h left",
        "failed     A/very/long/name/of/a/field:…",
    ]


def test_a_wide_terminal_is_not_filled(view: LiveView) -> None:
    """So that one that is made narrower wraps no line."""
    Drawing(view).emit(START)
    assert max(len(line) for line in picture(view, 200)) == 60


def test_plain_characters_where_the_terminal_has_no_others(view: LiveView) -> None:
    Drawing(view).emit(START)
    view.done(1)
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, force_terminal=True, color_system=None, width=80)
    with console.capture() as capture:
        console.print(view)
    first = capture.get().splitlines()[0]
    assert first == "embed      -------------------------    1 %  1 of 100 fields"


def test_failures_stay_above_the_view_and_the_view_goes(clock: Clock) -> None:
    console, file = terminal(80)
    view = LiveView(console, clock)
    emit = Drawing(view).emit
    emit(START)
    emit(BAD)
    emit(END)
    kept = screen_after(file.getvalue())
    assert kept == [
        "embed: 100 fields, 3 done before, 2 threads on cpu",
        "cellseg: A/f0: empty.tif: is empty (0 bytes)",
        "embed: 2000 done, 0 done before, 0 failed in 812.3 s; 2.46 fields/s, 0.90 MP/s, "
        "device busy 93 %; record: emb.zarr/r.json",
    ]
    view.stop()  # again does no harm


def screen_after(written: str) -> list[str]:
    """The lines that are left on a terminal of any width: ``written`` moves up and erases."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[\??\d+[a-zA-Z]|\r|\n)", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line for line in lines if line]


# ------------------------------------------------------------------ which of them

_TTY = """
import sys
from cellseg_cli.cli.screen import screen
from cellseg_cli.pipeline.events import FieldDone, StageStarted
with screen() as emit:
    emit(StageStarted("embed", 2, 0, 1))
    emit(FieldDone("embed", "a", 1.0, 5))
    print("result")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
@pytest.mark.parametrize(
    ("environment", "drawn"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_on_a_terminal(environment: dict[str, str], drawn: bool) -> None:
    import os
    import pty

    ours, theirs = pty.openpty()
    child = subprocess.run(
        [sys.executable, "-c", _TTY],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=True,
        text=True,
    )
    os.close(theirs)
    told = os.read(ours, 1 << 16).decode().replace("\r\n", "\n")
    os.close(ours)
    assert child.stdout == "result\n"
    assert told.startswith("embed: 2 fields, 1 thread\n")
    assert ("\x1b[?25l" in told) is drawn  # the cursor is hidden,
    assert told.count("\x1b[?25h") == drawn  # and comes back
    assert screen_after(told) == ["embed: 2 fields, 1 thread"]
    if "NO_COLOR" in environment:
        assert "\x1b[3" not in told  # no colour


def test_every_event_can_be_drawn(clock: Clock, view: LiveView) -> None:
    events: tuple[Event, ...] = (
        *(START, BAD, END, done(1), Noted("embed", "x"), Beat("embed", 0, 0)),
        *(Dashboard("embed", "a"), StageFinished(Summary("e", 0, 0, (), 0.0), None, 5, None)),
        StagePlanned("embed", "s", 0, 0, 0, (), 0, 0, True),
    )
    with screen(clock=clock) as emit:
        for event in events:
            emit(event)
            Drawing(view).emit(event)
