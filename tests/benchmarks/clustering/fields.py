"""Label images to start from: real cells where they are at hand, rendered nuclei where not."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellseg_cli.images.label_images import open_label_images, read_label_image
from cellseg_cli.images.synthetic import render_field
from cellseg_cli.labels import relabel_dense

_DATA = Path(os.environ.get("CELLSEG_DATA", Path(__file__).parents[4] / "shared" / "data"))


def sets(folders: Sequence[Path], most: int) -> dict[str, list[np.ndarray]]:
    """Named lists of at most ``most`` label images: (Y, X) int32, ids dense, 0 = background."""
    if folders:
        found = {str(folder): _paths(folder) for folder in folders}
    else:
        found = {name: paths for name, paths in _held_out().items() if paths}
    if not found:
        return {f"rendered nuclei ({_DATA} is not there)": _rendered(most)}
    return {name: [_read(path) for path in _spread(paths, most)] for name, paths in found.items()}


def _paths(folder: Path) -> list[Path]:
    return [path for _, path in sorted(open_label_images(folder).paths.items())]


def _held_out() -> dict[str, list[Path]]:
    """The label images that nothing was trained on, by the name of the data set."""
    nuclei, neurons, lines = (_DATA / part for part in ("dsb2018", "sartorius", "livecell"))
    found = {
        "DSB 2018 val (nuclei)": _paths(nuclei / "val" / "labels") if nuclei.is_dir() else [],
        "LIVECell (cell lines)": _paths(lines / "labels") if lines.is_dir() else [],
        "Sartorius val (neurons)": [],
    }
    if neurons.is_dir():
        with (neurons / "index.csv").open(newline="") as index:
            ids = sorted(row["id"] for row in csv.DictReader(index) if row["split"] == "val")
        found["Sartorius val (neurons)"] = [neurons / "labels" / f"{name}.tif" for name in ids]
    return found


def _spread(paths: list[Path], most: int) -> list[Path]:
    """At most so many, evenly spaced in the order of their names."""
    step = max(len(paths) / most, 1.0)
    return [paths[int(step * i)] for i in range(min(most, len(paths)))]


def _read(path: Path) -> np.ndarray:
    return relabel_dense(read_label_image(path)).astype(np.int32)


def _rendered(most: int) -> list[np.ndarray]:
    """Fields of the four kinds of rendered nuclei in turn."""
    wells = ("A01", "A02", "B01", "B02")
    return [
        render_field(wells[i % 4], 1 + i // 4)[1].astype(np.int32) for i in range(min(most, 12))
    ]


def discs(cells: int, shape: tuple[int, int]) -> np.ndarray:
    """A label image of discs of radius 6 to 12 px, each with at least 40 px to be seen.

    Later ones lie under earlier ones.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    number = 1
    while number <= cells:
        y, x, radius = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(6, 12)
        seen = (np.hypot(rows - y, columns - x) < radius) & (labels == 0)
        if np.count_nonzero(seen) >= 40:
            labels[seen] = number
            number += 1
    return labels
