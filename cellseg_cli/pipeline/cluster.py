"""The stage ``cluster``: embeddings in a store, label images in the same store.

Label images are cheap to make, so other settings than those of the last run
simply redo them: the marks of the old ones go before the first new one is
written, and a store never shows label images of two settings at once, except
for parts that have not been run yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellseg_cli.config import ClusterSettings, RunSettings
from cellseg_cli.errors import StoreError
from cellseg_cli.pipeline.events import Emit, Noted, Summary
from cellseg_cli.pipeline.labelling import Labeller
from cellseg_cli.pipeline.plan import of_part, plan_clustering
from cellseg_cli.pipeline.record import Record
from cellseg_cli.pipeline.settings import CellTypes, FieldSettings, settings_of_fields
from cellseg_cli.pipeline.stage import dry_summary, planned, run_stage
from cellseg_cli.pipeline.stream import Produced, Stop, worker_count
from cellseg_cli.pipeline.tiles import Tiles, check_whole, cluster_tiles
from cellseg_cli.store import FieldRow, Store

_LABEL_BYTES = 4  # uint32


def cluster_store(
    path: str | Path,
    settings: ClusterSettings,
    run: RunSettings,
    emit: Emit,
    types: CellTypes = CellTypes(),
) -> Summary:
    """Make the label image of every embedded field that has none of its settings.

    Parameters
    ----------
    path
        A store that ``embed`` has made.
    settings
        What is None is taken from what was tuned on the store, then from the model, then from
        the method's defaults.
    run, emit
        How to carry it out; who is told.
    types
        Which fields have the settings of a cell type.

    Raises
    ------
    ConfigError, InputError
        As :func:`cellseg_cli.pipeline.settings.settings_of_fields`.
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
    fields = store.fields()
    if not fields:
        raise StoreError(f"{store.path} lists no fields: run cellseg embed first")
    chosen = settings_of_fields(store, settings, types, [row.id for row in fields])
    for note in chosen.notes:
        emit(Noted("cluster", note))
    how = _How(chosen, Tiles.of(settings), Labeller.on(run.device, chosen.overall.method))
    plan = plan_clustering(of_part(fields, run.part), how.identity, store, redo=run.overwrite)
    emit(planned(plan, "cluster", store.path, _LABEL_BYTES, dry_run=run.dry_run))
    if run.dry_run:
        return dry_summary(plan, "cluster")
    told: dict[str, Any] = {"cell_type": types.everywhere, "types": types.table}
    told |= {"tile_px": settings.tile_px, "overlap_px": settings.overlap_px}
    record = Record("cluster", run.part, {**asdict(chosen.overall), **told, **asdict(run)}, plan)
    record.model = store.attributes.get("embed", {}).get("model")
    record.device = how.labeller.device
    record.workers = worker_count(run.workers)

    def work(row: FieldRow, mark: str, stop: Stop) -> Produced:
        return _cluster_field(row, mark, store, stop, how)

    return run_stage(store, plan, record, work, emit)


@dataclass(frozen=True)
class _How:
    """The settings of every field, how large ones are cut, and where labels are made."""

    chosen: FieldSettings
    tiles: Tiles
    labeller: Labeller

    def identity(self, row: FieldRow) -> dict[str, Any]:
        """What decides the label image of a field, besides its embedding."""
        settings = self.chosen.of(row.id)
        return asdict(settings) | self.tiles.identity(row, settings)


def _cluster_field(row: FieldRow, mark: str, store: Store, stop: Stop, how: _How) -> Produced:
    """Read → cluster → write → mark, for one field, at once or tile by tile."""
    settings, kind = how.chosen.of(row.id), how.chosen.kind
    seams: dict[str, int] = {}
    if tiling := how.tiles.for_field(row, settings):
        made = cluster_tiles(row, store, kind, settings, tiling, stop.check)
        instances = made.instances
        seams = {"tiles": made.tiles, "redone": made.redone, "disputed": made.disputed}
    else:
        check_whole(row, settings)
        instances = _cluster_whole(row, store, stop, how)
    stop.check()
    details = {"settings": how.identity(row), "instances": instances, **seams}
    store.mark_done(row.id, "cluster", mark, details)
    return Produced(row.pixels, instances, seams, _note(seams))


def _cluster_whole(row: FieldRow, store: Store, stop: Stop, how: _How) -> int:
    """Write the label image of a field that fits in memory; the number of instances."""
    embedding, classes = store.read_embedding(row.id)
    stop.check()
    labels = how.labeller.labels(embedding, classes, how.chosen.kind, how.chosen.of(row.id))
    stop.check()
    store.write_labels(row.id, labels)
    return int(labels.max(initial=0))  # ids are 1 to n without gaps


def _note(seams: Mapping[str, int]) -> str | None:
    """What the user should know about the tiles of a field."""
    if not (disputed := seams.get("disputed")):
        return None
    return (
        f"{disputed} instances looked different from two tiles and may be cut between them; "
        "raise overlap_px or tile_px"
    )
