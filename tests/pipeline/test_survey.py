"""Headers of many fields: the same rows by whatever way, and files opened only if they changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_cli.engine import calls
from cellseg_cli.errors import InputError
from cellseg_cli.images.decode import Planes
from cellseg_cli.images.discover import find_fields
from cellseg_cli.images.source import Field, Place, Source
from cellseg_cli.pipeline import survey as surveying
from cellseg_cli.pipeline.survey import survey
from cellseg_cli.rows import FieldRow, PlaneFile, read_rows, write_rows


def write(path: Path, shape: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.zeros(shape, np.uint16))


def known(rows: Sequence[FieldRow]) -> dict[str, FieldRow]:
    return {row.id: row for row in rows}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened from now on, in this process."""
    names: list[str] = []
    real = surveying.read_header

    def heard(source: Source, planes: Planes) -> object:
        names.append(source.path.name)
        return real(source, planes)

    monkeypatch.setattr(surveying, "read_header", heard)
    return names


def test_a_row_says_what_the_header_and_the_file_say(tmp_path: Path) -> None:
    write(tmp_path / "a/one.tif", (20, 30))
    (row,) = survey(find_fields(tmp_path), Planes())
    status = (tmp_path / "a/one.tif").stat()
    assert row == FieldRow(
        id="a/one",
        source=str(tmp_path / "a/one.tif"),
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        height=20,
        width=30,
        channels=1,
        dtype="uint16",
    )


def test_a_field_that_cannot_be_used_keeps_its_place_and_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"")
    write(tmp_path / "c.tif")
    rows = survey(find_fields(tmp_path), Planes())
    assert [row.id for row in rows] == ["a", "b", "c"]
    assert [row.error for row in rows] == [None, f"{tmp_path / 'b.tif'}: is empty (0 bytes)", None]


def test_fields_of_a_plate_have_their_place_and_files(tmp_path: Path) -> None:
    write(tmp_path / "w1.tif", (20, 30))
    write(tmp_path / "w2.tif", (20, 30))
    files = (PlaneFile(str(tmp_path / "w1.tif")), PlaneFile(str(tmp_path / "w2.tif"), 1))
    source = Source(tmp_path / "w1.tif", files, ("DAPI", "GFP"))
    field = Field("p/B/02/f1", source, Place("p", "B", "02", "f1", 3))
    (row,) = survey([field], Planes())
    assert (row.plate, row.well, row.field, row.t) == ("p", "B02", "f1", 3)
    assert (row.files, row.channel_names, row.channels) == (files, ("DAPI", "GFP"), 2)
    assert row.size_bytes == sum((tmp_path / name).stat().st_size for name in ("w1.tif", "w2.tif"))


def test_what_was_found_amiss_is_the_error_and_nothing_is_opened(
    tmp_path: Path, opened: list[str]
) -> None:
    write(tmp_path / "a.tif")
    field = Field("a", Source(tmp_path / "a.tif"), fault="its channel 2 is missing")
    (row,) = survey([field], Planes())
    assert (row.error, row.height, opened) == ("its channel 2 is missing", None, [])


def test_only_changed_and_new_files_are_opened_again(tmp_path: Path, opened: list[str]) -> None:
    for name in "abcd":
        write(tmp_path / f"{name}.tif")
    first = survey(find_fields(tmp_path), Planes())
    opened.clear()
    write(tmp_path / "b.tif", (21, 30))  # another size
    os.utime(tmp_path / "c.tif", ns=(1, 1))  # another time
    write(tmp_path / "e.tif")
    again = survey(find_fields(tmp_path), Planes(), known(first))
    assert opened == ["b.tif", "c.tif", "e.tif"]
    assert again == survey(find_fields(tmp_path), Planes())


def test_rows_that_a_file_of_fields_gives_back_are_known(tmp_path: Path, opened: list[str]) -> None:
    write(tmp_path / "images/w1.tif")
    write(tmp_path / "images/w2.tif")
    files = tuple(PlaneFile(str(tmp_path / f"images/w{n}.tif"), n - 1) for n in (1, 2))
    plate = Field("p", Source(tmp_path / "images/w1.tif", files), Place("p", "B", "2", "1"))
    fields = [Field("a", Source(tmp_path / "images/w1.tif")), plate]
    rows = survey(fields, Planes())
    write_rows(tmp_path / "fields.parquet", rows)
    opened.clear()
    assert survey(fields, Planes(), known(read_rows(tmp_path / "fields.parquet"))) == rows
    assert opened == []


def test_one_changed_file_of_several_is_a_changed_field(tmp_path: Path, opened: list[str]) -> None:
    write(tmp_path / "w1.tif")
    write(tmp_path / "w2.tif")
    files = tuple(PlaneFile(str(tmp_path / f"w{n}.tif"), n - 1) for n in (1, 2))
    field = Field("p", Source(tmp_path / "w1.tif", files))
    first = survey([field], Planes())
    os.utime(tmp_path / "w2.tif", ns=(2**62, 2**62))
    opened.clear()
    (again,) = survey([field], Planes(), known(first))
    assert (opened, again.mtime_ns) == (["w1.tif"], 2**62)


def test_another_place_on_the_plate_needs_no_reading(tmp_path: Path, opened: list[str]) -> None:
    write(tmp_path / "a.tif")
    field = Field("a", Source(tmp_path / "a.tif"))
    first = survey([field], Planes())
    opened.clear()
    (again,) = survey([replace(field, place=Place("p", "C", "03", "1"))], Planes(), known(first))
    assert (again.well, again.height, opened) == ("C03", 20, [])


@pytest.mark.parametrize("change", ["error", "source", "vanished"])
def test_what_is_known_of_other_files_is_not_trusted(
    tmp_path: Path, opened: list[str], change: str
) -> None:
    write(tmp_path / "a.tif")
    fields = find_fields(tmp_path)
    (row,) = survey(fields, Planes())
    if change == "error":
        row = replace(row, error="was locked")
    elif change == "source":
        row = replace(row, source="/elsewhere/a.tif")
    else:
        (tmp_path / "a.tif").unlink()
    opened.clear()
    (again,) = survey(fields, Planes(), {"a": row})
    assert opened == ["a.tif"]
    missing = f"{tmp_path / 'a.tif'}: there is no such file"
    assert again.error == (missing if change == "vanished" else None)


def test_ids_that_a_store_cannot_hold_are_refused_together(tmp_path: Path) -> None:
    fields = [Field(f"{n}/labels", Source(tmp_path / "a.tif")) for n in range(5)]
    with pytest.raises(InputError) as caught:
        survey(fields, Planes())
    reason = "('labels' is a name that the store keeps for itself)"
    assert str(caught.value) == (
        f"5 of 5 fields cannot be kept in a store under their id: 0/labels {reason}; 1/labels "
        f"{reason}; 2/labels {reason}; ...; rename them, or leave them out with --exclude"
    )


@pytest.fixture
def many(tmp_path: Path) -> tuple[Field, ...]:
    """300 fields: enough to sample some and share out the rest; every seventh is damaged."""
    for number in range(300):
        path = tmp_path / f"images/{number:03d}.tif"
        write(path, (8 + number % 5, 9))
        if number % 7 == 0:
            path.write_bytes(b"II*\0")
    return find_fields(tmp_path / "images")


def test_processes_give_the_same_rows(
    many: tuple[Field, ...], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = survey(many, Planes())
    assert [row.height for row in alone[1:4]] == [9, 10, 11]
    assert sum(row.error is not None for row in alone) == 43  # 0, 7, …, 294
    monkeypatch.setattr(surveying, "WORTH_PROCESSES_S", 0.0)
    monkeypatch.setattr(surveying, "SAMPLE", 10)
    opened.clear()
    assert survey(many, Planes(), threads=2) == alone
    assert len(opened) == 10  # the others in other processes


def test_threads_give_the_same_rows(
    many: tuple[Field, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = survey(many, Planes())
    monkeypatch.setattr(calls, "WAIT_S", -1.0)
    assert survey(many, Planes(), known(alone[:150]), threads=2) == alone


def test_without_processes_the_rows_come_all_the_same(
    many: tuple[Field, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> object:
        raise OSError("no more processes")

    alone = survey(many, Planes())
    monkeypatch.setattr(surveying, "WORTH_PROCESSES_S", 0.0)
    monkeypatch.setattr(surveying, "ProcessPoolExecutor", refused)
    assert survey(many, Planes(), threads=2) == alone


def test_processes_load_neither_torch_nor_zarr() -> None:
    code = (
        "import sys, cellseg_cli.pipeline.survey; "
        "print([name for name in ('torch', 'zarr', 'dask') if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_threads_are_for_calls_that_wait() -> None:
    def pausing(number: int) -> tuple[int, int]:
        time.sleep(0.001)
        return number, threading.get_ident()

    made = calls.each(pausing, range(400))
    assert [number for number, _ in made] == list(range(400))
    assert len({thread for _, thread in made[: calls.SAMPLE]}) == 1
    assert len({thread for _, thread in made[calls.SAMPLE :]}) > 1
    here = calls.each(lambda number: threading.get_ident(), range(400))
    assert set(here) == {threading.get_ident()}


def test_a_few_long_interruptions_are_no_waiting() -> None:
    pauses = [0.0] * 20 + [0.02] * 5
    _, cost = calls.timed(lambda pause: time.sleep(pause) if pause else None, pauses)
    assert cost.threads == 1


def test_no_header_ends_the_plan_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that was made room for and never written, and a fault of a decoder's own."""
    write(tmp_path / "good.tif")
    data = (tmp_path / "good.tif").read_bytes()
    (tmp_path / "hollow.tif").write_bytes(data[:8] + bytes(len(data) - 8))
    write(tmp_path / "odd.tif")
    real = surveying.read_header

    def read(source: Source, planes: Planes) -> object:
        if source.path.stem == "odd":
            raise ZeroDivisionError("by zero")
        return real(source, planes)

    monkeypatch.setattr(surveying, "read_header", read)
    good, hollow, odd = survey(find_fields(tmp_path), Planes())
    assert (good.error, good.height) == (None, 20)
    assert hollow.error == f"{tmp_path / 'hollow.tif'}: has no pixels ( )"
    assert odd.error == f"{tmp_path / 'odd.tif'}: ZeroDivisionError: by zero"
    assert odd.size_bytes == (tmp_path / "odd.tif").stat().st_size
