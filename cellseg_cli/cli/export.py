"""`cellseg export`: the label images of a store as files of other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg_cli.cli.common import AsJson, Overwrite, Quiet, Verbose, echo_json
from cellseg_cli.cli.screen import screen

if TYPE_CHECKING:
    from cellseg_cli.runlength import Order


class Format(StrEnum):
    """What is written."""

    label_tiff = "label-tiff"
    coco = "coco"
    kaggle = "kaggle"
    table = "table"


class TextOrder(StrEnum):
    """How a Kaggle table flattens masks."""

    row_major = "row-major"
    column_major = "column-major"


def export(
    store: Annotated[
        Path,
        typer.Argument(
            metavar="STORE", help="A store that cellseg cluster has filled.", show_default=False
        ),
    ],
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="label-tiff: a folder with one 16 or 32 bit TIFF per field; coco: one JSON with "
            "run-length masks; kaggle: one CSV with a row per cell; table: one CSV or parquet "
            "file with label, area, centroid, box and place on the plate of each cell.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="The folder or file to write.")
    ],
    order: Annotated[
        TextOrder | None,
        typer.Option(
            "--order",
            help="For kaggle: row-major as in Sartorius 2021 (the default), column-major as in "
            "the Data Science Bowl 2018.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> int:
    """Write label images as TIFF, COCO, a Kaggle submission or a table of cells.

    Fields whose label image is not finished are listed and left out, and the
    exit code is 1 then. An output appears when it is complete.

    \b
        cellseg export emb.zarr --format label-tiff --out labels/
        cellseg export emb.zarr --format coco --out cells.json
        cellseg export emb.zarr --format kaggle --out submission.csv
        cellseg export emb.zarr --format table --out cells.parquet
    """
    from cellseg_cli.pipeline.export import Export, export_store

    flattening: Order | None = None
    if order is not None:
        flattening = "row_major" if order is TextOrder.row_major else "column_major"
    request = Export(format.value, out, flattening, overwrite)
    with screen(quiet=quiet, verbose=verbose) as emit:
        exported = export_store(store, request, emit)
    if as_json:
        echo_json(
            {
                "stage": "export",
                "format": format.value,
                "out": str(out),
                "fields": exported.written.fields,
                "cells": exported.written.instances,
                "failed": [
                    {"field": one.field_id, "reason": one.reason} for one in exported.summary.failed
                ],
                "seconds": round(exported.summary.seconds, 3),
            }
        )
    elif exported.written.fields:
        fields, cells = exported.written.fields, exported.written.instances
        typer.echo(f"{out}: {fields} field{'s' * (fields != 1)}, {cells} cell{'s' * (cells != 1)}")
    return int(exported.summary.exit_code)
