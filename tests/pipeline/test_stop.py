"""Stopped in the middle of a run: what is done stays, and the same command resumes.

By the signal that batch systems send, by a disk that is full or read-only, by images that
vanish, and by a death that leaves no time for anything.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

FIELDS = 30
INTERRUPTED = "cellseg: interrupted; the same command resumes"
FULL = (
    "cellseg: {place} cannot be written: {reason}; make room or fix the permissions, then run "
    "the same command again: finished fields are kept"
)
PROGRESS = re.compile(r"\w+: \d+ of \d+ fields, ")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and mount")


@dataclass(frozen=True)
class Program:
    """The program on a folder of images, in child processes."""

    children: Any
    images: Path
    model: Path
    log: Path

    def begin(self, stage: str, out: Path, *more: str) -> Any:
        """Start it; in processes where ``--workers`` says so, else on one thread."""
        where = () if "--workers" in more else ("--threads", "1")
        chosen = ("--out", str(out), "--model", str(self.model), "--device", "cpu")
        arguments = (stage, str(self.images), *chosen, *where, *more)
        return self.children.start(self.children.program, self.log, *arguments)

    def end(self, process: Any) -> tuple[int, list[str]]:
        """Its exit code, and the lines that it told but those of progress."""
        code = self.children.end(process)
        told = self.log.read_text().splitlines()
        return code, [line for line in told if not PROGRESS.match(line)]

    def run(self, stage: str, out: Path, *more: str) -> tuple[int, list[str]]:
        """From beginning to end."""
        return self.end(self.begin(stage, out, *more))


def marked(stage: str, out: Path) -> list[Path]:
    """The marks of fields that are done."""
    name = "embed" if stage == "embed" else "cluster"
    return list(out.rglob(f"{name}.done.json"))


def wait_for_marks(process: Any, stage: str, out: Path, count: int = 3) -> None:
    deadline = time.monotonic() + 120
    while len(marked(stage, out)) < count:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)


def ends(out: Path) -> list[str | None]:
    """How each run ended, by its record."""
    records = sorted(out.rglob(".cellseg/runs/*[0-9].json"))
    return [json.loads(path.read_text())["ended"] for path in records]


def temporaries(out: Path) -> list[Path]:
    return list(out.rglob(".cellseg/tmp/*"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four discs on noise, over and over, so that a run lasts a second."""
    folder = tmp_path_factory.mktemp("stop") / "images"
    folder.mkdir()
    for index in range(FIELDS):
        image = np.random.default_rng(index % 4).integers(0, 40, (48, 64), dtype=np.uint8)
        cv2.circle(image, (20 + 5 * (index % 4), 24), 9, 220, -1)
        assert cv2.imwrite(str(folder / f"f{index:02}.png"), image)
    return folder


@pytest.fixture
def program(children: Any, images: Path, light_model: Path, tmp_path: Path) -> Program:
    return Program(children, images, light_model, tmp_path / "told")


@pytest.fixture(scope="module")
def undisturbed(
    children: Any, images: Path, light_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By stage, the output of a run without any trouble."""
    folder = tmp_path_factory.mktemp("undisturbed")
    program = Program(children, images, light_model, folder / "told")
    made = {}
    for stage in ("embed", "segment"):
        made[stage] = folder / f"{stage}{'.zarr' * (stage == 'embed')}"
        assert program.run(stage, made[stage])[0] == 0
    return made


Same = Callable[..., None]


def assert_resumes(program: Program, stage: str, out: Path, undisturbed: Path, same: Same) -> None:
    """The same command does what is missing and no more, and ends with what there should be."""
    same(out, undisturbed, so_far=True)
    there = len(marked(stage, out))
    code, told = program.run(stage, out)
    assert code == 0, told
    last = f"{stage}: {FIELDS - there} done, {there} done before, 0 failed in "
    assert told[-1].startswith(last)
    same(out, undisturbed)


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize("stage", ["embed", "segment"])
def test_the_signal_of_a_batch_system(
    stage: str, program: Program, undisturbed: dict[str, Path], same_results: Same, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = program.begin(stage, out)
    wait_for_marks(process, stage, out)
    os.kill(process.pid, signal.SIGTERM)
    code, told = program.end(process)
    assert (code, told[1:]) == (130, [INTERRUPTED])
    assert ends(out) == ["interrupted"]
    assert temporaries(out) == []
    assert_resumes(program, stage, out, undisturbed[stage], same_results)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_a_signal_to_all_processes(
    number: signal.Signals,
    program: Program,
    undisturbed: dict[str, Path],
    same_results: Same,
    tmp_path: Path,
) -> None:
    """From a batch system, or from a terminal: only the main process has something to say."""
    out = tmp_path / "out"
    process = program.begin("segment", out, "--workers", "2")
    wait_for_marks(process, "segment", out)
    started = program.children.below(process.pid)
    os.killpg(process.pid, number)
    code, told = program.end(process)
    assert (code, told[1:]) == (130, [INTERRUPTED])
    assert ends(out) == ["interrupted"]
    assert_gone(program, started)
    assert_resumes(program, "segment", out, undisturbed["segment"], same_results)


def test_no_worker_outlives_its_run(
    program: Program, undisturbed: dict[str, Path], same_results: Same, tmp_path: Path
) -> None:
    """Killed while workers start, and while they work."""
    out = tmp_path / "out"
    for count in (0, 3):
        process = program.begin("embed", out, "--workers", "2")
        while len(started := program.children.below(process.pid)) < 2:
            time.sleep(0.01)
        wait_for_marks(process, "embed", out, count)
        started = program.children.below(process.pid)
        process.kill()
        assert program.end(process)[0] == -signal.SIGKILL
        assert_gone(program, started)
    assert_resumes(program, "embed", out, undisturbed["embed"], same_results)


def assert_gone(program: Program, started: list[int]) -> None:
    """Processes end within seconds."""
    assert started
    deadline = time.monotonic() + 10
    while (left := program.children.alive(started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


# ------------------------------------------------------------------ disks


def mount(*arguments: str) -> None:
    """Mount something, or skip the test where that is not allowed."""
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[None]:
    """Something mounted at a place while the statement lasts."""
    place.mkdir(exist_ok=True)
    mount(*arguments, str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def assert_stopped(ended: tuple[int, list[str]], place: Path, reason: str) -> None:
    """By one line, of the folder or of the store of marks in it."""
    code, told = ended
    places = (place, place / ".cellseg/segment.zarr")
    assert code == 2
    assert told[1:] in [[FULL.format(place=one, reason=reason)] for one in places]


@pytest.mark.parametrize(
    ("stage", "size", "more"),
    [("embed", "400k", ()), ("segment", "160k", ()), ("segment", "160k", ("--workers", "2"))],
    ids=["embed", "segment", "workers"],
)
def test_a_full_disk(
    stage: str,
    size: str,
    more: tuple[str, ...],
    program: Program,
    undisturbed: dict[str, Path],
    same_results: Same,
    tmp_path: Path,
) -> None:
    """A file takes a page of 4 kB at least: six a field by ``embed``, two by ``segment``."""
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        out = disk / "out"
        ended = program.run(stage, out, *more)
        assert_stopped(ended, out, "No space left on device")
        assert 0 < len(marked(stage, out)) < FIELDS
        assert temporaries(out) == []
        mount("-o", "remount,size=100m", str(disk))
        assert_resumes(program, stage, out, undisturbed[stage], same_results)


def test_a_disk_without_room_for_the_plan(program: Program, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=4k", "tmpfs"):
        code, told = program.run("embed", disk / "out")
        assert (code, told) == (
            2,
            [FULL.format(place=disk / "out", reason="No space left on device")],
        )


def test_a_log_that_takes_no_more(program: Program, tmp_path: Path) -> None:
    """As when the output of a job goes to a disk that is full: the run itself goes on."""
    deaf = replace(program, log=Path("/dev/full"))
    assert program.children.end(deaf.begin("embed", tmp_path / "out")) == 0
    assert len(marked("embed", tmp_path / "out")) == FIELDS
    assert ends(tmp_path / "out") == ["finished"]


def test_a_disk_that_becomes_read_only(
    program: Program, undisturbed: dict[str, Path], same_results: Same, tmp_path: Path
) -> None:
    """Another mount over the same folder, so that files that are open do not keep it writable."""
    stage, out = "segment", tmp_path / "out"
    process = program.begin(stage, out)
    wait_for_marks(process, stage, out)
    with mounted(out, "--bind", str(out)):
        mount("-o", "remount,ro,bind", str(out))
        assert_stopped(program.end(process), out, "Read-only file system")
    assert_resumes(program, stage, out, undisturbed[stage], same_results)


# ------------------------------------------------------------------ images


def test_images_that_vanish(
    program: Program, undisturbed: dict[str, Path], same_results: Same, tmp_path: Path
) -> None:
    """As when the share they are on is gone: each field that was not read fails, and is told."""
    stage, out, away = "embed", tmp_path / "out", program.images.with_name("away")
    process = program.begin(stage, out)
    wait_for_marks(process, stage, out)
    program.images.rename(away)
    try:
        code, told = program.end(process)
        assert code == 1
        done = {path.parent.name for path in marked(stage, out)}
        last = f"{stage}: {len(done)} done, 0 done before, {FIELDS - len(done)} failed in "
        assert told[-1].startswith(last)
        left = {f"f{index:02}" for index in range(FIELDS)} - done
        assert sorted(told[1:-1]) == [
            f"cellseg: {name}: {program.images / name}.png: there is no such file"
            for name in sorted(left)
        ]
        assert program.run(stage, out)[0] == 3  # there is nothing to look at, and nothing lost
        same_results(out, undisturbed[stage], so_far=True)
    finally:
        away.rename(program.images)
    assert_resumes(program, stage, out, undisturbed[stage], same_results)
