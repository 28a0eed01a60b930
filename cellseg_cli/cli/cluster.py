"""`cellseg cluster`: embeddings in a store, label images in the same store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cellseg_cli.cli.common import (
    AsJson,
    ConfigFile,
    DryRun,
    Part,
    Quiet,
    Sets,
    Verbose,
    Workers,
)
from cellseg_cli.cli.screen import screen
from cellseg_cli.cli.stages import report
from cellseg_cli.config import ClusterSettings, RunSettings, settings_from


def cluster(
    store: Annotated[
        Path,
        typer.Argument(metavar="STORE", help="A store that embed has made.", show_default=False),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="auto (seeds for spatial embeddings, grid for contrastive ones), seeds, grid, "
            "linkage (the origin's method) or watershed (of the classes).",
        ),
    ] = None,
    merge_distance: Annotated[
        float | None,
        typer.Option("--merge-distance", help="linkage, grid: clusters nearer than this merge."),
    ] = None,
    foreground: Annotated[
        float | None,
        typer.Option("--foreground", help="Level from which a pixel belongs to a cell."),
    ] = None,
    min_area: Annotated[
        int | None,
        typer.Option("--min-area", metavar="PX", min=1, help="Smaller instances are dropped."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="160x128|half|full", help="linkage, grid: working size."),
    ] = None,
    erosion: Annotated[
        str | None,
        typer.Option(
            "--erosion",
            metavar="grow|origin|none",
            help="linkage, grid: erode and grow back, only erode, or neither.",
        ),
    ] = None,
    workers: Workers = None,
    part: Part = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo label images of the same settings too.")
    ] = False,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> int:
    """Make label images from the embeddings of a store.

    What is not set is taken from the model, which was tuned, and else from the
    method. The same command goes on where a stopped run left off; with other
    settings it replaces the label images. Fields that are not embedded are
    listed and end the run with exit code 1.

    \b
    Examples:
        cellseg cluster emb.zarr
        cellseg cluster emb.zarr --method linkage --size 160x128 --merge-distance 0.3
        cellseg cluster emb.zarr --min-area 40 --set seed_level=0.6
        cellseg cluster emb.zarr --part $SLURM_ARRAY_TASK_ID/64
    """
    flags = {
        "method": method,
        "merge_distance": merge_distance,
        "foreground": foreground,
        "min_area_px": min_area,
        "size": size,
        "erosion": erosion,
    }
    settings = settings_from(
        ClusterSettings, file=config, section="cluster", sets=sets or (), flags=flags
    )
    carried_out = {"workers": workers, "part": part, "overwrite": overwrite, "dry_run": dry_run}
    run = settings_from(RunSettings, flags=carried_out)
    from cellseg_cli.pipeline.cluster import cluster_store

    with screen(quiet=quiet, verbose=verbose) as emit:
        summary = cluster_store(store, settings, run, emit)
    return report(summary, store, dry_run=dry_run, as_json=as_json)
