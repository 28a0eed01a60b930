"""The stage ``embed``: images in, embeddings in the store.

A store holds embeddings of one model and one choice of planes; others are
refused (:mod:`cellseg_cli.pipeline.request`).  Which field is redone is decided
in :mod:`cellseg_cli.pipeline.plan`, what is done to it in
:mod:`cellseg_cli.pipeline.embedding`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from cellseg_cli.config import EmbedSettings, RunSettings
from cellseg_cli.engine.carriers import carrier, is_remote, threads_each
from cellseg_cli.engine.tasks import thread_count
from cellseg_cli.networks.allocator import keep_freed_memory
from cellseg_cli.pipeline.embedding import EmbedWork
from cellseg_cli.pipeline.events import Emit, Noted, Summary
from cellseg_cli.pipeline.forecast import embedding_forecast, planned
from cellseg_cli.pipeline.plan import of_part, plan_embedding, retrying
from cellseg_cli.pipeline.record import Record, plain
from cellseg_cli.pipeline.request import (
    check_same,
    earlier_store,
    filling,
    found_fields,
    known_rows,
    prepared,
    requested,
    run_device,
    store_at,
)
from cellseg_cli.pipeline.stage import dry_summary, run_stage
from cellseg_cli.pipeline.survey import survey


def embed(
    source: str | Path, out: str | Path, settings: EmbedSettings, run: RunSettings, emit: Emit
) -> Summary:
    """Embed every field of ``source`` that the store ``out`` does not hold yet.

    Parameters
    ----------
    source
        File, folder, glob, list file or OME-Zarr.
    out
        A store of the same settings, or a place where none is yet.
    settings, run
        What to compute, and how to carry it out.
    emit
        Called with each event, on this thread.

    Raises
    ------
    InputError
        No image is there, or ids that a store cannot hold.
    StoreError
        ``out`` is no store, or one that was made with other settings or from other images.
    StoreWriteError
        The disk cannot be written any more; finished fields are kept.
    ClusterError
        The processes that were to do the work cannot be had, or are gone.

    Notes
    -----
    Failed fields have no mark, so that the next run tries them again.
    """
    keep_freed_memory()  # before any thread takes memory
    out = Path(out)
    request = requested(source, settings, "embeddings")
    fields = found_fields(source, settings, request.planes, "embed", emit)
    store = earlier_store(out, request)
    if store is None and request.restriction:
        emit(Noted("embed", request.restriction))
    known = known_rows(store, request)
    rows = survey(fields, request.planes, known, threads=thread_count(run.threads))
    if store and not run.overwrite:
        check_same(store, request, rows)
    plan = plan_embedding(of_part(rows, run.part), request.identity, store, redo=run.overwrite)
    if run.retry_failed:
        plan = retrying(plan, store_at(out), "embed")
    network = request.network(settings, claims=is_remote(run), passes=threads_each(run))
    run = filling(run, network, plan)
    forecast = embedding_forecast(plan, request, network, run)
    told = planned(plan, "embed", out, forecast, emit, dry_run=run.dry_run)
    if run.dry_run:
        return dry_summary(plan, told)
    with carrier(run, settings.device, lambda line: emit(Noted("embed", line))) as by:
        device = run_device(network, by) if plan.to_do else None  # before anything is written
        record = Record("embed", run.part, {**asdict(settings), "run": plain(run)}, plan)
        record.model, record.device = request.fingerprint, device
        record.passes = network.passes
        store = prepared(store, out, request, rows, overwrite=run.overwrite)
        work = EmbedWork(store if by.here else store.absolute(), network)
        return run_stage(store, plan, record, work, by, emit)
