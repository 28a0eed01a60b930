"""Label images to the formats of other programs: label TIFF, COCO JSON, Kaggle CSV.

Each writer takes a stream of (:class:`FieldInfo`, instances), holds one field
at a time, and gives its files their names when they are complete.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FieldInfo", "Written"]


@dataclass(frozen=True)
class FieldInfo:
    """What an export says of a field besides its instances.

    Attributes
    ----------
    id
        Path of the image relative to the root, POSIX, without suffix.
    file_name
        The same with suffix.
    shape
        (Y, X) in px.
    """

    id: str
    file_name: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class Written:
    """How many fields and instances an export holds."""

    fields: int
    instances: int
