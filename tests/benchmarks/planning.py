"""Seconds to plan a run on many small files, and to plan it again.

    python tests/benchmarks/planning.py [FILES] [FOLDER]

Makes real files of 64×64 px, every second one TIFF and PNG, a thousand in a folder, and plans them
as ``cellseg embed --dry-run`` does: find the files, read their headers, compare with what the
store has done, and add up what it takes.  Then writes the list of fields, as the real run does,
and plans again: once with nothing done, once with every field done.  The limit is 30 s for
100 000 files; files are in the page cache.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from cellseg_cli.config import EmbedSettings
from cellseg_cli.engine.tasks import thread_count
from cellseg_cli.images.discover import find_fields
from cellseg_cli.pipeline.budget import Carrying, NetworkNeeds, embedding_budget
from cellseg_cli.pipeline.plan import Plan, plan_embedding
from cellseg_cli.pipeline.request import Request, known_rows, prepared, requested
from cellseg_cli.pipeline.survey import survey
from cellseg_cli.rows import FieldRow
from cellseg_cli.store import Store

LIMIT_S = 30.0
SIDE_PX = 64


def make_files(folder: Path, count: int) -> None:
    """Write ``count`` images."""
    rng = np.random.default_rng(0)
    for number in range(count):
        plate = folder / f"plate{number // 1000:04d}"
        if number % 1000 == 0:
            plate.mkdir(parents=True)
        image = rng.integers(0, 256, (SIDE_PX, SIDE_PX), dtype=np.uint8)
        if number % 2:
            (plate / f"f{number:07d}.png").write_bytes(imagecodecs.png_encode(image, level=0))
        else:
            tifffile.imwrite(plate / f"f{number:07d}.tif", image)


def plan(source: Path, out: Path, request: Request, told: str) -> tuple[Plan, tuple[FieldRow, ...]]:
    """The plan of ``embed``, as the stage itself makes it, and its rows."""
    with timed(f"{told}: find"):
        fields = find_fields(source)
    with timed(f"{told}: known"):
        store = Store.open(out) if Store.is_at(out) else None
        known = known_rows(store, request)
    with timed(f"{told}: survey"):
        rows = survey(fields, request.planes, known, threads=thread_count(0))
    with timed(f"{told}: marks"):
        made = plan_embedding(rows, request.identity, store, redo=False)
    with timed(f"{told}: budget"):
        needs = NetworkNeeds(0, 334.0, 3, 4, 3)
        embedding_budget([row for row, _ in made.to_do], needs, EmbedSettings(), Carrying(2))
    return made, rows


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print what the statement took; CPU time includes that of ended processes."""
    began, computed = time.perf_counter(), _cpu_s()
    yield
    print(f"{name:<32} {time.perf_counter() - began:7.2f} s {_cpu_s() - computed:7.2f} CPU s")


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def whole(name: str, work: Callable[[], object]) -> None:
    """Time the work, and compare with the limit."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    print(f"{name + ', in all':<32} {seconds:7.2f} s, {seconds / LIMIT_S:.2f} of {LIMIT_S:.0f} s\n")


def main(count: int, folder: Path) -> None:
    source, out = folder / "images", folder / "out.zarr"
    if not source.is_dir():
        with timed(f"make {count} files"):
            make_files(source, count)
    request = requested(source, EmbedSettings(), "embeddings")
    made: list[tuple[Plan, tuple[FieldRow, ...]]] = []

    def first() -> None:
        made.append(plan(source, out, request, "first"))
        with timed("first: write fields.parquet"):
            prepared(None, out, request, made[0][1], overwrite=False)

    whole("first plan", first)
    whole("plan again", lambda: made.append(plan(source, out, request, "again")))
    assert made[0] == made[1] and len(made[0][0].to_do) == count
    with timed("mark every field"):
        for row, mark in made[0][0].to_do:
            (out / row.id).mkdir(parents=True)
            text = json.dumps({"stage": "embed", "fingerprint": mark})
            (out / row.id / "embed.done.json").write_text(text)
    whole("plan with all done", lambda: made.append(plan(source, out, request, "done")))
    assert len(made[2][0].skipped) == count


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores")
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    if len(sys.argv) > 2:
        main(many, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(many, Path(temporary))
