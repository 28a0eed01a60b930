"""What every stage does around its work on one field: events, stale marks, the run record."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from cellseg_cli.errors import StoreWriteError
from cellseg_cli.pipeline.events import (
    Emit,
    FieldDone,
    FieldFailed,
    Noted,
    StageFinished,
    StagePlanned,
    StageStarted,
    Summary,
)
from cellseg_cli.pipeline.plan import Plan
from cellseg_cli.pipeline.record import Record
from cellseg_cli.pipeline.stream import Outcome, Work, run_fields
from cellseg_cli.store import Store


def planned(
    plan: Plan, stage: str, out: Path, bytes_per_pixel: int, *, dry_run: bool
) -> StagePlanned:
    """What the run will do, as an event; ``bytes_per_pixel`` before compression."""
    place = out.absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    return StagePlanned(
        stage=stage,
        store=str(out),
        fields=plan.fields,
        to_do=len(plan.to_do),
        skipped=len(plan.skipped),
        unusable=plan.unusable,
        bytes_to_write=sum(row.pixels for row, _ in plan.to_do) * bytes_per_pixel,
        free_bytes=shutil.disk_usage(existing).free,
        dry_run=dry_run,
    )


def dry_summary(plan: Plan, stage: str) -> Summary:
    """The summary of a dry run: nothing done; fields that are known to be unusable count."""
    return Summary(stage, 0, len(plan.skipped), plan.unusable, 0.0, planned=len(plan.to_do))


def run_stage(store: Store, plan: Plan, record: Record, work: Work, emit: Emit) -> Summary:
    """Clear what is stale, do the work on every field of the plan, and leave a run record.

    The record is written however the run ends; an error or interrupt passes on.
    """
    try:
        _start(store, plan, record, emit)
        run_fields(plan.to_do, work, record.workers, lambda one: _tell(one, store, record, emit))
    except BaseException as error:
        with contextlib.suppress(StoreWriteError):  # the error on its way says more
            record.write(store, ended=_how(error))
        raise
    path = record.write(store, ended="finished")
    summary = record.summary()
    emit(StageFinished(summary, str(path)))
    return summary


def _how(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"stopped: {type(error).__name__}: {error}"


def _start(store: Store, plan: Plan, record: Record, emit: Emit) -> None:
    """Take away every stale mark before the first field, so that settings never mix."""
    total = len(plan.to_do)
    emit(StageStarted(record.stage, total, len(plan.skipped), record.workers, record.device))
    for failure in plan.unusable:
        emit(FieldFailed(record.stage, failure))
    for field_id in plan.stale:
        store.clear(field_id, record.stage)


def _tell(outcome: Outcome, store: Store, record: Record, emit: Emit) -> None:
    record.outcomes.append(outcome)
    if outcome.failure:
        with contextlib.suppress(StoreWriteError):  # the next write of a field ends the run
            store.note_failure(outcome.field_id, record.stage, outcome.failure.reason)
        emit(FieldFailed(record.stage, outcome.failure))
    elif outcome.produced:
        made = outcome.produced
        if made.note:
            emit(Noted(record.stage, f"{outcome.field_id}: {made.note}"))
        emit(
            FieldDone(record.stage, outcome.field_id, outcome.seconds, made.pixels, made.instances)
        )
