"""The scripts behind examples/results.md: one run for real, the other as far as it is ours."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellseg_cli.evaluation.matching import overlaps_of_labels
from cellseg_cli.evaluation.scores import THRESHOLDS, measures, score_overlaps

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "examples" / "recipes.py"
SCORES = ROOT / "examples" / "peers" / "peer_scores.py"


def write_field(image: Path, truth: Path, seed: int) -> None:
    """A grey field of 64 × 64 px with four bright discs, and its label image."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    labels = np.zeros((64, 64), np.uint16)
    for number, (cy, cx) in enumerate(((14, 16), (15, 46), (44, 18), (47, 47)), start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 64] = number
    for path, array in (
        (image, (labels > 0) * 150 + rng.integers(0, 50, (64, 64))),
        (truth, labels),
    ):
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, array.astype(np.uint16))


def test_a_row_for_all_fields_and_one_for_each_kind(tmp_path: Path) -> None:
    """A training of one step; again, nothing is trained and the table is the same."""
    images, truth = tmp_path / "images", tmp_path / "truth"
    names = ("a", "b", "c")
    for seed, name in enumerate(names):
        write_field(images / f"{name}.tif", truth / f"{name}.tif", seed)
    index = tmp_path / "index.csv"
    rows = zip(names, ("train", "val", "val"), ("big", "big", "small"), strict=True)
    index.write_text("id,split,kind\n" + "".join(f"{','.join(row)}\n" for row in rows))
    command = [sys.executable, str(RECIPES), str(tmp_path / "out")]
    command += ["--index", str(index), "--images", str(images), "--truth", str(truth)]
    command += ["--group", "kind", "--only", "spatial", "--"]
    command += [f"{images}={truth}", "--index", str(index), "--steps", "1", "--quiet"]
    for option in (
        "encoder=test_resnet",
        "crop_px=32",
        "levels=2",
        "in_channels=1",
        "scales=[1.0]",
    ):
        command += ["--set", option]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tables = []
    for _ in range(2):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout)
    assert tables[0] == tables[1]
    head, _, *lines = tables[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    assert len({len(row) for row in cells}) == 1
    assert [row[:2] for row in cells[1:]] == [
        ["spatial", "all (2)"],
        ["", "big (1)"],
        ["", "small (1)"],
    ]


def test_the_score_that_peers_are_tuned_by_is_that_of_evaluate() -> None:
    sys.path.insert(0, str(SCORES.parent))
    try:
        ours: dict[str, Any] = runpy.run_path(str(SCORES))
    finally:
        sys.path.remove(str(SCORES.parent))
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = np.kron(rng.integers(0, 5, (6, 6)), np.ones((5, 5), np.int32)).astype(np.int32)
        found = np.where(rng.random(truth.shape) < 0.15, rng.integers(0, 6, truth.shape), truth)
        found = np.roll(found, int(rng.integers(3)), axis=1)
        scored = measures(score_overlaps(overlaps_of_labels(found, truth), THRESHOLDS))
        assert ours["average_precision"](truth, found) == pytest.approx(scored.ap)
