"""Laws of tiling, against a count of every pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellseg_cli.tiling import tiles

#: A stride of 16 px at most divides tile and halo; sides from below to far beyond one slab.
SIDES = st.integers(1, 700)
ALIGN_PX = 256


@given(shape=st.tuples(SIDES, SIDES), halo=st.integers(0, 3), core=st.integers(1, 20))
def test_cores_of_long_sides_end_at_slabs(shape: tuple[int, int], halo: int, core: int) -> None:
    tile_px, halo_px = 16 * (core + 2 * halo), 16 * halo
    found = tiles(shape, tile_px=tile_px, halo_px=halo_px, align_px=ALIGN_PX)
    covered = np.zeros(shape, int)
    for tile in found:
        covered[tile.core] += 1
        for window, own, length in zip(tile.window, tile.core, shape, strict=True):
            assert 0 <= window.start <= own.start < own.stop <= window.stop <= length
            assert window.stop - window.start <= tile_px
            assert own.start - window.start >= halo_px or window.start == 0
            assert window.stop - own.stop >= halo_px or window.stop == length
            if length > ALIGN_PX:
                assert own.start // ALIGN_PX == (own.stop - 1) // ALIGN_PX
                # the network's strides lie as in the whole field
                assert window.start % 16 == 0
                assert own.stop % 16 == 0 or own.stop == length
    assert (covered == 1).all()


@given(length=st.integers(ALIGN_PX + 1, 1200), halo=st.integers(0, 3), core=st.integers(1, 20))
def test_cores_of_a_slab_are_as_few_and_as_equal_as_they_can(
    length: int, halo: int, core: int
) -> None:
    """Against every number of cores, smallest first, of lengths that differ by one unit at most."""
    tile_px, halo_px = 16 * (core + 2 * halo), 16 * halo
    unit = np.gcd.reduce([tile_px, halo_px, 64])
    found = tiles((1, length), tile_px=tile_px, halo_px=halo_px, align_px=ALIGN_PX)
    for start in range(0, length, ALIGN_PX):
        units = -(-(min(start + ALIGN_PX, length) - start) // unit)
        lengths = [
            -(-(tile.core[1].stop - tile.core[1].start) // unit)
            for tile in found
            if tile.core[1].start // ALIGN_PX == start // ALIGN_PX
        ]
        fewest = next(n for n in range(1, units + 1) if n * (16 * core // unit) >= units)
        assert len(lengths) == fewest
        assert max(lengths) - min(lengths) <= 1


def test_a_field_of_16384_px_has_one_window_shape() -> None:
    """Five cores a slab: four of 832 and one of 768 px."""
    found = tiles((16384, 16384), tile_px=1024, halo_px=64)
    assert len(found) == 20 * 20
    assert {tile.shape for tile in found} == {(832 + 128, 832 + 128)}


@given(length=st.integers(ALIGN_PX + 1, 1200), halo=st.integers(0, 3), core=st.integers(1, 20))
def test_windows_of_a_long_side_differ_by_less_than_a_unit(
    length: int, halo: int, core: int
) -> None:
    tile_px, halo_px = 16 * (core + 2 * halo), 16 * halo
    found = tiles((1, length), tile_px=tile_px, halo_px=halo_px, align_px=ALIGN_PX)
    sides = [tile.shape[1] for tile in found]
    assert max(sides) - min(sides) < np.gcd.reduce([tile_px, halo_px, 64])


def test_fields_of_one_slab_keep_their_tiles() -> None:
    assert tiles((4096, 3000), tile_px=1024, halo_px=64) == tiles(
        (4096, 3000), tile_px=1024, halo_px=64, align_px=None
    )


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
