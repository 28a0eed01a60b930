"""The rendered plate: exact, seeded, and as hard as it says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellseg_cli.errors import ConfigError, OutputExistsError
from cellseg_cli.images.annotations import open_annotations
from cellseg_cli.images.decode import read_image
from cellseg_cli.images.discover import find_fields
from cellseg_cli.images.synthetic import MIN_AREA_PX, OFFSET, render_field, render_plate

SMALL = (160, 192)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.tif"))
    }


def touching_pairs(labels: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of ids that are 4-neighbours, by looking at every pixel."""
    pairs = set()
    for (y, x), one in np.ndenumerate(labels):
        for other in (labels[y + 1 : y + 2, x], labels[y, x + 1 : x + 2]):
            if one and other.size and other[0] and one != other[0]:
                pairs.add((int(min(one, other[0])), int(max(one, other[0]))))
    return pairs


def test_plate_is_what_the_readers_take(tmp_path: Path) -> None:
    plate = render_plate(tmp_path, wells=("A01", "B02"), fields_per_well=2, size=SMALL)
    ids = ["A01/field1", "A01/field2", "B02/field1", "B02/field2"]
    assert [field.id for field in find_fields(plate.images)] == ids == list(plate.nuclei)
    truth = open_annotations(plate.truth)
    assert {name: len(truth.read(name)) for name in ids} == dict(plate.nuclei)
    assert plate.total == sum(plate.nuclei.values()) > 10
    image = read_image(plate.images / "A01" / "field1.tif")
    assert (image.shape, image.dtype) == ((1, *SMALL), np.uint16)


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        render_plate(tmp_path / name, wells=("A02",), fields_per_well=1, size=SMALL, seed=seed)
    one, same, other = (digests(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert all(one[name] != other[name] for name in one)


def test_a_field_does_not_depend_on_the_rest_of_the_plate(tmp_path: Path) -> None:
    np.random.seed(0)  # noqa: NPY002 - global state must not matter
    alone, labels = render_field("B01", 2, size=SMALL, seed=7)
    np.random.seed(1)  # noqa: NPY002
    plate = render_plate(tmp_path, wells=("A01", "B01"), size=SMALL, seed=7)
    np.testing.assert_array_equal(tifffile.imread(plate.images / "B01/field2.tif"), alone)
    np.testing.assert_array_equal(tifffile.imread(plate.truth / "B01/field2.tif"), labels)


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**31), well=st.sampled_from(["A01", "A02", "B01", "B02"]))
def test_every_nucleus_is_one_visible_piece(seed: int, well: str) -> None:
    image, labels = render_field(well, 1, size=SMALL, seed=seed)
    count = int(labels.max())
    assert image.dtype == labels.dtype == np.uint16
    np.testing.assert_array_equal(np.unique(labels), np.arange(count + 1))
    for number in range(1, count + 1):
        own = labels == number
        assert own.sum() >= MIN_AREA_PX
        assert ndimage.label(own, np.ones((3, 3)))[1] == 1


@pytest.fixture(scope="module")
def fields() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One field of full size for each condition: image and truth."""
    return {well: render_field(well, 1) for well in ("A01", "A02", "B01", "B02")}


def test_truth_lies_where_the_light_is(
    fields: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    for image, labels in fields.values():
        dark = image[ndimage.distance_transform_edt(labels == 0) > 15]
        core = image[ndimage.distance_transform_edt(labels > 0) > 3]
        # Nearly every pixel well inside of a nucleus outshines nearly all of the ground.
        assert np.percentile(core, 5) > np.percentile(dark, 95) > OFFSET
        # The light falls across the outline.
        rim_in = image[(labels > 0) & (ndimage.distance_transform_edt(labels > 0) <= 1)]
        rim_out = image[(labels == 0) & (ndimage.distance_transform_edt(labels == 0) <= 1)]
        assert np.median(core) > np.median(rim_in) > np.median(rim_out) > np.median(dark)


def test_wells_are_hard_in_their_own_ways(
    fields: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    counts = {well: int(labels.max()) for well, (_, labels) in fields.items()}
    areas = {w: np.median(np.bincount(la.ravel())[1:]) for w, (_, la) in fields.items()}
    assert counts["A02"] > 2 * counts["A01"]  # crowded
    assert areas["B01"] > 1.5 * areas["A01"]  # large
    assert len(touching_pairs(fields["A02"][1])) > counts["A02"] / 4
    light = {w: np.median(im[la > 0]) - OFFSET for w, (im, la) in fields.items()}
    assert light["B02"] < 0.5 * light["A01"]  # dim
    uneven = ndimage.gaussian_filter(fields["A01"][0].astype(float), 2)
    assert uneven.min() < 0.9 * np.median(uneven)  # the ground itself is not flat


def test_an_existing_plate_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    with pytest.raises(OutputExistsError) as caught:
        render_plate(tmp_path, wells=("A01",), size=SMALL)
    assert str(caught.value) == f"{tmp_path / 'truth'} exists; choose another output, or remove it"
    assert not (tmp_path / "plate").exists()


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        render_plate(
            tmp_path, wells=("A1", "Q01", "A1"), fields_per_well=0, size=(64, 704), seed=-1
        )
    assert str(caught.value) == (
        "the plate cannot be rendered: 'A1' is no well, such as A01 to P24; 'Q01' is no well, "
        "such as A01 to P24; 'A1' is no well, such as A01 to P24; a well is named twice; got 0 as "
        "a number of fields, needs at least 1; got 64×704 px, needs at least 128 on each side; "
        "got the seed -1, needs at least 0"
    )
    with pytest.raises(ConfigError, match=r"^the plate cannot be rendered: no well is named$"):
        render_plate(tmp_path, wells=())


def test_each_field_is_told_when_it_is_there(tmp_path: Path) -> None:
    seen: list[str] = []

    def done(field_id: str) -> None:
        assert (tmp_path / "truth" / f"{field_id}.tif").is_file()
        seen.append(field_id)

    render_plate(tmp_path, wells=("A01", "P24"), fields_per_well=1, size=SMALL, done=done)
    assert seen == ["A01/field1", "P24/field1"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "plate").symlink_to(tmp_path / "nowhere" / "at" / "all")
    (tmp_path / "nowhere").write_text("a file")
    with pytest.raises(ConfigError) as caught:
        render_plate(tmp_path, wells=("A01",), size=SMALL)
    target = tmp_path / "plate" / "A01" / "field1.tif"
    assert str(caught.value) == f"{target} cannot be written: Not a directory"
