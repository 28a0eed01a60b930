"""Stores and annotations as the two sides of a comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellseg_cli.errors import InputError
from cellseg_cli.evaluation.sides import open_side, read_pair, read_truth
from cellseg_cli.store import FieldRow, Store

LABELS = np.array([[1, 1, 0], [0, 2, 2]], np.uint32)


def make_store(path: Path, clustered: dict[str, np.ndarray], waiting: tuple[str, ...] = ()) -> Path:
    store = Store.create(path, {})
    rows = [
        FieldRow(f, f"{f}.png", height=v.shape[0], width=v.shape[1]) for f, v in clustered.items()
    ]
    store.write_fields(rows + [FieldRow(f, f"{f}.png", height=2, width=3) for f in waiting])
    for field_id, labels in clustered.items():
        store.write_labels(field_id, labels)
        store.mark_done(field_id, "cluster", "fingerprint")
    return path


def make_labels(folder: Path, labels: dict[str, np.ndarray]) -> Path:
    for field_id, image in labels.items():
        path = folder / f"{field_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image)
    return folder


def test_a_store_gives_the_fields_that_are_clustered(tmp_path: Path) -> None:
    side = open_side(make_store(tmp_path / "s.zarr", {"P/b": LABELS, "a": LABELS}, ("c",)))
    assert side.field_ids == ("P/b", "a")
    assert side.shape("a") == (2, 3)
    assert side.cell_type("a") is None
    runs = side.instances("a", None).runs
    assert [one.tolist() for one in runs] == [[[0, 2]], [[4, 2]]]


def test_a_store_without_label_images_says_what_to_run(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", {}, ("a",))
    with pytest.raises(InputError) as error:
        open_side(store)
    assert str(error.value) == f"{store} has no label images yet; run: cellseg cluster {store}"


@pytest.mark.parametrize("table_is_truth", [True, False])
@pytest.mark.parametrize("other", ["store", "labels"])
def test_a_table_without_sizes_takes_them_from_the_other_side(
    tmp_path: Path, other: str, table_is_truth: bool
) -> None:
    """Column-major, 1-based: in 2×3, "3 2" is the middle column."""
    (tmp_path / "t.csv").write_text("ImageId,EncodedPixels\na,3 2\n")
    table = open_side(tmp_path / "t.csv")
    make = make_store if other == "store" else make_labels
    sized = open_side(make(tmp_path / "sized", {"a": LABELS}))
    if table_is_truth:
        found, true = read_pair(sized, table, "a")
    else:
        true, found = read_pair(table, sized, "a")
    assert [one.tolist() for one in true.runs] == [[[1, 1], [4, 1]]]
    assert len(found) == 2
    assert true.shape == found.shape == (2, 3)


def test_a_size_that_neither_side_knows_is_an_error(tmp_path: Path) -> None:
    for name in ("t.csv", "p.csv"):
        (tmp_path / name).write_text("id,predicted\na,3 2\n")
    table, other = open_side(tmp_path / "t.csv"), open_side(tmp_path / "p.csv")
    message = (
        f"{tmp_path}/t.csv does not say how large a is: "
        "its images are needed as well, or columns width and height"
    )
    with pytest.raises(InputError) as of_truth:
        read_truth(table, "a")
    assert str(of_truth.value) == message
    with pytest.raises(InputError) as of_pair:
        read_pair(other, table, "a")
    assert str(of_pair.value) == message.replace("t.csv", "p.csv")


def test_a_table_with_sizes_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "id,annotation,width,height,cell_type\na,1 2,3,2,cort\na,2 3,3,2,cort\n"
    )
    table = open_side(tmp_path / "t.csv")
    true = read_truth(table, "a")
    assert [one.tolist() for one in true.runs] == [[[0, 2]], [[1, 3]]]
    assert table.cell_type("a") == "cort"


@pytest.mark.parametrize("other", ["store", "labels"])
def test_a_size_that_differs_is_told_before_masks_are_made(tmp_path: Path, other: str) -> None:
    """The run-length text is none, and would be refused if it were read."""
    (tmp_path / "t.csv").write_text("id,annotation,width,height\na,none,40000,50000\n")
    table = open_side(tmp_path / "t.csv")
    make = make_store if other == "store" else make_labels
    known = open_side(make(tmp_path / "o", {"a": LABELS}))
    for prediction, truth, sizes in (
        (known, table, ("2×3", "50000×40000")),
        (table, known, ("50000×40000", "2×3")),
    ):
        with pytest.raises(InputError) as error:
            read_pair(prediction, truth, "a")
        assert str(error.value) == f"the prediction is {sizes[0]} px, the truth is {sizes[1]} px"
