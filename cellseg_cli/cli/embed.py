"""`cellseg embed`: images in, pixel embeddings in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cellseg_cli.cli.common import (
    AsJson,
    ConfigFile,
    Device,
    DryRun,
    Exclude,
    Include,
    Overwrite,
    Part,
    Quiet,
    Sets,
    Verbose,
    Workers,
)
from cellseg_cli.cli.screen import screen
from cellseg_cli.cli.stages import report
from cellseg_cli.config import EmbedSettings, RunSettings, settings_from
from cellseg_cli.errors import ConfigError


def embed(
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="A file, a folder (searched recursively), a glob in quotes, or a list file "
            "(.txt, .lst) with one path a line.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="The store; one that is not finished goes on.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Name of a bundled model, or a model file [nuclei]."),
    ] = None,
    device: Device = None,
    channel: Annotated[
        str | None,
        typer.Option("--channel", metavar="I[,J]", help="Channels to take, from 0, in this order."),
    ] = None,
    z: Annotated[
        str | None,
        typer.Option("--z", metavar="max|mid|INT", help="What to take of a z stack."),
    ] = None,
    t: Annotated[int | None, typer.Option("--t", metavar="INT", help="Time point, from 0.")] = None,
    include: Include = None,
    exclude: Exclude = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Tiles per pass on an accelerator.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile", metavar="PX", help="Side of a network tile; smaller takes less memory."
        ),
    ] = None,
    workers: Workers = None,
    part: Part = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> int:
    """Embed every pixel of every image.

    A field is named by its path below IMAGES, without suffix. The same command
    goes on where a stopped run left off: finished fields stay, failed ones are
    tried again, images that changed are done anew. A store made with another
    model or other planes is refused unless --overwrite. A damaged image fails
    alone; the run goes on, lists it and ends with exit code 1.

    \b
    Examples:
        cellseg embed plates --out emb.zarr
        cellseg embed "plates/*/*_w1.tif" --out emb.zarr --exclude "*thumb*"
        cellseg embed stacks --out emb.zarr --z max --channel 1
        cellseg embed plates --out emb.zarr --part $SLURM_ARRAY_TASK_ID/64
    """
    flags = {
        "model": model,
        "device": device,
        "channel": _channels(channel),
        "z": z,
        "t": t,
        "tile_px": tile,
        "batch_size": batch_size,
        "include": include or None,
        "exclude": exclude or None,
    }
    settings = settings_from(
        EmbedSettings, file=config, section="embed", sets=sets or (), flags=flags
    )
    carried_out = {"workers": workers, "part": part, "overwrite": overwrite, "dry_run": dry_run}
    run = settings_from(RunSettings, flags=carried_out)
    from cellseg_cli.pipeline.embed import embed as run_embed

    with screen(quiet=quiet, verbose=verbose) as emit:
        summary = run_embed(images, out, settings, run, emit)
    return report(summary, out, dry_run=dry_run, as_json=as_json)


def _channels(text: str | None) -> tuple[int, ...] | None:
    """Read ``"0,2"``.

    >>> _channels("0,2")
    (0, 2)
    """
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--channel {text!r} is not one number from 0, or several with commas")
    return tuple(int(part) for part in parts)
