"""The stage ``embed``: images in, embeddings in the store.

Per field: read, check, normalise over the whole field (never per tile), one
pass of the network, write, mark.  A store holds embeddings of one model and
one choice of planes; others are refused.  Which field is redone is decided in
:mod:`cellseg_cli.pipeline.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellseg_cli import __version__
from cellseg_cli.config import EmbedSettings, RunSettings
from cellseg_cli.errors import StoreError
from cellseg_cli.images.decode import Planes, read_image
from cellseg_cli.images.discover import find_fields
from cellseg_cli.images.normalise import apply, check_usable, fit_channels, measure
from cellseg_cli.networks.checkpoint import ModelHeader, find_model, fingerprint, read_header
from cellseg_cli.networks.predict import Predictor, check_tiling
from cellseg_cli.pipeline.events import Emit, Summary
from cellseg_cli.pipeline.plan import of_part, plan_embedding, survey
from cellseg_cli.pipeline.record import Record
from cellseg_cli.pipeline.stage import dry_summary, planned, run_stage
from cellseg_cli.pipeline.stream import Produced, Stop, worker_count
from cellseg_cli.store import FieldRow, Store


@dataclass(frozen=True)
class _Request:
    """What decides the output, read from the model file before any weight is loaded."""

    header: ModelHeader
    planes: Planes
    attributes: Mapping[str, Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The settings that fingerprints cover."""
        identity: Mapping[str, Any] = self.attributes["embed"]
        return identity


@dataclass(frozen=True)
class _Model:
    """What every field of the run goes through."""

    predictor: Predictor
    planes: Planes


def embed(
    source: str | Path, out: str | Path, settings: EmbedSettings, run: RunSettings, emit: Emit
) -> Summary:
    """Embed every field of ``source`` that the store ``out`` does not hold yet.

    Parameters
    ----------
    source
        File, folder, glob or list file.
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

    Notes
    -----
    Failed fields have no mark, so that the next run tries them again.
    """
    out = Path(out)
    request = _request(source, settings)
    fields = find_fields(source, include=settings.include, exclude=settings.exclude)
    store = Store.open(out) if Store.is_at(out) else None
    rows = survey(fields, request.planes)
    if store and not run.overwrite:
        _refuse_other_settings(store, request)
        _refuse_other_images(store, request, rows)
    plan = plan_embedding(of_part(rows, run.part), request.identity, store, redo=run.overwrite)
    emit(planned(plan, "embed", out, _bytes_per_pixel(request.header), dry_run=run.dry_run))
    if run.dry_run:
        return dry_summary(plan, "embed")
    predictor = _predictor(settings) if plan.to_do else None
    store = _prepared(store, out, request, rows, overwrite=run.overwrite)
    record = Record("embed", run.part, {**asdict(settings), **asdict(run)}, plan)
    record.model = str(request.identity["model"])
    record.device = predictor.device if predictor else None
    record.workers = worker_count(run.workers)

    def work(row: FieldRow, mark: str, stop: Stop) -> Produced:
        assert predictor is not None
        return _embed_field(row, mark, store, stop, _Model(predictor, request.planes))

    return run_stage(store, plan, record, work, emit)


def _embed_field(row: FieldRow, mark: str, store: Store, stop: Stop, model: _Model) -> Produced:
    """Read → normalise → network → write → mark, for one field."""
    header = model.predictor.header
    image = read_image(Path(row.source), model.planes)  # (C, Y, X), dtype as stored
    check_usable(image)
    image = fit_channels(image, header.in_channels)
    norm = measure(image, header.low_percentile, header.high_percentile)
    stop.check()
    embedding = model.predictor.embed(apply(image, norm))
    stop.check()
    store.write_embedding(row.id, embedding.values, embedding.classes)
    details = {"normalisation": asdict(norm), "device": model.predictor.device}
    store.mark_done(row.id, "embed", mark, details)
    return Produced(pixels=embedding.values[0].size)


def _request(source: str | Path, settings: EmbedSettings) -> _Request:
    path = find_model(settings.model)
    header = read_header(path)
    stride = header.architecture.stride
    check_tiling(stride, settings.tile_px, settings.halo_px, settings.batch_size)
    identity = {
        "model": fingerprint(path),
        "channel": None if settings.channel is None else list(settings.channel),
        "z": settings.z,
        "t": settings.t,
        "tile_px": settings.tile_px,
        "halo_px": settings.halo_px,
    }
    attributes = {
        "made_by": f"cellseg {__version__}",
        "source": str(Path(source).absolute()),
        "embed": identity,
        "model": {
            "name": header.name,
            "kind": header.kind,
            "channels": list(header.channels),
            "classes": header.architecture.classes_head,
            "low_percentile": header.low_percentile,
            "high_percentile": header.high_percentile,
        },
        "cluster": header.cluster,
    }
    return _Request(header, Planes(settings.channel, settings.z, settings.t), attributes)


def _bytes_per_pixel(header: ModelHeader) -> int:
    """Before compression: float16 components and, with that head, three uint8 classes."""
    return 2 * len(header.channels) + (3 if header.architecture.classes_head else 0)


def _predictor(settings: EmbedSettings) -> Predictor:
    return Predictor.load(
        settings.model,
        device=settings.device,
        tile_px=settings.tile_px,
        halo_px=settings.halo_px,
        batch_size=settings.batch_size,
    )


def _refuse_other_settings(store: Store, request: _Request) -> None:
    made, wanted = store.attributes.get("embed", {}), request.identity
    names = {"model": (store.attributes.get("model", {}).get("name"), request.header.name)}
    differences = []
    for key, value in wanted.items():
        if made.get(key) != value:
            before, now = (_shown(one) for one in (made.get(key), value))
            if key == "model":
                before, now = (
                    f"{name} ({shown[:8]})"
                    for name, shown in zip(names[key], (before, now), strict=True)
                )
            differences.append(f"{key} was {before} and is now {now}")
    if differences:
        raise StoreError(
            f"{store.path} was made with other settings: {', '.join(differences)}; "
            "choose another --out, or --overwrite to embed every field anew"
        )


def _refuse_other_images(store: Store, request: _Request, rows: Sequence[FieldRow]) -> None:
    """Raise StoreError where another root would silently replace fields of the same id.

    Images that changed in the place they came from are simply redone, and the
    same images in another place (a copy, another mount) resume.
    """
    if store.attributes.get("source") == request.attributes["source"]:
        return
    known = {row.id: row for row in store.fields()}
    clashes = [row.id for row in rows if row.id in known and _differ(known[row.id], row)]
    if clashes:
        raise StoreError(
            f"{store.path} holds fields of {store.attributes.get('source')}; {len(clashes)} of "
            f"{request.attributes['source']} have the same id but are other files, such as "
            f"{clashes[0]}; choose another --out, or --overwrite to replace them"
        )


def _differ(one: FieldRow, other: FieldRow) -> bool:
    return (one.size_bytes, one.mtime_ns) != (other.size_bytes, other.mtime_ns)


def _shown(value: object) -> str:
    return "unset" if value is None else str(value)


def _prepared(
    store: Store | None, out: Path, request: _Request, rows: Sequence[FieldRow], *, overwrite: bool
) -> Store:
    """The store with its attributes and the list of fields of this run.

    Fields of earlier runs that this one does not select stay listed while they
    are embedded; ``overwrite`` removes them.  Parts that start together write
    the same bytes here.
    """
    earlier = {row.id: row for row in store.fields()} if store else {}
    if store is None or overwrite:
        store = Store.create(out, request.attributes, overwrite=True)
    selected = {row.id for row in rows}
    others = [row for row in earlier.values() if row.id not in selected]
    for row in others if overwrite else ():
        store.clear(row.id, "embed")
    kept = [] if overwrite else [row for row in others if store.has(row.id, "embed")]
    store.write_fields([*(_remembered(row, earlier.get(row.id)) for row in rows), *kept])
    return store


def _remembered(row: FieldRow, earlier: FieldRow | None) -> FieldRow:
    """The row; where the image cannot be read any more, the row of when it could."""
    return earlier if row.error and earlier else row
