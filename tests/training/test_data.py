"""What training finds to learn from, and what it says of the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError, InputError
from cellseg_cli.instances import Instances
from cellseg_cli.training.crops import draw_batch
from cellseg_cli.training.data import (
    Examples,
    distinct,
    open_split,
    read_field,
    smallest,
    usable,
)
from cellseg_cli.training.draw import Draw


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
    size = one.nbytes
    examples = Examples(sources, TrainSettings(), cache_bytes=int(2.5 * size))
    first = [examples[index] for index in range(4)]
    again = [examples[index] for index in range(4)]
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False, False]
    np.testing.assert_array_equal(first[3].image, again[3].image)
    np.testing.assert_array_equal(first[3].labels, again[3].labels)
    assert examples.note() == (
        "2 of 4 fields are kept in memory (0 MB of cache=4GB); the others are "
        "decoded again whenever they are drawn"
    )


def test_the_cache_takes_what_is_set_and_changes_no_crop(discs: Path) -> None:
    sources = open_split([str(discs)]).train
    settings = TrainSettings(cache="1MB", crop_px=32)
    roomy, _ = usable(sources, settings)
    assert roomy.cache_bytes == 1_000_000
    assert roomy.note() is None
    tight, _ = usable(sources, settings, cache_bytes=0)
    draw = Draw.of(sources, settings)
    for step in range(3):
        kept, decoded = (draw_batch(e, draw, settings, step=step, rank=0) for e in (roomy, tight))
        assert torch.equal(kept.images, decoded.images)
        assert np.array_equal(kept.labels, decoded.labels)


def test_labels_take_as_few_bytes_as_they_need(discs: Path) -> None:
    example = Examples(open_split([str(discs)]).train, TrainSettings())[0]
    assert (example.image.dtype, example.labels.dtype, example.under) == (np.uint8, np.uint8, None)
    unknown = np.array([[-1, 0]])
    for highest, with_unknown, without in (
        (127, np.int8, np.uint8),
        (200, np.int16, np.uint8),
        (300, np.int16, np.uint16),
        (40_000, np.int32, np.uint16),
        (70_000, np.int32, np.uint32),
    ):
        assert smallest(np.append(unknown, highest)).dtype == with_unknown
        assert smallest(np.array([highest])).dtype == without
        assert smallest(np.append(unknown, highest)).tolist() == [-1, 0, highest]


def write_masks(root: Path, name: str, masks: list[np.ndarray]) -> None:
    """Write a field and one mask file for each of its instances."""
    folder = root / "masks" / name / "masks"
    folder.mkdir(parents=True)
    (root / "images").mkdir(exist_ok=True)
    cv2.imwrite(str(root / "images" / f"{name}.png"), masks[0] * 200 + 20)
    for number, mask in enumerate(masks):
        cv2.imwrite(str(folder / f"{number}.png"), mask * 255)


def box(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    mask = np.zeros((32, 32), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def test_overlapping_cells_are_both_in_the_target(tmp_path: Path) -> None:
    """A large cell (id 1), a small one on it (2), and one beside them (3)."""
    large, small, beside = box(0, 0, 10, 10), box(8, 8, 12, 12), box(20, 20, 30, 30)
    write_masks(tmp_path, "f", [large, small, beside])
    example = Examples(open_split([str(tmp_path)]).train, TrainSettings())[0]
    ids = {name: example.labels[place] for name, place in (("large", (0, 0)), ("small", (11, 11)))}
    assert example.under is not None
    assert np.array_equal(example.labels == ids["small"], small > 0), "the smaller lies on top"
    assert np.array_equal(example.under, (large & small) * ids["large"])
    assert example.under.dtype == np.uint8


def test_copies_of_an_instance_count_once(tmp_path: Path) -> None:
    write_masks(tmp_path, "f", [box(0, 0, 9, 9), box(0, 0, 9, 9), box(0, 0, 9, 8)])
    example = Examples(open_split([str(tmp_path)]).train, TrainSettings())[0]
    assert len(np.unique(example.labels)) == 3, "background, the cell, and what nearly is a copy"
    truth = Instances((1, 9), tuple(np.array([[0, n]]) for n in (4, 4, 5)))
    assert [runs.tolist() for runs in distinct(truth).runs] == [[[0, 4]], [[0, 5]]]


def test_held_out_fields_that_are_learned_from_are_told(discs: Path) -> None:
    (discs / "images" / "f4.png").write_bytes((discs / "images" / "f0.png").read_bytes())
    (discs / "labels" / "f4.tif").write_bytes((discs / "labels" / "f0.tif").read_bytes())
    held = discs.parent / "held"
    shutil.copytree(discs, held)
    shutil.rmtree(held / "images")
    (held / "images").mkdir()
    for name in ("f1", "f2"):
        (held / "images" / f"{name}.png").symlink_to(discs / "images" / f"{name}.png")
    shutil.copy(discs / "images" / "f4.png", held / "images")
    labels = discs / "labels"
    split = open_split([str(discs)], validation=[f"{held / 'images'}={labels}"])
    assert split.notes[-1] == (
        "2 of 3 held-out fields are learned from too, such as f1: their scores say nothing of "
        "new images"
    )


def test_there_is_a_weight_for_each_data_set(discs: Path) -> None:
    with pytest.raises(ConfigError) as error:
        open_split([str(discs), str(discs)], settings=TrainSettings(weights=(1.0,)))
    assert str(error.value) == (
        "--weight is given 1 times for 2 data sets; give one for each DATA, in their order, or none"
    )


def write_plate(root: Path, wavelengths: int = 3) -> None:
    """Write one field of a plate, a file for each wavelength, and its label image."""
    (root / "images").mkdir(parents=True)
    (root / "labels" / "P" / "B" / "02").mkdir(parents=True)
    labels = np.zeros((64, 64), np.uint16)
    labels[10:30, 10:30], labels[40:60, 30:50] = 1, 2
    for wave in range(1, wavelengths + 1):
        plane = np.random.default_rng(wave).integers(90, 110, (64, 64)) + labels * 1000 * wave
        tifffile.imwrite(root / "images" / f"P_B02_s1_w{wave}.tif", plane.astype(np.uint16))
    tifffile.imwrite(root / "labels" / "P" / "B" / "02" / "f001.tif", labels)


def test_files_of_a_plate_are_one_field_where_that_has_truth(tmp_path: Path) -> None:
    write_plate(tmp_path)
    split = open_split([str(tmp_path)])
    assert [source.field.id for source in split.train] == ["P/B/02/f001"]
    assert split.notes == ("P: an imagexpress plate of 1 field, 1 well, 3 channels (w1, w2, w3)",)
    assert Examples(split.train, TrainSettings())[0].image.shape == (3, 64, 64)
    chosen = TrainSettings(channel=(1,), pattern="imagexpress")
    example = Examples(open_split([str(tmp_path)], settings=chosen).train, chosen)[0]
    assert example.image.shape == (1, 64, 64)
    with pytest.raises(InputError, match=r"none of the 3 images in .* has truth"):
        open_split([str(tmp_path)], settings=TrainSettings(pattern="none"))


def test_a_plate_that_lacks_a_plane_says_so(tmp_path: Path) -> None:
    write_plate(tmp_path)
    for wave in (1, 2, 3):
        source = tmp_path / "images" / f"P_B02_s1_w{wave}.tif"
        shutil.copy(source, tmp_path / "images" / f"P_B03_s1_w{wave}.tif")
    (tmp_path / "images" / "P_B03_s1_w2.tif").unlink()
    shutil.copytree(tmp_path / "labels/P/B/02", tmp_path / "labels/P/B/03")
    examples, failed = usable(open_split([str(tmp_path)]).train, TrainSettings())
    assert [source.field.id for source in examples.sources] == ["P/B/02/f001"]
    assert [(one.field_id, "w2" in one.reason) for one in failed] == [("P/B/03/f001", True)]


def test_planes_of_a_stack_are_chosen(discs: Path) -> None:
    stack = np.stack([tifffile.imread(discs / "labels" / "f0.tif") * z for z in (1, 50)])
    (discs / "images" / "f0.png").unlink()
    tifffile.imwrite(
        discs / "images" / "f0.tif", stack.astype(np.uint16), imagej=True, metadata={"axes": "ZYX"}
    )
    _, failed = usable(open_split([str(discs)]).train, TrainSettings())
    assert [one.field_id for one in failed] == ["f0"]
    assert failed[0].reason.endswith("choose with --z max|mid|INT")
    settings = TrainSettings(z="1")
    sources = open_split([str(discs)], settings=settings).train
    image, _ = read_field(sources[0], settings)
    assert image.shape == (3, 64, 64)


def test_grey_images_are_kept_once_and_colour_three_times(discs: Path) -> None:
    example = Examples(open_split([str(discs)]).train, TrainSettings())[0]
    assert example.image.shape == (1, 64, 64)
    colour = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    (discs / "images" / "f0.png").unlink()
    tifffile.imwrite(discs / "images" / "f0.tif", colour, photometric="rgb")
    example = Examples(open_split([str(discs)]).train, TrainSettings())[0]
    assert example.image.shape == (3, 64, 64)
