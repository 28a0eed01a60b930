"""Losses that were left on the device: their means, and the first step that went wrong."""

from __future__ import annotations

import pytest
import torch

from cellseg_cli.training.pending import NO_FAULT, Fault, Pending

NAN, INF = float("nan"), float("inf")


def pending(*rows: tuple[float, float, float]) -> Pending:
    """Steps 7, 8, ... with two loss terms and the norm of the gradient."""
    losses = Pending()
    for step, (overlap, seed, norm) in enumerate(rows, start=7):
        terms = {"overlap": torch.tensor(overlap), "seed": torch.tensor(seed, requires_grad=True)}
        losses.add(step, (f"a{step}", f"b{step}"), terms, torch.tensor(norm))
    return losses


def test_means_are_over_the_steps_and_forgotten_then() -> None:
    losses = pending((1.0, 0.5, 9.0), (3.0, 0.0, 9.0))
    assert len(losses) == 2
    assert losses.settle() == ({"overlap": 2.0, "seed": 0.25}, None)
    assert len(losses) == 0


@pytest.mark.parametrize(
    ("second", "in_loss", "what", "told"),
    [
        ((2.0, NAN, NAN), True, "loss", "{'overlap': 2.0, 'seed': nan}"),
        ((INF, 1.0, NAN), True, "loss", "{'overlap': inf, 'seed': 1.0}"),
        ((2.0, 1.0, INF), False, "gradient of the loss", "{'overlap': 2.0, 'seed': 1.0}"),
    ],
)
def test_the_first_step_that_went_wrong_is_told_with_its_fields(
    second: tuple[float, float, float], in_loss: bool, what: str, told: str
) -> None:
    """What comes after is its consequence: weights are not numbers any more."""
    _, fault = pending((1.0, 1.0, 1.0), second, (NAN, NAN, NAN)).settle()
    assert fault == Fault(
        8,
        in_loss,
        f"the {what} is not finite at step 8: {told}; fields of the batch: a8, b8; "
        "look at them, or lower learning_rate",
    )


def test_of_several_processes_the_cause_comes_first() -> None:
    """A loss of one makes the gradient of all; a later loss is a consequence."""
    loss, gradient, later = Fault(8, True, ""), Fault(8, False, ""), Fault(9, True, "")
    assert loss.order < gradient.order < later.order < NO_FAULT
