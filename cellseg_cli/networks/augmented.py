"""Test-time augmentation: the mean of what a network says of turned copies of a tile.

It happens inside a pass, so that tiles, slabs and fields know nothing of it; a pass takes as many
times longer as there are copies, one after the other, and memory for one of them.

Law (``tests/networks/test_augmented.py``): with the eight copies of ``dihedral`` a turned square
image has the turned embedding, whatever the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cellseg_cli.networks.architecture import Output
from cellseg_cli.networks.scaled import is_unit, unit

Tta = Literal["none", "flips", "dihedral"]


@dataclass(frozen=True)
class Turn:
    """One symmetry of the square: rows and columns change places, then each may be reversed.

    Attributes
    ----------
    swap
        Rows become columns.
    up_down, left_right
        The rows, or the columns, of the result of that are reversed.
    """

    swap: bool = False
    up_down: bool = False
    left_right: bool = False

    def of(self, images: Tensor) -> Tensor:
        """Turned images (B, C, H, W); (B, C, W, H) where rows become columns."""
        images = images.transpose(2, 3) if self.swap else images
        return self._reversed(images)

    def back(self, images: Tensor) -> Tensor:
        """What undoes :meth:`of`; the components of vectors are not turned."""
        images = self._reversed(images)
        return images.transpose(2, 3) if self.swap else images

    def _reversed(self, images: Tensor) -> Tensor:
        flipped = [dim for dim, wanted in ((2, self.up_down), (3, self.left_right)) if wanted]
        return images.flip(flipped) if flipped else images

    def components(self, channels: Sequence[str]) -> tuple[list[int], list[float]]:
        """Where each component is found in what was said of a turned image, and its sign.

        Names of the two directions differ by ``_y_`` and ``_x_``; those that begin with
        ``offset`` have a sign.

        >>> Turn(swap=True, up_down=True).components(("offset_y_px", "offset_x_px", "seed"))
        ([1, 0, 2], [1.0, -1.0, 1.0])
        """
        source, signs = [], []
        for name in channels:
            there = _other_direction(name) if self.swap else name
            reverse = (self.up_down and "_y_" in there) or (self.left_right and "_x_" in there)
            source.append(channels.index(there))
            signs.append(-1.0 if reverse and name.startswith("offset") else 1.0)
        return source, signs


def _other_direction(name: str) -> str:
    if "_y_" in name:
        return name.replace("_y_", "_x_")
    return name.replace("_x_", "_y_")


_FLIPS = tuple(Turn(up_down=y, left_right=x) for y in (False, True) for x in (False, True))

#: The copies of each kind of augmentation.
TURNS: dict[Tta, tuple[Turn, ...]] = {
    "none": (Turn(),),
    "flips": _FLIPS,
    "dihedral": (*_FLIPS, *(Turn(True, one.up_down, one.left_right) for one in _FLIPS)),
}


class Augmented(nn.Module):
    """The mean of a network over turned copies.

    Vectors are turned back; of lengths without a sign, such as bandwidths, the geometric mean is
    taken, of unit vectors the direction of their sum, of classes the mean probabilities.

    Parameters
    ----------
    model
        From (B, C, H, W) to :class:`Output`.
    channels
        Meaning of the components of its embedding.
    turns
        The copies.
    """

    sources: Tensor
    signs: Tensor
    logs: Tensor

    def __init__(self, model: nn.Module, channels: Sequence[str], turns: Sequence[Turn]) -> None:
        super().__init__()
        self.model, self.turns = model, tuple(turns)
        self.is_unit = is_unit(channels)
        found = [turn.components(channels) for turn in turns]
        logs = [name.endswith("_px") and not name.startswith("offset") for name in channels]
        for name, values in {
            "sources": [source for source, _ in found],
            "signs": [sign for _, sign in found],
            "logs": [logs],
        }.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, images: Tensor) -> Output:
        """Return embedding and classes of `images`, (B, C, H, W).

        The classes are logarithms of probabilities times a constant, which are logits as well.
        """
        embedding, classes = self._seen(images, 0)
        for number in range(1, len(self.turns)):
            values, logits = self._seen(images, number)
            embedding = embedding + values
            if classes is not None and logits is not None:
                classes = torch.logaddexp(classes, logits)
        if self.is_unit:
            return Output(unit(embedding), classes)
        mean = embedding / len(self.turns)
        return Output(torch.where(_per_channel(self.logs[0]), mean.exp(), mean), classes)

    def _seen(self, images: Tensor, number: int) -> tuple[Tensor, Tensor | None]:
        """What can be added up of one copy, in the frame of the image."""
        turn = self.turns[number]
        turned = turn.of(images).contiguous(memory_format=torch.channels_last)
        embedding, classes = self.model(turned)
        embedding = turn.back(embedding)
        if not self.is_unit:
            embedding = embedding[:, self.sources[number]] * _per_channel(self.signs[number])
            embedding = torch.where(_per_channel(self.logs[0]), embedding.log(), embedding)
        if classes is not None:
            classes = turn.back(torch.log_softmax(classes, dim=1))
        return embedding, classes


def _per_channel(values: Tensor) -> Tensor:
    """(E,) as (1, E, 1, 1)."""
    return values.view(1, -1, 1, 1)
