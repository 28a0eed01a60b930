"""What a run on images asks for, and the store that is to answer to it.

A store holds what one model made of one choice of planes; a run that asks for something else, or
for other images under the same ids, is refused.  Both ``embed`` and ``segment`` begin here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cellseg_cli import __version__
from cellseg_cli.config import EmbedSettings, RunSettings
from cellseg_cli.engine.carriers import Carrier, is_here
from cellseg_cli.engine.tasks import thread_count
from cellseg_cli.errors import StoreError
from cellseg_cli.images.decode import Planes
from cellseg_cli.images.discover import Field, discover
from cellseg_cli.networks.checkpoint import (
    ModelHeader,
    bundled_models,
    find_model,
    fingerprint,
    read_header,
)
from cellseg_cli.networks.devices import resolve_device
from cellseg_cli.networks.predict import check_tiling
from cellseg_cli.pipeline.embedding import Network, slabs_of, view_of
from cellseg_cli.pipeline.events import Emit, Noted
from cellseg_cli.pipeline.plan import Plan, is_replaced
from cellseg_cli.store import FieldRow, Stage, Store

#: Pixels of a field above which reading and writing it is a small part of the work.
LIGHT_PX = 2 << 20

#: Settings that fingerprints cover only where they are not these: stores that were made before
#: there was such a setting are the same still.
UNLESS_SET: Mapping[str, Any] = {"scale": 1.0, "tta": "none"}

#: Marks of licences that forbid commercial use: those of Creative Commons, and in words.
NON_COMMERCIAL = ("-NC", "NON-COMMERCIAL", "NONCOMMERCIAL")

#: What a store keeps of a field.
Keeps = Literal["embeddings", "labels"]


@dataclass(frozen=True)
class Request:
    """What decides the output, read from the model file before any weight is loaded.

    Attributes
    ----------
    path, header
        Of the model.
    planes
        What to take of a stack.
    keeps
        What the store is to keep.
    attributes
        Of the root of the store.
    """

    path: Path
    header: ModelHeader
    planes: Planes
    keeps: Keeps
    attributes: Mapping[str, Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The settings that fingerprints cover."""
        identity: Mapping[str, Any] = self.attributes["embed"]
        return identity

    @property
    def fingerprint(self) -> str:
        """Of the model file."""
        return str(self.identity["model"])

    @property
    def restriction(self) -> str | None:
        """What whoever uses the model has to know of its licence; None where that is nothing."""
        licence = self.header.licence
        if not any(mark in licence.upper() for mark in NON_COMMERCIAL):
            return None
        return (
            f"the model {self.header.name} is for non-commercial use only (licence {licence}); "
            f"it learned from: {self.header.data}"
        )

    @property
    def stage(self) -> Stage:
        """The stage whose mark says that a field is there."""
        return "embed" if self.keeps == "embeddings" else "cluster"

    def network(self, settings: EmbedSettings, *, claims: bool, passes: int | None) -> Network:
        """What the processes of the run load; ``claims``, ``passes`` as in :class:`Network`."""
        bundled = settings.model in bundled_models()  # installed elsewhere on other machines
        path = Path(settings.model) if bundled else self.path.absolute()
        settings = replace(settings, scale=view_of(settings).of(self.header.scale).factor)
        return Network(path, self.fingerprint, settings, self.planes, claims, passes)


def requested(source: str | Path, settings: EmbedSettings, keeps: Keeps) -> Request:
    """What is asked for, by the model's header.

    Raises
    ------
    CheckpointError
        No such model, or not one of ours.
    ConfigError
        Tiles that do not fit the network, or planes that cannot be.
    """
    path = find_model(settings.model)
    header = read_header(path)
    view = view_of(settings).of(header.scale)
    check_tiling(
        header.architecture.stride,
        settings.tile_px,
        settings.halo_px,
        settings.batch_size,
        view.factor,
    )
    looks = {"scale": view.factor, "tta": view.tta}
    identity = {
        "model": fingerprint(path),
        "channel": None if settings.channel is None else list(settings.channel),
        "z": settings.z,
        "t": settings.t,
        "tile_px": settings.tile_px,
        "halo_px": settings.halo_px,
        **{name: value for name, value in looks.items() if value != UNLESS_SET[name]},
    }
    attributes = {
        "made_by": f"cellseg {__version__}",
        "source": str(Path(source).absolute()),
        "keeps": keeps,
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
    planes = Planes(settings.channel, settings.z, settings.t)
    return Request(path, header, planes, keeps, attributes)


def found_fields(
    source: str | Path, settings: EmbedSettings, planes: Planes, stage: str, emit: Emit
) -> tuple[Field, ...]:
    """The fields of a source; what was grouped and what was left out by rule is noted.

    Raises
    ------
    InputError, ConfigError
        As :func:`cellseg_cli.images.discover.discover`.
    """
    found = discover(
        source,
        include=settings.include,
        exclude=settings.exclude,
        pattern=settings.pattern,
        planes=planes,
    )
    for line in found.notes:
        emit(Noted(stage, line))
    return found.fields


def store_at(path: Path) -> Store | None:
    """The store that lies there, made with whatever settings; None where none does."""
    return Store.open(path) if Store.is_at(path) else None


def earlier_store(path: Path, request: Request) -> Store | None:
    """The store that a run is to go on with; None where there is none.

    One that was begun with other settings and holds no finished field holds nothing to keep:
    who is told that a channel must be chosen can choose it.

    Raises
    ------
    StoreError
        As :meth:`cellseg_cli.store.Store.open`.
    """
    store = store_at(path)
    if store is None:
        return None
    same_kind = store.attributes.get("keeps", "embeddings") == request.keeps
    if same_kind and _differences(store, request):
        begun = (store.has(row.id, request.stage) for row in store.fields())
        return store if any(begun) else None
    return store


def known_rows(store: Store | None, request: Request) -> Mapping[str, FieldRow]:
    """What the store knows of fields whose planes were chosen as they are now, by id."""
    if store is None:
        return {}
    made = store.attributes.get("embed", {})
    same = all(made.get(name) == request.identity[name] for name in ("channel", "z", "t"))
    return {row.id: row for row in store.fields()} if same else {}


def check_same(store: Store, request: Request, rows: Sequence[FieldRow]) -> None:
    """Refuse a store that was made otherwise, or of other images.

    Raises
    ------
    StoreError
        Says what differs.
    """
    kept = store.attributes.get("keeps", "embeddings")
    if kept != request.keeps:
        advice = "cellseg cluster works on it" if kept == "embeddings" else "cellseg segment did"
        raise StoreError(
            f"{store.path} is a store of {kept} ({advice}), not one of {request.keeps}; choose "
            "another --out"
        )
    _refuse_other_settings(store, request)
    _refuse_other_images(store, request, rows)


def _differences(store: Store, request: Request) -> list[str]:
    """The settings that a store was made with and that are others now, in words."""
    made = {**UNLESS_SET, **store.attributes.get("embed", {})}
    wanted = {**request.identity, **UNLESS_SET, **request.identity}  # in the order of the first
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
    return differences


def _refuse_other_settings(store: Store, request: Request) -> None:
    if differences := _differences(store, request):
        verb = "embed" if request.keeps == "embeddings" else "segment"
        raise StoreError(
            f"{store.path} was made with other settings: {', '.join(differences)}; "
            f"choose another --out, or --overwrite to {verb} every field anew"
        )


def _refuse_other_images(store: Store, request: Request, rows: Sequence[FieldRow]) -> None:
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
    return one.identity != other.identity


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "unset" if value is None else str(value)


def prepared(
    store: Store | None, out: Path, request: Request, rows: Sequence[FieldRow], *, overwrite: bool
) -> Store:
    """The store with its attributes and the list of fields of this run.

    Fields of earlier runs that this one does not select stay listed while they
    are done; ``overwrite`` removes them.  Parts that start together write
    the same bytes here.
    """
    earlier = {row.id: row for row in store.fields()} if store else {}
    if store is None or overwrite:
        store = Store.create(out, request.attributes, overwrite=True)
    selected = {row.id for row in rows}
    others = [row for row in earlier.values() if row.id not in selected]
    for row in others if overwrite else ():
        store.clear(row.id, "embed")  # and what was made of it
    kept = [] if overwrite else [row for row in others if store.has(row.id, request.stage)]
    listed = [*(_remembered(row, earlier.get(row.id)) for row in rows), *kept]
    store.remove_abandoned()
    store.write_fields(listed)
    if request.keeps == "embeddings":  # label images alone make no image of OME-Zarr
        store.write_plates(listed)
    return store


def _remembered(row: FieldRow, earlier: FieldRow | None) -> FieldRow:
    """The row; where the same image cannot be read any more, the row of when it could."""
    return earlier if row.error and earlier and not is_replaced(row, earlier) else row


def filling(run: RunSettings, network: Network, plan: Plan) -> RunSettings:
    """The settings of a run in this process with as many threads as fill its device.

    What the user has set stays.  On the CPU one thread more than there are cores reads or writes
    a field while the others compute; where fields are large that takes too little of their time
    to be worth the memory.
    """
    small = [row for row, _ in plan.to_do if not slabs_of(row)]
    if run.threads or not is_here(run) or not small:
        return run
    if resolve_device(network.settings.device).type == "cpu":
        cores = thread_count(0)
        spare = len(small) > cores and all(row.pixels <= LIGHT_PX for row, _ in plan.to_do)
        return replace(run, threads=cores + 1) if spare else run
    shape, _ = Counter((row.height or 1, row.width or 1) for row in small).most_common(1)[0]
    wanted = network.predictor.fields_at_once(shape)
    return replace(run, threads=max(thread_count(0), wanted))


def run_device(network: Network, by: Carrier) -> str | None:
    """On what the network of a run computes; None where only its workers know.

    In this process the network is loaded, so that one that cannot be ends the run and not every
    field.

    Raises
    ------
    DeviceError
        The device is not there.
    CheckpointError
        The model cannot be loaded.
    """
    if by.here:
        return network.predictor.device
    return str(resolve_device(network.settings.device)) if by.local else None
