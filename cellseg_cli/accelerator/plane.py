"""The plane of predicted centres of a batch of spatial embeddings, and discs in it.

Centres, bandwidths and weights are whole steps, as in :mod:`cellseg_cli.clustering.seeds`, and
all arithmetic on them is of integers but for a radius and a quotient, each rounded at once.

A disc is a row of three numbers: centre y, centre x and bandwidth, in steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cellseg_cli.clustering.seeds import STEPS, WEIGHT_STEPS, WIDEST_PX


@dataclass(frozen=True, eq=False)
class Plane:
    """Foreground pixels in row-major order, and what they predict.

    Attributes
    ----------
    shape : (int, int, int)
        B, Y, X.
    pixel : (n,) int64
        Flat index in the batch.
    disc : (n, 3) int64
        Predicted centre in its field, and bandwidth.
    seed : (n,) float32
        Seed value.
    inward : (n,) int64
        Squared distance of the pixel from its predicted centre, in steps².
    """

    shape: tuple[int, int, int]
    pixel: Tensor
    disc: Tensor
    seed: Tensor
    inward: Tensor

    def field(self, index: Tensor) -> Tensor:
        """The fields of some of the pixels: (m,) int64."""
        return self.pixel[index] // (self.shape[1] * self.shape[2])

    def weight(self, index: Tensor) -> Tensor:
        """The seed values of some of the pixels, in steps: (m,) int64."""
        return (self.seed[index].clamp_max(1) * WEIGHT_STEPS).round().long()


def plane_of(values: Tensor, usable: Tensor, foreground: float) -> Plane:
    """The plane of the pixels whose seed value is above a level.

    Parameters
    ----------
    values : (B, 4, Y, X) float32, C-contiguous
    usable : (B,) bool
        Fields whose pixels count.
    foreground : float
    """
    fields, _, height, width = values.shape
    pixel = ((values[:, 3] > foreground) & usable[:, None, None]).view(-1).nonzero()[:, 0]
    place = pixel % (height * width)
    first = (pixel - place) * 4 + place
    flat = values.view(-1)
    down, across, sigma = (_steps(flat[first + k * height * width]) for k in range(3))
    y, x = place // width * STEPS + down, place % width * STEPS + across
    return Plane(
        shape=(fields, height, width),
        pixel=pixel,
        disc=torch.stack([y, x, sigma.clamp_min(1)], 1),
        seed=flat[first + 3 * height * width],
        inward=down * down + across * across,
    )


def _steps(lengths_px: Tensor) -> Tensor:
    return (lengths_px.clamp(-WIDEST_PX, WIDEST_PX) * STEPS).round().long()


def radii(discs: Tensor, reach: float) -> Tensor:
    """The radii of discs at so many bandwidths: (k,) int64, steps."""
    return (discs[:, 2].double() * reach).round().long()


def squared_distances(one: Tensor, two: Tensor) -> Tensor:
    """The squared distances of the centres of discs (k, 3) each: (k,) int64, steps²."""
    apart = one[:, :2] - two[:, :2]
    return (apart * apart).sum(1)


@dataclass(frozen=True)
class Tiling:
    """Square tiles over the planes of a batch of fields, numbered in row-major order.

    Attributes
    ----------
    shape : (int, int, int)
        Fields, and the tiles of each down and across.
    side : int
        Of a tile, in steps.
    """

    shape: tuple[int, int, int]
    side: int

    @classmethod
    def of(cls, fields: tuple[int, int, int], side_px: int) -> Tiling:
        """The tiles of fields of a shape (B, Y, X)."""
        down, across = (-(-size // side_px) for size in fields[1:])
        return cls((fields[0], down, across), side_px * STEPS)

    @property
    def tiles(self) -> int:
        """How many there are."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def at(self, field: Tensor, place: Tensor) -> Tensor:
        """The tile of each place (k, 2 or more), y and x in steps: (k,) int64.

        Places outside the field are in the nearest tile.
        """
        row = (place[:, 0] // self.side).clamp(0, self.shape[1] - 1)
        column = (place[:, 1] // self.side).clamp(0, self.shape[2] - 1)
        return (field * self.shape[1] + row) * self.shape[2] + column
