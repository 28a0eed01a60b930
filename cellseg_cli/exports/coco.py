"""Instances as one COCO JSON file with compressed run-length masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from cellseg_cli import __version__
from cellseg_cli.exports import FieldInfo, Written
from cellseg_cli.exports.output import check_output_file, complete_file
from cellseg_cli.instances import Instances
from cellseg_cli.runlength import box_of, coco_counts, coco_string

CATEGORY = {"id": 1, "name": "cell", "supercategory": "cell"}


def write(
    fields: Iterable[tuple[FieldInfo, Instances]], out: Path, *, overwrite: bool = False
) -> Written:
    """Write one file with an image per field and an annotation per instance.

    Images and annotations are numbered from 1 in the order of `fields`; equal
    input gives equal bytes.  ``segmentation`` is ``{size: [Y, X], counts}`` as
    pycocotools encodes it, ``bbox`` is x, y, width, height in px, ``area`` in
    px², ``score`` is there where it is known.  Instances may overlap.  Images of plates
    have ``plate``, ``well``, ``field``, ``t`` and ``channels`` besides, as far as known.
    Annotations are written as they come; only the list of images is kept.

    Raises
    ------
    OutputExistsError
        `out` is there and `overwrite` is false.
    ConfigError
        `out` is a folder or cannot be written.
    """
    check_output_file(out, overwrite=overwrite)
    with complete_file(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        images, annotations = _write_document(fields, stream)
    return Written(images, annotations)


def _write_document(
    fields: Iterable[tuple[FieldInfo, Instances]], stream: TextIO
) -> tuple[int, int]:
    """Write the JSON document; return the numbers of images and annotations."""
    info = {"description": f"cells segmented by cellseg {__version__}"}
    stream.write(f'{{"info": {json.dumps(info)}, "licenses": [],\n')
    stream.write(f'"categories": [{json.dumps(CATEGORY)}],\n"annotations": [')
    images: list[dict[str, Any]] = []
    number = 0
    for field, instances in fields:
        images.append(_image(len(images) + 1, field))
        for annotation in _annotations(instances):
            number += 1
            entry = {"id": number, "image_id": len(images), **annotation}
            stream.write(f"{',' if number > 1 else ''}\n{json.dumps(entry)}")
    listed = ",\n".join(map(json.dumps, images))
    stream.write(f'],\n"images": [\n{listed}]}}\n')
    return len(images), number


def _image(number: int, field: FieldInfo) -> dict[str, Any]:
    height, width = field.shape
    image = {"id": number, "file_name": field.file_name, "width": width, "height": height}
    return {**image, **field.place}


def _annotations(instances: Instances) -> Iterator[dict[str, Any]]:
    """Yield each instance as COCO says it, without the numbers."""
    for index, runs in enumerate(instances.runs):
        y0, x0, y1, x1 = box_of(runs, instances.shape)
        annotation: dict[str, Any] = {
            "category_id": CATEGORY["id"],
            "segmentation": {
                "size": list(instances.shape),
                "counts": coco_string(coco_counts(runs, instances.shape)),
            },
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(runs[:, 1].sum()),
            "iscrowd": 0,
        }
        if instances.scores is not None:
            annotation["score"] = instances.scores[index]
        yield annotation
