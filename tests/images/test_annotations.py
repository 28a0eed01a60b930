"""Truth of every kind: what is read, and the whole message where it cannot be."""

from __future__ import annotations

import csv
import re
import struct
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cellseg_cli.errors import InputError, LimitError
from cellseg_cli.images import annotation_files
from cellseg_cli.images.annotations import open_annotations
from cellseg_cli.images.label_images import read_label_image
from cellseg_cli.instances import Instances, labels_of
from cellseg_cli.runlength import paint

LABELS = np.array([[0, 1, 1, 0], [3, 3, 0, 0], [0, 0, 0, 9]])


def masks_of(instances: Instances) -> list[np.ndarray]:
    return [paint(runs, instances.shape) for runs in instances.runs]


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


# --- which kind ---


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with refused(f"there is no file or folder of annotations at {tmp_path / 'no.csv'}"):
        open_annotations(tmp_path / "no.csv")


def test_a_source_of_no_known_kind(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("cells")
    with refused(
        f"{path} is no annotation: known are folders of label images, folders <id>/masks, "
        "single label images (.ome.tiff, .ome.tif, .tiff, .tif, .png, .npy), "
        "Kaggle .csv and COCO .json"
    ):
        open_annotations(path)


def test_a_folder_without_truth(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("cells")
    with refused(
        f"{tmp_path} holds no truth: neither label images "
        "(.ome.tiff, .ome.tif, .tiff, .tif, .png, .npy) nor folders <id>/masks; "
        "give one of these, a Kaggle .csv or a COCO .json"
    ):
        open_annotations(tmp_path)


# --- label images ---


def test_label_images_of_every_format(tmp_path: Path) -> None:
    (tmp_path / "plate" / ".hidden").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "plate" / "a.tif", LABELS.astype(np.uint16), compression="zlib")
    tifffile.imwrite(tmp_path / "b.ome.tif", LABELS.astype(np.int32))
    tifffile.imwrite(tmp_path / "f.tiff", LABELS.astype(np.float32))
    cv2.imwrite(str(tmp_path / "c.png"), LABELS.astype(np.uint8))
    np.save(tmp_path / "d.npy", LABELS.astype(np.int64))
    np.save(tmp_path / "e.npy", LABELS > 0)
    np.save(tmp_path / "plate" / ".hidden" / "x.npy", LABELS)
    annotations = open_annotations(tmp_path)
    assert annotations.field_ids == ("b", "c", "d", "e", "f", "plate/a")
    cells = [np.equal(LABELS, key) for key in (1, 3, 9)]
    for field_id in set(annotations.field_ids) - {"e"}:
        masks = masks_of(annotations.read(field_id, (3, 4)))
        assert [mask.tolist() for mask in masks] == [m.tolist() for m in cells]
        assert annotations.shape(field_id) is None
        assert annotations.cell_type(field_id) is None
    assert [mask.tolist() for mask in masks_of(annotations.read("e"))] == [(LABELS > 0).tolist()]


def test_one_label_image_is_a_source(tmp_path: Path) -> None:
    np.save(tmp_path / "A01.npy", LABELS)
    annotations = open_annotations(tmp_path / "A01.npy")
    assert annotations.field_ids == ("A01",)
    assert len(annotations.read("A01")) == 3


def test_a_field_without_truth(tmp_path: Path) -> None:
    np.save(tmp_path / "A01.npy", LABELS)
    annotations = open_annotations(tmp_path)
    assert "A01" in annotations
    assert "A02" not in annotations
    with refused(f"{tmp_path} has no truth for A02; it has 1 fields, the first is A01"):
        annotations.read("A02")


def test_truth_of_another_size_than_the_image(tmp_path: Path) -> None:
    np.save(tmp_path / "A01.npy", LABELS)
    with refused(f"the truth of A01 in {tmp_path} is 3×4 px, but its image is 3×5 px"):
        open_annotations(tmp_path).read("A01", (3, 5))


def test_two_label_images_with_one_id(tmp_path: Path) -> None:
    np.save(tmp_path / "A01.npy", LABELS)
    tifffile.imwrite(tmp_path / "A01.tif", LABELS.astype(np.uint8))
    with refused(
        f"two label images have the id A01: {tmp_path / 'A01.npy'} and {tmp_path / 'A01.tif'}"
    ):
        open_annotations(tmp_path)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (LABELS - 1, "is no label image: it holds the negative id -1"),
        (LABELS + 0.5, "is no label image: it holds numbers that are not whole"),
        (np.full((2, 2), np.nan), "is no label image: it holds numbers that are not whole"),
        (LABELS * 2**40, "holds the id 9895604649984, the largest allowed is 4294967295"),
        (LABELS * 1j, "is no label image: its dtype is complex128"),
        (
            np.zeros((2, 3, 4), dtype=np.uint8),
            "is no label image: its shape is 2×3×4, a label image has two axes (y, x)",
        ),
    ],
)
def test_arrays_that_are_no_label_image(tmp_path: Path, stored: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "a.npy", stored)
    with refused(f"{tmp_path / 'a.npy'} {reason}"):
        read_label_image(tmp_path / "a.npy")


def test_colours_are_no_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    with refused(
        f"{path} is no label image: its shape is 3×3×4, a label image has two axes (y, x)"
    ):
        read_label_image(path)


def test_npy_files_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with refused(
        f"{path} cannot be read as NPY: Array can't be memory-mapped: Python objects in dtype."
    ):
        read_label_image(path)


def test_a_truncated_npy_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, LABELS)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} cannot be read as NPY: "):
        read_label_image(path)


# --- folders of masks ---


def write_masks(folder: Path, **masks: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        cv2.imwrite(str(folder / f"{name}.png"), mask.astype(np.uint8) * 255)


def test_mask_folders_keep_overlaps(tmp_path: Path) -> None:
    first, second = LABELS > 0, LABELS > 1
    write_masks(tmp_path / "img1" / "masks", a=first, b=second, c=np.zeros((3, 4)))
    annotations = open_annotations(tmp_path)
    assert annotations.field_ids == ("img1",)
    found = masks_of(annotations.read("img1", (3, 4)))
    assert [mask.tolist() for mask in found] == [first.tolist(), second.tolist()]
    assert (annotations.shape("img1"), annotations.cell_type("img1")) == (None, None)


def test_the_image_beside_the_masks_names_the_field(tmp_path: Path) -> None:
    write_masks(tmp_path / "00ae" / "masks", a=LABELS > 0)
    write_masks(tmp_path / "00ae" / "images", **{"00ae": LABELS})
    assert open_annotations(tmp_path).field_ids == ("00ae/images/00ae",)


def test_a_field_whose_folder_has_no_mask(tmp_path: Path) -> None:
    write_masks(tmp_path / "img1" / "masks")
    annotations = open_annotations(tmp_path)
    assert len(annotations.read("img1", (3, 4))) == 0
    with refused(f"{tmp_path / 'img1' / 'masks'} holds no mask: the size of img1 must be given"):
        annotations.read("img1")


def test_masks_of_different_size(tmp_path: Path) -> None:
    folder = tmp_path / "img1" / "masks"
    write_masks(folder, a=LABELS > 0, b=np.ones((3, 5)))
    with refused(
        f"the masks of img1 differ in size: {folder / 'a.png'} is 3×4 px, "
        f"{folder / 'b.png'} is 3×5 px"
    ):
        open_annotations(tmp_path).read("img1")


def test_label_images_taken_for_masks(tmp_path: Path) -> None:
    path = tmp_path / "train" / "masks" / "a.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), LABELS.astype(np.uint8))
    with refused(
        f"{path} holds 3 values besides 0, a mask of one object has one; "
        "for a folder of label images give that folder itself as the truth"
    ):
        open_annotations(tmp_path).read("train")


# --- Kaggle tables ---

SARTORIUS = """id,annotation,width,height,cell_type
a,2 2 5 1,4,3,cort
b,12 1,4,3,cort
a,3 1,4,3,cort
c,1 1,4,3,astro
c,2 1,4,3,cort
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_sartorius_table(tmp_path: Path) -> None:
    annotations = open_annotations(written(tmp_path / "train.csv", SARTORIUS))
    assert annotations.field_ids == ("a", "b", "c")
    assert annotations.shape("a") == (3, 4)
    first, second = masks_of(annotations.read("a"))
    assert first.astype(int).tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert second.astype(int).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert annotations.read("c").cell_types == ("astro", "cort")
    assert [annotations.cell_type(key) for key in "abc"] == ["cort", "cort", None]


def test_a_bowl_table_goes_column_by_column_and_needs_the_size(tmp_path: Path) -> None:
    path = written(tmp_path / "stage1.csv", "\ufeffImageId,EncodedPixels\nx,2 3\ny,\n")
    annotations = open_annotations(path)
    assert annotations.shape("x") is None
    (mask,) = masks_of(annotations.read("x", (3, 4)))
    assert mask.astype(int).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert len(annotations.read("y", (3, 4))) == 0
    with refused(
        f"{path} does not say how large x is: "
        "its images are needed as well, or columns width and height"
    ):
        annotations.read("x")


def test_the_order_of_a_table_can_be_said(tmp_path: Path) -> None:
    path = written(tmp_path / "own.csv", "ImageId,EncodedPixels,Height,Width\nx.png,2 3,3,4\n")
    (mask,) = masks_of(open_annotations(path, order="row_major").read("x"))
    assert mask.astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,12 2,4,3,cort", "run 12 2 leaves the image of 3×4 px (12 pixels)"),
        ("a,1 2 3,4,3,cort", "a run-length text is pairs of start and length, got 3 numbers"),
        ("a,1 3 2 1,4,3,cort", "run 2 1 overlaps another run of the same mask"),
    ],
)
def test_a_bad_run_costs_its_field_only(tmp_path: Path, row: str, reason: str) -> None:
    path = written(tmp_path / "train.csv", SARTORIUS + row + "\n")
    annotations = open_annotations(path)
    assert len(annotations.read("b")) == 1
    with refused(f"{path}, line 7 (a): {reason}"):
        annotations.read("a")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "name,mask\na,1 1\n",
            " is no Kaggle table: its columns are ['name', 'mask'], "
            "needed are id,annotation or id,predicted or ImageId,EncodedPixels",
        ),
        (
            "",
            " is no Kaggle table: its columns are [], "
            "needed are id,annotation or id,predicted or ImageId,EncodedPixels",
        ),
        ("id,predicted\n", " has a header and no rows"),
        ("id,predicted\na,1 1\nb\n", ": line 3: 1 cells, but the header has 2"),
        (
            "id,annotation,width,height\na,1 1,4,-3\na,1 1,4,0\n\na,1 1,x,3\na,1 1,4,\n",
            ": line 2: width '4' and height '-3' are no size; "
            "line 3: width '4' and height '0' are no size; "
            "line 5: width 'x' and height '3' are no size; and 1 more",
        ),
        (
            "id,annotation,width,height\na,1 1,99999,99999\n",
            ": line 2: width '99999' and height '99999' are no size",
        ),
        (
            "id,annotation,width,height\na,1 1,4,3\na,1 1,3,4\n",
            ": line 3: a is 4×3 px here and 3×4 px before",
        ),
        (
            "id,predicted\n../a,1 1\n",
            ": line 2: '../a' is not the name of an image: "
            "give a path relative to the folder of the images, without '..'",
        ),
        ('id,predicted\n"a,1 1\n', " cannot be read as CSV in UTF-8: unexpected end of data"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = written(tmp_path / "t.csv", text)
    with refused(f"{path}{reason}"):
        open_annotations(path)


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"id,predicted\n\xff\xfe,1 1\n")
    with refused(
        f"{path} cannot be read as CSV in UTF-8: 'utf-8' codec can't decode byte 0xff "
        "in position 13: invalid start byte"
    ):
        open_annotations(path)


def test_reading_a_table_leaves_the_limit_of_other_readers(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = " ".join(f"{2 * i + 1} 1" for i in range(20000))
    path = written(tmp_path / "t.csv", f"id,predicted\na,{long}\n")
    assert len(long) > before
    assert open_annotations(path).read("a", (200, 200)).runs[0].shape == (20000, 2)
    assert csv.field_size_limit() == before


def test_files_above_the_limit_are_not_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(annotation_files, "MAX_FILE_BYTES", 10)
    path = written(tmp_path / "t.csv", SARTORIUS)
    with pytest.raises(
        LimitError,
        match=f"^{re.escape(str(path))} has {len(SARTORIUS)} bytes; annotations are read "
        r"up to 10 \(MAX_FILE_BYTES\): split the file by images$",
    ):
        open_annotations(path)


# --- real truth ---


def test_sartorius_masks_equal_the_label_images(real_data: Path) -> None:
    """Flattened, the runs of train.csv are the label images made by others from them."""
    annotations = open_annotations(real_data / "sartorius" / "train.csv")
    assert len(annotations.field_ids) == 408
    chosen = annotations.field_ids[:: 408 // 5]
    for field_id in chosen:
        instances = annotations.read(field_id, (520, 704))
        path = real_data / "sartorius" / "labels" / f"{field_id}.tif"
        labels = read_label_image(path)
        pairs = np.unique(np.stack((labels_of(instances).ravel(), labels.ravel())), axis=1)
        assert len(set(pairs[0])) == pairs.shape[1] == len(set(pairs[1]))
        assert annotations.cell_type(field_id) in {"cort", "astro", "shsy5y"}


def test_dsb_labels_can_be_read(real_data: Path) -> None:
    annotations = open_annotations(real_data / "dsb2018" / "val" / "labels")
    assert len(annotations.field_ids) == 65
    assert len(annotations.read("003cee89357d9fe1", (256, 256))) == 36


def test_an_npy_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for shape in ("(1000000, 1000000)", "(99999999999999999999, 5)", "(-1, 5)"):
        header = f"{{'descr': '<u4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode() + b"1234")
        with pytest.raises(InputError, match=f"^{re.escape(str(path))} cannot be read as NPY: "):
            read_label_image(path)


def test_half_precision_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LABELS.astype(np.float16))
    assert np.array_equal(read_label_image(tmp_path / "a.npy"), LABELS)


def test_a_header_of_very_many_columns_is_not_printed_whole(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(",".join(f"c{number}" for number in range(1000)) + "\n")
    with refused(
        f"{table} is no Kaggle table: its columns are "
        "['c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7'] and 992 more, "
        "needed are id,annotation or id,predicted or ImageId,EncodedPixels"
    ):
        open_annotations(table)


@pytest.mark.parametrize("name", ["C:/a.png", "C:\\a.png", "\\\\host\\share\\a.png"])
def test_names_that_are_absolute_on_another_system(tmp_path: Path, name: str) -> None:
    table = written(tmp_path / "t.csv", f"id,predicted\n{name},1 1\n")
    with refused(
        f"{table}: line 2: {name!r} is not the name of an image: "
        "give a path relative to the folder of the images, without '..'"
    ):
        open_annotations(table)


def test_masks_of_a_field_are_held_one_at_a_time(tmp_path: Path) -> None:
    """As boolean arrays 40 masks of 500×500 px take 10 MB; a mask and its image take 1 MB."""
    bar = np.zeros((500, 500), dtype=bool)
    bar[7, :9] = True
    write_masks(tmp_path / "img1" / "masks", **{f"m{index:02}": bar for index in range(40)})
    annotations = open_annotations(tmp_path)
    annotations.read("img1")  # decoders load what they need at their first call
    tracemalloc.start()
    try:
        assert len(annotations.read("img1")) == 40
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e6
