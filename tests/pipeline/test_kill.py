"""Killed at twenty random moments and run again each time: equal to an undisturbed run.

No field is done again after its mark, none is missing, and nothing of a killed run is left
among the results.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.pipeline.segment import SegmentSettings
from cellseg_cli.store import Stage

KILLS = 20  # of embed, and of both ways of segment together
TWO = RunSettings(threads=2)
#: A field of 4200 px is cut into several tiles by both stages.
CUT = ClusterSettings(tile_px=2100, overlap_px=32)


@dataclass(frozen=True)
class Case:
    """What is run in a child process: into which place, and the mark that says it is done."""

    children: Any
    begin: Callable[[Path], Any]
    stage: Stage
    same: Callable[..., None]

    def seconds(self, out: Path) -> float:
        """How long an undisturbed run takes."""
        began = time.monotonic()
        assert self.children.end(self.begin(out)) == 0
        return time.monotonic() - began

    def marks(self, out: Path) -> dict[str, int]:
        """When each mark was set, in ns."""
        found = out.rglob(f"{self.stage}.done.json") if out.is_dir() else ()
        return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in found}

    def resume(self, out: Path, delays: Iterator[float]) -> int:
        """Begin again and again until a run ends before it is killed; the number of kills."""
        for kills, delay in enumerate(delays):
            before = self.marks(out)
            process = self.begin(out)
            process.join(delay)
            process.kill()
            code = self.children.end(process)
            after = self.marks(out)
            assert {name: after.get(name) for name in before} == before, "a field was redone"
            if code == 0:
                return kills
            assert code == -9
        pytest.fail("the last run did not end")


def assert_nothing_twice(out: Path) -> None:
    """No field was done by two runs, as far as their records go."""
    lines: list[dict[str, Any]] = []
    for path in out.rglob(".cellseg/runs/*.fields.jsonl"):
        whole = path.read_text().rpartition("\n")[0]  # the last line may be cut
        lines += [json.loads(line) for line in whole.splitlines()]
    assert {line["outcome"] for line in lines} == {"done"}
    assert max(Counter(line["field"] for line in lines).values()) == 1


def kill_at_random(case: Case, times: int, suffix: str, tmp_path: Path) -> None:
    undisturbed = tmp_path / f"undisturbed{suffix}"
    case.seconds(undisturbed)  # the first one also fills caches
    whole_s = case.seconds(tmp_path / f"timed{suffix}")
    generator = random.Random(4)
    kills = number = 0
    while kills < times:
        out = tmp_path / f"{number}{suffix}"
        delays = [generator.uniform(0.1, 0.9) * whole_s for _ in range(times - kills)] + [60.0]
        kills += case.resume(out, iter(delays))
        case.same(out, undisturbed)
        assert_nothing_twice(out)
        number += 1


@pytest.fixture
def embedding(model: Path) -> EmbedSettings:
    return EmbedSettings(model=str(model), device="cpu")


def test_embed(
    children: Any,
    long_plate: Path,
    embedding: EmbedSettings,
    same_results: Callable[..., None],
    tmp_path: Path,
) -> None:
    def begin(out: Path) -> Any:
        return children.start(children.run_embed, long_plate, out, embedding, TWO)

    kill_at_random(Case(children, begin, "embed", same_results), KILLS, ".zarr", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".zarr"])
def test_segment(
    children: Any,
    long_plate: Path,
    embedding: EmbedSettings,
    same_results: Callable[..., None],
    suffix: str,
    tmp_path: Path,
) -> None:
    settings = SegmentSettings(embedding, CUT)

    def begin(out: Path) -> Any:
        return children.start(children.run_segment, long_plate, out, settings, TWO)

    kill_at_random(Case(children, begin, "cluster", same_results), KILLS // 2, suffix, tmp_path)


def test_segment_at_every_write(
    children: Any,
    long_plate: Path,
    embedding: EmbedSettings,
    same_results: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Every write brings a file to the disk; every eighth is the last one of a run.

    On a large field alone: made, filled, marked, clustered in tiles, removed, marked again.
    """
    for folder in "AB":
        shutil.rmtree(long_plate / folder)
    settings, run = SegmentSettings(embedding, CUT), RunSettings(threads=1)
    undisturbed = tmp_path / "undisturbed"
    assert children.run(children.run_segment, long_plate, undisturbed, settings, run) == 0
    for number in range(1, 200, 8):
        out = tmp_path / str(number)
        code = children.run(children.segment_until_sync, number, long_plate, out, settings, run)
        assert children.run(children.run_segment, long_plate, out, settings, run) == 0
        same_results(out, undisturbed)
        if code == 0:
            return
        assert code == -9
    pytest.fail("the run has more writes than were tried")
