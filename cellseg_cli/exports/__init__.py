"""Label images to the formats of other programs: label TIFF, COCO JSON, Kaggle CSV, tables.

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
    plate, well, field, t
        Where and when on a plate it was taken (``B02``; ``f001``; from 0), where that is known.
    channel_names
        Names of the channels that were used of the image, where they are known.
    """

    id: str
    file_name: str
    shape: tuple[int, int]
    plate: str | None = None
    well: str | None = None
    field: str | None = None
    t: int | None = None
    channel_names: tuple[str, ...] = ()

    @property
    def place(self) -> dict[str, str | int | list[str]]:
        """What is known of plate, well, field, t and channels, by these names."""
        known = {"plate": self.plate, "well": self.well, "field": self.field, "t": self.t}
        place: dict[str, str | int | list[str]] = {
            name: value for name, value in known.items() if value is not None
        }
        if self.channel_names:
            place["channels"] = list(self.channel_names)
        return place


@dataclass(frozen=True)
class Written:
    """How many fields and instances an export holds."""

    fields: int
    instances: int
