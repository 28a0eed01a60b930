"""Each loss against a slow loop in float64, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellseg_cli.training.losses import class_targets, classes_loss, contrastive_loss


def slow_contrast(vectors: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Equation 2 of arXiv 2004.11362 with explicit loops."""
    losses = []
    for i in range(len(vectors)):
        others = [a for a in range(len(vectors)) if a != i]
        partners = [p for p in others if labels[p] == labels[i]]
        if not partners:
            continue
        total = sum(np.exp(vectors[i] @ vectors[a] / temperature) for a in others)
        logs = [np.log(np.exp(vectors[i] @ vectors[p] / temperature) / total) for p in partners]
        losses.append(-np.mean(logs))
    return float(np.mean(losses))


def test_contrastive_loss_equals_its_definition() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(15, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(0, 4, 15)
    labels[0] = 9  # a pixel without a partner
    ours = contrastive_loss(torch.tensor(vectors), torch.tensor(labels), 0.2)
    assert float(ours) == pytest.approx(slow_contrast(vectors, labels, 0.2), rel=1e-12)


def test_contrastive_gradient_agrees_with_finite_differences() -> None:
    rng = np.random.default_rng(3)
    vectors = torch.tensor(rng.normal(size=(7, 3)), requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    assert torch.autograd.gradcheck(lambda v: contrastive_loss(v, labels, 0.5), vectors)


def test_contrastive_loss_without_any_pair_is_zero_and_keeps_the_graph() -> None:
    vectors = torch.randn(3, 4, requires_grad=True)
    loss = contrastive_loss(vectors, torch.tensor([0, 1, 2]), 0.2)
    loss.backward()
    assert float(loss.detach()) == 0


def test_class_targets_by_eye() -> None:
    labels = torch.tensor(
        [[[0, 0, 0, 0, 0, -1],
          [0, 1, 1, 1, 2, -1],
          [0, 1, 1, 1, 2, -1],
          [0, 1, 1, 1, 2, -1],
          [0, 0, 0, 0, 0, -1]]]
    )  # fmt: skip
    expected = torch.tensor(
        [[[0, 0, 0, 0, 0, -1],
          [0, 2, 2, 2, 2, -1],
          [0, 2, 1, 2, 2, -1],
          [0, 2, 2, 2, 2, -1],
          [0, 0, 0, 0, 0, -1]]]
    )  # fmt: skip
    assert torch.equal(class_targets(labels), expected)


def test_the_image_border_is_no_cell_border() -> None:
    assert torch.equal(class_targets(torch.ones(1, 3, 3).long()), torch.ones(1, 3, 3).long())
    beside_unknown = torch.tensor([[[1, 1, -1], [1, 1, -1]]])
    assert torch.equal(class_targets(beside_unknown), beside_unknown)


def test_classes_loss_of_unknown_pixels_is_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = classes_loss(logits, -torch.ones(1, 2, 2).long())
    loss.backward()
    assert float(loss.detach()) == 0
