"""Where label images are written: into the zarr store, or as TIFF files into a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cellseg_cli import durable
from cellseg_cli.arrays import Region
from cellseg_cli.clustering.large import LargeLabels
from cellseg_cli.exports import label_tiff
from cellseg_cli.exports.output import path_below
from cellseg_cli.store import Store


class LabelSink(Protocol):
    """Takes label images; values that can be sent to another process.

    A disk that cannot be written is a :class:`~cellseg_cli.errors.StoreWriteError`.
    """

    def has(self, field_id: str) -> bool:
        """Whether the label image of a field is there, as far as a look at names can tell."""

    def remove_abandoned(self) -> None:
        """Remove temporary files that killed runs have left."""

    def remove(self, field_id: str) -> None:
        """Take the label image of a field away."""

    def write(self, field_id: str, labels: np.ndarray) -> None:
        """Write (Y, X) uint32, in place of any other, onto the disk."""

    def write_large(
        self,
        field_id: str,
        shape: tuple[int, int],
        labels: LargeLabels,
        check: Callable[[], None],
    ) -> None:
        """Write a label image that is made region by region; `check` is called between them."""


@dataclass(frozen=True)
class StoreLabels:
    """Into the store that has the marks too."""

    store: Store

    def has(self, field_id: str) -> bool:
        """Marks in the store say it."""
        del field_id
        return True

    def remove_abandoned(self) -> None:
        """The store does it itself."""

    def remove(self, field_id: str) -> None:
        """With the mark."""
        self.store.clear(field_id, "cluster")

    def write(self, field_id: str, labels: np.ndarray) -> None:
        """As one array."""
        self.store.write_labels(field_id, labels)

    def write_large(
        self,
        field_id: str,
        shape: tuple[int, int],
        labels: LargeLabels,
        check: Callable[[], None],
    ) -> None:
        """Slab by slab."""
        with self.store.labels_writer(field_id, shape) as writer:
            for slab in writer.slabs:
                check()
                writer.write(slab, labels.region(slab))


@dataclass(frozen=True)
class FolderLabels:
    """As ``<folder>/<field id>.tif``; a file appears when it is complete."""

    folder: Path

    def has(self, field_id: str) -> bool:
        """Whether the file is there."""
        return self._path(field_id).is_file()

    def remove_abandoned(self) -> None:
        """Remove temporary files that killed runs have left."""
        durable.remove_abandoned(self._temporaries)

    def remove(self, field_id: str) -> None:
        """Take the file away."""
        with durable.writing(self.folder):
            self._path(field_id).unlink(missing_ok=True)

    def write(self, field_id: str, labels: np.ndarray) -> None:
        """uint16 where the largest id fits, uint32 elsewhere, zlib."""
        self._place(field_id, lambda path: label_tiff.write_labels(path, labels))

    def write_large(
        self,
        field_id: str,
        shape: tuple[int, int],
        labels: LargeLabels,
        check: Callable[[], None],
    ) -> None:
        """In tiles of 256 px."""

        def rows(start: int, stop: int) -> np.ndarray:
            check()
            region: Region = (slice(start, stop), slice(0, shape[1]))
            return labels.region(region)

        self._place(
            field_id,
            lambda path: label_tiff.write_large_labels(path, shape, labels.instances, rows),
        )

    def _place(self, field_id: str, write: Callable[[Path], None]) -> None:
        target = self._path(field_id)
        with (
            durable.writing(self.folder),
            durable.temporary_path(self._temporaries) as temporary,
        ):
            write(temporary)
            durable.replace(temporary, target)

    @property
    def _temporaries(self) -> Path:
        return self.folder / ".cellseg" / "tmp"

    def _path(self, field_id: str) -> Path:
        return path_below(self.folder, field_id, ".tif")
