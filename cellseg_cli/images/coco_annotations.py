"""Truth as a COCO file: polygons, uncompressed and compressed run lengths.

The field of an image is its ``file_name`` without suffix.  Categories become
cell types, ``score`` becomes the score where every annotation of a field has
one.  Two things are no instances: annotations with ``iscrowd`` 1 (regions of
many objects that nobody separated) and those without a pixel inside the image
(a polygon too thin to hold a pixel centre).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellseg_cli.errors import InputError, LimitError
from cellseg_cli.images.annotation_files import check_size, field_id_of, raise_faults, shape_of
from cellseg_cli.images.polygons import runs_of_polygon
from cellseg_cli.instances import Instances
from cellseg_cli.runlength import counts_of_coco_string, runs_of_coco_counts, union

_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class CocoMask:
    """One annotation as it stands in the file; `number` counts from 1 in its list."""

    number: int
    segmentation: object
    cell_type: str | None
    score: float | None


@dataclass(frozen=True)
class CocoFile:
    """Sizes and annotations of each image of a COCO file, by field id."""

    source: Path
    shapes: dict[str, tuple[int, int]]
    masks: dict[str, list[CocoMask]]

    @property
    def field_ids(self) -> tuple[str, ...]:
        """Every image of the file, sorted; some may have no annotation."""
        return tuple(sorted(self.shapes))

    def shape(self, field_id: str) -> tuple[int, int] | None:
        """Return (Y, X) as the file tells it."""
        return self.shapes[field_id]

    def instances(self, field_id: str, shape: tuple[int, int] | None) -> Instances:
        """Return one instance per annotation, in the order of the file."""
        del shape
        known = self.shapes[field_id]
        found: list[tuple[CocoMask, np.ndarray]] = []
        for mask in self.masks[field_id]:
            try:
                found.append((mask, runs_of_segmentation(mask.segmentation, known)))
            except (InputError, LimitError) as error:
                raise type(error)(
                    f"{self.source}, annotation {mask.number} ({field_id}): {error}"
                ) from error
        found = [(mask, runs) for mask, runs in found if len(runs)]
        types = tuple(mask.cell_type for mask, _ in found if mask.cell_type is not None)
        scores = tuple(mask.score for mask, _ in found if mask.score is not None)
        return Instances(
            known,
            tuple(runs for _, runs in found),
            types if found and len(types) == len(found) else None,
            scores if found and len(scores) == len(found) else None,
        )

    def cell_type(self, field_id: str) -> str | None:
        """Return the category that all annotations of the field share, if they do."""
        types = {mask.cell_type for mask in self.masks[field_id]}
        return types.pop() if len(types) == 1 else None


def open_coco(source: Path) -> CocoFile:
    """Return the images and annotations of a COCO file; masks are decoded when read.

    Raises
    ------
    InputError
        For what is not JSON or not COCO, images without a usable id, name or
        size, two images of one name, and annotations of unknown images; each
        with its number.
    """
    content = _content(source)
    fields, shapes = _images(source, content["images"])
    categories = _categories(content.get("categories"))
    masks: dict[str, list[CocoMask]] = {field_id: [] for field_id in shapes}
    faults: list[str] = []
    for number, entry in enumerate(_entries(content["annotations"]), start=1):
        if not isinstance(entry, dict):
            faults.append(f"annotation {number} is no object")
        elif not _known(entry.get("image_id"), fields):
            faults.append(
                f"annotation {number} has image_id {entry.get('image_id')!r}, "
                "which is not among the images"
            )
        elif entry.get("iscrowd") not in (1, True):
            masks[fields[entry["image_id"]]].append(_mask(number, entry, categories))
    raise_faults(source, faults)
    return CocoFile(source, shapes, masks)


def runs_of_segmentation(segmentation: object, shape: tuple[int, int]) -> np.ndarray:
    """Return the runs of one ``segmentation``: polygons, or run lengths of either kind.

    The polygons of one segmentation are parts of one instance; it covers all of
    them, also where they overlap.

    Raises
    ------
    InputError
        For anything else, run lengths of an image of another size, and what
        the decoders refuse.
    """
    if isinstance(segmentation, list) and segmentation:
        return union([runs_of_polygon(_corners(polygon), shape) for polygon in segmentation])
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise InputError("segmentation is neither a list of polygons nor an object of size, counts")
    size, counts = segmentation["size"], segmentation["counts"]
    if size != list(shape):
        raise InputError(f"segmentation has size {size}, its image is {shape[0]}×{shape[1]} px")
    if isinstance(counts, str):
        return runs_of_coco_counts(counts_of_coco_string(counts), shape)
    if not isinstance(counts, list):
        raise InputError("counts are neither a list nor a text")
    return runs_of_coco_counts(counts, shape)


def _content(source: Path) -> dict[str, Any]:
    check_size(source)
    try:
        content = json.loads(source.read_bytes())
    # JSONDecodeError, UnicodeDecodeError, and numbers of more digits than int() takes.
    except ValueError as error:
        raise InputError(f"{source} cannot be read as JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{source} is no COCO file: it is nested too deeply") from error
    # LIVECell's files of single cell types have annotations by id instead of a list.
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("images"), list)
        or not isinstance(content.get("annotations"), (list, dict))
    ):
        raise InputError(
            f"{source} is no COCO file: needed is an object with lists 'images' and 'annotations'"
        )
    return content


def _entries(annotations: list[Any] | dict[str, Any]) -> list[Any]:
    return list(annotations.values()) if isinstance(annotations, dict) else annotations


def _images(
    source: Path, images: list[Any]
) -> tuple[dict[int | str, str], dict[str, tuple[int, int]]]:
    """Return field id by image id, and (Y, X) by field id."""
    fields: dict[int | str, str] = {}
    shapes: dict[str, tuple[int, int]] = {}
    faults: list[str] = []
    for number, entry in enumerate(images, start=1):
        try:
            image_id, field_id, shape = _image(entry)
        except InputError as error:
            faults.append(f"image {number}: {error}")
            continue
        if image_id in fields or field_id in shapes:
            faults.append(f"image {number}: id {image_id!r} or name {field_id} is there before")
        fields[image_id], shapes[field_id] = field_id, shape
    raise_faults(source, faults)
    if not shapes:
        raise InputError(f"{source} has no images")
    return fields, shapes


def _image(entry: object) -> tuple[int | str, str, tuple[int, int]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str)):
        raise InputError("not an object with an id")
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise InputError(f"file_name is {name!r}, needed is a text")
    shape = shape_of(entry.get("height"), entry.get("width"))
    if shape is None:
        raise InputError(
            f"height {entry.get('height')!r}, width {entry.get('width')!r} are no size"
        )
    return entry["id"], field_id_of(name), shape


def _categories(categories: object) -> dict[int | str, str]:
    """Return names by id; categories are optional and so is each part of them."""
    listed = categories if isinstance(categories, list) else []
    return {
        entry["id"]: entry["name"]
        for entry in listed
        if isinstance(entry, dict)
        and isinstance(entry.get("id"), (int, str))
        and isinstance(entry.get("name"), str)
    }


def _mask(number: int, entry: Mapping[str, Any], categories: dict[int | str, str]) -> CocoMask:
    score, category = entry.get("score"), entry.get("category_id")
    return CocoMask(
        number,
        entry.get("segmentation"),
        categories.get(category) if isinstance(category, (int, str)) else None,
        # A whole number beyond the range of floats would overflow, so it is compared first.
        float(score) if isinstance(score, (int, float)) and abs(score) <= _LARGEST else None,
    )


def _known(key: object, table: Mapping[int | str, str]) -> bool:
    return isinstance(key, (int, str)) and key in table


def _corners(polygon: object) -> np.ndarray:
    """Return (n, 2) of x, y from a flat list of an even count of finite numbers."""
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise InputError("a polygon is a list of an even number of coordinates")
    # float() of a whole number beyond 10^308 overflows, so the range is checked first.
    if not all(isinstance(c, (int, float)) and abs(c) < 2**53 for c in polygon):
        raise InputError("a polygon holds something that is no coordinate")
    return np.array(polygon, dtype=np.float64).reshape(-1, 2)
