"""`cellseg pretrain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg_cli.cli.common import (
    AsJson,
    ConfigFile,
    Device,
    Exclude,
    Include,
    Overwrite,
    Quiet,
    Sets,
    echo_json,
)
from cellseg_cli.cli.embed import Channel, Pattern, T, Z, channels
from cellseg_cli.cli.learning import DataNote, Encoder, Licence, RunFolder, Seed, Steps
from cellseg_cli.config import PretrainSettings
from cellseg_cli.config_file import settings_from
from cellseg_cli.errors import ExitCode

if TYPE_CHECKING:
    from cellseg_cli.training.data import Failed
    from cellseg_cli.training.pretrain import Emit, Report, Started


def pretrain(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Each a file, a folder (searched recursively), a glob in quotes, an OME-Zarr, or "
            "a list file (.txt, .lst) with one path a line. Annotations are not needed.",
        ),
    ],
    out: RunFolder,
    steps: Steps = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Places per step, in two views each.")
    ] = None,
    encoder: Encoder = None,
    channel: Channel = None,
    z: Z = None,
    t: T = None,
    include: Include = None,
    exclude: Exclude = None,
    pattern: Pattern = None,
    seed: Seed = None,
    device: Device = None,
    licence: Licence = "unstated",
    data_note: DataNote = "unstated",
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Learn an encoder from images without annotations (DenseCL).

    RUN/encoder.safetensors is what train begins with; it needs the same
    encoder, levels and in_channels there. The same command goes on where a
    stopped run left off. A damaged image is left out and listed; the run goes
    on and ends with exit code 1.

    \b
        cellseg pretrain plates --out pre
        cellseg train annotated --init pre --out run
    """
    settings = settings_from(
        PretrainSettings,
        file=config,
        section="pretrain",
        sets=sets or (),
        flags={
            "steps": steps,
            "batch_size": batch_size,
            "encoder": encoder,
            "channel": channels(channel),
            "z": z,
            "t": t,
            "include": include or None,
            "exclude": exclude or None,
            "pattern": pattern,
            "seed": seed,
            "device": device,
        },
    )
    from cellseg_cli.training.pictures import find_pictures
    from cellseg_cli.training.pretrain import Notes
    from cellseg_cli.training.pretrain import pretrain as run

    found = find_pictures(images, settings)
    for note in found.notes:
        typer.echo(f"cellseg: {note}", err=True)
    result = run(
        found.fields,
        out,
        settings,
        notes=Notes(licence=licence, data=data_note),
        overwrite=overwrite,
        emit=_reporter(quiet),
    )
    if as_json:
        echo_json({**dataclasses.asdict(result), "encoder": str(result.encoder)})
    else:
        learned = f"learned from {result.fields} fields in {result.steps} steps"
        typer.echo(f"{result.encoder}: {learned}{_losses(result.losses)}")
    return int(ExitCode.SOME_FAILED if result.failed else ExitCode.DONE)


def _reporter(quiet: bool) -> Emit:
    """Return what writes a run's reports on stderr, one line each."""

    from cellseg_cli.training.data import Failed
    from cellseg_cli.training.pretrain import Started

    def show(report: Started | Report | Failed) -> None:
        if isinstance(report, Failed):
            typer.echo(f"cellseg: {report.field_id} is left out: {report.reason}", err=True)
        elif quiet:
            return
        elif isinstance(report, Started):
            done = f", {report.step} done before" if report.step else ""
            typer.echo(
                f"pretrain: {report.fields} fields, on {report.device} in {report.precision}, "
                f"{report.steps} steps{done}",
                err=True,
            )
        else:
            typer.echo(
                f"step {report.step}/{report.steps}{_losses(report.losses)}  "
                f"{report.crops_per_s:.1f} places/s",
                err=True,
            )

    return show


def _losses(losses: Mapping[str, float]) -> str:
    return "".join(f"  {name} {value:.3f}" for name, value in losses.items())
