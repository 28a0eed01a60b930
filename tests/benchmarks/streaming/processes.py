"""The same run by threads of one process and by two processes."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pictures
import tifffile
from command import MIB, Ran, cellseg, check_room

MOST_FIELDS = 200
WORKERS = 2


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Print seconds and memory of both, and whether their label images are equal."""
    count = min(given.fields, MOST_FIELDS)
    check_room(folder, count * 4e6)
    megapixels = pictures.write_fields(folder / "images", count)
    network = ("--model", given.model, "--device", "cpu")
    ran: dict[str, Ran] = {}
    for how, options in {"threads": (), "processes": ("--workers", str(WORKERS))}.items():
        out = folder / how
        command = ("segment", folder / "images", "--out", out, *network, *options)
        ran[how] = one = cellseg(*command, out=out)
        print(
            f"  {one.record['carried']:<28} {one.wall_s:7.1f} s "
            f"({one.record['seconds']:.1f} s without start), "
            f"{one.wall_s / megapixels:.3f} s/MP, {one.cpu_s / megapixels:.3f} CPU s/MP, "
            f"{one.processes} processes, peak {one.peak_bytes / MIB:.0f} MiB",
            flush=True,
        )
    files = sorted(folder.joinpath("threads").glob("*.tif"))
    equal = sum(
        np.array_equal(tifffile.imread(file), tifffile.imread(folder / "processes" / file.name))
        for file in files
    )
    ratio = ran["processes"].wall_s / ran["threads"].wall_s
    print(f"equal label images: {equal} of {count}; seconds by processes over threads {ratio:.2f}")
