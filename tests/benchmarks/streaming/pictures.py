"""Files with rendered nuclei of realistic size and number, many small ones or one large one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from cellseg_cli.images.synthetic import FIELD_SIZE, render_field

WELLS = ("A01", "A02", "B01", "B02")  # sparse, crowded, large, dim
TILE_PX = 512
LARGE_BLOCK_PX = 1024


def write_fields(folder: Path, count: int) -> float:
    """Write ``count`` files of 520×704 px, every second one TIFF and PNG; their megapixels.

    There are four pictures, one for each condition; every file is a file of its own.
    """
    folder.mkdir(parents=True)
    rendered = [render_field(well, 1)[0] for well in WELLS]
    encoded = [imagecodecs.png_encode(image, level=1) for image in rendered]
    for number in range(count):
        picture = number // 2 % len(rendered)
        if number % 2:
            (folder / f"field{number:06d}.png").write_bytes(encoded[picture])
        else:
            tifffile.imwrite(folder / f"field{number:06d}.tif", rendered[picture])
    return count * FIELD_SIZE[0] * FIELD_SIZE[1] / 1e6


def write_large(file: Path, side: int, *, deflate: bool) -> None:
    """Write one field of ``side`` × ``side`` px, uint16, holding one row of tiles at most.

    Its content is that of one block, mirrored at the block's borders so that no edge is seen.
    """
    block = render_field("A02", 1, size=(LARGE_BLOCK_PX, LARGE_BLOCK_PX))[0]
    block = np.block([[block, block[:, ::-1]], [block[::-1], block[::-1, ::-1]]])
    places = np.arange(side) % len(block)

    def pieces(width: int) -> Iterator[np.ndarray]:
        for top in range(0, side, TILE_PX):
            for left in range(0, side, width):
                yield block[np.ix_(places[top : top + TILE_PX], places[left : left + width])]

    file.parent.mkdir(parents=True, exist_ok=True)
    shape, dtype = (side, side), np.uint16
    if deflate:
        options = {"tile": (TILE_PX, TILE_PX), "compression": "zlib"}
        tifffile.imwrite(file, pieces(TILE_PX), shape=shape, dtype=dtype, **options)
    else:
        tifffile.imwrite(file, pieces(side), shape=shape, dtype=dtype, rowsperstrip=TILE_PX)
