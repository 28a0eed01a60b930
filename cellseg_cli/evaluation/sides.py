"""The two sides of a comparison: a store or annotations of any kind, read field by field.

Either side may be either; what cannot be known from one side alone (the size
of a field in a Kaggle table without columns for it) is taken from the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from cellseg_cli.errors import InputError
from cellseg_cli.evaluation.matching import check_same_size
from cellseg_cli.images.annotations import Kind, open_annotations
from cellseg_cli.instances import Instances, instances_of_labels
from cellseg_cli.store import FieldRow, Store

Order = Literal["auto", "row_major", "column_major"]


@dataclass(frozen=True)
class StoredLabels:
    """The label images of a store, as one kind of annotation."""

    store: Store

    @cached_property
    def rows(self) -> Mapping[str, FieldRow]:
        """The fields that are clustered; read once."""
        return {row.id: row for row in self.store.fields() if self.store.has(row.id, "cluster")}

    @property
    def field_ids(self) -> tuple[str, ...]:
        """Every field that has a label image, sorted."""
        return tuple(sorted(self.rows))

    def shape(self, field_id: str) -> tuple[int, int] | None:
        """Return (Y, X) of the image, in px."""
        row = self.rows[field_id]
        return None if row.height is None or row.width is None else (row.height, row.width)

    def instances(self, field_id: str, shape: tuple[int, int] | None) -> Instances:
        """Return the instances of one label image, ids ascending."""
        del shape
        return instances_of_labels(self.store.read_labels(field_id))

    def cell_type(self, field_id: str) -> str | None:
        """Return None: a label image does not say what its cells are."""
        del field_id
        return None


def places_of(*sides: Kind) -> dict[str, dict[str, str | int]]:
    """Return plate, well, field, t and channels of the fields of stores, as far as known, by id.

    Of two stores the first is asked first.
    """
    places: dict[str, dict[str, str | int]] = {}
    for side in sides:
        if isinstance(side, StoredLabels):
            chosen = side.store.attributes.get("embed", {}).get("channel")
            places = {**{name: _place(row, chosen) for name, row in side.rows.items()}, **places}
    return {field_id: place for field_id, place in places.items() if place}


def _place(row: FieldRow, chosen: Sequence[int] | None) -> dict[str, str | int]:
    channels = ";".join(row.chosen_channels(chosen)) or None
    known = {"plate": row.plate, "well": row.well, "field": row.field, "t": row.t}
    named = {**known, "channels": channels}
    return {name: value for name, value in named.items() if value is not None}


def open_side(source: Path, order: Order = "auto") -> Kind:
    """Return what is to be compared: a store, or what `open_annotations` knows.

    Raises
    ------
    InputError
        For a store without any label image, and everything that is neither a
        store nor annotations.
    StoreError
        For a store of another version, or a damaged one.
    """
    if not Store.is_at(source):
        return open_annotations(source, order=order).kind
    side = StoredLabels(Store.open(source))
    if not side.field_ids:
        raise InputError(f"{source} has no label images yet; run: cellseg cluster {source}")
    return side


def check_common(sources: tuple[Path, Path], ids: tuple[Collection[str], Collection[str]]) -> None:
    """Refuse two sides that have no field in common.

    Raises
    ------
    InputError
        If the ids, at least one on each side, have none in common.
    """
    if set(ids[0]).isdisjoint(ids[1]):
        raise InputError(
            f"no field is in both: {sources[0]} has {len(ids[0])}, such as {min(ids[0])}; "
            f"{sources[1]} has {len(ids[1])}, such as {min(ids[1])}; "
            "a field is known by its path below the folder given, without suffix"
        )


def read_pair(prediction: Kind, truth: Kind, field_id: str) -> tuple[Instances, Instances]:
    """Return prediction and truth of one field that both have.

    The side that does not tell its size beforehand is read first, so that the
    masks of a file are only made where the size that it tells is that of the
    other side.

    Raises
    ------
    InputError
        If one of the two cannot be read, or their sizes differ.
    """
    shape, told = prediction.shape(field_id), truth.shape(field_id)
    if shape is None and told is not None:
        found = prediction.instances(field_id, told)
        check_same_size(found.shape, told)
        return found, truth.instances(field_id, told)
    if told is None:
        return _read_truth_first(prediction, truth, field_id)
    assert shape is not None
    check_same_size(shape, told)
    return prediction.instances(field_id, shape), truth.instances(field_id, told)


def _read_truth_first(prediction: Kind, truth: Kind, field_id: str) -> tuple[Instances, Instances]:
    shape = prediction.shape(field_id)
    try:
        true = truth.instances(field_id, shape)
    except InputError:
        if shape is not None:
            raise
        # Neither side tells the size beforehand; the truth may need it, and a
        # label image that was read has one.
        found = prediction.instances(field_id, None)
        return found, truth.instances(field_id, found.shape)
    check_same_size(shape or true.shape, true.shape)
    return prediction.instances(field_id, true.shape), true


def read_truth(truth: Kind, field_id: str) -> Instances:
    """Return the truth of a field that the other side lacks."""
    return truth.instances(field_id, truth.shape(field_id))
