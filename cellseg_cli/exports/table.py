"""Instances as a table: one row per cell, CSV or parquet.

The columns are the same whatever is known, so that tables of several runs can be joined.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from cellseg_cli.errors import ConfigError
from cellseg_cli.exports import FieldInfo, Written
from cellseg_cli.exports.output import check_output_file, complete_file
from cellseg_cli.instances import Instances
from cellseg_cli.runlength import box_of

if TYPE_CHECKING:
    import pyarrow as pa

#: Column and whether it is text, a whole number or a fraction.
COLUMNS = {
    **dict.fromkeys(("id", "plate", "well", "field"), "text"),
    "t": "whole",
    "channels": "text",
    "label": "whole",
    "area_px": "whole",
    **dict.fromkeys(("centroid_y_px", "centroid_x_px"), "fraction"),
    **dict.fromkeys(("y0", "x0", "y1", "x1"), "whole"),
    "score": "fraction",
}
SUFFIXES = (".csv", ".parquet")
#: Rows that a parquet file gets at a time: about 10 MB.
_GROUP_ROWS = 65_536


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse what no table can be written to, and a suffix that does not say which kind."""
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{out}: a table is .csv or .parquet; give it such a name")
    check_output_file(out, overwrite=overwrite)


def write(
    fields: Iterable[tuple[FieldInfo, Instances]], out: Path, *, overwrite: bool = False
) -> Written:
    """Write one row per instance; the suffix of `out` says whether CSV or parquet.

    ``id`` is that of the field.  ``plate``, ``well``, ``field``, ``t`` and ``channels`` (names,
    with ``;`` between them) are empty where they are not known, as is ``score``.  ``label`` is
    the id in the label TIFFs of the same export, ``area_px`` in px²; the centroid is the mean
    of the pixels' coordinates, pixel (0, 0) lying at 0, 0; the box is half-open.  A field
    without cells has no row.

    Raises
    ------
    OutputExistsError
        `out` is there and `overwrite` is false.
    ConfigError
        `out` is a folder, cannot be written, or has another suffix.
    """
    check_output(out, overwrite=overwrite)
    write_rows = _write_csv if out.suffix.lower() == ".csv" else _write_parquet
    counted = _Counted(fields)
    with complete_file(out) as temporary:
        write_rows(counted, temporary)
    return Written(counted.fields, counted.instances)


class _Counted:
    """A stream of fields that knows how many went by."""

    def __init__(self, fields: Iterable[tuple[FieldInfo, Instances]]) -> None:
        self._stream = fields
        self.fields = self.instances = 0

    def __iter__(self) -> Iterator[tuple[FieldInfo, Instances]]:
        for info, instances in self._stream:
            self.fields, self.instances = self.fields + 1, self.instances + len(instances)
            yield info, instances


def _rows(info: FieldInfo, instances: Instances) -> Iterator[tuple[Any, ...]]:
    """Yield the row of each instance, in the order of :data:`COLUMNS`."""
    channels = ";".join(info.channel_names) or None
    place = (info.id, info.plate, info.well, info.field, info.t, channels)
    scores = instances.scores or (None,) * len(instances)
    for index, (runs, score) in enumerate(zip(instances.runs, scores, strict=True)):
        area, y, x = _moments(runs, instances.shape[1])
        yield (*place, index + 1, area, y, x, *box_of(runs, instances.shape), score)


def _moments(runs: np.ndarray, width: int) -> tuple[int, float, float]:
    """Return area in px² and centroid (y, x) in px of runs that are not empty.

    >>> _moments(np.array([[1, 2], [5, 2]]), 4)
    (4, 0.5, 1.5)
    """
    starts, lengths = _within_rows(runs, width)
    area = int(lengths.sum())
    y = int((starts // width * lengths).sum()) / area
    # The sum of x over a run is length × (first + last) / 2.
    x = int((lengths * (2 * (starts % width) + lengths - 1)).sum()) / (2 * area)
    return area, round(y, 3), round(x, 3)


def _within_rows(runs: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and lengths of the same runs, cut where they go over the end of a row."""
    starts, ends = runs[:, 0], runs.sum(axis=1)
    rows = (ends - 1) // width - starts // width + 1
    if (rows == 1).all():
        return starts, runs[:, 1]
    number = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    lines = (np.repeat(starts // width, rows) + number) * width
    cut = np.maximum(lines, np.repeat(starts, rows))
    return cut, np.minimum(lines + width, np.repeat(ends, rows)) - cut


def _write_csv(fields: Iterable[tuple[FieldInfo, Instances]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        _write_lines(fields, stream)


def _write_lines(fields: Iterable[tuple[FieldInfo, Instances]], stream: TextIO) -> None:
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    for info, instances in fields:
        table.writerows(_rows(info, instances))


def _write_parquet(fields: Iterable[tuple[FieldInfo, Instances]], path: Path) -> None:
    from pyarrow import parquet

    schema = _schema()
    with parquet.ParquetWriter(path, schema) as table:
        waiting: list[tuple[Any, ...]] = []
        for info, instances in fields:
            waiting += _rows(info, instances)
            if len(waiting) >= _GROUP_ROWS:
                table.write_table(_table(waiting, schema))
                waiting = []
        table.write_table(_table(waiting, schema))


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    arrays = [pa.array(values, type=f.type) for values, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"text": pa.string(), "whole": pa.int64(), "fraction": pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
