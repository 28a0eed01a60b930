"""A real dask cluster of processes: equal to threads, and workers that die cost their task only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.engine.carriers import Carrier, carrier
from cellseg_cli.engine.tasks import Outcome, Produced, Stop, Use
from cellseg_cli.pipeline.cluster import cluster_store
from cellseg_cli.pipeline.embed import embed
from cellseg_cli.pipeline.segment import SegmentSettings, segment
from cellseg_cli.store import FieldRow, Store

TWO = RunSettings(workers=2)


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    """Workers cannot import this file."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def two() -> Iterator[Carrier]:
    """Two processes of one thread."""
    with carrier(TWO, "cpu", lambda line: None) as by:
        yield by


@dataclass(frozen=True)
class Toy:
    """Writes a line for every task; some fields kill their process, or take all its memory."""

    log: Path
    deadly: tuple[str, ...] = ()
    hungry: tuple[str, ...] = ()
    slow_s: float = 0.0

    def parts(self, row: FieldRow) -> int:
        return int(row.t or 0)

    def _note(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{text}\n")

    def whole(self, row: FieldRow, mark: str, stop: Stop) -> Produced:
        if row.id in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if row.id in self.hungry:
            eaten = np.ones(700 << 20, np.uint8)  # ones: zeros take no memory before they are used
            time.sleep(60)
            assert eaten.all()
        time.sleep(self.slow_s)
        if row.id.startswith("bad"):
            raise ValueError(f"{row.id} is bad")
        self._note(f"{row.id} {mark}")
        return Produced(1)

    def begin(self, row: FieldRow, mark: str, stop: Stop) -> str:
        self._note(f"{row.id} begin")
        return f"{mark} begun"

    def part(self, row: FieldRow, begun: str, index: int, stop: Stop) -> Produced:
        if row.id.startswith("bad") and index == 2:
            raise ValueError("part 2 is bad")
        self._note(f"{row.id} part {index} {begun}")
        return Produced(10)

    def finish(self, row: FieldRow, mark: str, begun: str, stop: Stop) -> Produced:
        self._note(f"{row.id} finish {begun}")
        return Produced(0, counts={"finished": 1})

    def is_done(self, row: FieldRow, mark: str) -> bool:
        return False

    def check_place(self) -> None:
        """It is one machine."""

    def use(self) -> Use:
        return Use()


def rows(*names: str, parts: int = 0) -> list[tuple[FieldRow, str]]:
    return [(FieldRow(name, "/nowhere", t=parts), "m") for name in names]


def carried(by: Carrier, jobs: list[tuple[FieldRow, str]], work: Toy) -> dict[str, Outcome]:
    seen: list[Outcome] = []
    by.carry(jobs, work, seen.append, lambda now, most: None)
    assert sorted(one.field_id for one in seen) == sorted(row.id for row, _ in jobs)
    return {one.field_id: one for one in seen}


def lines(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


def test_fields_in_parts_are_begun_once_and_finished_last(two: Carrier, tmp_path: Path) -> None:
    work = Toy(tmp_path / "log")
    ended = carried(two, [*rows("a", "b", parts=3), *rows("c", "bad")], work)
    told = (tmp_path / "log").read_text().splitlines()
    for name in "ab":
        own = [line for line in told if line.startswith(f"{name} ")]
        assert own[0] == f"{name} begin"
        assert sorted(own[1:-1]) == [f"{name} part {index} m begun" for index in range(3)]
        assert own[-1] == f"{name} finish m begun"
        produced = ended[name].produced
        assert produced is not None
        assert (produced.pixels, produced.counts) == (30, {"finished": 1})
    assert ended["bad"].failure is not None
    assert ended["bad"].failure.reason == "ValueError: bad is bad"
    assert len({one.worker for one in ended.values()} - {None}) >= 1


def test_a_bad_part_fails_its_field_once(two: Carrier, tmp_path: Path) -> None:
    ended = carried(two, rows("bad", "good", parts=4), Toy(tmp_path / "log"))
    assert ended["good"].produced is not None
    failure = ended["bad"].failure
    assert failure is not None
    assert failure.reason == "ValueError: part 2 is bad"
    assert not any(line.startswith("bad finish") for line in lines(tmp_path / "log"))


def test_a_field_that_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    names = [f"f{index}" for index in range(8)]
    work = Toy(tmp_path / "log", deadly=("f3",), slow_s=0.05)
    with carrier(TWO, "cpu", lambda line: None) as by:
        ended = carried(by, rows(*names), work)
    failed = {name: one.failure.reason for name, one in ended.items() if one.failure}
    assert failed == {
        "f3": "the worker process died twice while it worked on this field alone (killed, or out "
        "of memory); give workers more memory, or a smaller --tile"
    }
    done = {line.split()[0] for line in lines(tmp_path / "log")}
    assert done == set(names) - {"f3"}


def test_a_field_that_takes_too_much_memory_fails_alone(tmp_path: Path) -> None:
    """An empty worker has some 150 MB; 95 % of 800 MB end it, with all that runs beside it."""
    names = [f"f{index}" for index in range(5)]
    work = Toy(tmp_path / "log", hungry=("f2",), slow_s=0.05)
    news: list[str] = []
    seen: list[Outcome] = []
    run = RunSettings(workers=1, threads=2, memory="800MB")
    with carrier(run, "cpu", lambda line: None) as by:

        def pulse(now: int, most: int) -> None:
            news.extend(by.news())

        by.carry(rows(*names), work, seen.append, pulse)
        news.extend(by.news())
    assert sorted(one.field_id for one in seen) == names
    failed = {one.field_id: one.failure.reason for one in seen if one.failure}
    assert failed == {
        "f2": "the worker process died twice while it worked on this field alone (killed, or out "
        "of memory); give workers more memory, or a smaller --tile"
    }
    assert {line.split()[0] for line in lines(tmp_path / "log")} == set(names) - {"f2"}
    assert len(news) == 4  # twice beside others, twice alone
    assert all(
        re.fullmatch(
            r"worker process \d+ has reached its memory limit; a new one is started, and its "
            "fields are tried again",
            line,
        )
        for line in news
    ), news


def same(one: Path, other: Path) -> None:
    first, second = Store.open(one), Store.open(other)
    assert first.fields() == second.fields()
    for row in first.fields():
        np.testing.assert_array_equal(
            first.read_embedding(row.id)[0], second.read_embedding(row.id)[0]
        )
        np.testing.assert_array_equal(first.read_labels(row.id), second.read_labels(row.id))
        for stage in ("embed", "cluster"):
            assert first.mark(row.id, stage) == second.mark(row.id, stage)  # type: ignore[arg-type]


def test_equal_to_the_run_in_this_process(plate: Path, model: Path, tmp_path: Path) -> None:
    settings = EmbedSettings(model=str(model), device="cpu")
    here, there = tmp_path / "here.zarr", tmp_path / "there.zarr"
    for out, run in ((here, RunSettings(threads=2)), (there, TWO)):
        assert embed(plate, out, settings, run, lambda event: None).exit_code == 0
        assert cluster_store(out, ClusterSettings(), run, lambda event: None).exit_code == 0
    same(here, there)
    wanted = SegmentSettings(embed=settings)
    summary = segment(plate, tmp_path / "labels.zarr", wanted, TWO, lambda event: None)
    assert (summary.done, summary.exit_code) == (6, 0)
    kept = Store.open(tmp_path / "labels.zarr")
    for row in kept.fields():
        expected = Store.open(here)
        np.testing.assert_array_equal(kept.read_labels(row.id), expected.read_labels(row.id))
        ours, theirs = (one.done_fingerprint(row.id, "cluster") for one in (kept, expected))
        assert ours == theirs


def workers_of(process: Any) -> list[int]:
    """The processes below a run that hold a dask worker: children of its children's kind."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if int(stat[1]) == process.pid and b"spawn_main" in command:
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_worker_killed_in_the_middle_costs_nothing(
    plate: Path, model: Path, tmp_path: Path
) -> None:
    settings = EmbedSettings(model=str(model), device="cpu")
    here, there = tmp_path / "here.zarr", tmp_path / "there.zarr"
    embed(plate, here, settings, RunSettings(threads=1), lambda event: None)
    command = [sys.executable, "-m", "cellseg_cli", "embed", str(plate), "--out", str(there)]
    command += ["--model", str(model), "--device", "cpu", "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(there.rglob("embed.done.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        killed = workers_of(process)[:1]
        os.kill(killed[0], signal.SIGKILL)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "6 done, 0 done before, 0 failed" in told
    for row in Store.open(here).fields():
        np.testing.assert_array_equal(
            Store.open(here).read_embedding(row.id)[0], Store.open(there).read_embedding(row.id)[0]
        )
