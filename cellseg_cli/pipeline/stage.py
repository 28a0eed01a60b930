"""What every stage does around its work on one field: events, stale marks, the run record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from cellseg_cli.engine.carriers import Carrier
from cellseg_cli.engine.tasks import Outcome, Work
from cellseg_cli.errors import StoreWriteError
from cellseg_cli.pipeline.events import (
    Beat,
    Dashboard,
    Emit,
    Failure,
    FieldDone,
    FieldFailed,
    Noted,
    StagePlanned,
    StageStarted,
    Summary,
)
from cellseg_cli.pipeline.plan import Plan
from cellseg_cli.pipeline.record import Record
from cellseg_cli.store import FieldRow, Store

#: Seconds between two beats, at least.
BEAT_EVERY_S = 1.0


class StageWork(Work, Protocol):
    """Work whose results are kept."""

    def discard(self, field_id: str) -> None:
        """Take away what the stage has made of a field, finished or not; the mark goes first."""


def dry_summary(plan: Plan, told: StagePlanned) -> Summary:
    """The summary of a dry run: nothing done; fields that are known to be unusable count."""
    skipped, to_do = len(plan.skipped), len(plan.to_do)
    return Summary(told.stage, 0, skipped, plan.unusable, 0.0, planned=to_do, forecast=told)


def run_stage(
    store: Store, plan: Plan, record: Record, work: StageWork, carrier: Carrier, emit: Emit
) -> Summary:
    """Clear what is stale, do the work on every field of the plan, and leave a run record.

    The record is written however the run ends; an error or interrupt passes on.
    """
    on_cpu = record.device is None or record.device == "cpu"
    passes = min(carrier.threads, carrier.processes * (record.passes or carrier.threads))
    record.devices = passes if on_cpu else carrier.processes
    record.workers, record.carried = carrier.threads, carrier.words
    pulse = _Pulse(record, carrier, emit)
    try:
        _start(store, plan, record, work, emit)
        if carrier.dashboard:
            emit(Dashboard(record.stage, carrier.dashboard))
        if plan.to_do:
            jobs = {row.id: (row, mark) for row, mark in plan.to_do}
            seen = partial(_tell, jobs=jobs, store=store, record=record, work=work, emit=emit)
            carrier.carry(plan.to_do, work, seen, pulse.beat)
            record.batch_size = work.use().batch_size if carrier.here else None
    except BaseException as error:
        with contextlib.suppress(StoreWriteError):  # the error on its way says more
            record.write(store, ended=_how(error))
        raise
    path = record.write(store, ended="finished")
    end = record.finished(path)
    emit(end)
    return end.summary


class _Pulse:
    """Tells about once a second how busy the run is."""

    def __init__(self, record: Record, carrier: Carrier, emit: Emit) -> None:
        self._record, self._carrier, self._emit = record, carrier, emit
        self._told = time.perf_counter()
        self._busy_s = 0.0

    def beat(self, in_flight: int, capacity: int) -> None:
        """Told whenever something has happened."""
        for line in self._carrier.news():
            self._emit(Noted(self._record.stage, line))
        now = time.perf_counter()
        if (passed := now - self._told) < BEAT_EVERY_S:
            return
        record, busy_s = self._record, self._record.tally.device_busy_s
        share = (busy_s - self._busy_s) / (passed * record.devices)
        self._told, self._busy_s = now, busy_s
        beat = Beat(
            record.stage, in_flight, capacity, None if record.device is None else min(1.0, share)
        )
        record.beat(beat)
        self._emit(beat)


def _how(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"stopped: {type(error).__name__}: {error}"


def _start(store: Store, plan: Plan, record: Record, work: StageWork, emit: Emit) -> None:
    """Take away every stale mark before the first field, so that settings never mix."""
    record.begin(store)
    emit(
        StageStarted(
            record.stage,
            len(plan.to_do),
            len(plan.skipped),
            record.workers,
            record.device,
            len(plan.unusable),
            record.carried,
        )
    )
    for failure in plan.unusable:
        # A field that was never embedded has not failed to be clustered.
        if record.stage != "cluster" or store.failure(failure.field_id, "embed"):
            _remember(failure, store, record)
        emit(FieldFailed(record.stage, failure))
    for field_id in plan.stale:
        work.discard(field_id)


def _remember(failure: Failure, store: Store, record: Record) -> None:
    """Keep why a field failed, so that ``--retry-failed`` finds it."""
    if store.failure(failure.field_id, record.marks) != failure.reason:
        store.note_failure(failure.field_id, record.marks, failure.reason)


def _tell(
    outcome: Outcome,
    jobs: Mapping[str, tuple[FieldRow, str]],
    store: Store,
    record: Record,
    work: StageWork,
    emit: Emit,
) -> None:
    record.add(outcome)
    if outcome.failure:
        with contextlib.suppress(StoreWriteError):  # the next write of a field ends the run
            if not work.is_done(*jobs[outcome.field_id]):  # by another run of the same store
                work.discard(outcome.field_id)
                _remember(outcome.failure, store, record)
        emit(FieldFailed(record.stage, outcome.failure))
    elif outcome.produced:
        made = outcome.produced
        if made.note:
            emit(Noted(record.stage, f"{outcome.field_id}: {made.note}"))
        emit(
            FieldDone(record.stage, outcome.field_id, outcome.seconds, made.pixels, made.instances)
        )
