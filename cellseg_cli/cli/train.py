"""`cellseg train`."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg_cli.cli.common import (
    AsJson,
    ConfigFile,
    Device,
    Overwrite,
    Quiet,
    Sets,
    echo_json,
)
from cellseg_cli.cli.embed import Channel, Pattern, T, Z, channels
from cellseg_cli.config import TrainSettings, settings_from
from cellseg_cli.errors import ExitCode

if TYPE_CHECKING:
    from cellseg_cli.networks.initial import InitialReport
    from cellseg_cli.training.data import Failed, Noted
    from cellseg_cli.training.loop import Emit, Report, Started


def train(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Folders that hold images/ and labels/, or IMAGES=TRUTH with TRUTH a folder of "
            "label images, a Kaggle CSV or a COCO JSON.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the run; an unfinished one resumes.")
    ],
    val: Annotated[
        list[str] | None,
        typer.Option("--val", metavar="DATA", help="Held-out data to choose the best model by."),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            "--index", help="CSV with a column id and, if wanted, split (train, val) and cell_type."
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(
            "--weight",
            metavar="W",
            help="How often a data set is drawn, in proportion: one for each DATA, in their order.",
        ),
    ] = None,
    pseudo: Annotated[
        list[str] | None,
        typer.Option(
            "--pseudo",
            metavar="STORE",
            help="Images without truth, embedded and clustered by another model: what it was "
            "sure of joins in.",
        ),
    ] = None,
    channel: Channel = None,
    z: Z = None,
    t: T = None,
    pattern: Pattern = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="spatial (default), contrastive or binary.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Crops per step and device.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="A timm model, such as resnet18.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="FILE|RUN|NAME",
            help="Weights to begin with: what cellseg pretrain or train has left, or a bundled "
            "model.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random.")] = None,
    device: Device = None,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Processes, one per accelerator.")
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="Name that the model file carries.")
    ] = "model",
    licence: Annotated[
        str, typer.Option("--licence", help="Licence that the model file carries.")
    ] = "unstated",
    data_note: Annotated[
        str, typer.Option("--data-note", help="What the model learned from, for its header.")
    ] = "unstated",
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Learn a model from images with truth.

    The same command goes on where a stopped run left off. RUN/best.safetensors
    is the model to use.

    \b
        cellseg train dsb2018/train --val dsb2018/val --out run
        cellseg train mine public --weight 3 --weight 1 --out run
        cellseg train mine --pseudo unlabelled.zarr --out run
        cellseg embed plates --model run/best.safetensors --out emb.zarr
    """
    settings = settings_from(
        TrainSettings,
        file=config,
        section="train",
        sets=sets or (),
        flags={
            "recipe": recipe,
            "steps": steps,
            "batch_size": batch_size,
            "encoder": encoder,
            "init": init,
            "weights": tuple(weight) if weight else None,
            "channel": channels(channel),
            "z": z,
            "t": t,
            "pattern": pattern,
            "seed": seed,
            "device": device,
            "devices": devices,
        },
    )
    from cellseg_cli.training.data import open_split
    from cellseg_cli.training.loop import Labelling
    from cellseg_cli.training.loop import train as run

    # Fabric announces its precision and its processes; the run's own first line says both.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    split = open_split(
        data, validation=val or (), index=index, pseudo=pseudo or (), settings=settings
    )
    for note in split.notes:
        typer.echo(f"cellseg: {note}", err=True)
    result = run(
        split,
        out,
        settings,
        labelling=Labelling(name=name, licence=licence, data=data_note),
        overwrite=overwrite,
        emit=_reporter(quiet),
    )
    if result.rank:
        return int(ExitCode.DONE)
    if as_json:
        failed = [dataclasses.asdict(failure) for failure in result.failed]
        paths = {"best": str(result.best), "last": str(result.last)}
        echo_json({**dataclasses.asdict(result), **paths, "failed": failed})
    else:
        scored = "mean_ap" in result.score
        verdict = _scores(result.score) if scored else "no held-out data to score it on"
        typer.echo(f"{result.best}: {verdict}")
        if result.tuned:
            typer.echo(f"clustering settings chosen on the held-out data: {_scores(result.tuned)}")
    return int(ExitCode.SOME_FAILED if result.failed else ExitCode.DONE)


def _reporter(quiet: bool) -> Emit:
    """Return what writes a run's reports on stderr, one line each."""

    from cellseg_cli.networks.initial import InitialReport
    from cellseg_cli.training.data import Failed, Noted
    from cellseg_cli.training.loop import Started

    def show(report: Started | Report | Failed | Noted | InitialReport) -> None:
        if isinstance(report, Failed):
            typer.echo(f"cellseg: {report.field_id} is left out: {report.reason}", err=True)
            return
        if isinstance(report, Noted):
            typer.echo(f"cellseg: {report.text}", err=True)
            return
        if quiet:
            return
        if isinstance(report, InitialReport):
            typer.echo(f"train: {report}", err=True)
            return
        if isinstance(report, Started):
            done = f", {report.step} done before" if report.step else ""
            typer.echo(
                f"train: {report.fields} fields, {report.held_out} held out, on {report.device} "
                f"in {report.precision}, {report.steps} steps{done}",
                err=True,
            )
            return
        if report.score is not None:
            typer.echo(f"step {report.step}: {_scores(report.score)}", err=True)
            return
        losses = "  ".join(f"{key} {value:.3f}" for key, value in report.losses.items())
        typer.echo(
            f"step {report.step}/{report.steps}  {losses}  {report.crops_per_s:.1f} crops/s",
            err=True,
        )

    return show


def _scores(score: object) -> str:
    entries = score.items() if isinstance(score, dict) else ()
    return "  ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in entries
    )
