"""COCO files: polygons by pycocotools' rule, both run-length kinds, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon

from cellseg_cli.errors import InputError, LimitError
from cellseg_cli.images.annotations import Annotations, open_annotations
from cellseg_cli.images.coco_annotations import runs_of_segmentation
from cellseg_cli.images.polygons import runs_of_polygon
from cellseg_cli.runlength import counts_of_coco_string, paint, runs_of_coco_counts

SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def image(number: int = 1, **changes: object) -> dict[str, object]:
    entry = {"id": number, "file_name": f"p/{number}.tif", "width": 4, "height": 3}
    return entry | changes


def annotation(segmentation: object = None, **changes: object) -> dict[str, object]:
    entry = {"image_id": 1, "category_id": 1, "segmentation": segmentation or [SQUARE]}
    return entry | changes


def coco(folder: Path, images: Any, annotations: Any, **rest: Any) -> Annotations:
    document = {"images": images, "annotations": annotations, **rest}
    path = folder / "c.json"
    path.write_text(json.dumps(document))
    return open_annotations(path)


# --- what is read ---


def test_fields_categories_and_scores(tmp_path: Path) -> None:
    annotations = coco(
        tmp_path,
        [image(1), image(2), image(3, file_name="q\\3.ome.tif")],
        [
            annotation(score=0.5),
            annotation(image_id=2, category_id=7, score=1),
            annotation({"size": [3, 4], "counts": [11, 1]}, score=0.25),
            annotation({"size": [3, 4], "counts": "0<"}, image_id=2),
        ],
        categories=[{"id": 1, "name": "cort"}, {"id": 7, "name": "astro"}],
    )
    assert annotations.field_ids == ("p/1", "p/2", "q/3")
    assert annotations.shape("q/3") == (3, 4)
    first = annotations.read("p/1", (3, 4))
    assert paint(first.runs[0], (3, 4)).astype(int).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
    ]
    assert first.runs[1].tolist() == [[11, 1]]
    assert (first.scores, first.cell_types) == ((0.5, 0.25), ("cort", "cort"))
    second = annotations.read("p/2")
    assert second.runs[1].tolist() == [[0, 12]]
    assert (second.scores, second.cell_types) == (None, ("astro", "cort"))
    assert [annotations.cell_type(key) for key in annotations.field_ids] == ["cort", None, None]
    assert len(annotations.read("q/3")) == 0


def test_the_parts_of_one_segmentation_are_one_instance(tmp_path: Path) -> None:
    annotations = coco(
        tmp_path, [image()], [annotation([[0, 0, 1, 0, 1, 3, 0, 3], [0, 2, 4, 2, 4, 3, 0, 3]])]
    )
    (runs,) = annotations.read("p/1").runs
    assert paint(runs, (3, 4)).astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


def test_crowds_and_masks_without_a_pixel_are_no_instances(tmp_path: Path) -> None:
    sliver = [1.1, 1.1, 1.3, 1.1, 1.2, 1.3]
    annotations = coco(
        tmp_path,
        [image()],
        [annotation(iscrowd=1, category_id=2), annotation([sliver]), annotation(iscrowd=0)],
    )
    assert len(annotations.read("p/1")) == 1


def test_annotations_by_id_as_in_livecell(tmp_path: Path) -> None:
    assert len(coco(tmp_path, [image()], {"5": annotation()}).read("p/1")) == 1


# --- polygons ---

# (shape, x and y of the corners, string): made once with pycocotools 2.0.11
# (mask.frPyObjects).  Half pixels, a bow tie, corners outside, a sliver,
# repeated corners, tangles of 5 to 8 random corners, a circle.
# fmt: off
PYCOCOTOOLS = [
    ((8, 10), [1, 1, 7, 1, 7, 5, 1, 5], "944000000000g0"),
    ((8, 10), [0, 0, 10, 0, 10, 8, 0, 8], "0`2"),
    ((8, 10), [1.5, 1.5, 3.5, 1.5, 3.5, 3.5, 1.5, 3.5], "b0260^1"),
    ((8, 10), [1, 1, 9, 7, 9, 1, 1, 7], "963N2Na00_O2N26"),
    ((8, 10), [-3, -2, 6, 3, -1, 9], "0?2F2N1OW1"),
    ((8, 10), [4.2, 4.2, 4.4, 4.2, 4.3, 4.4], "`2"),
    ((8, 10), [2, 2, 2, 2, 8, 2, 8, 2, 5, 7.5, 5, 7.5], "b0172N2N00N2N`0"),
    (
        (20, 24),
        [13.75, 19.74, 17.07, 4.95, 6.6, 19.22, 0.12, 18.07, 17.54, 10.29],
        "U11c00O2O000O10O001N10000001N2DN52HO:NI1_4",
    ),
    (
        (20, 24),
        [6.67, 6.13, 5.61, 9.79, 11.1, 12.18, 21.9, 17.44, 13.69, 21.76, 4.74, 3.52],
        "o33c0Oe00[O1N2O1N10O001O001N101N10g0",
    ),
    (
        (20, 24),
        [13.48, 0.97, 0.78, 11.33, 10.26, 20.18, 13.84, 11.31, 10.93, 5.45, 0.26, 4.23,
         15.22, 4.41],
        "o01b02INI46LI66JI86HJ95GJ;530ONCM=2DO93G032N0N40i5",
    ),
    (
        (20, 24),
        [8.13, 0.08, 18.26, 3.4, 5.89, 19.37, 11.22, 18.64, 14.07, 16.32, 2.01, 11.91,
         11.17, 19.17, 7.95, 13.16],
        "m21c010O@0<1B00>0B0>1A0;0G180H072HO53JN59O2M2Of3",
    ),
    (
        (32, 32),
        [27.3, 15.0, 25.79, 19.85, 21.65, 23.4, 16.0, 24.7, 10.35, 23.4, 6.21, 19.85,
         4.7, 15.0, 6.21, 10.15, 10.35, 6.6, 16.0, 5.3, 21.65, 6.6, 25.79, 10.15],
        "]54i06L2N2N2O0O2O00000O2O01N1000001N101N2N2N3Lf4",
    ),
]
# fmt: on


@pytest.mark.parametrize(("shape", "corners", "text"), PYCOCOTOOLS)
def test_polygons_are_those_of_pycocotools(shape, corners: list[float], text: str) -> None:
    runs = runs_of_segmentation([corners], shape)
    assert np.array_equal(runs, runs_of_coco_counts(counts_of_coco_string(text), shape))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(-3, 14), st.integers(-3, 14)), min_size=2, max_size=2),
)
def test_boxes_with_whole_corners_hold_their_pixels(height: int, width: int, points) -> None:
    (x0, y0), (x1, y1) = np.clip(points, -1, (width + 1, height + 1)).tolist()
    y0, y1, x0, x1 = min(y0, y1), max(y0, y1), min(x0, x1), max(x0, x1)
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=float)
    expected = np.zeros((height, width), dtype=bool)
    expected[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    assert np.array_equal(
        paint(runs_of_polygon(corners, (height, width)), (height, width)), expected
    )


# --- what is refused ---


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 2, 2]], "a polygon has at least 3 corners, got 2"),
        ([[1, 1, 2, 2, 3]], "a polygon is a list of an even number of coordinates"),
        (["text"], "a polygon is a list of an even number of coordinates"),
        ([[1, 1, 2, 2, 3, "x"]], "a polygon holds something that is no coordinate"),
        ([[1, 1, 2, 2, 3, float("nan")]], "a polygon holds something that is no coordinate"),
        ([[1, 1, 2, 2, 3, 10**400]], "a polygon holds something that is no coordinate"),
        ([[1, 1, 2, 2, 90, 1]], "the polygon corner x=90, y=1 is outside of 3×4 px"),
        ("0<", "segmentation is neither a list of polygons nor an object of size, counts"),
        (
            {"counts": [12]},
            "segmentation is neither a list of polygons nor an object of size, counts",
        ),
        ({"size": [4, 3], "counts": [12]}, "segmentation has size [4, 3], its image is 3×4 px"),
        ({"size": [3, 4], "counts": None}, "counts are neither a list nor a text"),
        (
            {"size": [3, 4], "counts": [10, 3]},
            "COCO counts sum to 13, but the image of 3×4 px has 12 pixels",
        ),
        (
            {"size": [3, 4], "counts": "0 "},
            "a compressed COCO mask is written with the characters '0' to 'o', got ' '",
        ),
    ],
)
def test_a_bad_mask_costs_its_field_only(tmp_path: Path, segmentation, reason: str) -> None:
    annotations = coco(
        tmp_path, [image(1), image(2)], [annotation(image_id=2), annotation(segmentation)]
    )
    assert len(annotations.read("p/2")) == 1
    with refused(f"{tmp_path / 'c.json'}, annotation 2 (p/1): {reason}"):
        annotations.read("p/1")


@pytest.mark.parametrize(
    ("images", "annotations", "reason"),
    [
        (
            [image()],
            [annotation(image_id=9), annotation(), 3, annotation(image_id=[1])],
            ": annotation 1 has image_id 9, which is not among the images; "
            "annotation 3 is no object; "
            "annotation 4 has image_id [1], which is not among the images",
        ),
        ([], [], " has no images"),
        (
            [image(), 3, image(1, file_name="other.png"), image(2, file_name="p/1.png")],
            [],
            ": image 2: not an object with an id; "
            "image 3: id 1 or name other is there before; "
            "image 4: id 2 or name p/1 is there before",
        ),
        (
            [image(1, width=0), image(2, height="3"), image(3, file_name=None)],
            [],
            ": image 1: height 3, width 0 are no size; "
            "image 2: height '3', width 4 are no size; "
            "image 3: file_name is None, needed is a text",
        ),
        (
            [image(1, file_name="../../etc/x.png"), image(2, file_name="/abs/x.png")],
            [],
            ": image 1: '../../etc/x.png' is not the name of an image: give a path relative "
            "to the folder of the images, without '..'; "
            "image 2: '/abs/x.png' is not the name of an image: give a path relative "
            "to the folder of the images, without '..'",
        ),
        (
            {},
            [],
            " is no COCO file: needed is an object with lists 'images' and 'annotations'",
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, images, annotations, reason: str) -> None:
    with refused(f"{tmp_path / 'c.json'}{reason}"):
        coco(tmp_path, images, annotations)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as JSON: Expecting value: line 1 column 1 (char 0)"),
        (
            b'{"images": [',
            "cannot be read as JSON: Expecting value: line 1 column 13 (char 12)",
        ),
        (b"[" * 100_000, "is no COCO file: it is nested too deeply"),
        (b"[]", "is no COCO file: needed is an object with lists 'images' and 'annotations'"),
    ],
)
def test_files_that_are_no_coco(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with refused(f"{path} {reason}"):
        open_annotations(path)


def test_a_number_too_long_for_python(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(b'{"images": ' + b"1" * 5000 + b"}")
    with pytest.raises(
        InputError, match=f"^{re.escape(str(path))} cannot be read as JSON: Exceeds"
    ):
        open_annotations(path)


# --- real truth ---


def test_livecell_polygons_hold_the_pixel_centres_inside(real_data: Path) -> None:
    """scikit-image decides by exact geometry; the grid of a fifth of a pixel moves few pixels."""
    path = real_data / "livecell" / "livecell_coco_val.json"
    document = json.loads(path.read_text())
    annotations = open_annotations(path)
    assert len(annotations.field_ids) == 5
    entry = document["images"][0]
    polygons = [
        np.reshape(a["segmentation"][0], (-1, 2))
        for a in document["annotations"]
        if a["image_id"] == entry["id"]
    ]
    instances = annotations.read(entry["file_name"].removesuffix(".tif"), (520, 704))
    assert len(instances) == len(polygons) == 711
    different = total = 0
    for corners, runs in zip(polygons, instances.runs, strict=True):
        inside = np.zeros((520, 704), dtype=bool)
        inside[polygon(corners[:, 1] - 0.5, corners[:, 0] - 0.5, inside.shape)] = True
        different += int(np.sum(paint(runs, inside.shape) != inside))
        total += int(inside.sum())
    assert different < 0.02 * total


@pytest.mark.parametrize(("height", "width"), [(True, True), (3, 10**9), (3.0, 4)])
def test_what_is_no_size(tmp_path: Path, height: object, width: object) -> None:
    with refused(f"{tmp_path / 'c.json'}: image 1: height {height!r}, width {width!r} are no size"):
        coco(tmp_path, [image(height=height, width=width)], [])


def test_a_score_beyond_all_floats_is_none(tmp_path: Path) -> None:
    annotations = coco(tmp_path, [image()], [annotation(score=10**400)])
    assert annotations.read("p/1").scores is None


def test_an_outline_of_any_length_is_not_drawn(tmp_path: Path) -> None:
    far = 2**31 - 1
    annotations = coco(
        tmp_path,
        [image(width=far, height=1)],
        [annotation([[0, 0, far, 0, far, 1, 0, 1]])],
    )
    with pytest.raises(LimitError) as caught:
        annotations.read("p/1")
    assert str(caught.value) == (
        f"{tmp_path / 'c.json'}, annotation 1 (p/1): the polygon has an outline of "
        "4294967296 px, the limit is 3355443 (MAX_OUTLINE_POINTS)"
    )


def test_a_wrong_size_is_told_before_masks_are_made(tmp_path: Path) -> None:
    annotations = coco(tmp_path, [image()], [annotation("no mask")])
    with refused(f"the truth of p/1 in {tmp_path / 'c.json'} is 3×4 px, but its image is 5×5 px"):
        annotations.read("p/1", (5, 5))
