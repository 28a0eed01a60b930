"""What a run says of itself: when it starts, now and then, and at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellseg_cli.networks.initial import InitialReport
from cellseg_cli.training.data import Failed, Noted


@dataclass(frozen=True)
class Started:
    """What a sitting works on, where, and from which step on.

    ``steps`` are as many as ``minutes`` allow where these are not 0.
    """

    device: str
    precision: str
    fields: int
    held_out: int
    step: int
    steps: int
    minutes: float = 0.0


@dataclass(frozen=True)
class Report:
    """What a run says of itself now and then; ``score`` only after a validation.

    Losses are means over the steps since the last report, and over processes; rates and shares
    of time are those of :class:`~cellseg_cli.training.clock.Spent` since then.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    crops_per_s: float
    megapixels_per_s: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)
    score: Mapping[str, float] | None = None

    def values(self) -> dict[str, float]:
        """Return everything by the name that it has in ``metrics.csv``."""
        if self.score is not None:
            return dict(self.score)
        rates = {"crops_per_s": self.crops_per_s, "megapixels_per_s": self.megapixels_per_s}
        shares = {f"share/{part}": share for part, share in self.shares.items()}
        return {**self.losses, **rates, **shares}


Emit = Callable[[Started | Report | Failed | Noted | InitialReport], None]


@dataclass(frozen=True)
class Result:
    """Where a finished run's models lie, and its best validation score.

    ``score`` is reached with the best of a few settings of the recipe's method,
    the same for all fields; ``tuned`` holds the
    settings that the best model carries and what they reach.  Rates and shares
    of time are over all sittings.  Of several
    processes only the one of rank 0 writes, reports and knows the score.
    """

    best: Path
    last: Path
    score: Mapping[str, Any]
    tuned: Mapping[str, Any]
    steps: int
    seconds: float
    device: str
    crops_per_s: float
    megapixels_per_s: float
    shares: Mapping[str, float]
    rank: int = 0
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True)
class Labelling:
    """What the model file will say: name, licence, origin of the data."""

    name: str = "model"
    licence: str = "unstated"
    data: str = "unstated"
