"""How often each field is drawn: by its data set, its cell type, and how many are like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError
from cellseg_cli.training.data import PSEUDO, Source


@dataclass(frozen=True)
class Draw:
    """How often each field is drawn.

    Attributes
    ----------
    probabilities
        (n,) float64, one per field, summing to 1.
    """

    probabilities: NDArray[np.float64]

    @classmethod
    def of(cls, sources: Sequence[Source], settings: TrainSettings) -> Draw:
        """Return the draw that `settings` ask for.

        With ``weights`` a data set's share is its weight over the sum of those of data sets
        that have fields, and ``balance`` holds among the groups inside it; without, among all
        groups.  Pseudo-labelled fields together are drawn ``pseudo_weight`` times as often as
        annotated ones together, and ``balance`` holds among their stores.
        """
        weight = cls.balanced(sources, settings.balance).probabilities.copy()
        data_set = np.array([source.group.partition(":")[0] for source in sources])
        for number, share in enumerate(settings.weights):
            _scale(weight, data_set == str(number), share)
        pseudo = np.char.startswith(data_set, PSEUDO)
        _scale(weight, ~pseudo, 1.0)
        _scale(weight, pseudo, settings.pseudo_weight)
        return cls(weight / weight.sum())

    @classmethod
    def balanced(cls, sources: Sequence[Source], balance: float) -> Draw:
        """Return a draw in which a group of n fields has a share ∝ n**balance.

        >>> fields = [Source(None, None, group) for group in "aaab"]
        >>> Draw.balanced(fields, 0.0).probabilities.round(3).tolist()
        [0.167, 0.167, 0.167, 0.5]
        """
        if not 0 <= balance <= 1:
            raise ConfigError(f"balance={balance} is not in [0, 1]")
        _, group, sizes = np.unique(
            [source.group for source in sources], return_inverse=True, return_counts=True
        )
        weight = sizes[group] ** (balance - 1.0)
        return cls(weight / weight.sum())


def _scale(weight: NDArray[np.float64], chosen: NDArray[np.bool_], share: float) -> None:
    """Make the chosen weights sum to `share`, in place; nothing where none is chosen."""
    if chosen.any():
        weight[chosen] *= share / weight[chosen].sum()
