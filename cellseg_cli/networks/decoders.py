"""Decoders: from the stages of an encoder back to one feature vector for each pixel.

Every decoder takes the image and the encoder's stages, finest first, stage i at stride 2**(i + 1),
and gives ``finest`` channels at full size; each coarser stage has twice as many, up to
:data:`MAX_WIDTH`.  All see the image itself through one convolution in their last stage: at stride
2 the rim of a nucleus is already blurred, and the rim is where average precision at high IoU is
decided.  Names of weights stand in model files: those of ``unet`` are those of the first release.

Invariant: every operation has the same meaning wherever in an image it is done, so that tiles
whose origin is a multiple of the stride agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellseg_cli.networks.beside import ConvolveBeside, Stages

DecoderName = Literal["unet", "refinenet", "upscale"]

#: Most channels of a stage.
MAX_WIDTH = 256

#: Pooling blocks of a chain, and their window, pixels (RefineNet, section 3.2).
POOLINGS, POOLED_PX = 2, 5


class Decoder(Protocol):
    """What all decoders do."""

    def __call__(self, images: Tensor, features: list[Tensor]) -> Tensor:
        """Return (B, finest, H, W) from images (B, C, H, W) and stages, finest first."""


class UNetDecoder(nn.Module):
    """Enlarge, put the skip beside it, convolve twice (Ronneberger et al., arXiv 1505.04597)."""

    def __init__(self, widths: Sequence[int], in_channels: int, finest: int) -> None:
        super().__init__()
        self.stem = _convolve(in_channels, finest)
        skips = [finest, *widths[:-1]]
        stages = []
        below = widths[-1]
        for level in reversed(range(len(skips))):
            width = _width(finest, level)
            stages.append(
                nn.Sequential(_convolve_beside(below, skips[level], width), _convolve(width, width))
            )
            below = width
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor, features: list[Tensor]) -> Tensor:
        """As :class:`Decoder`."""
        skips = [self.stem(images), *features[:-1]]
        below = features[-1]
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            below = stage(Stages(below, skip))
        return below


class UpscaleDecoder(nn.Module):
    """Enlarge by a transposed convolution, put the skip beside it, convolve once.

    The kernel is as wide as its stride, 2, so that each pixel comes from one coarser pixel and no
    chequerboard can arise where kernels overlap.
    """

    def __init__(self, widths: Sequence[int], in_channels: int, finest: int) -> None:
        super().__init__()
        self.stem = _convolve(in_channels, finest)
        skips = [finest, *widths[:-1]]
        ups, stages = [], []
        below = widths[-1]
        for level in reversed(range(len(skips))):
            width = _width(finest, level)
            ups.append(nn.ConvTranspose2d(below, width, kernel_size=2, stride=2))
            stages.append(_convolve(width + skips[level], width))
            below = width
        self.ups, self.stages = nn.ModuleList(ups), nn.ModuleList(stages)

    def forward(self, images: Tensor, features: list[Tensor]) -> Tensor:
        """As :class:`Decoder`."""
        skips = [self.stem(images), *features[:-1]]
        below = features[-1]
        for up, stage, skip in zip(self.ups, self.stages, reversed(skips), strict=True):
            below = stage(torch.cat([up(below), skip], dim=1))
        return below


class RefineNetDecoder(nn.Module):
    """One RefineNet block for each stage, coarsest first (Lin et al., arXiv 1611.06612).

    Lighter than in the paper, for CPUs: widths follow ``finest``, a stage of the encoder is brought
    to its width by a 1×1 convolution and passes one residual unit and not two, the coarser block
    none, since it has just left one.  Batch norms stand after each convolution of a residual unit,
    since the encoder need not be trained before.  The paper ends at the finest stage of the
    encoder; here a stage of the U-Net brings its block to full size.

    On a CPU core the whole network takes 1.8 times as long as with the U-Net (resnet18, 16
    channels, 256×256 px, float32), with ``upscale`` 0.9 times.
    """

    def __init__(self, widths: Sequence[int], in_channels: int, finest: int) -> None:
        super().__init__()
        self.stem = _convolve(in_channels, finest)
        blocks = []
        below = None
        for level in reversed(range(len(widths))):
            width = _width(finest, level + 1)
            blocks.append(_Refine(widths[level], below, width))
            below = width
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Sequential(
            _convolve_beside(_width(finest, 1), finest, finest), _convolve(finest, finest)
        )

    def forward(self, images: Tensor, features: list[Tensor]) -> Tensor:
        """As :class:`Decoder`."""
        below = None
        for block, stage in zip(self.blocks, reversed(features), strict=True):
            below = block(stage, below)
        assert below is not None
        return cast(Tensor, self.last(Stages(below, self.stem(images))))


class _Refine(nn.Module):
    """Residual units, multi-resolution fusion, chained residual pooling, a residual unit."""

    def __init__(self, skip: int, below: int | None, width: int) -> None:
        super().__init__()
        self.adapt = nn.Sequential(nn.Conv2d(skip, width, 1, bias=False), nn.BatchNorm2d(width))
        self.unit = _Residual(width)
        self.fuse = None if below is None else _Fuse(below, width)
        self.chain = nn.ModuleList(
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False) for _ in range(POOLINGS)
        )
        self.out = _Residual(width)

    def forward(self, skip: Tensor, below: Tensor | None) -> Tensor:
        """Return (B, width, h, w) from a stage (B, skip, h, w) and the block at half its size."""
        features = self.unit(self.adapt(skip))
        if self.fuse is not None:
            features = self.fuse(features, below)
        features = functional.relu(features)
        pooled = features
        for convolution in self.chain:
            pooled = convolution(_max_pooled(pooled))
            features = features + pooled
        return cast(Tensor, self.out(features))


class _Fuse(nn.Module):
    """The sum of two inputs, each convolved, the coarse one enlarged."""

    def __init__(self, below: int, width: int) -> None:
        super().__init__()
        self.below = nn.Conv2d(below, width, kernel_size=3, padding=1)
        self.skip = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, features: Tensor, below: Tensor) -> Tensor:
        """Return (B, width, h, w) from that and (B, below, h / 2, w / 2)."""
        coarse = self.below(below)
        enlarged = functional.interpolate(coarse, size=features.shape[-2:], mode="bilinear")
        return cast(Tensor, self.skip(features)) + enlarged


class _Residual(nn.Module):
    """Two convolutions, each after a rectifier, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.ReLU(),  # not in place: the identity needs what comes in
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the shape that comes in, (B, width, h, w)."""
        return features + cast(Tensor, self.inner(features))


def _max_pooled(features: Tensor) -> Tensor:
    """The largest value in a window around each pixel: along rows, then along columns.

    >>> _max_pooled(torch.arange(16.0).view(1, 1, 4, 4))[0, 0, :, 0]
    tensor([10., 14., 14., 14.])
    """
    reach = POOLED_PX // 2
    along = functional.max_pool2d(features, (1, POOLED_PX), stride=1, padding=(0, reach))
    return functional.max_pool2d(along, (POOLED_PX, 1), stride=1, padding=(reach, 0))


def _width(finest: int, level: int) -> int:
    return min(finest * 2**level, MAX_WIDTH)


def _convolve(in_channels: int, out_channels: int) -> nn.Sequential:
    return _normalised(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False))


def _convolve_beside(below: int, skip: int, out_channels: int) -> nn.Sequential:
    """What takes :class:`Stages`."""
    return _normalised(ConvolveBeside(below, skip, out_channels))


def _normalised(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(
        convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)
    )


#: Each takes the channels of the encoder's stages, finest first, those of the image, and its own
#: at full size.
DECODERS: dict[DecoderName, Callable[[Sequence[int], int, int], nn.Module]] = {
    "unet": UNetDecoder,
    "refinenet": RefineNetDecoder,
    "upscale": UpscaleDecoder,
}
