"""Exports: what the files hold, that reading gives the cells back, nothing half-written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.errors import ConfigError, InputError, OutputExistsError
from cellseg_cli.exports import FieldInfo, Written, coco, kaggle, label_tiff
from cellseg_cli.images.annotations import open_annotations
from cellseg_cli.instances import Instances, instances_of_labels
from cellseg_cli.runlength import Order, paint, runs_of_mask

LAWS = settings(deadline=None, max_examples=25)
Stream = Iterator[tuple[FieldInfo, Instances]]


def info(field_id: str, shape: tuple[int, int] = (3, 4)) -> FieldInfo:
    return FieldInfo(field_id, f"{field_id}.png", shape)


def two_fields() -> Stream:
    labels = np.array([[0, 5, 5, 0], [2, 5, 0, 0], [2, 2, 0, 5]])
    yield info("p1/A01"), instances_of_labels(labels)
    yield info("p1/A02"), instances_of_labels(np.zeros((3, 4), dtype=np.uint32))


def broken() -> Stream:
    yield from two_fields()
    raise RuntimeError("the disk went away")


@st.composite
def label_images(draw: st.DrawFn) -> np.ndarray:
    """Label images: empty, full, one pixel, cells at the borders, noise."""
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    fill = draw(st.sampled_from([0, 1]))
    flat = np.full(height * width, fill, dtype=np.uint32)
    for place in draw(st.lists(st.integers(0, height * width - 1))):
        flat[place] = draw(st.integers(0, 4))
    return flat.reshape(height, width)


def same_masks(first: Instances, second: Instances) -> bool:
    """Whether two fields have the same cells in the same order."""
    return first.shape == second.shape and [r.tolist() for r in first.runs] == [
        r.tolist() for r in second.runs
    ]


# --- label TIFF ---


def test_label_tiffs_lie_under_the_field_id(tmp_path: Path) -> None:
    out = tmp_path / "labels"
    assert label_tiff.write(two_fields(), out) == Written(2, 2)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "p1/A01.tif",
        "p1/A02.tif",
    ]
    with tifffile.TiffFile(out / "p1" / "A01.tif") as file:
        assert len(file.pages) == 1
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
        assert file.pages[0].dtype == np.uint16
        stored = file.asarray()
    assert stored.tolist() == [[0, 2, 2, 0], [1, 2, 0, 0], [1, 1, 0, 2]]


@pytest.mark.parametrize(("cells", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_ids_above_65535_need_32_bits(tmp_path: Path, cells: int, dtype: type) -> None:
    labels = np.arange(1, 256 * 257 + 1, dtype=np.uint32).reshape(257, 256)
    labels[labels > cells] = 0
    label_tiff.write([(info("a", labels.shape), instances_of_labels(labels))], tmp_path / "o")
    stored = tifffile.imread(tmp_path / "o" / "a.tif")
    assert stored.dtype == dtype
    assert np.array_equal(stored, labels)


@pytest.mark.parametrize(
    "field_id", ["../a", "a/../../b", "/etc/a", "a//b", "", ".", "a/..", "C:/a", "..\\a"]
)
def test_field_ids_that_leave_the_output(tmp_path: Path, field_id: str) -> None:
    out = tmp_path / "out"
    message = f"the field id {field_id!r} is no path inside of {out}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        label_tiff.write([(info(field_id), next(two_fields())[1])], out)
    assert not list(tmp_path.rglob("*.tif"))


def test_a_time_of_day_in_a_name_is_no_drive(tmp_path: Path) -> None:
    """Microscopes write such names; every format gives the field back under its id."""
    field_id = "day1/2024_10:31"
    fields = [(info(field_id), next(two_fields())[1]), (info("10:31"), next(two_fields())[1])]
    label_tiff.write(fields, tmp_path / "tiff")
    coco.write(fields, tmp_path / "cells.json")
    kaggle.write(fields, tmp_path / "cells.csv")
    for source in ("tiff", "cells.json", "cells.csv"):
        assert open_annotations(tmp_path / source).field_ids == ("10:31", field_id)


@LAWS
@given(label_images())
def test_label_tiff_and_back_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray
) -> None:
    out = tmp_path_factory.mktemp("law")
    instances = instances_of_labels(labels)
    label_tiff.write([(info("p/a", labels.shape), instances)], out)
    assert same_masks(open_annotations(out).read("p/a", labels.shape), instances)


# --- COCO ---


def test_a_coco_file_says_what_a_reader_needs(tmp_path: Path) -> None:
    out = tmp_path / "sub" / "cells.json"
    assert coco.write(two_fields(), out) == Written(2, 2)
    document = json.loads(out.read_text())
    assert list(document) == ["info", "licenses", "categories", "annotations", "images"]
    assert document["categories"] == [{"id": 1, "name": "cell", "supercategory": "cell"}]
    assert document["images"] == [
        {"id": 1, "file_name": "p1/A01.png", "width": 4, "height": 3},
        {"id": 2, "file_name": "p1/A02.png", "width": 4, "height": 3},
    ]
    # By columns the cell 2 is 011 001 000 000: counts 1 2 2 1 6, and the fourth and fifth
    # are written as -1 and 4; the cell 5 is 000 110 100 001: 3 2 1 1 4 1, so -1, 3, 0.
    assert document["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": [3, 4], "counts": "122O4"},
            "bbox": [0, 1, 2, 2],
            "area": 3,
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": [3, 4], "counts": "321O30"},
            "bbox": [1, 0, 3, 3],
            "area": 4,
            "iscrowd": 0,
        },
    ]


def test_scores_and_overlaps_are_kept(tmp_path: Path) -> None:
    whole, part = runs_of_mask(np.ones((2, 2))), np.array([[0, 1]])
    instances = Instances((2, 2), (whole, part), scores=(0.75, 0.5))
    coco.write([(info("a", (2, 2)), instances)], tmp_path / "c.json")
    found = open_annotations(tmp_path / "c.json").read("a")
    assert same_masks(found, instances)
    assert found.scores == (0.75, 0.5)


def test_no_fields_at_all_is_still_json(tmp_path: Path) -> None:
    assert coco.write([], tmp_path / "c.json") == Written(0, 0)
    document = json.loads((tmp_path / "c.json").read_text())
    assert (document["images"], document["annotations"]) == ([], [])


def test_equal_fields_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        coco.write(two_fields(), tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@LAWS
@given(st.lists(label_images(), min_size=1, max_size=3))
def test_coco_and_back_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, images: list[np.ndarray]
) -> None:
    out = tmp_path_factory.mktemp("law") / "c.json"
    fields = [(info(f"f{i}", im.shape), instances_of_labels(im)) for i, im in enumerate(images)]
    coco.write(fields, out)
    annotations = open_annotations(out)
    for field, instances in fields:
        assert same_masks(annotations.read(field.id), instances)


# --- Kaggle ---


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ("row_major", "id,predicted\np1/A01,5 1 9 2\np1/A01,2 2 6 1 12 1\np1/A02,\n"),
        ("column_major", "ImageId,EncodedPixels\np1/A01,2 2 6 1\np1/A01,4 2 7 1 12 1\np1/A02,\n"),
    ],
)
def test_a_submission_has_one_row_per_cell(tmp_path: Path, order: Order, text: str) -> None:
    out = tmp_path / "submission.csv"
    assert kaggle.write(two_fields(), out, order=order) == Written(2, 2)
    assert out.read_bytes().decode() == text


def test_a_submission_has_no_overlaps(tmp_path: Path) -> None:
    """The large cell loses what the small one covers; one below two others has no row."""
    whole = np.array([[0, 4]])
    instances = Instances((1, 4), (whole, np.array([[1, 2]])))
    covered = Instances((1, 4), (whole, np.array([[0, 2]]), np.array([[2, 2]])))
    fields = [(info("a", (1, 4)), instances), (info("b", (1, 4)), covered)]
    assert kaggle.write(fields, tmp_path / "s.csv") == Written(2, 4)
    expected = "id,predicted\na,1 1 4 1\na,2 2\nb,1 2\nb,3 2\n"
    assert (tmp_path / "s.csv").read_text() == expected


@LAWS
@given(label_images(), st.sampled_from(["row_major", "column_major"]))
def test_kaggle_and_back_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, order: Order
) -> None:
    out = tmp_path_factory.mktemp("law") / "s.csv"
    instances = instances_of_labels(labels)
    kaggle.write([(info("p,1/a", labels.shape), instances)], out, order=order)
    annotations = open_annotations(out)
    assert annotations.field_ids == ("p,1/a",)
    assert same_masks(annotations.read("p,1/a", labels.shape), instances)


def test_real_cells_survive_every_format(tmp_path: Path, real_data: Path) -> None:
    truth = open_annotations(real_data / "sartorius" / "train.csv")
    instances = truth.read("0140b3c8f445")
    assert len(instances) == 108
    field = info("0140b3c8f445", (520, 704))
    coco.write([(field, instances)], tmp_path / "c.json")
    assert same_masks(open_annotations(tmp_path / "c.json").read(field.id), instances)
    kaggle.write([(field, instances)], tmp_path / "s.csv")
    label_tiff.write([(field, instances)], tmp_path / "t")
    rows = open_annotations(tmp_path / "s.csv").read(field.id, (520, 704))
    assert same_masks(rows, open_annotations(tmp_path / "t").read(field.id))
    cover = sum(paint(runs, rows.shape).astype(int) for runs in rows.runs)
    assert np.max(cover) == 1


# --- outputs that are there, and interrupted ones ---

FILES: list[Callable[..., Written]] = [coco.write, kaggle.write]


@pytest.mark.parametrize("write", FILES)
def test_an_existing_file_is_kept_unless_told(tmp_path: Path, write) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    message = f"{out} exists; choose another output, or --overwrite"
    with pytest.raises(OutputExistsError, match=f"^{re.escape(message)}$"):
        write(two_fields(), out)
    assert out.read_text() == "mine"
    assert write(two_fields(), out, overwrite=True) == Written(2, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", FILES)
def test_a_folder_is_no_file(tmp_path: Path, write) -> None:
    message = f"{tmp_path} is a folder; this format is one file, give its name"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        write(two_fields(), tmp_path, overwrite=True)


@pytest.mark.parametrize("write", FILES)
def test_an_interrupted_export_leaves_what_was_there(tmp_path: Path, write) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(RuntimeError, match=r"^the disk went away$"):
        write(broken(), out, overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out", "mine")]


@pytest.mark.parametrize("write", [*FILES, label_tiff.write])
def test_a_place_that_cannot_be_written(tmp_path: Path, write) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    message = (
        rf"^{re.escape(str(out))}\S* cannot be written: {re.escape(str(out.parent))} is a file$"
    )
    with pytest.raises(ConfigError, match=message):
        write(two_fields(), out)


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    message = (
        f"{tmp_path} exists and is not empty; choose another output, "
        "or --overwrite, which replaces files of the same name"
    )
    with pytest.raises(OutputExistsError, match=f"^{re.escape(message)}$"):
        label_tiff.write(two_fields(), tmp_path)
    assert label_tiff.write(two_fields(), tmp_path, overwrite=True) == Written(2, 2)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "labels.tif"
    out.write_text("mine")
    message = f"{out} is a file; this format is a folder of files, give its name"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        label_tiff.write(two_fields(), out, overwrite=True)
