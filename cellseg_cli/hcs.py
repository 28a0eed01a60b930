"""Plates and wells among the groups of a store: which they are, written as OME-Zarr 0.5.

Equal rows write equal bytes, and what is there already is not written again, so that parts of
a run may do it at the same time.  Groups that are fields themselves stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cellseg_cli import durable, ome
from cellseg_cli.rows import FieldRow


def write_plates(
    root: Path,
    rows: Iterable[FieldRow],
    root_attributes: Mapping[str, Any],
    temporary: Callable[[], AbstractContextManager[Path]],
) -> None:
    """Say in the groups above the fields which of them are plates and wells.

    Parameters
    ----------
    root
        The store.
    rows
        All its fields; those that cannot be read are in no well.
    root_attributes
        What the root keeps, where it is a plate itself.
    temporary
        Gives a new path on the file system of the store.

    Notes
    -----
    Nothing is brought to the disk at once, which for the wells of a thousand plates would take
    minutes: nothing that cellseg reads depends on it, and the next run mends it.
    """
    usable = [row for row in rows if not row.error]
    own = {row.id for row in usable}
    groups = ome.plate_groups(
        ome.WellField(row.id, row.plate, row.well) for row in usable if row.plate and row.well
    )
    for group, attributes in groups.items():
        if group not in own:
            kept = {} if group else root_attributes
            _place(root / group / "zarr.json", {**kept, **attributes}, temporary)


def _place(
    path: Path,
    attributes: Mapping[str, Any],
    temporary: Callable[[], AbstractContextManager[Path]],
) -> None:
    """Give a group these attributes, if it has others."""
    with temporary() as written:
        durable.write_json(written, ome.group_document(attributes))
        if not path.is_file() or path.read_bytes() != written.read_bytes():
            path.parent.mkdir(parents=True, exist_ok=True)
            written.replace(path)
