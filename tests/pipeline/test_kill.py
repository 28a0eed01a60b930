"""Killed at twenty random moments and run again each time: equal to an undisturbed run.

No field is done again after its mark, none is missing, and nothing of a killed run is left
among the results.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.pipeline.segment import STATE, SegmentSettings
from cellseg_cli.store import Stage, Store

KILLS = 20
TWO = RunSettings(threads=2)
#: A field of 4200 px is cut into several tiles by both stages.
CUT = ClusterSettings(tile_px=2100, overlap_px=32)

Run = Callable[[Path], Any]


@pytest.fixture(scope="module")
def embedding(model: Path) -> EmbedSettings:
    return EmbedSettings(model=str(model), device="cpu")


def state_of(out: Path) -> Path:
    """The store with the marks of a run."""
    return out / STATE if (out / STATE).is_dir() else out


def marks(out: Path, stage: Stage) -> dict[str, int]:
    """When each mark of a stage was set, in ns."""
    found = out.rglob(f"{stage}.done.json") if out.is_dir() else ()
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in found}


def results(out: Path) -> set[str]:
    """Every file but temporary ones and the records of runs."""
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return {str(path) for path in files if not {"tmp", "runs"} & set(path.parts)}


def assert_equal(out: Path, undisturbed: Path) -> None:
    assert results(out) == results(undisturbed)
    one, other = (Store.open(state_of(path)) for path in (out, undisturbed))
    assert one.fields() == other.fields()
    assert one.attributes == other.attributes
    stage = stage_of(one)
    for row in other.fields():
        assert one.mark(row.id, stage) == other.mark(row.id, stage) is not None
        for ours, theirs in zip(
            pixels(one, out, row.id), pixels(other, undisturbed, row.id), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def stage_of(store: Store) -> Stage:
    """The stage whose mark says that a field is done."""
    return "cluster" if store.attributes["keeps"] == "labels" else "embed"


def pixels(store: Store, out: Path, field_id: str) -> tuple[np.ndarray, ...]:
    """What was made of a field."""
    if store.attributes["keeps"] == "embeddings":
        values, classes = store.read_embedding(field_id)
        assert classes is not None
        return values, classes
    if store.path == out:
        return (store.read_labels(field_id),)
    return (tifffile.imread(out / f"{field_id}.tif"),)


def assert_nothing_twice(out: Path) -> None:
    """No field was done by two runs, as far as their records go."""
    lines: list[dict[str, Any]] = []
    for path in (state_of(out) / ".cellseg/runs").glob("*.fields.jsonl"):
        whole = path.read_text().rpartition("\n")[0]  # the last line may be cut
        lines += [json.loads(line) for line in whole.splitlines()]
    done = Counter(line["field"] for line in lines if line["outcome"] == "done")
    assert max(done.values()) == 1
    assert not [line for line in lines if line["outcome"] != "done"]


def timed(children: Any, run: Run, out: Path) -> float:
    """Seconds of one run."""
    began = time.monotonic()
    assert children.end(run(out)) == 0
    return time.monotonic() - began


def resumed(children: Any, run: Run, out: Path, stage: Stage, delays: Iterator[float]) -> int:
    """Start a run again and again until one ends before it is killed; the number of kills."""
    kills = 0
    for delay in delays:
        before = marks(out, stage)
        process = run(out)
        process.join(delay)
        process.kill()
        code = children.end(process)
        after = marks(out, stage)
        assert {name: after.get(name) for name in before} == before, "a finished field was redone"
        if code == 0:
            break
        assert code == -9
        kills += 1
    return kills


def kill_twenty_times(children: Any, run: Run, suffix: str, tmp_path: Path) -> None:
    undisturbed = tmp_path / f"undisturbed{suffix}"
    timed(children, run, undisturbed)
    whole_s = timed(children, run, tmp_path / f"timed{suffix}")
    assert_equal(tmp_path / f"timed{suffix}", undisturbed)
    stage = stage_of(Store.open(state_of(undisturbed)))
    generator = random.Random(4)
    kills = number = 0
    while kills < KILLS:
        out = tmp_path / f"{number}{suffix}"
        left = KILLS - kills
        delays = [generator.uniform(0.1, 0.9) * whole_s for _ in range(left)] + [60.0]
        kills += resumed(children, run, out, stage, iter(delays))
        assert_equal(out, undisturbed)
        assert_nothing_twice(out)
        number += 1


def test_embed(children: Any, long_plate: Path, embedding: EmbedSettings, tmp_path: Path) -> None:
    def run(out: Path) -> Any:
        return children.start(children.run_embed, long_plate, out, embedding, TWO)

    kill_twenty_times(children, run, ".zarr", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".zarr"])
def test_segment(
    children: Any, long_plate: Path, embedding: EmbedSettings, suffix: str, tmp_path: Path
) -> None:
    settings = SegmentSettings(embedding, CUT)

    def run(out: Path) -> Any:
        return children.start(children.run_segment, long_plate, out, settings, TWO)

    kill_twenty_times(children, run, suffix, tmp_path)
