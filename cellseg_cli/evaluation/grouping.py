"""Which group a field belongs to: from a table, from the truth, from its own id."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from cellseg_cli.errors import ConfigError, InputError
from cellseg_cli.images.annotations import Kind

#: The column of a table of groups that holds field ids.
ID_COLUMN = "id"


def groups_of_table(text: str) -> tuple[str, dict[str, str]]:
    """Return the name of a grouping and the group of each field, from ``FILE.csv:COLUMN``.

    Empty cells are no group.

    Raises
    ------
    ConfigError
        If the text has no column in it.
    InputError
        If the file is not there, is no CSV, lacks a column, or has a field in two groups.
    """
    file, colon, column = text.rpartition(":")
    if not (colon and file and column):
        raise ConfigError(f"groups are given as FILE.csv:COLUMN, got {text!r}")
    path = Path(file)
    group_of: dict[str, str] = {}
    for line, field_id, group in _cells(path, column):
        if group_of.setdefault(field_id, group) != group:
            raise InputError(
                f"{path}, line {line}: {field_id} is in the {column} {group!r} here "
                f"and {group_of[field_id]!r} before"
            )
    return column, group_of


def groups_of_fields(text: str, field_ids: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return what :func:`groups_of_table` does, for a table that names at least one of the fields.

    Raises
    ------
    ConfigError
        If the text has no column in it.
    InputError
        If the table cannot be read, or none of the fields, at least one, has a group in it.
    """
    name, group_of = groups_of_table(text)
    if group_of.keys().isdisjoint(field_ids):
        there = f"such as {min(group_of)}" if group_of else "none"
        raise InputError(
            f"{text}: no field has a group there; its ids are of other fields ({there}), "
            f"the fields are such as {field_ids[0]}"
        )
    return name, group_of


def groups_by_cell_type(truth: Kind, field_ids: Iterable[str]) -> dict[str, str]:
    """Return the cell type of each field whose cells are all known to be of one type."""
    types = {field_id: truth.cell_type(field_id) for field_id in field_ids}
    return {field_id: name for field_id, name in types.items() if name}


def groups_by_plate(field_ids: Iterable[str]) -> dict[str, str]:
    """Return the plate of each field: the first folder of its id, where it has one.

    >>> groups_by_plate(["P1/A01/1", "P2/B07", "loose"])
    {'P1/A01/1': 'P1', 'P2/B07': 'P2'}
    """
    return {field_id: field_id.split("/", 1)[0] for field_id in field_ids if "/" in field_id}


def _cells(path: Path, column: str) -> list[tuple[int, str, str]]:
    """Return (line, field id, group) of each row that has a group."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            names = list(reader.fieldnames or ())
            missing = [name for name in (ID_COLUMN, column) if name not in names]
            if missing:
                raise InputError(
                    f"{path} has no column {' nor '.join(map(repr, missing))}; "
                    f"its columns are {', '.join(names)}"
                )
            rows = [(reader.line_num, row[ID_COLUMN], row[column]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"groups cannot be read from {path}: {reason}") from error
    return [row for row in rows if row[1] and row[2]]
