"""The stage ``cluster``: embeddings in a store, label images in the same store.

Label images are cheap to make, so other settings than those of the last run
simply redo them: the marks of the old ones go before the first new one is
written, and a store never shows label images of two settings at once, except
for parts that have not been run yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cellseg_cli.clustering import Clustering, cluster, default_method, resolve
from cellseg_cli.config import ClusterSettings, RunSettings
from cellseg_cli.errors import StoreError
from cellseg_cli.pipeline.events import Emit, Summary
from cellseg_cli.pipeline.plan import of_part, plan_clustering
from cellseg_cli.pipeline.record import Record
from cellseg_cli.pipeline.stage import dry_summary, planned, run_stage
from cellseg_cli.pipeline.stream import Produced, Stop, worker_count
from cellseg_cli.store import FieldRow, Store

_LABEL_BYTES = 4  # uint32


def cluster_store(
    path: str | Path, settings: ClusterSettings, run: RunSettings, emit: Emit
) -> Summary:
    """Make the label image of every embedded field that has none of these settings.

    Parameters
    ----------
    path
        A store that ``embed`` has made.
    settings
        What is None is taken from the model, else from the method's defaults.
    run, emit
        How to carry it out; who is told.

    Raises
    ------
    ConfigError
        A method that cannot work on this kind of embedding, or values out of range.
    StoreError
        No store, or one without a list of fields.
    StoreWriteError
        The disk cannot be written any more; finished fields are kept.

    Notes
    -----
    Fields that are listed but not embedded count as failures.  The label image
    of a field depends on its embedding and the settings alone.
    """
    store = Store.open(path)
    kind, resolved = settings_for(store, settings)
    fields = store.fields()
    if not fields:
        raise StoreError(f"{store.path} lists no fields: run cellseg embed first")
    plan = plan_clustering(of_part(fields, run.part), asdict(resolved), store, redo=run.overwrite)
    emit(planned(plan, "cluster", store.path, _LABEL_BYTES, dry_run=run.dry_run))
    if run.dry_run:
        return dry_summary(plan, "cluster")
    record = Record("cluster", run.part, {**asdict(resolved), **asdict(run)}, plan)
    record.model = store.attributes.get("embed", {}).get("model")
    record.workers = worker_count(run.workers)

    def work(row: FieldRow, mark: str, stop: Stop) -> Produced:
        return _cluster_field(row, mark, store, stop, kind, resolved)

    return run_stage(store, plan, record, work, emit)


def settings_for(store: Store, settings: ClusterSettings) -> tuple[str, Clustering]:
    """The kind of the store's embeddings, and the settings with nothing left open.

    What the user leaves open is taken from the model's tuned settings, if
    these are for the method in use, and then from the method's defaults.

    Raises
    ------
    StoreError
        The store does not say what kind its embeddings are.
    ConfigError
        As :func:`cellseg_cli.clustering.resolve`.
    """
    model = store.attributes.get("model", {})
    kind = model.get("kind")
    if kind is None:
        raise StoreError(f"{store.path} does not say what kind its embeddings are; embed anew")
    given = {key: value for key, value in asdict(settings).items() if value is not None}
    tuned: Mapping[str, Any] = store.attributes.get("cluster", {})
    if unknown := sorted(set(tuned) - set(asdict(Clustering()))):
        raise StoreError(
            f"{store.path}: its model was tuned with settings that this cellseg does not know: "
            f"{', '.join(unknown)}; use the cellseg that made the model"
        )
    tuned_method = tuned.get("method", default_method(kind))
    if given["method"] == "auto":
        given["method"] = tuned_method
    if given["method"] == tuned_method:
        given = {**tuned, **given}
    return kind, resolve(Clustering(**given), kind, with_classes=bool(model.get("classes")))


def _cluster_field(
    row: FieldRow, mark: str, store: Store, stop: Stop, kind: str, settings: Clustering
) -> Produced:
    """Read → cluster → write → mark, for one field."""
    embedding, classes = store.read_embedding(row.id)
    stop.check()
    labels = cluster(embedding, kind=kind, settings=settings, classes=classes)
    stop.check()
    store.write_labels(row.id, labels)
    instances = int(labels.max(initial=0))  # ids are 1 to n without gaps
    details = {"settings": asdict(settings), "instances": instances}
    store.mark_done(row.id, "cluster", mark, details)
    return Produced(pixels=labels.size, instances=instances)
