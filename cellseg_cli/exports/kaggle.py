"""Instances as a Kaggle submission: one run-length text per cell, no two overlapping."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from cellseg_cli.exports import FieldInfo, Written
from cellseg_cli.exports.output import check_output_file, complete_file
from cellseg_cli.instances import Instances, instances_of_labels, labels_of
from cellseg_cli.runlength import Order, kaggle_text

HEADERS: dict[Order, tuple[str, str]] = {
    "row_major": ("id", "predicted"),  # Sartorius Cell Instance Segmentation, 2021
    "column_major": ("ImageId", "EncodedPixels"),  # Data Science Bowl 2018
}


def write(
    fields: Iterable[tuple[FieldInfo, Instances]],
    out: Path,
    *,
    order: Order = "row_major",
    overwrite: bool = False,
) -> Written:
    """Write one row per cell, and one with an empty text for a field without cells.

    Both competitions forbid overlaps: instances are flattened, the smaller on
    top, and one that is covered completely has no row.

    Parameters
    ----------
    order
        ``row_major`` with the header of Sartorius, ``column_major`` with that of
        the Data Science Bowl.

    Raises
    ------
    OutputExistsError
        `out` is there and `overwrite` is false.
    ConfigError
        `out` is a folder or cannot be written.
    """
    check_output_file(out, overwrite=overwrite)
    count = cells = 0
    with (
        complete_file(out) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(HEADERS[order])
        for info, instances in fields:
            flat = instances_of_labels(labels_of(instances))
            texts = [kaggle_text(runs, flat.shape, order) for runs in flat.runs]
            table.writerows((info.id, text) for text in texts or [""])
            count, cells = count + 1, cells + len(texts)
    return Written(count, cells)
