"""Stages run in a child process, which a test may kill.  The child imports this: no pytest here.

A fork server imports torch once; its children start in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cellseg_cli import durable
from cellseg_cli.cli import app
from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.pipeline.cluster import cluster_store
from cellseg_cli.pipeline.embed import embed
from cellseg_cli.pipeline.segment import SegmentSettings, segment
from cellseg_cli.scratch import Scratch

FORKED = multiprocessing.get_context("forkserver") if sys.platform != "win32" else None
#: What the fork server imports.
PRELOADED = [
    "cellseg_cli.cli.app",
    "cellseg_cli.pipeline.segment",
    "timm",
    "dask.delayed",
    "zarr",
    "pyarrow.parquet",
    "pydantic.main",
    "numba.typed",
    "scipy.linalg",
]


def start(function: Callable[..., None], *args: object) -> Any:
    """A child process that runs a function of this module."""
    assert FORKED is not None
    process = FORKED.Process(target=function, args=args)
    process.start()
    return process


def end(process: Any) -> int:
    """The exit code of a child when it has ended."""
    process.join(60)
    code: int = process.exitcode
    process.close()
    return code


def run(function: Callable[..., None], *args: object) -> int:
    """The exit code of a child process that runs a function of this module."""
    return end(start(function, *args))


def below(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have, by ``/proc``."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (stat := _stat(int(folder.name))):
            parents[int(folder.name)] = int(stat[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def alive(pids: list[int]) -> list[int]:
    """Those that have not ended."""
    return [pid for pid in pids if (stat := _stat(pid)) and stat[0] != "Z"]


def _stat(pid: int) -> list[str]:
    """State, parent and more of a process; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def ignore(_: object) -> None:
    """Take an event and do nothing."""


def run_embed(source: Path, out: Path, settings: EmbedSettings, run: RunSettings) -> None:
    """The stage ``embed``, silently."""
    embed(source, out, settings, run, ignore)


def run_cluster(out: Path, settings: ClusterSettings, run: RunSettings) -> None:
    """The stage ``cluster``, silently."""
    cluster_store(out, settings, run, ignore)


def run_segment(source: Path, out: Path, settings: SegmentSettings, run: RunSettings) -> None:
    """The stage ``segment``, silently."""
    segment(source, out, settings, run, ignore)


def segment_until_sync(
    number: int, source: Path, out: Path, settings: SegmentSettings, run: RunSettings
) -> None:
    """``run_segment`` up to a sync."""
    die_at_sync(number)
    run_segment(source, out, settings, run)


def program(told: Path, *arguments: str) -> None:
    """The program, as from a shell, in a process group of its own; what it says goes to a file."""
    os.setsid()
    file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["cellseg", *arguments]
    app.main()


def die_at_sync(number: int) -> None:
    """Kill this process at its ``number``-th file brought to the disk: every write has one."""
    real = durable.sync
    calls = 0

    def counted(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    durable.sync = counted


def embed_until_sync(
    number: int, source: Path, out: Path, settings: EmbedSettings, run: RunSettings
) -> None:
    """``run_embed`` up to a sync."""
    die_at_sync(number)
    run_embed(source, out, settings, run)


def cluster_until_sync(number: int, out: Path, settings: ClusterSettings, run: RunSettings) -> None:
    """``run_cluster`` up to a sync."""
    die_at_sync(number)
    run_cluster(out, settings, run)


def cluster_until_kept(number: int, out: Path, settings: ClusterSettings, run: RunSettings) -> None:
    """``run_cluster`` up to the ``number``-th array that it puts aside."""
    real = Scratch.keep
    calls = 0

    def counted(room: Scratch, name: str, values: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(room, name, values)

    Scratch.keep = counted  # type: ignore[method-assign]
    run_cluster(out, settings, run)
