"""Groups from a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellseg_cli.errors import ConfigError, InputError
from cellseg_cli.evaluation.grouping import groups_of_fields, groups_of_table


def test_a_column_names_the_grouping(tmp_path: Path) -> None:
    table = tmp_path / "with:colon.csv"
    table.write_text("\ufeffid,split,kind\na,val,fluo\nb,val,\nc,train,color\na,val,fluo\n")
    assert groups_of_table(f"{table}:kind") == ("kind", {"a": "fluo", "c": "color"})


@pytest.mark.parametrize("text", ["index.csv", "index.csv:", ":kind", ""])
def test_a_text_without_file_or_column_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        groups_of_table(text)
    assert str(error.value) == f"groups are given as FILE.csv:COLUMN, got {text!r}"


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("name,kind\na,fluo\n")
    with pytest.raises(InputError) as error:
        groups_of_table(f"{table}:sort")
    assert str(error.value) == f"{table} has no column 'id' nor 'sort'; its columns are name, kind"


def test_a_field_in_two_groups_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,kind\na,fluo\na,color\n")
    with pytest.raises(InputError) as error:
        groups_of_table(f"{table}:kind")
    assert str(error.value) == f"{table}, line 3: a is in the kind 'color' here and 'fluo' before"


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        groups_of_table(f"{tmp_path}/t.csv:kind")
    assert str(error.value) == (
        f"groups cannot be read from {tmp_path}/t.csv: No such file or directory"
    )


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"id,kind\n\xff,x\n")
    with pytest.raises(InputError) as error:
        groups_of_table(f"{table}:kind")
    assert str(error.value) == (
        f"groups cannot be read from {table}: "
        "'utf-8' codec can't decode byte 0xff in position 8: invalid start byte"
    )


def test_a_table_must_name_one_of_the_fields(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,kind\na,fluo\nb,\n")
    assert groups_of_fields(f"{table}:kind", ["a", "z"]) == ("kind", {"a": "fluo"})
    with pytest.raises(InputError) as error:
        groups_of_fields(f"{table}:kind", ["z", "y"])
    assert str(error.value) == (
        f"{table}:kind: no field has a group there; its ids are of other fields (such as a), "
        "the fields are such as z"
    )
