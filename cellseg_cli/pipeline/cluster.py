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

import numpy as np

from cellseg_cli.config import ClusterSettings, RunSettings
from cellseg_cli.engine.carriers import carrier
from cellseg_cli.engine.tasks import Clock, Produced, Stop, Use
from cellseg_cli.errors import StoreError
from cellseg_cli.pipeline.events import Emit, Noted, Summary
from cellseg_cli.pipeline.forecast import clustering_forecast, planned
from cellseg_cli.pipeline.labelling import Labeller
from cellseg_cli.pipeline.plan import of_part, plan_clustering, retrying
from cellseg_cli.pipeline.record import Record, plain
from cellseg_cli.pipeline.settings import CellTypes, FieldSettings, settings_of_fields
from cellseg_cli.pipeline.sinks import LabelSink, StoreLabels
from cellseg_cli.pipeline.stage import dry_summary, run_stage
from cellseg_cli.pipeline.tiles import Place, Tiles, check_whole, cluster_tiles
from cellseg_cli.store import FieldRow, Store

LABEL_BYTES = 4  # uint32


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
    how = How(chosen, Tiles.of(settings), Labeller.on(run.device, chosen.overall.method))
    plan = plan_clustering(of_part(fields, run.part), how.identity, store, redo=run.overwrite)
    if run.retry_failed:
        plan = retrying(plan, store, "cluster")
    forecast = clustering_forecast(plan, store, run, how)
    told_first = planned(plan, "cluster", store.path, forecast, emit, dry_run=run.dry_run)
    if run.dry_run:
        return dry_summary(plan, told_first)
    told: dict[str, Any] = {"cell_type": types.everywhere, "types": types.table}
    told |= {"tile_px": settings.tile_px, "overlap_px": settings.overlap_px}
    told |= {"run": plain(run)}
    record = Record("cluster", run.part, {**asdict(chosen.overall), **told}, plan)
    record.model = store.attributes.get("embed", {}).get("model")
    record.device = how.labeller.device
    store.remove_abandoned()
    with carrier(run, run.device, lambda line: emit(Noted("cluster", line))) as by:
        place = store if by.here else store.absolute()
        work = ClusterWork(place, how, StoreLabels(place))
        return run_stage(store, plan, record, work, by, emit)


@dataclass(frozen=True)
class How:
    """The settings of every field, how large ones are cut, and where labels are made."""

    chosen: FieldSettings
    tiles: Tiles
    labeller: Labeller

    def identity(self, row: FieldRow) -> dict[str, Any]:
        """What decides the label image of a field, besides its embedding."""
        settings = self.chosen.of(row.id)
        return asdict(settings) | self.tiles.identity(row, settings)


@dataclass(frozen=True)
class Labelled:
    """What came of clustering a field: instances, and counts of tiles where it was cut."""

    instances: int
    seams: Mapping[str, int]


@dataclass(frozen=True)
class ClusterWork:
    """What ``cluster`` does to a field: one task, since a large one is read tile by tile."""

    store: Store
    how: How
    sink: LabelSink

    def parts(self, row: FieldRow) -> int:
        """No field has parts."""
        del row
        return 0

    def whole(self, row: FieldRow, mark: str, stop: Stop) -> Produced:
        """Read → cluster → write → mark, at once or tile by tile."""
        clock = Clock()
        made = self.label(row, stop, clock)
        return self.mark(row, mark, made, clock)

    def label(self, row: FieldRow, stop: Stop, clock: Clock) -> Labelled:
        """Write the label image of a field that has its embedding in the store."""
        settings, kind = self.how.chosen.of(row.id), self.how.chosen.kind
        if tiling := self.how.tiles.for_field(row, settings):
            place = Place(self.sink, stop.check)
            with clock.on("cluster"):
                made = cluster_tiles(row, self.store, kind, settings, tiling, place)
            seams = {"tiles": made.tiles, "redone": made.redone, "disputed": made.disputed}
            return Labelled(made.instances, seams)
        check_whole(row, settings)
        with clock.on("read"):
            values, classes = self.store.read_embedding(row.id)
        stop.check()
        return self.label_whole(row, (values, classes), stop, clock)

    def label_whole(
        self,
        row: FieldRow,
        embedding: tuple[np.ndarray, np.ndarray | None],
        stop: Stop,
        clock: Clock,
    ) -> Labelled:
        """Write the label image of a field from its embedding and classes."""
        chosen = self.how.chosen
        with clock.on("cluster"):
            labels = self.how.labeller.labels(*embedding, chosen.kind, chosen.of(row.id))
        return self.write(row, labels, stop, clock)

    def write(self, row: FieldRow, labels: np.ndarray, stop: Stop, clock: Clock) -> Labelled:
        """Write the label image of a field."""
        stop.check()
        with clock.on("write"):
            self.sink.write(row.id, labels)
        return Labelled(int(labels.max(initial=0)), {})  # ids are 1 to n without gaps

    def mark(self, row: FieldRow, mark: str, made: Labelled, clock: Clock) -> Produced:
        """Say that the label image is there; what the run hears of it."""
        details = {
            "settings": self.how.identity(row),
            "instances": made.instances,
            **made.seams,
        }
        with clock.on("write"):
            self.store.mark_done(row.id, "cluster", mark, details)
        written = row.pixels * LABEL_BYTES
        return Produced(
            row.pixels,
            made.instances,
            made.seams,
            _note(made.seams),
            clock.seconds,
            bytes_written=written,
        )

    def begin(self, row: FieldRow, mark: str, stop: Stop) -> Any:
        """Never called."""
        raise AssertionError((row.id, mark, stop))

    def part(self, row: FieldRow, begun: Any, index: int, stop: Stop) -> Produced:
        """Never called."""
        raise AssertionError((row.id, begun, index, stop))

    def finish(self, row: FieldRow, mark: str, begun: Any, stop: Stop) -> Produced:
        """Never called."""
        raise AssertionError((row.id, mark, begun, stop))

    def is_done(self, row: FieldRow, mark: str) -> bool:
        """Whether an earlier attempt has marked the field."""
        return self.store.done_fingerprint(row.id, "cluster") == mark

    def discard(self, field_id: str) -> None:
        """Take the label image away, wherever it was written."""
        self.store.clear(field_id, "cluster")
        self.sink.remove(field_id)

    def check_place(self) -> None:
        """Raise StoreError where this process does not see the store."""
        self.store.check_seen()

    def use(self) -> Use:
        """No network."""
        return Use()


def _note(seams: Mapping[str, int]) -> str | None:
    """What the user should know about the tiles of a field."""
    if not (disputed := seams.get("disputed")):
        return None
    return (
        f"{disputed} instances looked different from two tiles and may be cut between them; "
        "raise overlap_px or tile_px"
    )
