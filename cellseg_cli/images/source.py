"""Where the pixels of a field lie, and its place on a plate: values, without any reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cellseg_cli.rows import FieldRow, PlaneFile


@dataclass(frozen=True)
class Place:
    """Where on a plate a field was taken.

    Attributes
    ----------
    plate
        Name of the plate.
    row, column
        Of the well, as OME-Zarr names their folders: ``B`` and ``02``.
    field
        Name of the field of view within its well.
    t
        Time point, from 0; None where there is only one.
    """

    plate: str
    row: str
    column: str
    field: str
    t: int | None = None

    @property
    def well(self) -> str:
        """Row and column together, such as ``B02``."""
        return self.row + self.column


@dataclass(frozen=True)
class Source:
    """Where the pixels of one field lie.

    Attributes
    ----------
    path
        An image file, the folder of an OME-Zarr image, or the first of ``files``.
    files
        The files of a field that is exported with a file per plane; empty for others.
    channel_names
        Names of the channels where they are told, in the order of the positions.
    """

    path: Path
    files: tuple[PlaneFile, ...] = ()
    channel_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: FieldRow) -> Source:
        """Where the field of a row lies."""
        return cls(Path(row.source), row.files, row.channel_names)
