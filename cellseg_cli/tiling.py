"""Tiles of a field: pure arithmetic on integers.

Invariant: the cores of a field's tiles cover every pixel exactly once, and no
window leaves the field.
"""

from __future__ import annotations

from dataclasses import dataclass


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


def tiles(shape: tuple[int, int], *, tile_px: int, halo_px: int) -> tuple[Tile, ...]:
    """Return the tiles of a field, row by row.

    Windows are at most `tile_px` on a side and reach `halo_px` beyond their
    core on every side that is not the field's own border.

    Parameters
    ----------
    shape
        Height and width of the field, pixels, at least 1 each.
    tile_px, halo_px
        Side of a window and width of the rim, pixels; tile_px > 2 × halo_px.

    Examples
    --------
    >>> [tile.core[1] for tile in tiles((8, 20), tile_px=16, halo_px=2)]
    [slice(0, 14, None), slice(14, 20, None)]
    """
    rows, columns = (_spans(length, tile_px, halo_px) for length in shape)
    return tuple(
        Tile(window=(row_window, column_window), core=(row_core, column_core))
        for row_window, row_core in rows
        for column_window, column_core in columns
    )


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
