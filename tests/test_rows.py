"""fields.parquet: what is written comes back, whatever is known of a field."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cellseg_cli.errors import StoreError
from cellseg_cli.rows import FieldRow, PlaneFile, read_rows, write_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
MAYBE_TEXT = st.none() | TEXT
NUMBER = st.none() | st.integers(0, 2**62)
FILES = st.lists(
    st.builds(PlaneFile, TEXT, st.integers(0, 99), st.integers(0, 99)), max_size=3
).map(tuple)
ROWS = st.lists(
    st.builds(
        FieldRow,
        id=TEXT,
        source=TEXT,
        size_bytes=NUMBER,
        mtime_ns=NUMBER,
        height=NUMBER,
        width=NUMBER,
        channels=NUMBER,
        dtype=MAYBE_TEXT,
        error=MAYBE_TEXT,
        files=FILES,
        plate=MAYBE_TEXT,
        well=MAYBE_TEXT,
        field=MAYBE_TEXT,
        t=NUMBER,
        channel_names=st.lists(TEXT, max_size=3).map(tuple),
    ),
    max_size=6,
    unique_by=lambda row: row.id,
)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=ROWS, data=st.data())
def test_reading_gives_back_what_was_written(
    tmp_path: Path, rows: list[FieldRow], data: st.DataObject
) -> None:
    path = tmp_path / "fields.parquet"
    write_rows(path, data.draw(st.permutations(rows)))
    assert read_rows(path) == tuple(sorted(rows, key=lambda row: row.id))
    first = path.read_bytes()
    write_rows(path, data.draw(st.permutations(rows)))
    assert path.read_bytes() == first


def test_rows_of_several_chunks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "fields.parquet"
    rows = [FieldRow(f"f{n}", "s", files=(PlaneFile(f"{n}", n, 0),) * n) for n in range(4)]
    write_rows(path, rows)
    table = parquet.read_table(path)
    parquet.write_table(table, path, row_group_size=1)
    assert read_rows(path) == tuple(rows)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"id": ["a", "a"]}, "a field has no id of its own, or no source"),
        ({"id": [None, "b"]}, "a field has no id of its own, or no source"),
        ({"files": [1, 2]}, "files are int64"),
    ],
)
def test_a_damaged_file_is_told(
    tmp_path: Path, columns: dict[str, list[object]], reason: str
) -> None:
    path = tmp_path / "fields.parquet"
    write_rows(path, [FieldRow("a", "s"), FieldRow("b", "s")])
    table = parquet.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    parquet.write_table(table, path)
    message = f"{path} is damaged ({reason}); run cellseg embed again"
    with pytest.raises(StoreError, match=f"^{re.escape(message)}$"):
        read_rows(path)
