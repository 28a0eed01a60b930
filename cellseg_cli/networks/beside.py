"""A convolution over a coarse stage at twice its size with a finer one beside it.

The same as enlarging by nearest pixels, joining the channels and convolving, with fewer products:
of the 3×3 pixels that a kernel sees of the enlarged stage several are copies of one, so the
weights that meet them can be added up first.  For each of the four places that a fine pixel has
in a coarse one a kernel of 2×2 is left, 4 products where there were 9 (the rearrangement is that
of Shi et al., arXiv 1609.07009).  Neither the enlarged stage nor the two joined are ever laid
down.  The sums are rounded in another order, so values differ in their last digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Where a fine pixel lies in its coarse one, (down, right): 0 in the upper or left half, 1 in the
#: lower or right one.
_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


class Stages(NamedTuple):
    """What is convolved.

    Attributes
    ----------
    below
        (B, C, H, W), to be enlarged.
    skip
        (B, K, 2H, 2W), to stand beside it.
    """

    below: Tensor
    skip: Tensor


class ConvolveBeside(nn.Conv2d):
    """A 3×3 convolution, padded by zeros, of an enlarged stage and a finer one.

    The weights are those of a plain convolution of the joined channels, the enlarged stage first;
    so are their names in model files.

    Parameters
    ----------
    below, skip
        Channels of the stages.
    out_channels
        Of the result, (B, out_channels, 2H, 2W).
    """

    def __init__(self, below: int, skip: int, out_channels: int) -> None:
        super().__init__(below + skip, out_channels, kernel_size=3, padding=1, bias=False)
        self.below = below

    def forward(self, stages: Stages) -> Tensor:  # type: ignore[override]
        """Return (B, out_channels, 2H, 2W)."""
        quarters, kernel = self._kernels()
        return _joined(
            functional.conv2d(stages.below, quarters, padding=1),
            functional.conv2d(stages.skip, kernel, self.bias, padding=1),
        )

    def prepared(self) -> PreparedBeside:
        """The same for passes without learning, with its weights added up once."""
        return PreparedBeside(*self._kernels(), self.bias)

    def _kernels(self) -> tuple[Tensor, Tensor]:
        """Return those of the coarse stage at all places, and that of the finer one."""
        coarse, fine = self.weight.split([self.below, self.in_channels - self.below], dim=1)
        places = [_added_up(_added_up(coarse, 2, down), 3, right) for down, right in _PLACES]
        return torch.cat(places), fine


class PreparedBeside(nn.Module):
    """What :class:`ConvolveBeside` gives, by two plain convolutions.

    Parameters
    ----------
    quarters
        (4·O, C, 2, 2): the kernels for the four places.
    kernel
        (O, K, 3, 3).
    bias
        (O,) or None.
    """

    def __init__(self, quarters: Tensor, kernel: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.below = _convolution(quarters, None)
        self.skip = _convolution(kernel, bias)

    def forward(self, stages: Stages) -> Tensor:
        """Return (B, O, 2H, 2W)."""
        return _joined(self.below(stages.below), self.skip(stages.skip))


def _convolution(kernel: Tensor, bias: Tensor | None) -> nn.Conv2d:
    out_channels, in_channels, side, _ = kernel.shape
    made = nn.utils.skip_init(
        nn.Conv2d, in_channels, out_channels, side, padding=1, bias=bias is not None
    )
    made.weight = nn.Parameter(kernel.detach().clone(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made


def _added_up(kernel: Tensor, axis: int, place: int) -> Tensor:
    """Return the three weights along an axis as the two that meet different coarse pixels.

    A fine pixel at place 0 has the coarse pixel before its own on one side and its own on the
    other, one at place 1 its own and the one after.
    """
    first, middle, last = kernel.unbind(axis)
    both = (first, middle + last) if place == 0 else (first + middle, last)
    return torch.stack(both, axis)


def _joined(quarters: Tensor, fine: Tensor) -> Tensor:
    """Return `fine` with the coarse stage's share added, in place of it."""
    height, width = quarters.shape[2] - 1, quarters.shape[3] - 1
    assert fine.shape[2:] == (2 * height, 2 * width)
    if torch.is_grad_enabled() and (quarters.requires_grad or fine.requires_grad):
        joined: Tensor = _Join.apply(quarters, fine)
        return joined
    return _add(quarters, fine)


def _add(quarters: Tensor, fine: Tensor) -> Tensor:
    for one, share in zip(_at_places(fine), _quarters_at_places(quarters), strict=True):
        one.add_(share)
    return fine


class _Join(torch.autograd.Function):
    """The sum and its gradient; by itself PyTorch would copy all gradients four times."""

    @staticmethod
    def forward(ctx: Any, quarters: Tensor, fine: Tensor) -> Tensor:
        ctx.shape = quarters.shape
        ctx.mark_dirty(fine)
        return _add(quarters, fine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        batch, channels, height, width = ctx.shape
        quarters = gradient.new_zeros((batch, height, width, channels)).permute(0, 3, 1, 2)
        for one, share in zip(_at_places(gradient), _quarters_at_places(quarters), strict=True):
            share.copy_(one)
        return quarters, gradient


def _at_places(fine: Tensor) -> list[Tensor]:
    """Views (B, O, H, W) of (B, O, 2H, 2W): the fine pixels at each place in the coarse ones."""
    return [fine[:, :, down::2, right::2] for down, right in _PLACES]


def _quarters_at_places(quarters: Tensor) -> list[Tensor]:
    """Views (B, O, H, W) of (B, 4·O, H + 1, W + 1): what is to be added at each place."""
    height, width = quarters.shape[2] - 1, quarters.shape[3] - 1
    shares = quarters.chunk(len(_PLACES), dim=1)
    return [
        share[:, :, down : down + height, right : right + width]
        for share, (down, right) in zip(shares, _PLACES, strict=True)
    ]
