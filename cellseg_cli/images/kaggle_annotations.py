"""Truth as Kaggle tables: one row per cell, a run-length text in each.

Three headers are known: ``id,annotation,width,height,...`` (Sartorius, row by
row), ``id,predicted`` (a submission to it) and ``ImageId,EncodedPixels`` (Data
Science Bowl 2018, column by column).  The texts are decoded when a field is
read, so one bad row costs one field.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellseg_cli.errors import InputError
from cellseg_cli.images.annotation_files import check_size, field_id_of, raise_faults, shape_of
from cellseg_cli.instances import Instances
from cellseg_cli.runlength import Order, runs_of_kaggle_text

# The text of one cell; the largest of Sartorius 2021 has 4 kB.
MAX_CELL_CHARACTERS = 1 << 24

_LAYOUTS: tuple[tuple[str, str, Order], ...] = (
    ("id", "annotation", "row_major"),
    ("id", "predicted", "row_major"),
    ("ImageId", "EncodedPixels", "column_major"),
)


@dataclass(frozen=True)
class KaggleRow:
    """One row as it stands in the file: 1-based line number, run-length text, cell type."""

    line: int
    text: str
    cell_type: str | None


@dataclass(frozen=True)
class KaggleTable:
    """The rows of each field of one table."""

    source: Path
    order: Order
    rows: dict[str, list[KaggleRow]]
    shapes: dict[str, tuple[int, int]]

    @property
    def field_ids(self) -> tuple[str, ...]:
        """Every field that has a row, sorted."""
        return tuple(sorted(self.rows))

    def shape(self, field_id: str) -> tuple[int, int] | None:
        """Return (Y, X) where the table has columns for it."""
        return self.shapes.get(field_id)

    def instances(self, field_id: str, shape: tuple[int, int] | None) -> Instances:
        """Return one instance per row, in the order of the rows; an empty text is none."""
        known = self.shapes.get(field_id, shape)
        if known is None:
            raise InputError(
                f"{self.source} does not say how large {field_id} is: "
                "its images are needed as well, or columns width and height"
            )
        rows = [row for row in self.rows[field_id] if row.text]
        runs = []
        for row in rows:
            try:
                runs.append(runs_of_kaggle_text(row.text, known, self.order))
            except InputError as error:
                raise InputError(f"{self.source}, line {row.line} ({field_id}): {error}") from error
        types = tuple(row.cell_type for row in rows if row.cell_type is not None)
        return Instances(known, tuple(runs), types if len(types) == len(rows) else None)

    def cell_type(self, field_id: str) -> str | None:
        """Return the cell type that all rows of the field share, if they do."""
        types = {row.cell_type for row in self.rows[field_id]}
        return types.pop() if len(types) == 1 else None


def open_kaggle_table(
    source: Path, order: Literal["auto", "row_major", "column_major"] = "auto"
) -> KaggleTable:
    """Return the table in a CSV file; ``auto`` takes the order from the header.

    Raises
    ------
    InputError
        For a header that is not one of the three, rows of another length than
        the header, sizes that are not numbers or differ within a field, and
        ids that are no relative paths; each with its line.
    """
    check_size(source)
    lines = _read_rows(source)
    header = next(lines, (1, []))[1]
    id_column, text_column, usual = _layout(source, header)
    table = KaggleTable(source, usual if order == "auto" else order, {}, {})
    faults: list[str] = []
    for line, cells in lines:
        try:
            named = _named(header, cells)
            field_id = field_id_of(named[id_column])
            _note_shape(table.shapes, field_id, named)
        except InputError as error:
            faults.append(f"line {line}: {error}")
            continue
        row = KaggleRow(line, named[text_column].strip(), named.get("cell_type") or None)
        table.rows.setdefault(field_id, []).append(row)
    raise_faults(source, faults)
    if not table.rows:
        raise InputError(f"{source} has a header and no rows")
    return table


def _read_rows(source: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each row that is not blank."""
    allowed = csv.field_size_limit(MAX_CELL_CHARACTERS)
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source} cannot be read as CSV in UTF-8: {error}") from error
    finally:
        csv.field_size_limit(allowed)


def _layout(source: Path, header: list[str]) -> tuple[str, str, Order]:
    """Return the columns of id and text, and the order that goes with them."""
    for layout in _LAYOUTS:
        if layout[0] in header and layout[1] in header:
            return layout
    known = " or ".join(f"{id_column},{text}" for id_column, text, _ in _LAYOUTS)
    shown = [name[:24] for name in header[:8]]
    rest = f" and {len(header) - 8} more" if len(header) > 8 else ""
    raise InputError(
        f"{source} is no Kaggle table: its columns are {shown}{rest}, needed are {known}"
    )


def _named(header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise InputError(f"{len(cells)} cells, but the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


def _note_shape(
    shapes: dict[str, tuple[int, int]], field_id: str, named: Mapping[str, str]
) -> None:
    """Keep the (Y, X) of a row, and refuse one that contradicts an earlier row."""
    lower = {name.lower(): text.strip() for name, text in named.items()}
    if not {"width", "height"} <= lower.keys():
        return
    sides = [int(lower[k]) if _is_side(lower[k]) else None for k in ("height", "width")]
    shape = shape_of(*sides)
    if shape is None:
        raise InputError(f"width {lower['width']!r} and height {lower['height']!r} are no size")
    if shapes.setdefault(field_id, shape) != shape:
        first = shapes[field_id]
        raise InputError(
            f"{field_id} is {shape[0]}×{shape[1]} px here and {first[0]}×{first[1]} px before"
        )


def _is_side(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10
