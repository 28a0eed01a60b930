"""Stages run in a child process, which a test may kill.  The child imports this: no pytest here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from cellseg_cli import durable
from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.pipeline.cluster import cluster_store
from cellseg_cli.pipeline.embed import embed
from cellseg_cli.scratch import Scratch


def ignore(_: object) -> None:
    """Take an event and do nothing."""


def run_embed(source: Path, out: Path, settings: EmbedSettings, run: RunSettings) -> None:
    """The stage ``embed``, silently."""
    embed(source, out, settings, run, ignore)


def run_cluster(out: Path, settings: ClusterSettings, run: RunSettings) -> None:
    """The stage ``cluster``, silently."""
    cluster_store(out, settings, run, ignore)


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
