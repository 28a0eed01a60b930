"""The run record: what ran, with what, and what came of every field.

Written for finished, failed and interrupted runs alike.  It holds settings and
versions, never environment variables, command lines or host credentials.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cellseg_cli import __version__
from cellseg_cli.pipeline.events import Failure, Summary
from cellseg_cli.pipeline.plan import Plan
from cellseg_cli.pipeline.stream import Outcome
from cellseg_cli.store import Stage, Store

_PACKAGES = ("numpy", "torch", "timm", "zarr", "dask", "numba", "scipy", "scikit-image")
_MORE_PACKAGES = ("opencv-python-headless", "tifffile", "imagecodecs", "pyarrow")


@dataclass
class Record:
    """What one stage of one run has done so far."""

    stage: Stage
    part: str | None
    settings: Mapping[str, Any]
    plan: Plan
    model: str | None = None
    device: str | None = None
    workers: int = 1
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.perf_counter)
    outcomes: list[Outcome] = field(default_factory=list)

    def summary(self) -> Summary:
        """The run as the command layer wants it; failures in the order of their ids."""
        failed = [outcome.failure for outcome in self.outcomes if outcome.failure]
        return Summary(
            stage=self.stage,
            done=len(self.outcomes) - len(failed),
            skipped=len(self.plan.skipped),
            failed=tuple(sorted([*self.plan.unusable, *failed], key=lambda one: one.field_id)),
            seconds=time.perf_counter() - self.clock,
        )

    def write(self, store: Store, ended: str) -> Path:
        """Write the record under the store; ``ended`` says how: finished, interrupted, error."""
        part = f"-part{self.part.replace('/', 'of')}" if self.part else ""
        name = f"{self.started:%Y%m%dT%H%M%S.%fZ}-{self.stage}{part}-{os.getpid()}"
        return store.write_record(name, self.document(ended))

    def document(self, ended: str) -> dict[str, Any]:
        """The record as JSON can carry it."""
        summary = self.summary()
        return {
            "stage": self.stage,
            "ended": ended,
            "part": self.part,
            "started_utc": self.started.isoformat(timespec="seconds"),
            "seconds": round(summary.seconds, 3),
            "peak_rss_bytes": peak_rss_bytes(),
            "versions": versions(),
            "model_fingerprint": self.model,
            "device": self.device,
            "workers": self.workers,
            "settings": dict(self.settings),
            "counts": {
                "planned": self.plan.fields,
                "done": summary.done,
                "skipped": summary.skipped,
                "failed": len(summary.failed),
            },
            "fields": self._fields(),
        }

    def _fields(self) -> dict[str, dict[str, Any]]:
        fates: dict[str, dict[str, Any]] = {
            one: {"outcome": "skipped"} for one in self.plan.skipped
        }
        fates |= {failure.field_id: _failed(failure) for failure in self.plan.unusable}
        for outcome in self.outcomes:
            fate = _failed(outcome.failure) if outcome.failure else {"outcome": "done"}
            fate |= dict(outcome.produced.counts) if outcome.produced else {}
            fates[outcome.field_id] = {**fate, "seconds": round(outcome.seconds, 4)}
        return dict(sorted(fates.items()))


def _failed(failure: Failure) -> dict[str, Any]:
    return {"outcome": "failed", "reason": failure.reason, "traceback": failure.traceback}


def versions() -> dict[str, str]:
    """The versions of Python, cellseg and the packages that decide the output."""
    found = {"python": platform.python_version(), "cellseg": __version__}
    for package in (*_PACKAGES, *_MORE_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def peak_rss_bytes() -> int | None:
    """The largest resident memory of this process so far; None where it cannot be asked."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
