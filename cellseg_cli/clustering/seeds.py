"""Instances of a spatial embedding, grown around the maxima of the seed map.

Every pixel predicts the centre of its cell (its own place plus an offset), a bandwidth sigma and
a seed value.  A pixel belongs to a cell with centre c by phi = exp(-|its centre - c|^2 / (2
sigma^2)); phi >= 0.5 is a disc of radius sigma * sqrt(2 ln 2) around c, in the plane of predicted
centres.  The idea is that of Neven et al. 2019 (arXiv 1906.11109) and EmbedSeg (Lalit et al.
2021); the rules below are our own where these leave them open:

1. Foreground is where the seed value is above ``foreground``.
2. The free foreground pixel of highest seed value starts an instance, unless its value is below
   ``seed_level``; of equal ones the one nearest to its own centre, then the first in row-major
   order.  Its disc is moved once, to the seed-weighted mean of the centres of the free pixels in
   it, with the like mean of bandwidths.
3. The instance is all free pixels in the disc.  It is refused if these are fewer than
   ``min_area_px`` or not more than half of all pixels in the disc (the rest being taken by earlier
   instances); its pixels stay free but start no instance.
4. When no seed is left, each free foreground pixel goes to the instance of highest phi, if that
   is at least :data:`LEFTOVER_PHI`.
5. Pieces and holes are settled by :func:`~cellseg_cli.clustering.pieces.finished`.

Centres and bandwidths are counted in steps of 1/4096 px and seed weights in steps of 1/1024, so
that all sums are exact: the label image depends neither on the order of the pixels, nor on where
in a larger field they lie, nor on the machine.  Mirroring the field mirrors it, but for pixels
that tie in seed value and distance to their centre.

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

#: Radius over sigma of the disc in which phi is at least 0.5, and at least LEFTOVER_PHI.
CORE_REACH = math.sqrt(2 * math.log(2.0))
LEFTOVER_REACH = math.sqrt(-2 * math.log(LEFTOVER_PHI))

#: Steps of a centre or bandwidth in a px, and of a seed weight from 0 to 1.
STEPS, WEIGHT_STEPS = 4096, 1024

#: Offsets and bandwidths are cut off here, which keeps sums of weighted distances within int64
#: for instances of up to 2^28 px.
WIDEST_PX = 4096

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
    starts, pixel, centre_y, centre_x, place_of = _by_centre(values, np.float32(foreground))
    if len(pixel) == 0:
        return np.zeros(shape, np.int32)
    order = _by_falling_seed(values, place_of, np.float32(foreground), np.float32(seed_level))
    bandwidth = _bandwidths(values[2].ravel()[pixel])
    weight = np.rint(np.minimum(values[3].ravel()[pixel], 1) * WEIGHT_STEPS).astype(np.int32)
    plane = (starts, centre_y, centre_x)
    owner, discs = _grow(shape, plane, (bandwidth, weight), order, min_area_px)
    _give_leftovers(shape, plane, owner, discs)
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
    centre_y, centre_x : (n,) int32, steps
    place_of : (n,) int32
        The place of each foreground pixel, in row-major order.
    """
    _, height, width = values.shape
    starts = np.zeros((height, width + 1), np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            if values[3, y, x] > foreground:
                row = _bin(_step(values[0, y, x], y), height)
                column = _bin(_step(values[1, y, x], x), width)
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
    centre_y, centre_x = np.empty(count, np.int32), np.empty(count, np.int32)
    place_of = np.empty(count, np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            if values[3, y, x] > foreground:
                here_y = _step(values[0, y, x], y)
                here_x = _step(values[1, y, x], x)
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
def _step(offset: np.float32, place: int) -> int:
    """A place in px and an offset from it, together in steps."""
    offset = min(max(offset, np.float32(-WIDEST_PX)), np.float32(WIDEST_PX))
    return place * STEPS + int(np.rint(offset * np.float32(STEPS)))


@compiled
def _bandwidths(lengths: np.ndarray) -> np.ndarray:
    """Bandwidths in px as steps, at least 1: (n,) int32."""
    steps = np.empty(lengths.size, np.int32)
    for i in range(lengths.size):
        steps[i] = max(_step(lengths[i], 0), 1)
    return steps


@compiled
def _bin(centre: int, size: int) -> int:
    """The 1 px bin of a centre in steps, the nearest one for centres outside the field."""
    return min(max(centre // STEPS, 0), size - 1)


@compiled
def _by_falling_seed(
    values: np.ndarray, place_of: np.ndarray, foreground: np.float32, seed_level: np.float32
) -> np.ndarray:
    """The places of the pixels that may start an instance, in the order of rule 2.

    A radix sort on the bits of seed value and squared offset, which for floats that are not
    negative are ordered like the values.
    """
    keys = np.empty(place_of.size, np.uint64)
    order = np.empty(place_of.size, np.int32)
    one = np.empty(2, np.float32)
    bits = one.view(np.uint32)
    count = 0
    index = 0
    for y in range(values.shape[1]):
        for x in range(values.shape[2]):
            if values[3, y, x] > foreground:
                if values[3, y, x] >= seed_level:
                    down, across = _step(values[0, y, x], 0), _step(values[1, y, x], 0)
                    one[0] = values[3, y, x]
                    one[1] = np.float32(down * down + across * across)
                    keys[count] = (np.uint64(~bits[0]) << np.uint64(32)) | np.uint64(bits[1])
                    order[count] = place_of[index]
                    count += 1
                index += 1
    keys, order = keys[:count], order[:count]
    for shift in (0, 11, 22, 33, 44, 55):
        keys, order = _sorted_by_digit(keys, order, shift)
    return order


@compiled
def _sorted_by_digit(
    keys: np.ndarray, order: np.ndarray, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """One stable counting pass on 11 bits of the keys."""
    place = np.zeros(2049, np.int64)
    for key in keys:
        place[((key >> np.uint64(shift)) & np.uint64(2047)) + np.uint64(1)] += 1
    for digit in range(2048):
        place[digit + 1] += place[digit]
    sorted_keys, sorted_order = np.empty_like(keys), np.empty_like(order)
    for i in range(keys.size):
        digit = (keys[i] >> np.uint64(shift)) & np.uint64(2047)
        sorted_keys[place[digit]] = keys[i]
        sorted_order[place[digit]] = order[i]
        place[digit] += 1
    return sorted_keys, sorted_order


@compiled
def _grow(
    shape: tuple[int, int],
    plane: tuple[np.ndarray, np.ndarray, np.ndarray],
    weighted: tuple[np.ndarray, np.ndarray],
    order: np.ndarray,
    min_area_px: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Instances in the order of their seeds.

    ``weighted`` are bandwidth in steps and seed weight at each place, int32.  Returns ``owner``
    (n,) int32, the instance of each place (from 1; 0 or less: free), and ``discs``
    (instances, 3) int64: centre y, centre x and bandwidth, in steps.
    """
    bandwidth = weighted[0]
    owner = np.zeros(bandwidth.size, np.int32)
    discs = np.empty((64, 3), np.int64)
    inside = np.empty(bandwidth.size, np.int32)
    count = 0
    for first in order:
        if owner[first] != _FREE:
            continue
        disc = int(plane[1][first]), int(plane[2][first]), int(bandwidth[first])
        taken, free = _in_disc(shape, plane, owner, disc, CORE_REACH, inside)
        if 2 * free > taken + free and free >= min_area_px:
            disc = _moved(plane, weighted, first, inside[:free])
            taken, free = _in_disc(shape, plane, owner, disc, CORE_REACH, inside)
        owner[first] = _SPENT
        if free < min_area_px or free <= taken:
            for i in inside[:free]:
                owner[i] = _SPENT
            continue
        if count == len(discs):
            larger = np.empty((2 * count, 3), np.int64)
            larger[:count] = discs
            discs = larger
        discs[count, 0], discs[count, 1], discs[count, 2] = disc
        count += 1
        for i in inside[:free]:
            owner[i] = count
    return owner, discs[:count]


@compiled
def _in_disc(
    shape: tuple[int, int],
    plane: tuple[np.ndarray, np.ndarray, np.ndarray],
    owner: np.ndarray,
    disc: tuple[int, int, int],
    reach: float,
    inside: np.ndarray,
) -> tuple[int, int]:
    """How many places within reach of a disc are taken, and how many free: put in ``inside``."""
    starts, centre_y, centre_x = plane
    y, x, sigma = disc
    radius = int(np.rint(reach * sigma))
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
    weighted: tuple[np.ndarray, np.ndarray],
    first: int,
    inside: np.ndarray,
) -> tuple[int, int, int]:
    """The seed-weighted mean centre and bandwidth of places, to the nearest step.

    Summed relative to the first pixel of the disc, where numbers are small.
    """
    bandwidth, weight = weighted
    at_y, at_x = int(plane[1][first]), int(plane[2][first])
    total, y, x, sigma = 0, 0, 0, 0
    for place in inside:
        here = int(weight[place])
        total += here
        y += here * (plane[1][place] - at_y)
        x += here * (plane[2][place] - at_x)
        sigma += here * bandwidth[place]
    if total == 0:  # seed values below half a step
        return at_y, at_x, int(bandwidth[first])
    return (
        at_y + int(np.rint(y / total)),
        at_x + int(np.rint(x / total)),
        int(np.rint(sigma / total)),
    )


@compiled
def _give_leftovers(
    shape: tuple[int, int],
    plane: tuple[np.ndarray, np.ndarray, np.ndarray],
    owner: np.ndarray,
    discs: np.ndarray,
) -> None:
    """Free places to the disc of highest phi (equal ones: the earlier); ``owner`` in place."""
    best = np.empty(owner.size, np.float64)
    candidate = np.zeros(owner.size, np.int32)
    inside = np.empty(owner.size, np.int32)
    for disc in range(len(discs)):
        y, x, sigma = discs[disc, 0], discs[disc, 1], discs[disc, 2]
        _, free = _in_disc(shape, plane, owner, (y, x, sigma), LEFTOVER_REACH, inside)
        for place in inside[:free]:
            down, across = plane[1][place] - y, plane[2][place] - x
            distance = (down * down + across * across) / (sigma * sigma)
            if candidate[place] == 0 or distance < best[place]:
                best[place] = distance
                candidate[place] = disc + 1
    for place in range(owner.size):
        if owner[place] <= 0:
            owner[place] = candidate[place]
