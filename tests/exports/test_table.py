"""Tables of cells, and the place on a plate in tables and COCO files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cellseg_cli.errors import ConfigError, OutputExistsError
from cellseg_cli.exports import FieldInfo, Written, coco, table
from cellseg_cli.exports.output import check_output_file
from cellseg_cli.instances import Instances, instances_of_labels, labels_of

ON_PLATE = FieldInfo(
    "P/B/02/f001t001", "P/B/02/f001t001.tif", (3, 4), "P", "B02", "f001", 1, ("DAPI", "FITC")
)
LOOSE = FieldInfo("a", "a.png", (3, 4))
LABELS = np.array([[0, 5, 5, 0], [2, 5, 0, 0], [2, 2, 0, 5]])


def two_fields() -> Iterator[tuple[FieldInfo, Instances]]:
    yield ON_PLATE, Instances((3, 4), instances_of_labels(LABELS).runs, scores=(0.5, 0.25))
    yield LOOSE, instances_of_labels(np.ones((3, 4), np.uint32))


def test_a_csv_has_a_row_for_each_cell(tmp_path: Path) -> None:
    out = tmp_path / "cells.csv"
    assert table.write(two_fields(), out) == Written(2, 3)
    place = "P/B/02/f001t001,P,B02,f001,1,DAPI;FITC"
    assert out.read_text() == (
        "id,plate,well,field,t,channels,label,area_px,centroid_y_px,centroid_x_px,"
        "y0,x0,y1,x1,score\n"
        f"{place},1,3,1.667,0.333,1,0,3,2,0.5\n"
        f"{place},2,4,0.75,1.75,0,1,3,4,0.25\n"
        "a,,,,,,1,12,1.0,1.5,0,0,3,4,\n"
    )


def test_a_parquet_file_has_the_same_rows(tmp_path: Path) -> None:
    table.write(two_fields(), tmp_path / "cells.csv")
    table.write(two_fields(), tmp_path / "cells.parquet")
    with (tmp_path / "cells.csv").open(newline="") as stream:
        expected = list(csv.DictReader(stream))
    rows = parquet.read_table(tmp_path / "cells.parquet").to_pylist()
    texts = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    assert texts == expected
    assert (rows[0]["t"], rows[0]["score"], rows[2]["plate"]) == (1, 0.5, None)


def test_many_cells_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_GROUP_ROWS", 2)
    table.write([*two_fields(), *two_fields()], tmp_path / "c.parquet")
    assert parquet.ParquetFile(tmp_path / "c.parquet").metadata.num_row_groups == 3
    assert len(parquet.read_table(tmp_path / "c.parquet")) == 6


def test_no_field_gives_a_table_without_rows(tmp_path: Path) -> None:
    for name in ("c.csv", "c.parquet"):
        assert table.write([], tmp_path / name) == Written(0, 0)
    assert parquet.read_table(tmp_path / "c.parquet").column_names == list(table.COLUMNS)
    assert (tmp_path / "c.csv").read_text().count("\n") == 1


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_measures_are_those_of_the_pixels(tmp_path: Path, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    flat = data.draw(st.lists(st.integers(0, 3), min_size=height * width, max_size=height * width))
    labels = np.array(flat, np.uint32).reshape(height, width)
    instances = instances_of_labels(labels)
    shown = labels_of(instances)
    info = FieldInfo("f", "f.png", (height, width))
    table.write([(info, instances)], tmp_path / "c.csv", overwrite=True)
    with (tmp_path / "c.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            ys, xs = np.nonzero(shown == int(row["label"]))
            assert int(row["area_px"]) == len(ys)
            assert float(row["centroid_y_px"]) == round(float(np.mean(ys)), 3)
            assert float(row["centroid_x_px"]) == round(float(np.mean(xs)), 3)
            box = [int(row[name]) for name in ("y0", "x0", "y1", "x1")]
            assert box[0] == ys.min()
            assert box[2:] == [ys.max() + 1, xs.max() + 1]
            assert box[1] == xs.min()


def test_the_suffix_must_say_which_table(tmp_path: Path) -> None:
    message = f"{tmp_path}/cells.txt: a table is .csv or .parquet; give it such a name"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        table.write(two_fields(), tmp_path / "cells.txt")
    (tmp_path / "c.csv").touch()
    with pytest.raises(OutputExistsError):
        table.write(two_fields(), tmp_path / "c.csv")
    check_output_file(tmp_path / "d.csv", overwrite=False)


def test_images_of_coco_files_have_their_place(tmp_path: Path) -> None:
    coco.write(two_fields(), tmp_path / "c.json")
    images = json.loads((tmp_path / "c.json").read_text())["images"]
    assert images == [
        {
            "id": 1,
            "file_name": "P/B/02/f001t001.tif",
            "width": 4,
            "height": 3,
            "plate": "P",
            "well": "B02",
            "field": "f001",
            "t": 1,
            "channels": ["DAPI", "FITC"],
        },
        {"id": 2, "file_name": "a.png", "width": 4, "height": 3},
    ]
