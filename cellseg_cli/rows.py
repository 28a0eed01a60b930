"""The list of the fields of a store, as a parquet file: one row for each.

A field has a row whether it can be used or not; what cannot be known of it is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg_cli.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class FieldRow:
    """One row of ``fields.parquet``: what the header of a field's image says.

    ``size_bytes`` and ``mtime_ns`` are those of the file ``source``.  Where the
    header cannot be read, ``error`` is the reason and the rest may be None.
    """

    id: str
    source: str
    size_bytes: int | None = None
    mtime_ns: int | None = None
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    dtype: str | None = None
    error: str | None = None

    @property
    def pixels(self) -> int:
        """Height × width; 0 where they are not known."""
        return (self.height or 0) * (self.width or 0)


def write_rows(path: Path, rows: Iterable[FieldRow]) -> None:
    """Write the rows, sorted by id; equal rows give equal bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    table = [asdict(row) for row in sorted(rows, key=lambda row: row.id)]
    parquet.write_table(pa.Table.from_pylist(table, schema=_schema()), path)


def read_rows(path: Path) -> tuple[FieldRow, ...]:
    """The rows, sorted by id.

    Raises
    ------
    StoreError
        The file is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    names = [field.name for field in fields(FieldRow)]
    try:
        table = parquet.read_table(path, columns=names)
        return _distinct(tuple(FieldRow(**row) for row in table.to_pylist()))
    except (pa.ArrowException, OSError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} is damaged ({reason}); run cellseg embed again") from error


def _schema() -> pa.Schema:
    import pyarrow as pa

    numbers = {"size_bytes", "mtime_ns", "height", "width", "channels"}
    names = [field.name for field in fields(FieldRow)]
    return pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in names])


def _distinct(rows: tuple[FieldRow, ...]) -> tuple[FieldRow, ...]:
    """The rows; TypeError unless each has an id of its own and a source."""
    if not all(row.id and row.source for row in rows) or len({r.id for r in rows}) < len(rows):
        raise TypeError("a field has no id of its own, or no source")
    return rows
