"""What training finds to learn from, and what it says of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import InputError
from cellseg_cli.training.data import Examples, open_split, usable


def write_index(path: Path, rows: str) -> Path:
    path.write_text("id,split,kind\n" + rows)
    return path


def test_a_folder_with_images_and_labels_is_a_data_set(discs: Path) -> None:
    split = open_split([str(discs)])
    assert [source.field.id for source in split.train] == ["f0", "f1", "f2", "f3"]
    assert split.validation == ()
    assert split.notes == ()


def test_the_index_splits_and_groups(discs: Path, tmp_path: Path) -> None:
    index = write_index(tmp_path / "index.csv", "f0,train,a\nf1,val,b\nf2,train,b\n")
    split = open_split([f"{discs / 'images'}={discs / 'labels'}"], index=index)
    assert [(s.field.id, s.group) for s in split.train] == [("f0", "0:a"), ("f2", "0:b")]
    assert [(s.field.id, s.group) for s in split.validation] == [("f1", "0:b")]


def test_images_without_truth_and_truth_without_images_are_told(discs: Path) -> None:
    (discs / "labels" / "f0.tif").rename(discs / "labels" / "elsewhere.tif")
    split = open_split([str(discs)])
    images, labels = discs / "images", discs / "labels"
    assert len(split.train) == 3
    assert split.notes == (
        f"1 images in {images} have no truth in {labels} and are left out",
        f"1 truths in {labels} have no image in {images} and are left out",
    )


def test_nothing_in_common_is_an_error(discs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "labels").mkdir(parents=True)
    tifffile.imwrite(other / "labels" / "x.tif", np.ones((9, 9), np.uint8))
    with pytest.raises(InputError) as error:
        open_split([f"{discs / 'images'}={other / 'labels'}"])
    assert str(error.value) == (
        f"none of the 4 images in {discs / 'images'} has truth in {other / 'labels'}: "
        "ids such as 'f0' against 'x'"
    )


def test_an_index_that_names_nothing_to_learn_from_is_an_error(discs: Path, tmp_path: Path) -> None:
    index = write_index(tmp_path / "index.csv", "f0,val,a\n")
    with pytest.raises(InputError, match="names none of them as split=train"):
        open_split([str(discs)], index=index)
    (tmp_path / "bare.csv").write_text("name\nf0\n")
    with pytest.raises(InputError, match=r"has no column id; it has \['name'\]"):
        open_split([str(discs)], index=tmp_path / "bare.csv")


def test_an_index_without_splits_only_groups(discs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    index.write_text("id,cell_type\nf0,a\nf1,b\n", encoding="utf-8-sig")  # as spreadsheets write
    split = open_split([str(discs)], index=index)
    assert [source.group for source in split.train] == ["0:a", "0:b", "0:all", "0:all"]
    index.write_bytes(b"id,split\nf\xe9,train\n")
    with pytest.raises(InputError, match=r"index.csv cannot be read as CSV in UTF-8: "):
        open_split([str(discs)], index=index)


def test_a_folder_that_is_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        open_split([str(tmp_path)])
    assert str(error.value) == (
        f"{tmp_path} is no data set: give a folder that holds images/ and labels/, or IMAGES=TRUTH"
    )


def test_fields_that_cannot_be_read_are_left_out_with_their_reason(discs: Path) -> None:
    (discs / "images" / "f1.png").write_bytes(b"")
    tifffile.imwrite(discs / "labels" / "f2.tif", np.ones((9, 9), np.uint8))
    examples, failed = usable(open_split([str(discs)]).train, TrainSettings())
    assert [source.field.id for source in examples.sources] == ["f0", "f3"]
    reasons = {failure.field_id: failure.reason for failure in failed}
    assert reasons["f2"] == (
        f"the truth of f2 in {discs / 'labels'} is 9×9 px, but its image is 64×64 px"
    )
    assert "f1.png" in reasons["f1"]
    assert examples[1] is examples[1], "what was decoded to be checked is kept"
    assert examples[1].field_id == "f3"


def test_the_cache_keeps_to_its_limit(discs: Path) -> None:
    sources = open_split([str(discs)]).train
    one = Examples(sources, TrainSettings())[0]
    size = one.image.nbytes + one.labels.nbytes
    examples = Examples(sources, TrainSettings(), cache_bytes=int(2.5 * size))
    first = [examples[index] for index in range(4)]
    again = [examples[index] for index in range(4)]
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False, False]
    np.testing.assert_array_equal(first[3].image, again[3].image)


def test_grey_images_are_kept_once_and_colour_three_times(discs: Path) -> None:
    example = Examples(open_split([str(discs)]).train, TrainSettings())[0]
    assert example.image.shape == (1, 64, 64)
    colour = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    (discs / "images" / "f0.png").unlink()
    tifffile.imwrite(discs / "images" / "f0.tif", colour, photometric="rgb")
    example = Examples(open_split([str(discs)]).train, TrainSettings())[0]
    assert example.image.shape == (3, 64, 64)
