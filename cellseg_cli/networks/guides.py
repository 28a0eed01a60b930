"""What a network is shown besides an image as it is: local contrast, edges, contours.

The project's origin prepared its images with OpenCV: contrast-limited equalisation of histograms,
and channels that guide the network to edges and contours.  Here the same is asked of values
around a pixel alone, so that a field in tiles gives what the whole field gives, and it is part of
the network, so that whoever loads a model need not prepare anything.

- ``contrast`` takes the place of the image: how far a value is from the mean around it, in
  standard deviations (limited from below, so that flat ground stays flat, as the clip limit of
  CLAHE has it), Pizer et al. 1987.
- ``edges`` is one more channel: the length of Sobel's gradient after smoothing.
- ``contours`` is one more channel: how much a value lies above a straight line through its
  neighbours in the direction of the strongest bend, or below it, Steger 1998: the bright halo of
  a cell in phase contrast, and the dark line between two cells.

Both channels are made of the mean of the image's channels as they come, before ``contrast``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Guide = Literal["contrast", "edges", "contours"]
#: In the order of their channels.
GUIDES: tuple[Guide, ...] = ("contrast", "edges", "contours")

#: Side of the window of ``contrast``, px.
WINDOW_PX = 31
#: Standard deviations below this count as this much, in units of a field's range of values.
LEAST_DEVIATION = 0.05
#: How often an image is smoothed by (1, 2, 1) / 4 before it is derived: σ = √(n / 2) px.
SMOOTHED = {"edges": 2, "contours": 4}
#: Makes the values of a clear edge about 1.
GAIN = {"edges": 4.0, "contours": 8.0}

#: How far a pixel is seen from, px: ``contrast`` takes two means, one of the other's differences.
REACH_PX = max(2 * (WINDOW_PX // 2), *(times + 1 for times in SMOOTHED.values()))


def channels(in_channels: int, guides: Sequence[Guide]) -> int:
    """Return how many channels the encoder gets.

    >>> channels(3, ("contrast", "edges"))
    4
    """
    return in_channels + ("edges" in guides) + ("contours" in guides)


class Guides(nn.Module):
    """Prepares images, (B, C, H, W) float32 → (B, :func:`channels`, H, W) float32.

    Has no weights.  At the border of its input values are continued by the outermost ones.
    """

    def __init__(self, guides: Sequence[Guide]) -> None:
        super().__init__()
        self.guides = tuple(guide for guide in GUIDES if guide in guides)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, prepared."""
        if not self.guides:
            return images
        grey = images.float().mean(dim=1, keepdim=True)
        prepared = {"contrast": _contrast, "edges": _edges, "contours": _contours}
        shown = _contrast(images.float()) if "contrast" in self.guides else images
        further = [prepared[guide](grey) for guide in self.guides if guide != "contrast"]
        return torch.cat([shown, *(one.to(shown.dtype) for one in further)], dim=1)


def _contrast(images: Tensor) -> Tensor:
    """Return (value − mean) / deviation of the window around each pixel."""
    mean = _windowed(images)
    variance = (_windowed((images - mean).square())).clamp(min=0)
    return (images - mean) / variance.sqrt().clamp(min=LEAST_DEVIATION) / 2


def _windowed(images: Tensor) -> Tensor:
    """Return the mean over the window around each pixel."""
    half = WINDOW_PX // 2
    padded = functional.pad(images, (half, half, 0, 0), mode="replicate")
    rows = functional.avg_pool2d(padded, (1, WINDOW_PX), stride=1)
    padded = functional.pad(rows, (0, 0, half, half), mode="replicate")
    return functional.avg_pool2d(padded, (WINDOW_PX, 1), stride=1)


def _edges(grey: Tensor) -> Tensor:
    smooth = _smoothed(grey, SMOOTHED["edges"])
    around = functional.pad(smooth, (1, 1, 1, 1), mode="replicate")
    across = around[..., :, 2:] - around[..., :, :-2]
    down = around[..., 2:, :] - around[..., :-2, :]
    x = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 8
    y = (down[..., :, :-2] + 2 * down[..., :, 1:-1] + down[..., :, 2:]) / 8
    return (x.square() + y.square()).sqrt() * GAIN["edges"]


def _contours(grey: Tensor) -> Tensor:
    """Return minus the second derivative of the larger size: bright lines are positive."""
    smooth = _smoothed(grey, SMOOTHED["contours"])
    p = functional.pad(smooth, (1, 1, 1, 1), mode="replicate")
    middle = p[..., 1:-1, 1:-1]
    xx = p[..., 1:-1, 2:] - 2 * middle + p[..., 1:-1, :-2]
    yy = p[..., 2:, 1:-1] - 2 * middle + p[..., :-2, 1:-1]
    xy = (p[..., 2:, 2:] - p[..., 2:, :-2] - p[..., :-2, 2:] + p[..., :-2, :-2]) / 4
    half = (xx + yy) / 2
    spread = (((xx - yy) / 2).square() + xy.square()).sqrt()
    return -torch.where(half >= 0, half + spread, half - spread) * GAIN["contours"]


def _smoothed(grey: Tensor, times: int) -> Tensor:
    for _ in range(times):
        p = functional.pad(grey, (1, 1, 0, 0), mode="replicate")
        grey = (p[..., :-2] + 2 * p[..., 1:-1] + p[..., 2:]) / 4
        p = functional.pad(grey, (0, 0, 1, 1), mode="replicate")
        grey = (p[..., :-2, :] + 2 * p[..., 1:-1, :] + p[..., 2:, :]) / 4
    return grey
