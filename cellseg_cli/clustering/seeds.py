"""Instances of a spatial embedding, grown around the maxima of the seed map.

Every pixel predicts the centre of its cell (its own place plus an offset), a bandwidth sigma and
a seed value.  A pixel belongs to a cell with centre c by phi = exp(-|its centre - c|^2 / (2
sigma^2)); phi >= 0.5 is a disc of radius sigma * sqrt(2 ln 2) around c, in the plane of predicted
centres.  The idea is that of Neven et al. 2019 (arXiv 1906.11109) and EmbedSeg (Lalit et al.
2021); the rules below are our own where these leave them open:

1. Foreground is where the seed value is above ``foreground``.
2. The free foreground pixel of highest seed value (equal ones: the first in row-major order)
   starts an instance, unless its value is below ``seed_level``.  Its disc is moved once, to the
   seed-weighted mean of the centres of the free pixels in it, with the like mean of bandwidths.
3. The instance is all free pixels in the disc.  It is refused if these are fewer than
   ``min_area_px`` or not more than half of all pixels in the disc (the rest being taken by earlier
   instances); its pixels stay free but start no instance.
4. When no seed is left, each free foreground pixel goes to the instance of highest phi, if that
   is at least :data:`LEFTOVER_PHI`.
5. Pieces and holes are settled by :func:`~cellseg_cli.clustering.pieces.finished`.

Foreground pixels are sorted by the 1 px bin of their predicted centre, so a disc is read from a
few short ranges, whatever the shape and length of the cell, and no window bounds it.
"""

from __future__ import annotations

import math

import numpy as np

from .compiled import compiled
from .pieces import finished
from .settings import Clustering

#: Membership below which a leftover foreground pixel joins no instance.
LEFTOVER_PHI = 0.1

_FREE, _SPENT = 0, -1  # spent: may be taken, but starts no instance


def seeds(
    embedding: np.ndarray, *, kind: str, settings: Clustering, classes: np.ndarray | None = None
) -> np.ndarray:
    """The label image of a spatial embedding, by the rules of this module.

    Parameters
    ----------
    embedding : (4, Y, X) float32, C-contiguous and finite
        Offset y, offset x, bandwidth (all px) and seed value.
    kind, classes : ignored
    settings : Clustering
        Resolved; uses ``foreground``, ``seed_level`` and ``min_area_px``.

    Returns
    -------
    (Y, X) uint32
        Labels 1 to n by falling seed value of the pixel each began with, 0 = background.
    """
    assert settings.foreground is not None and settings.seed_level is not None
    assert settings.min_area_px is not None
    instances = grown_instances(
        embedding, settings.foreground, settings.seed_level, settings.min_area_px
    )
    return finished(instances, settings.min_area_px)


def grown_instances(
    values: np.ndarray, foreground: float, seed_level: float, min_area_px: int
) -> np.ndarray:
    """The instances by rules 1 to 4 of this module, before pieces and holes are settled.

    Parameters
    ----------
    values : (4, Y, X) float32, C-contiguous and finite
    foreground, seed_level : float
    min_area_px : int

    Returns
    -------
    (Y, X) int32
    """
    shape = values.shape[1:]
    starts, pixel, centre_y, centre_x, slot = _by_centre(values, np.float32(foreground))
    if len(pixel) == 0:
        return np.zeros(shape, np.int32)
    order = _by_falling_seed(values[3], slot, np.float32(foreground), np.float32(seed_level))
    bandwidth = values[2].ravel()[pixel]
    seed = values[3].ravel()[pixel]
    plane = (starts, centre_y, centre_x)
    owner, discs = _grow(shape, plane, bandwidth, seed, order, min_area_px)
    _give_leftovers(shape, plane, owner, discs, math.sqrt(-2 * math.log(LEFTOVER_PHI)))
    labels = np.zeros(shape, np.int32)
    labels.ravel()[pixel] = np.maximum(owner, 0)
    return labels


@compiled
def _by_centre(
    values: np.ndarray, foreground: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Foreground pixels in the order of the bin of their predicted centre.

    Returns
    -------
    starts : (Y, X + 1) int32
        The pixels whose centre lies in bins (y, x0) to (y, x1 - 1) have the places
        ``starts[y, x0]`` to ``starts[y, x1] - 1``.  Centres outside the field count as in the
        nearest bin.
    pixel : (n,) int32
        Flat index of the pixel at each place.
    centre_y, centre_x : (n,) float32
    place_of : (n,) int32
        The place of each foreground pixel, in row-major order.
    """
    _, height, width = values.shape
    starts = np.zeros((height, width + 1), np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            if values[3, y, x] > foreground:
                row = _bin(np.float32(y) + values[0, y, x], height)
                column = _bin(np.float32(x) + values[1, y, x], width)
                starts[row, column] += 1
                count += 1
    total = 0
    for row in range(height):
        for column in range(width + 1):
            held = starts[row, column]
            starts[row, column] = total
            total += held
    fill = starts.copy()
    pixel = np.empty(count, np.int32)
    centre_y, centre_x = np.empty(count, np.float32), np.empty(count, np.float32)
    place_of = np.empty(count, np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            if values[3, y, x] > foreground:
                here_y = np.float32(y) + values[0, y, x]
                here_x = np.float32(x) + values[1, y, x]
                row, column = _bin(here_y, height), _bin(here_x, width)
                place = fill[row, column]
                fill[row, column] += 1
                pixel[place] = y * width + x
                centre_y[place] = here_y
                centre_x[place] = here_x
                place_of[count] = place
                count += 1
    return starts, pixel, centre_y, centre_x, place_of


@compiled
def _bin(centre: np.float32, size: int) -> int:
    """The 1 px bin of a coordinate, the nearest one for coordinates outside the field."""
    return int(min(max(centre, np.float32(0)), np.float32(size - 1)))


@compiled
def _by_falling_seed(
    seed: np.ndarray, place_of: np.ndarray, foreground: np.float32, seed_level: np.float32
) -> np.ndarray:
    """The places of the pixels that may start an instance, highest seed value first.

    Equal values keep row-major order.  A radix sort on the bits of the values, which for
    positive floats are ordered like the values.
    """
    keys = np.empty(place_of.size, np.uint32)
    order = np.empty(place_of.size, np.int32)
    count = 0
    index = 0
    bits = seed.view(np.uint32)
    for y in range(seed.shape[0]):
        for x in range(seed.shape[1]):
            if seed[y, x] > foreground:
                if seed[y, x] >= seed_level:
                    keys[count] = ~bits[y, x]
                    order[count] = place_of[index]
                    count += 1
                index += 1
    keys, order = keys[:count], order[:count]
    for shift in (0, 11, 22):
        keys, order = _sorted_by_digit(keys, order, shift)
    return order


@compiled
def _sorted_by_digit(
    keys: np.ndarray, order: np.ndarray, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """One stable counting pass on 11 bits of the keys."""
    place = np.zeros(2049, np.int64)
    for key in keys:
        place[((key >> np.uint32(shift)) & np.uint32(2047)) + 1] += 1
    for digit in range(2048):
        place[digit + 1] += place[digit]
    sorted_keys, sorted_order = np.empty_like(keys), np.empty_like(order)
    for i in range(keys.size):
        digit = (keys[i] >> np.uint32(shift)) & np.uint32(2047)
        sorted_keys[place[digit]] = keys[i]
        sorted_order[place[digit]] = order[i]
        place[digit] += 1
    return sorted_keys, sorted_order


@compiled
def _grow(
    shape: tuple[int, int],
    plane: tuple[np.ndarray, np.ndarray, np.ndarray],
    bandwidth: np.ndarray,
    seed: np.ndarray,
    order: np.ndarray,
    min_area_px: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Instances in the order of their seeds.

    Returns ``owner`` (n,) int32, the instance of each place (from 1; 0 or less: free), and
    ``discs`` (instances, 3) float32: centre y, centre x and bandwidth.
    """
    owner = np.zeros(bandwidth.size, np.int32)
    discs = np.empty((64, 3), np.float32)
    inside = np.empty(bandwidth.size, np.int32)
    radius_over_bandwidth = np.float32(math.sqrt(2 * math.log(2.0)))
    count = 0
    for first in order:
        if owner[first] != _FREE:
            continue
        y, x, sigma = plane[1][first], plane[2][first], bandwidth[first]
        taken, free = _in_disc(shape, plane, owner, (y, x, sigma * radius_over_bandwidth), inside)
        if 2 * free > taken + free and free >= min_area_px:
            y, x, sigma = _moved(plane, bandwidth, seed, inside[:free])
            taken, free = _in_disc(
                shape, plane, owner, (y, x, sigma * radius_over_bandwidth), inside
            )
        owner[first] = _SPENT
        if free < min_area_px or free <= taken:
            for i in inside[:free]:
                owner[i] = _SPENT
            continue
        if count == len(discs):
            larger = np.empty((2 * count, 3), np.float32)
            larger[:count] = discs
            discs = larger
        discs[count, 0], discs[count, 1], discs[count, 2] = y, x, sigma
        count += 1
        for i in inside[:free]:
            owner[i] = count
    return owner, discs[:count]


@compiled
def _in_disc(
    shape: tuple[int, int],
    plane: tuple[np.ndarray, np.ndarray, np.ndarray],
    owner: np.ndarray,
    disc: tuple[np.float32, np.float32, np.float32],
    inside: np.ndarray,
) -> tuple[int, int]:
    """How many places in a disc are taken, and how many free; these are put in ``inside``."""
    starts, centre_y, centre_x = plane
    y, x, radius = disc
    left = _bin(x - radius, shape[1])
    right = _bin(x + radius, shape[1]) + 1
    taken, free = 0, 0
    for row in range(_bin(y - radius, shape[0]), _bin(y + radius, shape[0]) + 1):
        for place in range(starts[row, left], starts[row, right]):
            down, across = centre_y[place] - y, centre_x[place] - x
            if down * down + across * across <= radius * radius:
                if owner[place] > 0:
                    taken += 1
                else:
                    inside[free] = place
                    free += 1
    return taken, free


@compiled
def _moved(
    plane: tuple[np.ndarray, np.ndarray, np.ndarray],
    bandwidth: np.ndarray,
    seed: np.ndarray,
    inside: np.ndarray,
) -> tuple[np.float32, np.float32, np.float32]:
    """The seed-weighted mean centre and bandwidth of places, summed in float64."""
    weight, y, x, sigma = 0.0, 0.0, 0.0, 0.0
    for place in inside:
        weight += seed[place]
        y += float(seed[place]) * plane[1][place]
        x += float(seed[place]) * plane[2][place]
        sigma += float(seed[place]) * bandwidth[place]
    return np.float32(y / weight), np.float32(x / weight), np.float32(sigma / weight)


@compiled
def _give_leftovers(
    shape: tuple[int, int],
    plane: tuple[np.ndarray, np.ndarray, np.ndarray],
    owner: np.ndarray,
    discs: np.ndarray,
    reach: float,
) -> None:
    """Free places to the disc of highest phi, within ``reach`` bandwidths; ``owner`` in place."""
    best = np.full(owner.size, np.float32(reach * reach))
    candidate = np.zeros(owner.size, np.int32)
    inside = np.empty(owner.size, np.int32)
    for disc in range(len(discs)):
        y, x, sigma = discs[disc, 0], discs[disc, 1], discs[disc, 2]
        _, free = _in_disc(shape, plane, owner, (y, x, sigma * np.float32(reach)), inside)
        for place in inside[:free]:
            down, across = (plane[1][place] - y) / sigma, (plane[2][place] - x) / sigma
            distance = down * down + across * across
            if distance <= best[place] and (candidate[place] == 0 or distance < best[place]):
                best[place] = distance
                candidate[place] = disc + 1
    for place in range(owner.size):
        if owner[place] <= 0:
            owner[place] = candidate[place]
