"""The run record: what ran, with what, and what came of every field.

Two files, written for finished, failed and interrupted runs alike:

    <name>.json           settings, versions, sums, and why fields failed
    <name>.fields.jsonl   a line for every field that this run has ended, with tracebacks

The first is there from the start, with ``"ended": null``, and is replaced at the end; the
second grows while the run goes on.  A run that is killed leaves both.  They hold settings and
versions, never environment variables, command lines or host credentials.

Memory: sums, and an id and a reason for each failure.  Measured with tracemalloc as in
``tests/pipeline/test_record.py``: 1.4 kB held after 2 000 fields as after 100 000, and 270
bytes for each failure; a line of the second file takes about 230 bytes, and 22 µs to write.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cellseg_cli import __version__
from cellseg_cli.config import RunSettings
from cellseg_cli.engine.tasks import Outcome, peak_rss_bytes, worker_name
from cellseg_cli.pipeline.events import Beat, Failure, StageFinished, Summary
from cellseg_cli.pipeline.lines import LineFile
from cellseg_cli.pipeline.plan import Plan
from cellseg_cli.pipeline.tally import Tally
from cellseg_cli.store import Stage, Store

_PACKAGES = ("numpy", "torch", "timm", "zarr", "dask", "numba", "scipy", "scikit-image")
_MORE_PACKAGES = ("opencv-python-headless", "tifffile", "imagecodecs", "pyarrow")


@dataclass
class Record:
    """What one stage of one run has done so far.

    Attributes
    ----------
    carried
        In words, who does the work: threads of this process, processes, or a scheduler.
    devices
        Networks that work side by side: one for each process that has one.
    passes
        Of the network at a time on the CPU of each process; None: one for each thread.
    batch_size
        Tiles in a pass of the network; None for a stage without one.
    """

    stage: Literal["embed", "cluster", "segment"]
    part: str | None
    settings: Mapping[str, Any]
    plan: Plan
    model: str | None = None
    device: str | None = None
    workers: int = 1
    carried: str | None = None
    devices: int = 1
    passes: int | None = None
    batch_size: int | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.tally = Tally(self.plan.unusable)
        self._lines: LineFile | None = None
        self._lines_ended: str | None = None
        self._stopped: float | None = None

    @property
    def marks(self) -> Stage:
        """The stage whose marks say what is done: a segmented field is one that has labels."""
        return "embed" if self.stage == "embed" else "cluster"

    @property
    def name(self) -> str:
        """Of both files, without suffix: when it began, what, which part, which process."""
        part = f"-part{self.part.replace('/', 'of')}" if self.part else ""
        return f"{self.started:%Y%m%dT%H%M%S.%fZ}-{self.stage}{part}-{os.getpid()}"

    def begin(self, store: Store) -> None:
        """Leave the two files under the store, so that a run that is killed has a record.

        Raises
        ------
        StoreWriteError
            The store cannot be written.
        """
        store.write_record(self.name, self.document(None))
        try:
            self._lines = LineFile(store.record_path(self._lines_name))
        except OSError as error:
            self._lines_ended = error.strerror or str(error)
        for failure in self.plan.unusable:
            self._append({"field": failure.field_id, **_known(_failed(failure))})

    def add(self, outcome: Outcome) -> None:
        """Note the end of one field; never raises, for the field itself is done."""
        self.tally.add(outcome)
        self._append(_line(outcome))

    def beat(self, beat: Beat) -> None:
        """Note how full the queue is."""
        self.tally.beat(beat)

    def summary(self) -> Summary:
        """The run as the command layer wants it; failures in the order of their ids."""
        return Summary(
            stage=self.stage,
            done=self.tally.done,
            skipped=len(self.plan.skipped),
            failed=tuple(sorted(self.tally.failed, key=lambda one: one.field_id)),
            seconds=(self._stopped or time.perf_counter()) - self.clock,
        )

    def finished(self, path: Path) -> StageFinished:
        """The event that ends the stage; ``path`` is that of the record."""
        summary = self.summary()
        busy = self._device_busy(summary.seconds)
        return StageFinished(summary, str(path), self.tally.pixels, busy)

    def write(self, store: Store, ended: str) -> Path:
        """Write the record under the store; ``ended`` says how: finished, interrupted, error."""
        self._stopped = time.perf_counter()  # so that the record and the last event agree
        if self._lines:
            self._lines.close()
            self._lines = None
        return store.write_record(self.name, self.document(ended))

    def document(self, ended: str | None) -> dict[str, Any]:
        """The record as JSON can carry it; ``ended`` is None while the run goes on."""
        summary = self.summary()
        return {
            "stage": self.stage,
            "ended": ended,
            "part": self.part,
            "started_utc": self.started.isoformat(timespec="seconds"),
            "seconds": round(summary.seconds, 3),
            "versions": versions(),
            "model_fingerprint": self.model,
            "device": self.device,
            "workers": self.workers,
            "carried": self.carried,
            "batch_size": self.batch_size,
            "settings": dict(self.settings),
            "counts": {
                "planned": self.plan.fields,
                "done": summary.done,
                "skipped": summary.skipped,
                "failed": len(summary.failed),
            },
            **self._measured(summary.seconds),
            "failed": {one.field_id: one.reason for one in summary.failed},
            "fields": self._lines_name,
            "fields_ended": self._lines_ended,
        }

    def _measured(self, seconds: float) -> dict[str, Any]:
        """What it took, and how fast it went; rates are of the fields that are done."""
        tally = self.tally
        return {
            "pixels": tally.pixels,
            "instances": tally.instances,
            "fields_per_s": round(tally.done / seconds, 4),
            "megapixels_per_s": round(tally.pixels / seconds / 1e6, 4),
            "seconds_by_part": {part: round(sum_, 3) for part, sum_ in tally.seconds.items()},
            "device_busy": _rounded(self._device_busy(seconds)),
            "queue_fill": _rounded(tally.queue_fill),
            "bytes_read": tally.bytes_read,
            "bytes_written": tally.bytes_written,
            "peak_rss_bytes": peak_rss_bytes(),
            "peak_rss_bytes_by_worker": dict(sorted(tally.peak_rss_bytes.items())),
        }

    def _device_busy(self, seconds: float) -> float | None:
        """The fraction of the time that the devices were at work; None without a network."""
        if self.device is None or not self.tally.device_busy_s:
            return None
        return min(1.0, self.tally.device_busy_s / (seconds * self.devices))

    @property
    def _lines_name(self) -> str:
        return f"{self.name}.fields.jsonl"

    def _append(self, values: Mapping[str, Any]) -> None:
        """Write a line; where that fails, no more of them, and the record says why.

        What keeps a line from the disk keeps the next field from it: that one ends the run.
        """
        if self._lines is None:
            return
        try:
            self._lines.append(values)
        except OSError as error:
            self._lines_ended = error.strerror or str(error)
            self._lines.close()
            self._lines = None


def _line(outcome: Outcome) -> dict[str, Any]:
    """What is kept of one field, without what there is none of."""
    fate: dict[str, Any] = {"field": outcome.field_id}
    fate |= _failed(outcome.failure) if outcome.failure else {"outcome": "done"}
    fate["seconds"] = round(outcome.seconds, 4)
    if made := outcome.produced:
        fate |= {"pixels": made.pixels, "instances": made.instances, **made.counts}
        fate["seconds_by_part"] = {part: round(one, 4) for part, one in made.seconds.items()}
        fate |= {"bytes_read": made.bytes_read, "bytes_written": made.bytes_written}
    fate["worker"] = None if outcome.worker == worker_name() else outcome.worker
    return _known(fate)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _failed(failure: Failure) -> dict[str, Any]:
    return {"outcome": "failed", "reason": failure.reason, "traceback": failure.traceback}


def plain(run: RunSettings) -> dict[str, Any]:
    """How a run was carried out, as JSON can carry it."""
    values = asdict(run)
    return {name: str(one) if isinstance(one, Path) else one for name, one in values.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def versions() -> dict[str, str]:
    """The versions of Python, cellseg and the packages that decide the output."""
    found = {"python": platform.python_version(), "cellseg": __version__}
    for package in (*_PACKAGES, *_MORE_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
