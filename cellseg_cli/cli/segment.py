"""`cellseg segment`: images in, label images out, in one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cellseg_cli.cli import cluster as clustering
from cellseg_cli.cli import embed as embedding
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
from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings, field_names
from cellseg_cli.config_file import cluster_settings_by_type, settings_from
from cellseg_cli.errors import ConfigError


@with_run_options
def segment(
    images: embedding.Images,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="A folder for <field>.tif, or a store if the name ends in .zarr; one that is not "
            "finished goes on.",
        ),
    ],
    model: embedding.Model = None,
    device: Device = None,
    channel: embedding.Channel = None,
    z: embedding.Z = None,
    t: embedding.T = None,
    include: Include = None,
    exclude: Exclude = None,
    pattern: embedding.Pattern = None,
    batch_size: embedding.BatchSize = None,
    tile: embedding.Tile = None,
    scale: embedding.Scale = None,
    tta: embedding.Tta = None,
    method: clustering.Method = None,
    merge_distance: clustering.MergeDistance = None,
    foreground: clustering.Foreground = None,
    min_area: clustering.MinArea = None,
    size: clustering.Size = None,
    erosion: clustering.Erosion = None,
    cell_type: clustering.CellType = None,
    types: clustering.Types = None,
    *,
    run: RunSettings,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
    log_json: LogJson = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> int:
    """Segment every image: embed and cluster in one stream, embeddings not kept.

    The label images are those that embed and cluster give with the same
    settings, as TIFF files or as a store that export and evaluate read. The
    same command goes on where a stopped run left off. Settings come from the
    tables [embed], [cluster] and [run] of --config; a --set that both know is
    told apart as embed.KEY or cluster.KEY.

    \b
    Examples:
        cellseg segment plates --out labels
        cellseg segment plates --out labels.zarr --workers 4
        cellseg segment stacks --out labels --z max --channel 1 --min-area 40
        cellseg segment plates --out labels --set cluster.tile_px=1024
    """
    for_embed, for_cluster = _told_apart(sets or ())
    settings = settings_from(
        EmbedSettings,
        file=config,
        section="embed",
        sets=for_embed,
        flags={
            "model": model,
            "device": device,
            "channel": embedding.channels(channel),
            "z": z,
            "t": t,
            "tile_px": tile,
            "batch_size": batch_size,
            "include": include or None,
            "exclude": exclude or None,
            "pattern": pattern,
            "scale": scale,
            "tta": tta,
        },
    )
    wanted: Mapping[str, Any] = {
        "method": method,
        "merge_distance": merge_distance,
        "foreground": foreground,
        "min_area_px": min_area,
        "size": size,
        "erosion": erosion,
    }
    labelled = settings_from(
        ClusterSettings, file=config, section="cluster", sets=for_cluster, flags=wanted
    )
    by_type = cluster_settings_by_type(file=config, sets=for_cluster, flags=wanted)
    from cellseg_cli.pipeline.segment import SegmentSettings
    from cellseg_cli.pipeline.segment import segment as run_segment
    from cellseg_cli.pipeline.settings import CellTypes

    chosen = SegmentSettings(settings, labelled, CellTypes(cell_type, types, by_type))
    run = replace(run, device=settings.device)
    with screen(quiet=quiet, verbose=verbose, log_json=log_json) as emit:
        summary = run_segment(images, out, chosen, run, emit)
    return report(summary, out, dry_run=run.dry_run, as_json=as_json)


def _told_apart(sets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of the network and of clustering; both refuse what they do not know.

    >>> _told_apart(["halo_px=32", "seed_level=0.5", "cluster.tile_px=1024"])
    (['halo_px=32'], ['seed_level=0.5', 'tile_px=1024'])
    """
    of_embed, of_cluster = set(field_names(EmbedSettings)), set(field_names(ClusterSettings))
    for_embed: list[str] = []
    for_cluster: list[str] = []
    for text in sets:
        name = text.partition("=")[0].strip()
        section, dot, rest = text.partition(".")
        if dot and section in {"embed", "cluster"}:
            (for_embed if section == "embed" else for_cluster).append(rest)
        elif name in of_embed & of_cluster:
            raise ConfigError(f"--set {name}: say embed.{name} or cluster.{name}; both have it")
        elif name in of_cluster:
            for_cluster.append(text)
        else:
            for_embed.append(text)
    return for_embed, for_cluster
