"""Laws of tiling, against a count of every pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellseg_cli.tiling import tiles


@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    halo=st.integers(0, 7),
    core=st.integers(1, 20),
)
def test_cores_cover_every_pixel_once_and_windows_stay_inside(
    shape: tuple[int, int], halo: int, core: int
) -> None:
    covered = np.zeros(shape, int)
    for tile in tiles(shape, tile_px=core + 2 * halo, halo_px=halo):
        covered[tile.core] += 1
        for window, own, inner, length in zip(
            tile.window, tile.core, tile.core_in_window, shape, strict=True
        ):
            assert 0 <= window.start <= own.start < own.stop <= window.stop <= length
            assert window.stop - window.start <= core + 2 * halo
            assert own.start - window.start >= halo or own.start == 0
            assert window.stop - own.stop >= halo or own.stop == length
            assert (inner.start, inner.stop) == (own.start - window.start, own.stop - window.start)
    assert (covered == 1).all()
