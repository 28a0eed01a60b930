"""ResNet-18 and -34 without timm, for models that are already trained.

``import timm`` loads every family of networks and, by way of torchvision, PyTorch's compiler: more
than half of what a run takes to start.  These two encoders are the usual ones and small
enough to write down.  Invariant: names of weights, shapes and operations are timm's
(``tests/networks/test_resnet.py`` holds them to equal output, bit for bit), so that it cannot be
told from a model file or an embedding which of the two built the network.  A network whose
weights are yet to be learned comes from timm, which knows how they begin.

Architecture: He et al., Deep Residual Learning, arXiv 1512.03385, table 1 and figure 5 left.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

#: Blocks of each stage.
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}

#: Channels of the stem and of each stage.
WIDTHS = (64, 64, 128, 256, 512)


class Encoder(nn.Module):
    """The first stages of a ResNet of :data:`BLOCKS`.

    Parameters
    ----------
    name
        Key of ``BLOCKS``.
    in_channels
        Image channels.
    levels
        Stages with the stem, 1 to 5; stage i has stride 2**(i + 1).
    """

    def __init__(self, name: str, in_channels: int, levels: int) -> None:
        super().__init__()
        self.widths = list(WIDTHS[:levels])
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU(inplace=True)
        if levels > 1:
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for level in range(1, levels):
            stage = _stage(BLOCKS[name][level - 1], WIDTHS[level - 1], WIDTHS[level])
            self.add_module(f"layer{level}", stage)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return each stage's features of images (B, C, H, W), finest first."""
        features = [cast(Tensor, self.act1(self.bn1(self.conv1(images))))]
        for level in range(1, len(self.widths)):
            below = self.maxpool(features[0]) if level == 1 else features[-1]
            features.append(getattr(self, f"layer{level}")(below))
        return features


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, below: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(below, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1:
            shortcut = nn.Conv2d(below, width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, width, H / stride, W / stride)."""
        shortcut = images if self.downsample is None else self.downsample(images)
        features = self.act1(self.bn1(self.conv1(images)))
        features = self.bn2(self.conv2(features))
        features += shortcut
        return cast(Tensor, self.act2(features))


def _stage(blocks: int, below: int, width: int) -> nn.Sequential:
    first = Block(below, width, 1 if below == width else 2)
    return nn.Sequential(first, *(Block(width, width, 1) for _ in range(blocks - 1)))
