"""Killed at any moment and run again: equal to an undisturbed run, nothing done twice."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.pipeline.segment import SegmentSettings
from cellseg_cli.store import Stage, Store

FIELDS = [f"{'AB'[index % 2]}/f{index}" for index in range(6)]


def marks(store: Path, stage: Stage) -> dict[str, int]:
    """When each field was marked, in ns."""
    found = {name: store / name / f"{stage}.done.json" for name in FIELDS}
    return {name: path.stat().st_mtime_ns for name, path in found.items() if path.exists()}


def assert_equal_stores(one: Path, other: Path, *, labels: bool) -> None:
    first, second = Store.open(one), Store.open(other)
    assert first.fields() == second.fields()
    assert first.attributes == second.attributes
    for row in first.fields():
        for ours, theirs in zip(
            first.read_embedding(row.id), second.read_embedding(row.id), strict=True
        ):
            assert ours is not None and theirs is not None
            np.testing.assert_array_equal(ours, theirs)
        assert first.mark(row.id, "embed") == second.mark(row.id, "embed")
        if labels:
            np.testing.assert_array_equal(first.read_labels(row.id), second.read_labels(row.id))
            assert first.mark(row.id, "cluster") == second.mark(row.id, "cluster")


@pytest.fixture(scope="module")
def settings(model: Path) -> EmbedSettings:
    return EmbedSettings(model=str(model), device="cpu")


@pytest.fixture
def undisturbed(children: Any, plate: Path, settings: EmbedSettings, tmp_path: Path) -> Path:
    """The store of one run without any trouble, embedded and clustered."""
    out = tmp_path / "undisturbed.zarr"
    assert children.run(children.run_embed, plate, out, settings, RunSettings(threads=1)) == 0
    assert children.run(children.run_cluster, out, ClusterSettings(), RunSettings(threads=1)) == 0
    assert any(Store.open(out).read_labels(name).any() for name in FIELDS)
    return out


def kill_at_random(
    children: Any, begin: Callable[[], Any], store: Path, stage: Stage, generator: random.Random
) -> None:
    """Kill a stage over and over, at most twelve times, and let it end."""
    for delay in [generator.uniform(0.05, 0.5) for _ in range(12)] + [60.0]:
        before = marks(store, stage)
        process = begin()
        process.join(delay)
        process.kill()
        code = children.end(process)
        after = marks(store, stage)
        assert {name: after.get(name) for name in before} == before, "a finished field was redone"
        if code == 0:
            return
    pytest.fail("the last run did not end")


def test_kill_at_random_moments(
    children: Any, plate: Path, settings: EmbedSettings, undisturbed: Path, tmp_path: Path
) -> None:
    """Also, no field is redone: no mark changes once it is there."""
    generator = random.Random(0)
    out = tmp_path / "killed.zarr"
    run = RunSettings(threads=2)

    def embed() -> Any:
        return children.start(children.run_embed, plate, out, settings, run)

    def cluster() -> Any:
        return children.start(children.run_cluster, out, ClusterSettings(), run)

    kill_at_random(children, embed, out, "embed", generator)
    kill_at_random(children, cluster, out, "cluster", generator)
    assert_equal_stores(out, undisturbed, labels=True)


def test_kill_at_every_write_of_embed(
    children: Any, plate: Path, settings: EmbedSettings, undisturbed: Path, tmp_path: Path
) -> None:
    run = RunSettings(threads=1)
    for number in range(1, 200, 5):
        out = tmp_path / f"{number}.zarr"
        code = children.run(children.embed_until_sync, number, plate, out, settings, run)
        before = marks(out, "embed")
        assert children.run(children.run_embed, plate, out, settings, run) == 0
        after = marks(out, "embed")
        assert {name: after[name] for name in before} == before
        assert_equal_stores(out, undisturbed, labels=False)
        if code == 0:
            return
        assert code == -signal.SIGKILL
    pytest.fail("the run has more writes than were tried")


def test_kill_at_every_write_of_cluster(children: Any, undisturbed: Path, tmp_path: Path) -> None:
    """Beginning from label images of other settings, which must never be taken for new ones."""
    old, run = ClusterSettings(min_area_px=9), RunSettings(threads=1)
    begun = tmp_path / "begun.zarr"
    shutil.copytree(undisturbed, begun)
    assert children.run(children.run_cluster, begun, old, run) == 0
    for number in range(1, 200, 5):
        out = tmp_path / f"{number}.zarr"
        shutil.copytree(begun, out)
        code = children.run(children.cluster_until_sync, number, out, ClusterSettings(), run)
        assert children.run(children.run_cluster, out, ClusterSettings(), run) == 0
        assert_equal_stores(out, undisturbed, labels=True)
        if code == 0:
            return
        assert code == -signal.SIGKILL
    pytest.fail("the run has more writes than were tried")


def test_parts_at_the_same_time_equal_one_run(
    children: Any, plate: Path, settings: EmbedSettings, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts.zarr"
    for stage in ("embed", "cluster"):
        processes = []
        for index in (1, 2, 3):
            run = RunSettings(threads=1, part=f"{index}/3")
            arguments = (plate, out, settings) if stage == "embed" else (out, ClusterSettings())
            processes.append(children.start(getattr(children, f"run_{stage}"), *arguments, run))
        assert [children.end(process) for process in processes] == [0, 0, 0]
    assert_equal_stores(out, undisturbed, labels=True)


@pytest.mark.parametrize("suffix", ["", ".zarr"])
def test_parts_of_segment_at_the_same_time_equal_one_run(
    children: Any,
    long_plate: Path,
    settings: EmbedSettings,
    same_results: Callable[..., None],
    suffix: str,
    tmp_path: Path,
) -> None:
    """Into a place that is not there when they start."""
    wanted = SegmentSettings(settings, ClusterSettings(tile_px=2100, overlap_px=32))
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    run = RunSettings(threads=1)
    assert children.run(children.run_segment, long_plate, whole, wanted, run) == 0
    halves = [RunSettings(threads=1, part=part) for part in ("1/2", "2/2")]
    processes = [
        children.start(children.run_segment, long_plate, out, wanted, half) for half in halves
    ]
    assert [children.end(process) for process in processes] == [0, 0]
    same_results(out, whole)
