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
        The files of a field of a plate that is exported with a file per plane; empty for
        others.  They are of one time point: a choice of time points was made among fields and
        says nothing about the planes in these files.  A channel may have fewer z than another;
        one that has a single file is the same for every z.
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


@dataclass(frozen=True)
class Field:
    """One field of view: one image of the batch.

    Attributes
    ----------
    id
        Path relative to the root of the run, POSIX, without image suffix.  On a plate whose
        files are grouped ``<folder>/<plate>/B/02/f001``, as OME-Zarr lays plates out, with
        the time point behind where the plate has several (``f001t002``).
    source
        Where its pixels can be read from here; symbolic links are not resolved.
    place
        Where on a plate it was taken, if that is known.
    fault
        Why it cannot be used, although it was found: a plane of it is missing or there twice.
    """

    id: str
    source: Source
    place: Place | None = None
    fault: str | None = None

    @property
    def path(self) -> Path:
        """The file, the folder of an OME-Zarr image, or the first of several files."""
        return self.source.path
