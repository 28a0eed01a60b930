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
from cellseg_cli.cli.learning import DataNote, Encoder, Licence, RunFolder, Seed, Steps
from cellseg_cli.config import TrainSettings
from cellseg_cli.config_file import settings_from
from cellseg_cli.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from cellseg_cli.networks.initial import InitialReport
    from cellseg_cli.training.data import Failed, Noted
    from cellseg_cli.training.reports import Emit, Report, Result, Started

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help="Folders that hold images/ and labels/, or IMAGES=TRUTH with TRUTH a folder of "
        "label images, a Kaggle CSV or a COCO JSON.",
    ),
]
Validation = Annotated[
    list[str] | None,
    typer.Option("--val", metavar="DATA", help="Held-out data to choose the best model by."),
]
Index = Annotated[
    Path | None,
    typer.Option(
        "--index", help="CSV with a column id and, if wanted, split (train, val) and cell_type."
    ),
]
Weights = Annotated[
    list[float] | None,
    typer.Option(
        "--weight",
        metavar="W",
        help="How often a data set is drawn, in proportion: one for each DATA, in their order.",
    ),
]
Pseudo = Annotated[
    list[str] | None,
    typer.Option(
        "--pseudo",
        metavar="STORE",
        help="Images without truth, embedded and clustered by another model: what it was "
        "sure of joins in.",
    ),
]
Recipe = Annotated[
    str | None, typer.Option("--recipe", help="spatial (default), contrastive or binary.")
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        metavar="M",
        help="As many steps as this machine does in M minutes, instead of --steps.",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Crops per step and device.")
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="FILE|RUN|NAME",
        help="Weights to begin with: what cellseg pretrain or train has left, or a bundled model.",
    ),
]
Devices = Annotated[
    int | None, typer.Option("--devices", min=1, help="Processes, one per accelerator.")
]
Name = Annotated[str, typer.Option("--name", help="Name that the model file carries.")]


def train(
    data: Data,
    out: RunFolder,
    val: Validation = None,
    index: Index = None,
    weight: Weights = None,
    pseudo: Pseudo = None,
    channel: Channel = None,
    z: Z = None,
    t: T = None,
    pattern: Pattern = None,
    recipe: Recipe = None,
    steps: Steps = None,
    minutes: Minutes = None,
    batch_size: BatchSize = None,
    encoder: Encoder = None,
    init: Init = None,
    seed: Seed = None,
    device: Device = None,
    devices: Devices = None,
    name: Name = "model",
    licence: Licence = "unstated",
    data_note: DataNote = "unstated",
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
        cellseg train mine --minutes 15 --out run
        cellseg embed plates --model run/best.safetensors --out emb.zarr
    """
    settings = settings_from(
        TrainSettings,
        file=config,
        section="train",
        sets=sets or (),
        flags={
            "recipe": recipe,
            **_length(steps, minutes),
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
    from cellseg_cli.training.loop import train as run
    from cellseg_cli.training.reports import Labelling

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
    if not quiet:
        typer.echo(f"train: {_pace(result)}", err=True)
    if as_json:
        failed = [dataclasses.asdict(failure) for failure in result.failed]
        paths = {"best": str(result.best), "last": str(result.last)}
        echo_json({**dataclasses.asdict(result), **paths, "failed": failed})
    else:
        _tell(result)
    return int(ExitCode.SOME_FAILED if result.failed else ExitCode.DONE)


def _length(steps: int | None, minutes: float | None) -> dict[str, float | None]:
    """Return the flags that say how long to train; one given goes over the other in a file.

    Raises
    ------
    ConfigError
        Both are given.
    """
    if steps is not None and minutes is not None:
        raise ConfigError("--steps and --minutes exclude each other: choose one")
    return {"steps": steps, "minutes": 0.0 if steps is not None else minutes}


def _tell(result: Result) -> None:
    """Say on stdout where the model lies and what it reaches."""
    scored = "mean_ap" in result.score
    verdict = _scores(result.score) if scored else "no held-out data to score it on"
    typer.echo(f"{result.best}: {verdict}")
    if result.tuned:
        typer.echo(f"clustering settings chosen on the held-out data: {_scores(result.tuned)}")


def _pace(result: Result) -> str:
    """Rates, and what the time went to, most first."""
    rates = f"{result.crops_per_s:.1f} crops/s, {result.megapixels_per_s:.2f} megapixels/s"
    shares = sorted(result.shares.items(), key=lambda pair: -pair[1])
    parts = ", ".join(f"{part} {share:.1%}" for part, share in shares if share >= 0.0005)
    return f"{rates}; time: {parts}" if parts else rates


def _reporter(quiet: bool) -> Emit:
    """Return what writes a run's reports on stderr, one line each."""

    from cellseg_cli.networks.initial import InitialReport
    from cellseg_cli.training.data import Failed, Noted
    from cellseg_cli.training.reports import Started

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
            budget = f", as {report.minutes:g} minutes allow" if report.minutes else ""
            typer.echo(
                f"train: {report.fields} fields, {report.held_out} held out, on {report.device} "
                f"in {report.precision}, {report.steps} steps{budget}{done}",
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
