"""Label images as TIFF: one file per field, in the folders of its id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tifffile

from cellseg_cli.exports import FieldInfo, Written
from cellseg_cli.exports.output import check_output_folder, complete_file, path_below
from cellseg_cli.instances import Instances, labels_of


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
        labels = labels_of(instances)
        dtype = np.uint16 if labels.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32
        with complete_file(target) as temporary:
            tifffile.imwrite(
                temporary,
                labels.astype(dtype),
                photometric="minisblack",
                compression="zlib",
                metadata=None,  # no shape in a description: the file is plain baseline TIFF
            )
        count, cells = count + 1, cells + len(instances)
    return Written(count, cells)
