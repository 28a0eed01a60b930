"""`cellseg cluster`: embeddings in a store, label images in the same store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cellseg_cli.cli.common import (
    AsJson,
    ConfigFile,
    LogJson,
    Quiet,
    Sets,
    Verbose,
    with_run_options,
)
from cellseg_cli.cli.screen import screen
from cellseg_cli.cli.stages import report
from cellseg_cli.cli.tables import show_table
from cellseg_cli.config import ClusterSettings, RunSettings
from cellseg_cli.config_file import cluster_settings_by_type, settings_from
from cellseg_cli.errors import ConfigError

if TYPE_CHECKING:
    from cellseg_cli.evaluation.choice import Aim, Choice
    from cellseg_cli.pipeline.tune import Tuned

Tune = Annotated[
    Path | None,
    typer.Option(
        "--tune",
        metavar="TRUTH",
        help="First find the settings that score best against TRUTH (as evaluate takes it).",
    ),
]
AimOption = Annotated[
    str | None,
    typer.Option(
        "--aim",
        metavar="mean_ap|ap50|ap75",
        help="With --tune: what is to be highest, AP at IoU 0.5 (for counting), at 0.75 (for "
        "outlines), or their mean from 0.5 to 0.95 (mean_ap, the default).",
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(
        "--save",
        metavar="FILE",
        help="With --tune: keep the settings in a .toml for --config, or in the model's "
        ".safetensors, as well as in the store.",
    ),
]
CellType = Annotated[
    str | None,
    typer.Option("--cell-type", metavar="NAME", help="Take the settings tuned for this type."),
]
Types = Annotated[
    str | None,
    typer.Option(
        "--types",
        metavar="FILE.csv:COLUMN",
        help="Take for each field the settings of its type; the table has a column id.",
    ),
]
StorePath = Annotated[
    Path,
    typer.Argument(metavar="STORE", help="A store that embed has made.", show_default=False),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="auto (seeds for spatial embeddings, grid for contrastive ones), seeds, grid, "
        "linkage (the origin's method) or watershed (of the classes).",
    ),
]
MergeDistance = Annotated[
    float | None,
    typer.Option("--merge-distance", help="linkage, grid: clusters nearer than this merge."),
]
Foreground = Annotated[
    float | None,
    typer.Option("--foreground", help="Level from which a pixel belongs to a cell."),
]
MinArea = Annotated[
    int | None,
    typer.Option("--min-area", metavar="PX", min=1, help="Smaller instances are dropped."),
]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="160x128|half|full", help="linkage, grid: working size."),
]
Erosion = Annotated[
    str | None,
    typer.Option(
        "--erosion",
        metavar="grow|origin|none",
        help="linkage, grid: erode and grow back, only erode, or neither.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|auto|cuda[:I]",
        help="Where label images are made, the same on all; not linkage, not tiles.",
    ),
]


#: How the table of settings heads what they were chosen by.
_AIM_TOLD = {"mean_ap": "mean AP", "ap50": "AP@0.5", "ap75": "AP@0.75"}


@with_run_options
def cluster(
    store: StorePath,
    method: Method = None,
    merge_distance: MergeDistance = None,
    foreground: Foreground = None,
    min_area: MinArea = None,
    size: Size = None,
    erosion: Erosion = None,
    tune: Tune = None,
    aim: AimOption = None,
    save: Save = None,
    cell_type: CellType = None,
    types: Types = None,
    device: Device = None,
    *,
    run: RunSettings,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
    log_json: LogJson = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> int:
    """Make label images from the embeddings of a store.

    What is not set is taken from what was tuned on this store, then from the
    model, then from the method. The same command goes on where a stopped run
    left off; with other settings it replaces the label images. Fields that are
    not embedded are listed and end the run with exit code 1.

    --tune finds foreground, seed level, merge distance and least area (those
    that are not given) on the fields that have truth, for all of them and for
    each cell type, by mean AP or what --aim says, and then clusters every
    field. With --dry-run it only says what it finds.

    \b
    Examples:
        cellseg cluster emb.zarr
        cellseg cluster emb.zarr --method linkage --size 160x128 --merge-distance 0.3
        cellseg cluster emb.zarr --min-area 40 --set seed_level=0.6
        cellseg cluster emb.zarr --part $SLURM_ARRAY_TASK_ID/64
        cellseg cluster emb.zarr --tune truth/ --save tuned.toml
        cellseg cluster emb.zarr --tune train.csv --types plates.csv:cell_type
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
    by_type = cluster_settings_by_type(file=config, sets=sets or (), flags=flags)
    run = replace(run, device=device or run.device)
    if save is not None and tune is None:
        raise ConfigError("--save keeps what --tune finds: give --tune TRUTH as well")
    if aim is not None and tune is None:
        raise ConfigError("--aim says what --tune is to reach: give --tune TRUTH as well")
    from cellseg_cli.pipeline.cluster import cluster_store
    from cellseg_cli.pipeline.settings import CellTypes

    chosen = CellTypes(cell_type, types, by_type)
    tuned = None
    with screen(quiet=quiet, verbose=verbose, log_json=log_json) as emit:
        if tune is not None:
            from cellseg_cli.pipeline.tune import Tuning
            from cellseg_cli.pipeline.tune import tune as find_settings

            tuning = Tuning(tune, save, cast("Aim", "mean_ap" if aim is None else aim))
            tuned = find_settings(store, tuning, settings, run, emit, chosen)
            settings, chosen = tuned.wanted(settings, chosen)
            _tell(tuned, as_json=as_json, quiet=quiet)
        summary = cluster_store(store, settings, run, emit, chosen)
    more = {} if tuned is None else {"tuned": tuned.document}
    code = report(summary, store, dry_run=run.dry_run, as_json=as_json, more=more)
    return code if tuned is None else max(code, int(tuned.exit_code))


def _tell(tuned: Tuned, *, as_json: bool, quiet: bool) -> None:
    """Print what tuning found, unless it goes into the JSON, and where it is kept."""
    if not as_json:
        show_table(_rows(tuned))
    for path in () if quiet else tuned.written:
        typer.echo(f"tune: settings written to {path}", err=True)


def _rows(tuned: Tuned) -> Iterator[list[str]]:
    """Yield the cells of the table, the header first."""
    names = [name for name in tuned.table if name != "by_type"]
    yield ["settings for", "fields", "before", _AIM_TOLD[tuned.tuning.aim], *names]
    yield _row("all", tuned.overall, names)
    for cell_type, choice in tuned.by_type.items():
        yield _row(cell_type, choice, names)


def _row(name: str, choice: Choice, settings: list[str]) -> list[str]:
    scores = ("-" if score != score else f"{score:.3f}" for score in (choice.before, choice.score))
    return [
        name,
        str(choice.fields),
        *scores,
        *(str(getattr(choice.settings, s)) for s in settings),
    ]
