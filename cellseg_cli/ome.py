"""What the groups of a store say of themselves: OME-Zarr 0.5 metadata, as plain tables.

Knows the standard (https://ngff.openmicroscopy.org/0.5/) and the names of the
arrays of a field; never touches a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

_PLANE_AXES = ({"name": "y", "type": "space"}, {"name": "x", "type": "space"})


def field_metadata(arrays: Iterable[str]) -> dict[str, Any]:
    """The attributes of a field's group: one OME-Zarr multiscales entry per array."""
    axes = [{"name": "c", "type": "channel"}, *_PLANE_AXES]
    return {"ome": {"version": "0.5", "multiscales": [_multiscales(n, axes, n) for n in arrays]}}


def label_metadata() -> dict[str, dict[str, Any]]:
    """The attributes of the groups ``labels`` and ``labels/cells`` of a field."""
    cells = {
        "multiscales": [_multiscales("cells", list(_PLANE_AXES), "0")],
        "image-label": {"source": {"image": "../../"}},
    }
    return {
        "labels": {"ome": {"version": "0.5", "labels": ["cells"]}},
        "labels/cells": {"ome": {"version": "0.5", **cells}},
    }


@dataclass(frozen=True)
class WellField:
    """A field of a plate: its id in the store, and where it was taken."""

    id: str
    plate: str
    well: str


def plate_groups(fields: Iterable[WellField]) -> dict[str, dict[str, Any]]:
    """The attributes of the groups of plates and wells, by path; ``""`` is the root.

    Taken are fields whose id ends as the standard lays plates out, ``row/column/field``, and
    agrees with their well; the others are images for themselves.  Equal fields in any order
    give equal attributes.

    >>> groups = plate_groups([WellField("a/B/02/f1", "screen", "B02")])
    >>> groups["a/B/02"]["ome"]["well"]
    {'images': [{'path': 'f1'}]}
    >>> groups["a"]["ome"]["plate"]["wells"]
    [{'path': 'B/02', 'rowIndex': 0, 'columnIndex': 0}]
    """
    names: dict[str, str] = {}
    plates: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in fields:
        *above, row, column, field = ("", "", "", *PurePosixPath(one.id).parts)
        if row and column and row + column == one.well:
            plate = "/".join(part for part in above if part)
            names[plate] = min(names.get(plate, one.plate), one.plate)
            plates[plate][row, column].add(field)
    groups = {}
    for plate, wells in plates.items():
        groups[plate] = {"ome": {"version": "0.5", "plate": _plate(names[plate], wells)}}
        for (row, column), images in wells.items():
            path = "/".join(part for part in (plate, row, column) if part)
            well = {"images": [{"path": image} for image in sorted(images)]}
            groups[path] = {"ome": {"version": "0.5", "well": well}}
    return groups


def _plate(name: str, wells: Mapping[tuple[str, str], set[str]]) -> dict[str, Any]:
    rows = sorted({row for row, _ in wells}, key=_by_length)
    columns = sorted({column for _, column in wells}, key=_by_length)
    return {
        "version": "0.5",
        "name": name,
        "rows": [{"name": row} for row in rows],
        "columns": [{"name": column} for column in columns],
        "wells": [
            {
                "path": f"{row}/{column}",
                "rowIndex": rows.index(row),
                "columnIndex": columns.index(column),
            }
            for row in rows
            for column in columns
            if (row, column) in wells
        ],
        "field_count": max(len(images) for images in wells.values()),
    }


def _by_length(name: str) -> tuple[int, str]:
    """The order in which B comes before AA, and 2 before 10."""
    return len(name), name


def _multiscales(name: str, axes: list[dict[str, str]], path: str) -> dict[str, Any]:
    """One scale level, one pixel per pixel: the size of a pixel in µm is not known here."""
    scale = [{"type": "scale", "scale": [1.0] * len(axes)}]
    datasets = [{"path": path, "coordinateTransformations": scale}]
    return {"name": name, "axes": axes, "datasets": datasets}


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The ``zarr.json`` of a group with these attributes."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}
