"""What a run is about to do and to need, told before it begins; refused where it cannot fit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg_cli.config import RunSettings
from cellseg_cli.engine.memory import Granted, granted_memory, parse_memory, shown
from cellseg_cli.engine.tasks import thread_count
from cellseg_cli.pipeline.budget import (
    AtOnce,
    Budget,
    Carrying,
    Clusters,
    NetworkNeeds,
    clustering_budget,
    embedding_budget,
    segmenting_budget,
)
from cellseg_cli.pipeline.events import Emit, Noted, StagePlanned
from cellseg_cli.pipeline.plan import Plan
from cellseg_cli.rows import FieldRow
from cellseg_cli.store import Store

if TYPE_CHECKING:
    from cellseg_cli.pipeline.cluster import How
    from cellseg_cli.pipeline.embedding import Network
    from cellseg_cli.pipeline.request import Request

#: Seconds of a run per second in its network: reading and writing go on beside it.  The floor
#: is what ``tests/benchmarks/streaming`` holds against the bare network, 1 / 0.85.
BESIDE_NETWORK = 1.18


@dataclass(frozen=True)
class Forecast:
    """What is known of a run besides which fields it does.

    Attributes
    ----------
    budget
        What it needs.
    local
        Whether all of it happens on this machine; else its memory is no limit.
    memory
        What the user allows on this machine, such as ``8GB``.
    seconds_per_megapixel
        Of the network, with all that work on it together; None without a calibration.
    """

    budget: Budget
    local: bool = True
    memory: str | None = None
    seconds_per_megapixel: float | None = None


def embedding_forecast(
    plan: Plan, request: Request, network: Network, run: RunSettings
) -> Forecast:
    """What ``embed`` will need; with ``run.dry_run`` how long it will take too.

    Raises
    ------
    DeviceError, ConfigError
        The device is not there, or none.
    """
    carrying, needs = _network(request, network, run)
    budget = embedding_budget([row for row, _ in plan.to_do], needs, network.settings, carrying)
    return _forecast(budget, run, _calibrated(budget, network, run))


def segmenting_forecast(
    plan: Plan, request: Request, network: Network, run: RunSettings, how: How
) -> Forecast:
    """What ``segment`` will need, as :func:`embedding_forecast`."""
    carrying, needs = _network(request, network, run)
    rows = [row for row, _ in plan.to_do]
    budget = segmenting_budget(rows, needs, network.settings, carrying, _clusters(how))
    return _forecast(budget, run, _calibrated(budget, network, run))


def clustering_forecast(plan: Plan, store: Store, run: RunSettings, how: How) -> Forecast:
    """What ``cluster`` will need; it has no network, so that no time is known."""
    model = store.attributes.get("model", {})
    needs = NetworkNeeds(
        0, 0.0, 0, len(model.get("channels", ())), 3 if model.get("classes") else 0
    )
    carrying = _carrying(run, accelerator=how.labeller.device != "cpu")
    rows = [row for row, _ in plan.to_do]
    return _forecast(clustering_budget(rows, needs, carrying, _clusters(how)), run, None)


def _forecast(budget: Budget, run: RunSettings, seconds: float | None) -> Forecast:
    return Forecast(budget, _is_local(run), run.memory, seconds)


def _is_local(run: RunSettings) -> bool:
    return not (run.scheduler or run.cluster)


def _carrying(run: RunSettings, *, accelerator: bool) -> Carrying:
    """Threads and processes as they will be started; of other machines nothing is known."""
    cores = thread_count(0)
    if run.workers:
        threads = run.threads or max(1, cores // run.workers)
        return Carrying(threads, run.workers, apart=True, accelerator=accelerator)
    return Carrying(run.threads or cores, accelerator=accelerator)


def _network(request: Request, network: Network, run: RunSettings) -> tuple[Carrying, NetworkNeeds]:
    import torch

    from cellseg_cli.networks.devices import resolve_device
    from cellseg_cli.pipeline.calibrate import network_needs
    from cellseg_cli.pipeline.embedding import view_of

    wanted = network.settings.device
    device = resolve_device(wanted) if _is_local(run) else torch.device("cpu")
    view = view_of(network.settings)
    needs = network_needs(request.header.architecture, device, view)
    carrying = _carrying(run, accelerator=device.type != "cpu")
    return replace(carrying, passes=network.passes), needs


def _calibrated(budget: Budget, network: Network, run: RunSettings) -> float | None:
    """Seconds per megapixel of all processes together, for plans that are only told."""
    if not (run.dry_run and budget.tiles and _is_local(run)):
        return None
    from cellseg_cli.pipeline.calibrate import seconds_per_megapixel

    predictor = network.predictor
    carrying, tile_px = budget.carrying, network.settings.tile_px
    if carrying.accelerator:  # each process has its own
        alone = seconds_per_megapixel(predictor, tile_px=tile_px, threads=carrying.threads)
        return alone / carrying.processes
    # the cores are the same, whichever process a thread belongs to
    threads = carrying.at_once * carrying.processes
    return seconds_per_megapixel(predictor, tile_px=tile_px, threads=threads)


def _clusters(how: How) -> Clusters:
    """What of each field is clustered at once."""

    def at_once(row: FieldRow) -> AtOnce:
        settings = how.chosen.of(row.id)
        tiling = how.tiles.for_field(row, settings)
        px = tiling.largest_px**2 if tiling else row.pixels
        return AtOnce(settings.method, min(px, row.pixels))

    return at_once


def planned(
    plan: Plan, stage: str, out: Path, forecast: Forecast, emit: Emit, *, dry_run: bool
) -> StagePlanned:
    """Emit and return what the run will do.

    Memory that the user allows is a limit.  What the machine grants is not: the bound may be
    too high, so that only a note says that it is passed.

    Raises
    ------
    ConfigError
        The run does not fit into the memory that the user allows; the message says which
        number to change.  What was planned has been emitted.
    """
    budget, allowed = forecast.budget, _allowed(forecast)
    event = StagePlanned(
        stage=stage,
        store=str(out),
        fields=plan.fields,
        to_do=len(plan.to_do),
        skipped=len(plan.skipped),
        unusable=plan.unusable,
        bytes_to_write=budget.bytes_to_write,
        free_bytes=_free_bytes(out),
        dry_run=dry_run,
        tiles=budget.tiles,
        bytes_per_worker=budget.bytes_per_worker,
        bytes_total=budget.bytes_total if forecast.local else None,
        memory_bytes=allowed.bytes if allowed else None,
        memory_by=allowed.by if allowed else None,
        seconds_estimated=_seconds(forecast),
        **_plates(plan),
    )
    emit(event)
    if allowed is None or not plan.to_do:
        return event
    if forecast.memory is not None:
        budget.check(allowed.bytes)
    elif budget.bytes_total > allowed.bytes:
        limit = f"{allowed.by} grants {shown(allowed.bytes)}, which"
        emit(Noted(stage, budget.refusal(allowed.bytes, limit)))
    return event


def _allowed(forecast: Forecast) -> Granted | None:
    """What the run may take: what the user says, else what there is; None elsewhere."""
    if not forecast.local:
        return None
    if forecast.memory is None:
        return granted_memory()
    return Granted(parse_memory(forecast.memory), "--memory")


def _seconds(forecast: Forecast) -> float | None:
    if forecast.seconds_per_megapixel is None:
        return None
    megapixels = forecast.budget.network_px / 1e6
    return megapixels * forecast.seconds_per_megapixel * BESIDE_NETWORK


def _plates(plan: Plan) -> dict[str, int]:
    wells = {(row.plate, row.well) for row, _ in plan.to_do if row.plate is not None}
    return {"plates": len({plate for plate, _ in wells}), "wells": len(wells)}


def _free_bytes(out: Path) -> int:
    place = out.absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    return shutil.disk_usage(existing).free
