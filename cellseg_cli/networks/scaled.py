"""A network at a working scale: tiles are resized before it, and what it says after it.

Cells that are small beside those that a model has learned are enlarged, large ones reduced.  It
happens inside a pass, so that tiles, slabs and fields stay in the pixels of the image.

Invariant: what is computed of a pixel depends on its surroundings and not on its tile.  For that
a scale is a multiple of 1/4, and origin and size of a tile are multiples of :func:`period_px`, in
which there is a whole number of the network's strides: pixels of the network lie alike in every
tile.  Their places are computed in float32, exactly for powers of two; for other scales what is
interpolated 1000 px from the origin of a tile is off by 1e-4 of the difference of two neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellseg_cli.errors import ConfigError
from cellseg_cli.networks.architecture import Output
from cellseg_cli.tiling import CORE_UNIT_PX

#: Steps, smallest and largest scale.
STEP, LOWEST, HIGHEST = 0.25, 0.25, 4.0


def scale_fault(scale: float) -> str | None:
    """What is wrong with a scale, or None.

    >>> scale_fault(1.3)
    'scale=1.3 is not a multiple of 0.25 in 0.25..4'
    """
    if LOWEST <= scale <= HIGHEST and (scale / STEP).is_integer():
        return None
    return f"scale={scale:g} is not a multiple of {STEP:g} in {LOWEST:g}..{HIGHEST:g}"


def fits(stride: int, scale: float) -> bool:
    """Whether a network of this stride can work at this scale.

    >>> fits(16, 1.5), fits(64, 1.5), fits(64, 1.0)
    (True, False, True)
    """
    try:
        period_px(stride, scale)
    except ConfigError:
        return False
    return True


def period_px(stride: int, scale: float) -> int:
    """Pixels of a field after which the grid of the network and that of the field meet again.

    The least whole number that, times the scale, is a multiple of the stride.

    Raises
    ------
    ConfigError
        No such scale; or the period is longer than the unit in which tiles are laid,
        :data:`cellseg_cli.tiling.CORE_UNIT_PX`, which only a stride of 32 px or more can cause.

    Examples
    --------
    >>> period_px(16, 1.0), period_px(16, 2.0), period_px(16, 1.5), period_px(16, 0.25)
    (16, 8, 32, 64)
    """
    if fault := scale_fault(scale):
        raise ConfigError(fault)
    period = (stride / Fraction(scale)).numerator
    if period > CORE_UNIT_PX:
        raise ConfigError(
            f"scale={scale:g} does not go with a network of stride {stride}; choose a multiple of "
            f"{stride / CORE_UNIT_PX:g}"
        )
    return period


class Scaled(nn.Module):
    """A network that sees images at another scale and answers in their pixels.

    Offsets and bandwidths come back in pixels of the image, unit vectors at length one.

    Parameters
    ----------
    model
        From (B, C, H, W) to :class:`Output`.
    channels
        Meaning of the components of its embedding: lengths where the name ends in ``_px``.
    scale
        Pixels of the network per pixel of the image, along a side.
    """

    factors: Tensor

    def __init__(self, model: nn.Module, channels: Sequence[str], scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale
        self.is_unit = is_unit(channels)
        factors = [1 / scale if name.endswith("_px") else 1.0 for name in channels]
        self.register_buffer("factors", torch.tensor(factors).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Output:
        """Return embedding and classes of `images`, (B, C, H, W).

        H and W are multiples of the period.
        """
        height, width = images.shape[2:]
        inner = int(height * self.scale), int(width * self.scale)
        # Without the wider kernel of antialiasing detail that is lost would leave false patterns.
        smooth = self.scale < 1
        seen = functional.interpolate(
            _interleaved(images), inner, mode="bilinear", antialias=smooth
        )
        embedding, classes = self.model(_interleaved(seen))
        # Coming back nothing is blurred: it would mix the offsets of cells that touch.
        embedding = functional.interpolate(embedding, (height, width), mode="bilinear")
        embedding = unit(embedding) if self.is_unit else embedding * self.factors
        if classes is not None:
            classes = functional.interpolate(classes, (height, width), mode="bilinear")
        return Output(embedding, classes)


def is_unit(channels: Sequence[str]) -> bool:
    """Whether the components of an embedding are those of one unit vector."""
    return channels[0].startswith("unit_")


def unit(vectors: Tensor) -> Tensor:
    """Vectors (B, E, H, W) at length one."""
    return functional.normalize(vectors, dim=1, eps=1e-6)


def _interleaved(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as float32 with channels last, for which interpolation is fastest."""
    return images.float().contiguous(memory_format=torch.channels_last)
