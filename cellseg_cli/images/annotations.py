"""Truth of every kind behind one door: open a source, ask for the instances of a field.

Kinds: a folder of label images, a folder of ``<id>/masks`` folders, a Kaggle
table, a COCO file.  Fields are known by the id of their image (path relative to
the root, POSIX, without suffix).  Overlapping annotations stay what they are;
:func:`cellseg_cli.instances.labels_of` flattens them where a label image is
needed.  Names in the files are keys only: they never become paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from cellseg_cli.errors import InputError
from cellseg_cli.images.coco_annotations import open_coco
from cellseg_cli.images.kaggle_annotations import open_kaggle_table
from cellseg_cli.images.label_images import LABEL_SUFFIXES, open_label_images
from cellseg_cli.images.mask_folders import find_mask_folders
from cellseg_cli.instances import Instances


class Kind(Protocol):
    """What one kind of truth can do; the field is always one of `field_ids`."""

    @property
    def field_ids(self) -> tuple[str, ...]: ...

    def shape(self, field_id: str) -> tuple[int, int] | None: ...

    def instances(self, field_id: str, shape: tuple[int, int] | None) -> Instances: ...

    def cell_type(self, field_id: str) -> str | None: ...


@dataclass(frozen=True)
class Annotations:
    """The truth in one file or folder; safe to read from several threads."""

    source: Path
    kind: Kind

    @cached_property
    def field_ids(self) -> tuple[str, ...]:
        """Ids of all fields that have truth, sorted."""
        return self.kind.field_ids

    def __contains__(self, field_id: object) -> bool:
        """Whether a field has truth (it may be that it has no cells)."""
        return field_id in self._id_set

    def shape(self, field_id: str) -> tuple[int, int] | None:
        """Return (Y, X) in px where the source tells it without being decoded."""
        return self.kind.shape(self._known(field_id))

    def cell_type(self, field_id: str) -> str | None:
        """Return the cell type that all instances of a field share, if that is known."""
        return self.kind.cell_type(self._known(field_id))

    def read(self, field_id: str, shape: tuple[int, int] | None = None) -> Instances:
        """Return the instances of one field.

        Parameters
        ----------
        field_id
            One of :attr:`field_ids`.
        shape
            (Y, X) of the image in px; needed where the source does not tell it.

        Raises
        ------
        InputError
            For a field without truth, an annotation that cannot be decoded, and
            truth of another size than `shape`.
        """
        # Where the source tells the size, a wrong one is refused before masks of it are made.
        self._check_shape(field_id, self.shape(field_id), shape)
        instances = self.kind.instances(field_id, shape)
        self._check_shape(field_id, instances.shape, shape)
        return instances

    def _check_shape(
        self, field_id: str, found: tuple[int, int] | None, image: tuple[int, int] | None
    ) -> None:
        if found is not None and image is not None and found != tuple(image):
            raise InputError(
                f"the truth of {field_id} in {self.source} is {found[0]}×{found[1]} px, "
                f"but its image is {image[0]}×{image[1]} px"
            )

    def _known(self, field_id: str) -> str:
        if field_id not in self:
            raise InputError(
                f"{self.source} has no truth for {field_id}; "
                f"it has {len(self.field_ids)} fields, the first is {self.field_ids[0]}"
            )
        return field_id

    @cached_property
    def _id_set(self) -> frozenset[str]:
        return frozenset(self.field_ids)


def open_annotations(
    source: Path, *, order: Literal["auto", "row_major", "column_major"] = "auto"
) -> Annotations:
    """Return the truth in `source`, its kind told by suffix and content.

    Parameters
    ----------
    source
        Folder of label images, folder of ``<id>/masks`` folders, one label
        image, Kaggle ``.csv`` or COCO ``.json``.
    order
        How a Kaggle table flattens masks; ``auto`` goes by its header.

    Raises
    ------
    InputError
        For a source that is not there, not one of these kinds, or damaged.
    """
    source = Path(source)
    if source.is_dir():
        return Annotations(source, find_mask_folders(source) or open_label_images(source))
    if not source.exists():
        raise InputError(f"there is no file or folder of annotations at {source}")
    name = source.name.lower()
    if name.endswith(".csv"):
        return Annotations(source, open_kaggle_table(source, order))
    if name.endswith(".json"):
        return Annotations(source, open_coco(source))
    if name.endswith(LABEL_SUFFIXES):
        return Annotations(source, open_label_images(source))
    raise InputError(
        f"{source} is no annotation: known are folders of label images, folders <id>/masks, "
        f"single label images ({', '.join(LABEL_SUFFIXES)}), Kaggle .csv and COCO .json"
    )
