"""How a network looks at a tile: at which scale, and how many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cellseg_cli.networks.augmented import TURNS, Augmented, Tta
from cellseg_cli.networks.scaled import Scaled


@dataclass(frozen=True)
class View:
    """What a pass does besides the network.

    Attributes
    ----------
    scale
        Pixels of the network per pixel of the image along a side; None: the model's own.
    tta
        Whether a pass is the mean over turned copies: ``none``, ``flips`` or ``dihedral``.
    """

    scale: float | None = None
    tta: Tta = "none"

    def of(self, own: float) -> View:
        """The same, for a model with this scale of its own."""
        return View(own, self.tta) if self.scale is None else self

    @property
    def factor(self) -> float:
        """The scale; 1 where there is none of its own."""
        return 1.0 if self.scale is None else self.scale

    @property
    def is_plain(self) -> bool:
        """Whether nothing stands between an image and the network."""
        return self.factor == 1 and self.tta == "none"

    @property
    def work(self) -> float:
        """Pixels that go through the network for each pixel of a tile."""
        return len(TURNS[self.tta]) * self.factor**2

    def through(self, model: nn.Module, channels: Sequence[str]) -> nn.Module:
        """A model whose embedding has these components, inside what this asks for."""
        if self.factor != 1:
            model = Scaled(model, channels, self.factor)
        if self.tta != "none":
            model = Augmented(model, channels, TURNS[self.tta])
        return model
