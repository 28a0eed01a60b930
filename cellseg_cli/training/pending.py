"""Losses of the steps since the last report, left where they were computed until then.

Reading a loss waits for the device; so all are read together, and a loss that is not finite is
found some steps later.  No state, no model and no score is made of these steps before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fault:
    """The first step that cannot have been right.

    Attributes
    ----------
    step
        Where it is.
    in_loss
        Whether a loss of this process is not finite; else it is the gradient alone.
    message
        What to tell: the losses and the fields of the batch.
    """

    step: int
    in_loss: bool
    message: str

    @property
    def order(self) -> float:
        """Faults of several processes, first cause first."""
        return 2.0 * self.step + (0.0 if self.in_loss else 1.0)


#: What :attr:`Fault.order` is where there is none.
NO_FAULT = inf


@dataclass
class Pending:
    """Losses by step, their sum's gradient, and the fields that they come from."""

    _names: tuple[str, ...] = ()
    _rows: list[Tensor] = field(default_factory=list)
    _steps: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, step: int, field_ids: tuple[str, ...], terms: dict[str, Tensor], norm: Tensor
    ) -> None:
        """Keep the loss terms of a step and the norm of its gradient, scalars on any device."""
        self._names = tuple(terms)
        values = [value.detach() for value in terms.values()]
        self._rows.append(torch.stack([*values, norm.to(values[0].device)]))
        self._steps.append((step, field_ids))

    def settle(self) -> tuple[dict[str, float], Fault | None]:
        """Return the mean of each term and the first fault; forget these steps."""
        table = torch.stack(self._rows).double().cpu()  # (steps, terms + 1)
        fault = self._fault(table)
        means = dict(zip(self._names, table[:, :-1].mean(0).tolist(), strict=True))
        self._rows.clear()
        self._steps.clear()
        return means, fault

    def _fault(self, table: Tensor) -> Fault | None:
        finite = table.isfinite()
        if bool(finite.all()):
            return None
        row = int((~finite.all(1)).nonzero()[0])
        step, field_ids = self._steps[row]
        in_loss = not bool(finite[row, :-1].all())
        losses = dict(zip(self._names, table[row, :-1].tolist(), strict=True))
        what = "loss" if in_loss else "gradient of the loss"
        return Fault(
            step,
            in_loss,
            f"the {what} is not finite at step {step}: {losses}; fields of the batch: "
            f"{', '.join(field_ids)}; look at them, or lower learning_rate",
        )
