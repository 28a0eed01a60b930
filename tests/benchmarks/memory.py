"""Peak memory of real runs beside what the budget says of them; the source of its constants.

    python tests/benchmarks/memory.py STAGE FIELDS HEIGHTxWIDTH CHANNELS THREADS

STAGE is embed, cluster or segment, with the bundled model on the CPU; `cluster` embeds first.
The fields are uint16 TIFFs of bright dots.  Prints one line; the peak is that of the process
(POSIX only).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch

from cellseg_cli.config import EmbedSettings
from cellseg_cli.images.discover import find_fields
from cellseg_cli.images.planes import Planes
from cellseg_cli.networks.checkpoint import find_model, read_header
from cellseg_cli.pipeline.budget import (
    AtOnce,
    Budget,
    Carrying,
    clustering_budget,
    embedding_budget,
    segmenting_budget,
)
from cellseg_cli.pipeline.calibrate import network_needs
from cellseg_cli.pipeline.survey import survey
from cellseg_cli.pipeline.tiles import WHOLE_FIELD_PX
from cellseg_cli.rows import FieldRow


def make_fields(folder: Path, count: int, shape: tuple[int, int], channels: int) -> None:
    """Write ``count`` images, row by row, so that this process stays small."""
    height, width = shape
    y, x = np.mgrid[: min(height, 2048), : min(width, 2048)]
    dots = (np.sin(y / 9) * np.sin(x / 9) > 0.6) * 20_000 + (y * 7 + x * 13) % 3000
    repeats = (-(-height // dots.shape[0]), -(-width // dots.shape[1]))
    plane = np.tile(dots.astype(np.uint16), repeats)[:height, :width]
    image = plane if channels == 1 else np.stack([plane] * channels, axis=-1)
    for number in range(count):
        kind = "minisblack" if channels == 1 else "rgb"
        tifffile.imwrite(folder / f"{number}.tif", image, photometric=kind)


#: Runs a command and prints the peak of its processes.  A process of its own, and a small one:
#: until it has begun another program, a child counts what its parent takes.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_of(*arguments: str) -> int:
    """Peak resident memory of a run of cellseg, bytes."""
    run = [sys.executable, "-m", "cellseg_cli", *arguments, "--quiet"]
    made = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *run],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(made.stdout) * (1 if sys.platform == "darwin" else 1024)


def budget_of(stage: str, rows: tuple[FieldRow, ...], threads: int) -> Budget:
    """What the run should take."""
    needs = network_needs(read_header(find_model("nuclei")).architecture, torch.device("cpu"))
    carrying, settings = Carrying(threads), EmbedSettings()

    def by_seeds(row: FieldRow) -> AtOnce:
        return AtOnce("seeds", min(row.pixels, WHOLE_FIELD_PX))

    if stage == "embed":
        return embedding_budget(rows, needs, settings, carrying)
    if stage == "cluster":
        return clustering_budget(rows, needs, carrying, by_seeds)
    return segmenting_budget(rows, needs, settings, carrying, by_seeds)


def main(stage: str, count: str, size: str, channels: str, threads: str) -> None:
    height, width = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        source, out = Path(temporary) / "images", f"{temporary}/out.zarr"
        source.mkdir()
        make_fields(source, int(count), (height, width), int(channels))
        rows = survey(find_fields(source), Planes())
        images = (str(source), "--out", out, "--device", "cpu", "--threads", threads)
        if stage == "cluster":
            peak_of("embed", *images)
            measured = peak_of("cluster", out, "--threads", threads)
        else:
            measured = peak_of(stage, *images)
        budget = budget_of(stage, rows, int(threads))
    print(
        f"{stage} {count} × {size}, {channels} channels, {threads} threads: "
        f"{measured / 1e6:.0f} MB, projected {budget.bytes_total / 1e6:.0f} MB "
        f"({budget.bytes_total / measured:.2f}×)"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
