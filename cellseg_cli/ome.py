"""What the groups of a store say of themselves: OME-Zarr 0.5 metadata, as plain tables.

Knows the standard (https://ngff.openmicroscopy.org/0.5/) and the names of the
arrays of a field; never touches a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def _multiscales(name: str, axes: list[dict[str, str]], path: str) -> dict[str, Any]:
    """One scale level, one pixel per pixel: the size of a pixel in µm is not known here."""
    scale = [{"type": "scale", "scale": [1.0] * len(axes)}]
    datasets = [{"path": path, "coordinateTransformations": scale}]
    return {"name": name, "axes": axes, "datasets": datasets}


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The ``zarr.json`` of a group with these attributes."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}
