"""Label images as TIFF: one file per field, in the folders of its id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tifffile

from cellseg_cli.exports import FieldInfo, Written
from cellseg_cli.exports.output import check_output_folder, complete_file, path_below
from cellseg_cli.instances import Instances, labels_of

#: Side of the tiles of a large label image.
TILE_PX = 256

#: Classic TIFF ends at 4 GiB; half of it leaves room for tiles that do not compress.
_CLASSIC_BYTES = 1 << 31


def write(
    fields: Iterable[tuple[FieldInfo, Instances]], out: Path, *, overwrite: bool = False
) -> Written:
    """Write ``out/<field id>.tif`` for each field; return what was written.

    The images are (Y, X), 0 = background, zlib, uint16 where the largest id
    fits and uint32 elsewhere.  Overlaps are flattened: the smaller cell lies on
    top.  Each file appears when it is complete.

    Raises
    ------
    OutputExistsError
        `out` has something in it and `overwrite` is false.
    ConfigError
        `out` is a file or cannot be written.
    InputError
        A field id would leave `out`.
    """
    check_output_folder(out, overwrite=overwrite)
    count = cells = 0
    for info, instances in fields:
        target = path_below(out, info.id, ".tif")
        with complete_file(target) as temporary:
            write_labels(temporary, labels_of(instances))
        count, cells = count + 1, cells + len(instances)
    return Written(count, cells)


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write one label image (Y, X) as it is described above; raises OSError."""
    tifffile.imwrite(
        path,
        labels.astype(_dtype(int(labels.max(initial=0)))),
        photometric="minisblack",
        compression="zlib",
        metadata=None,  # no shape in a description: the file is plain baseline TIFF
    )


def write_large_labels(
    path: Path, shape: tuple[int, int], most: int, rows: Callable[[int, int], np.ndarray]
) -> None:
    """Write a label image that is larger than memory, in tiles of 256 px; raises OSError.

    Parameters
    ----------
    path
        The file.
    shape
        Y, X.
    most
        Largest id.
    rows
        Gives the label image from one row up to another, (y, X).
    """
    dtype = _dtype(most)

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, shape[0], TILE_PX):
            band = rows(top, min(top + TILE_PX, shape[0])).astype(dtype)
            for left in range(0, shape[1], TILE_PX):
                tile = np.zeros((TILE_PX, TILE_PX), dtype)
                part = band[:, left : left + TILE_PX]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    with tifffile.TiffWriter(
        path, bigtiff=shape[0] * shape[1] * dtype.itemsize > _CLASSIC_BYTES
    ) as out:
        out.write(
            tiles(),
            shape=shape,
            dtype=dtype,
            tile=(TILE_PX, TILE_PX),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
        )


def _dtype(most: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint16 if most <= np.iinfo(np.uint16).max else np.uint32)
