"""Muon: orthogonal steps on the inner convolutions, AdamW on all else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cellseg_cli.training.muon import MATRIX_RATE, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (16, 2, 1, 2), (5, 5)])
def test_singular_vectors_stay_and_values_come_near_one(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = orthogonalised(weights)
    assert found.shape == weights.shape
    left, values, right = torch.linalg.svd(weights.reshape(shape[0], -1), full_matrices=False)
    turned = left.T @ found.reshape(shape[0], -1) @ right.T
    diagonal = turned.diagonal()
    assert (turned - torch.diag(diagonal)).abs().max() < 1e-3
    large = values > values.max() / 1000
    assert (diagonal[large] > 0.6).all()
    assert (diagonal[large] < 1.3).all()


def test_zero_gradients_move_nothing_but_by_decay() -> None:
    assert (orthogonalised(torch.zeros(4, 6, 3, 3)) == 0).all()


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (24, 2, 3, 3)])
def test_it_is_the_iteration_of_its_authors(shape: tuple[int, ...]) -> None:
    """Step by step on the matrix itself, in float64; both take the same five steps."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    matrix = weights.double().reshape(shape[0], -1)
    matrix = matrix / matrix.norm()
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.7750 * gram + 2.0315 * gram @ gram) @ matrix
    found = orthogonalised(weights).reshape(shape[0], -1).double()
    torch.testing.assert_close(found, matrix, rtol=1e-4, atol=1e-4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 1)
    )


def test_all_but_inner_convolutions_learn_by_adamw() -> None:
    ours, theirs = network(), network()
    muon = Muon(ours, lr=0.01, weight_decay=0.1)
    adam = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    images = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    for model, optimizer in ((ours, muon), (theirs, adam)):
        model(images).square().mean().backward()
        optimizer.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name != "2.weight":  # 6 inputs, 3 × 3 pixels
            torch.testing.assert_close(mine, other)
    inner, before = ours[2].weight.detach(), network()[2].weight.detach()
    step = (inner - before * (1 - MATRIX_RATE * 0.01 * 0.1)).reshape(4, -1) / (MATRIX_RATE * 0.01)
    # two outputs of the head: the gradient has rank two, and so has the step
    torch.testing.assert_close(
        torch.linalg.svdvals(step), torch.tensor([1.0, 1, 0, 0]), atol=0.3, rtol=0
    )


def test_it_learns_and_goes_on_from_its_state() -> None:
    images = torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(1))

    def trained(steps: int, model: nn.Module, optimizer: Muon) -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(images) - 1).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    whole = network()
    first = trained(1, whole, optimizer := Muon(whole, 0.01, 0.0))
    assert trained(19, whole, optimizer) < first / 2
    parts = network()
    trained(10, parts, before := Muon(parts, 0.01, 0.0))
    after = Muon(parts, 0.01, 0.0)
    after.load_state_dict(before.state_dict())
    trained(10, parts, after)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
