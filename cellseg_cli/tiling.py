"""Tiles of a field: pure arithmetic on integers.

Invariant: the cores of a field's tiles cover every pixel exactly once, and no
window leaves the field.  Along a long side no core crosses a border of the slabs in
which large fields are stored, so that a slab can be made from its own tiles alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Along a long side cores are multiples of this where tile and halo allow it, so that few
#: window shapes occur; a multiple of every stride that a network may have.
CORE_UNIT_PX = 64


@dataclass(frozen=True)
class Tile:
    """One piece of a field.

    Attributes
    ----------
    window
        Rows and columns of the field that are read, as slices.
    core
        Rows and columns of the field that this tile alone answers for.
    """

    window: tuple[slice, slice]
    core: tuple[slice, slice]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the window, pixels."""
        rows, columns = self.window
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def core_in_window(self) -> tuple[slice, slice]:
        """The core in the frame of the window."""
        rows, columns = (
            slice(core.start - window.start, core.stop - window.start)
            for core, window in zip(self.core, self.window, strict=True)
        )
        return rows, columns


def tiles(
    shape: tuple[int, int], *, tile_px: int, halo_px: int, align_px: int | None = 4096
) -> tuple[Tile, ...]:
    """Return the tiles of a field, row by row.

    Windows are at most `tile_px` on a side and reach `halo_px` or more beyond
    their core on every side that is not the field's own border.

    Parameters
    ----------
    shape
        Height and width of the field, pixels, at least 1 each.
    tile_px, halo_px
        Side of a window and width of the rim, pixels; tile_px > 2 × halo_px.
    align_px
        Along a side longer than this no core crosses a multiple of it: from one multiple to
        the next there are as few cores as fit with a halo on both sides, as equal as multiples
        of one unit can be (the greatest common divisor of `tile_px`, `halo_px`, `align_px` and
        64 px), and windows are equally long, but for less than a unit.  None: no side is long.

    Examples
    --------
    >>> [tile.core[1] for tile in tiles((8, 20), tile_px=16, halo_px=2)]
    [slice(0, 14, None), slice(14, 20, None)]
    >>> [tile.core[1] for tile in tiles((8, 20), tile_px=16, halo_px=2, align_px=16)]
    [slice(0, 8, None), slice(8, 16, None), slice(16, 20, None)]
    """
    rows, columns = (
        _spans(length, tile_px, halo_px)
        if align_px is None or length <= align_px
        else _aligned_spans(length, tile_px, halo_px, align_px)
        for length in shape
    )
    return tuple(
        Tile(window=(row_window, column_window), core=(row_core, column_core))
        for row_window, row_core in rows
        for column_window, column_core in columns
    )


def _aligned_spans(
    length: int, tile_px: int, halo_px: int, align_px: int
) -> list[tuple[slice, slice]]:
    """Return (window, core) along a long axis; see :func:`tiles`."""
    unit = math.gcd(tile_px, halo_px, align_px, CORE_UNIT_PX)
    most = tile_px - 2 * halo_px
    cores = []
    for slab_start in range(0, length, align_px):
        slab_stop = min(slab_start + align_px, length)
        units = math.ceil((slab_stop - slab_start) / unit)
        count = math.ceil(units / (most // unit))
        start = slab_start
        for index in range(count):
            # the first units % count cores are one unit longer than the others
            stop = min(start + unit * (units // count + (index < units % count)), slab_stop)
            cores.append(slice(start, stop))
            start = stop
    # one size for all, so that all fit one pass, and what one pass frees the next can use
    window = math.ceil(max(core.stop - core.start for core in cores) / unit) * unit + 2 * halo_px
    last = max(0, math.ceil((length - window) / unit) * unit)
    starts = [min(max(core.start - halo_px, 0), last) for core in cores]
    return [
        (slice(start, min(start + window, length)), core)
        for start, core in zip(starts, cores, strict=True)
    ]


def _spans(length: int, tile_px: int, halo_px: int) -> list[tuple[slice, slice]]:
    """Return (window, core) along one axis; windows share one grid so shapes repeat."""
    if length <= tile_px:
        return [(slice(0, length), slice(0, length))]
    step = tile_px - 2 * halo_px
    spans = []
    start = 0
    while start + tile_px < length:
        core_start = 0 if start == 0 else start + halo_px
        spans.append((slice(start, start + tile_px), slice(core_start, start + tile_px - halo_px)))
        start += step
    spans.append((slice(start, length), slice(start + halo_px, length)))
    return spans
