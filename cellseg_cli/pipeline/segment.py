"""The stage ``segment``: images in, label images out, in one stream without keeping embeddings.

A field that fits in memory goes from its image to its label image on one thread, while others
are read, on the network or being written.  A large one is embedded slab by slab into the store
of the run, clustered from there in tiles, and its embedding removed.  Marks are those that
``embed`` and ``cluster`` together would give, so equal label images have equal marks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.engine.carriers import carrier, is_remote, threads_each
from cellseg_cli.engine.tasks import Clock, Produced, Stop, Use, thread_count
from cellseg_cli.errors import ConfigError, OutputExistsError
from cellseg_cli.images.listing import SEGMENTED
from cellseg_cli.networks.allocator import keep_freed_memory
from cellseg_cli.pipeline.cluster import ClusterWork, How
from cellseg_cli.pipeline.embedding import EmbedWork
from cellseg_cli.pipeline.events import Emit, Noted, Summary
from cellseg_cli.pipeline.forecast import planned, segmenting_forecast
from cellseg_cli.pipeline.labelling import Labeller
from cellseg_cli.pipeline.plan import of_part, plan_segmenting, retrying
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
from cellseg_cli.pipeline.settings import CellTypes, settings_of_fields
from cellseg_cli.pipeline.sinks import FolderLabels, LabelSink, StoreLabels
from cellseg_cli.pipeline.stage import dry_summary, run_stage
from cellseg_cli.pipeline.survey import survey
from cellseg_cli.pipeline.tiles import Tiles, check_whole
from cellseg_cli.store import FieldRow, Store

#: The store of a run whose label images are TIFF files: fields, marks and run records.
STATE = SEGMENTED


@dataclass(frozen=True)
class SegmentSettings:
    """How fields are embedded, how embeddings become label images, and the types of cells."""

    embed: EmbedSettings = field(default_factory=EmbedSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    types: CellTypes = field(default_factory=CellTypes)


@dataclass(frozen=True)
class _Output:
    """Where the marks are kept, and the label images of the ids that have one."""

    state: Path
    folder: Path | None

    @classmethod
    def at(cls, out: Path, *, overwrite: bool) -> _Output:
        """A folder of TIFF files, or for a name that ends in ``.zarr`` a store.

        Raises
        ------
        ConfigError
            `out` is a file.
        OutputExistsError
            It is a folder with something in it that no such run has made.
        """
        if out.suffix == ".zarr" or Store.is_at(out):
            return cls(out, None)
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is a file; give a folder, or a name that ends in .zarr")
        # Listed before the store is looked for: another part may be making it now.
        others = out.is_dir() and any(one.name != ".cellseg" for one in out.iterdir())
        if others and not Store.is_at(out / STATE):
            raise OutputExistsError(
                f"{out} holds files that cellseg segment did not make; choose another --out"
            )
        return cls(out / STATE, out)

    def absolute(self) -> _Output:
        """The same by paths that hold in every folder."""
        folder = None if self.folder is None else self.folder.absolute()
        return _Output(self.state.absolute(), folder)

    def sink(self, store: Store) -> LabelSink:
        """What takes the label images."""
        return StoreLabels(store) if self.folder is None else FolderLabels(self.folder)


def segment(
    source: str | Path, out: str | Path, settings: SegmentSettings, run: RunSettings, emit: Emit
) -> Summary:
    """Make the label image of every field of ``source`` that ``out`` does not hold yet.

    Parameters
    ----------
    source
        File, folder, glob, list file or OME-Zarr.
    out
        A store of label images if the name ends in ``.zarr``, else a folder that gets
        ``<field id>.tif``.
    settings, run
        What to compute, and how to carry it out.
    emit
        Called with each event, on this thread.

    Raises
    ------
    ConfigError, InputError, OutputExistsError, StoreError
        As :func:`cellseg_cli.pipeline.embed.embed` and
        :func:`cellseg_cli.pipeline.cluster.cluster_store`.
    StoreWriteError
        The disk cannot be written any more; finished fields are kept.
    ClusterError
        The processes that were to do the work cannot be had, or are gone.
    """
    keep_freed_memory()  # before any thread takes memory
    output = _Output.at(Path(out), overwrite=run.overwrite)
    request = requested(source, settings.embed, "labels")
    fields = found_fields(source, settings.embed, request.planes, "segment", emit)
    store = earlier_store(output.state, request)
    if store is None and request.restriction:
        emit(Noted("segment", request.restriction))
    known = known_rows(store, request)
    rows = survey(fields, request.planes, known, threads=thread_count(run.threads))
    if store and not run.overwrite:
        check_same(store, request, rows)
    # What is overwritten says nothing of the new model's kind and thresholds.
    at = store if store and not run.overwrite else Store(output.state, request.attributes)
    chosen = settings_of_fields(at, settings.cluster, settings.types, [row.id for row in rows])
    for line in chosen.notes:
        emit(Noted("segment", line))
    labeller = Labeller.on(settings.embed.device, chosen.overall.method, or_cpu=True)
    how = How(chosen, Tiles.of(settings.cluster), labeller)
    sink = output.sink(at)
    plan = plan_segmenting(
        of_part(rows, run.part),
        request.identity,
        how.identity,
        store,
        redo=lambda one: run.overwrite or not sink.has(one),
    )
    if run.retry_failed:
        plan = retrying(plan, store_at(output.state), "cluster")
    network = request.network(settings.embed, claims=is_remote(run), passes=threads_each(run))
    run = filling(run, network, plan)
    forecast = segmenting_forecast(plan, request, network, run, how)
    told = planned(plan, "segment", Path(out), forecast, emit, dry_run=run.dry_run)
    if run.dry_run:
        return dry_summary(plan, told)
    with (
        carrier(run, settings.embed.device, lambda line: emit(Noted("segment", line))) as by,
        ThreadPoolExecutor(1) as beside,
    ):
        device = run_device(network, by) if plan.to_do else None  # before anything is written
        if by.here and plan.to_do:  # where it fails, the first field says so
            channels = len(request.header.channels)
            beside.submit(labeller.prepare, channels, chosen.kind, chosen.overall)
        record = Record("segment", run.part, _told(settings, how, run), plan)
        record.model, record.device = request.fingerprint, device
        record.passes = network.passes
        earlier = {row.id for row in store.fields()} if store and run.overwrite else set()
        store = prepared(store, output.state, request, rows, overwrite=run.overwrite)
        sink = output.sink(store)
        sink.remove_abandoned()
        for gone in sorted(earlier - {row.id for row in rows}.union(plan.stale)):
            sink.remove(gone)
        place = store if by.here else store.absolute()
        there = sink if by.here else output.absolute().sink(place)
        work = SegmentWork(EmbedWork(place, network), ClusterWork(place, how, there))
        return run_stage(store, plan, record, work, by, emit)


def _told(settings: SegmentSettings, how: How, run: RunSettings) -> dict[str, Any]:
    """The settings as the run record keeps them."""
    tiles = {"tile_px": settings.cluster.tile_px, "overlap_px": settings.cluster.overlap_px}
    types = {"cell_type": settings.types.everywhere, "types": settings.types.table}
    clustering = {**asdict(how.chosen.overall), **tiles, **types}
    return {"embed": asdict(settings.embed), "cluster": clustering, "run": plain(run)}


@dataclass(frozen=True)
class SegmentWork:
    """What ``segment`` does to a field."""

    embed: EmbedWork
    cluster: ClusterWork

    def parts(self, row: FieldRow) -> int:
        """The number of slabs of a large field."""
        return self.embed.parts(row)

    def whole(self, row: FieldRow, mark: str, stop: Stop) -> Produced:
        """Read → normalise → network → cluster → write → mark."""
        check_whole(row, self.cluster.how.chosen.of(row.id))
        clock = Clock()
        network = self.embed.network
        image, _ = network.whole(row, clock)
        stop.check()
        if self.cluster.how.labeller.device != "cpu":
            labels = self._on_device(row, image, clock)
            labelled = self.cluster.write(row, labels, stop, clock)
        else:
            with clock.on("network"):
                made = network.predictor.embed(image)
            del image
            stop.check()
            labelled = self.cluster.label_whole(row, (made.values, made.classes), stop, clock)
        done = self.cluster.mark(row, mark, labelled, clock)
        return replace(done, bytes_read=row.size_bytes or 0)

    def _on_device(self, row: FieldRow, image: np.ndarray, clock: Clock) -> np.ndarray:
        """The label image of a field whose embedding never leaves the accelerator."""
        how = self.cluster.how
        with clock.on("network"):
            made = self.embed.network.predictor.embed_on_device(image)
        with clock.on("cluster"):
            return how.labeller.labels_on_device(
                made.values, made.classes, how.chosen.kind, how.chosen.of(row.id)
            )

    def begin(self, row: FieldRow, mark: str, stop: Stop) -> Any:
        """Measure a large field and make room for its embedding."""
        check_whole(row, self.cluster.how.chosen.of(row.id))
        return self.embed.begin(row, mark, stop)

    def part(self, row: FieldRow, begun: Any, index: int, stop: Stop) -> Produced:
        """Embed one slab."""
        return self.embed.part(row, begun, index, stop)

    def finish(self, row: FieldRow, mark: str, begun: Any, stop: Stop) -> Produced:
        """Cluster a large field in tiles, and remove its embedding.

        An attempt whose process died may have removed it before it set the mark; then all of
        the work is done again here.
        """
        stop.check()
        if not self.cluster.store.holds_embedding(row.id):
            begun = self.begin(row, mark, stop)
            for index in range(self.parts(row)):
                self.part(row, begun, index, stop)
        self.embed.finish(row, mark, begun, stop)
        clock = Clock()
        store = self.cluster.store
        labelled = self.cluster.label(row, stop, clock)
        with clock.on("write"):
            store.forget_embedding(row.id)
        done = self.cluster.mark(row, mark, labelled, clock)
        return replace(done, pixels=0, bytes_read=row.size_bytes or 0)

    def is_done(self, row: FieldRow, mark: str) -> bool:
        """Whether an earlier attempt has marked the field."""
        return self.cluster.is_done(row, mark)

    def discard(self, field_id: str) -> None:
        """Take the label image away, and the embedding of a large field that was begun."""
        self.embed.discard(field_id)
        self.cluster.discard(field_id)

    def check_place(self) -> None:
        """Raise StoreError where this process does not see what the run writes to."""
        self.embed.check_place()

    def use(self) -> Use:
        """Of this process's network."""
        return self.embed.use()
