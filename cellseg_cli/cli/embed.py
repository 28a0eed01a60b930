"""`cellseg embed`: images in, pixel embeddings in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cellseg_cli.cli.common import (
    AsJson,
    ConfigFile,
    Device,
    Exclude,
    Include,
    LogJson,
    Quiet,
    Sets,
    Verbose,
    with_run_options,
)
from cellseg_cli.cli.screen import screen
from cellseg_cli.cli.stages import report
from cellseg_cli.config import EmbedSettings, RunSettings
from cellseg_cli.config_file import settings_from
from cellseg_cli.errors import ConfigError

Images = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="A file, a folder (searched recursively), a glob in quotes, an OME-Zarr, or a list "
        "file (.txt, .lst) with one path a line.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Name of a bundled model, or a model file [nuclei]."),
]
Channel = Annotated[
    str | None,
    typer.Option("--channel", metavar="I[,J]", help="Channels to take, from 0, in this order."),
]
Z = Annotated[
    str | None, typer.Option("--z", metavar="max|mid|INT", help="What to take of a z stack.")
]
T = Annotated[int | None, typer.Option("--t", metavar="INT", help="Time point, from 0.")]
Pattern = Annotated[
    str | None,
    typer.Option(
        "--pattern",
        metavar="NAME|REGEX",
        help="How file names tell plate, well, field, channel, z and t: imagexpress, harmony, "
        "cellvoyager, incucyte, none, or a regular expression with groups of these names "
        "[found by itself].",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=0, help="Tiles per pass on an accelerator; 0: what fits."),
]
Tile = Annotated[
    int | None,
    typer.Option("--tile", metavar="PX", help="Side of a network tile; smaller takes less memory."),
]
Scale = Annotated[
    float | None,
    typer.Option(
        "--scale",
        metavar="FACTOR",
        help="Working scale, 0.25 to 4 in steps of 0.25; small cells want 1.5 to 2 [the model's].",
    ),
]
Tta = Annotated[
    str | None,
    typer.Option(
        "--tta",
        metavar="none|flips|dihedral",
        help="Mean over turned copies of a tile: flips takes 4 times as long, dihedral 8 [none].",
    ),
]


@with_run_options
def embed(
    images: Images,
    out: Annotated[
        Path, typer.Option("--out", help="The store; one that is not finished goes on.")
    ],
    model: Model = None,
    device: Device = None,
    channel: Channel = None,
    z: Z = None,
    t: T = None,
    include: Include = None,
    exclude: Exclude = None,
    pattern: Pattern = None,
    batch_size: BatchSize = None,
    tile: Tile = None,
    scale: Scale = None,
    tta: Tta = None,
    *,
    run: RunSettings,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
    log_json: LogJson = None,
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
        cellseg embed plates --out emb.zarr --workers 4 --memory 16GB
        cellseg embed plates --out emb.zarr --part $SLURM_ARRAY_TASK_ID/64
    """
    flags = {
        "model": model,
        "device": device,
        "channel": channels(channel),
        "z": z,
        "t": t,
        "tile_px": tile,
        "batch_size": batch_size,
        "include": include or None,
        "exclude": exclude or None,
        "pattern": pattern,
        "scale": scale,
        "tta": tta,
    }
    settings = settings_from(
        EmbedSettings, file=config, section="embed", sets=sets or (), flags=flags
    )
    from cellseg_cli.pipeline.embed import embed as run_embed

    with screen(quiet=quiet, verbose=verbose, log_json=log_json) as emit:
        summary = run_embed(images, out, settings, run, emit)
    return report(summary, out, dry_run=run.dry_run, as_json=as_json)


def channels(text: str | None) -> tuple[int, ...] | None:
    """Read ``"0,2"``.

    >>> channels("0,2")
    (0, 2)
    """
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--channel {text!r} is not one number from 0, or several with commas")
    return tuple(int(part) for part in parts)
