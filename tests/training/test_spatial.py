"""The spatial loss against a slow loop in float64, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cellseg_cli.training.spatial import lovasz_hinge, spatial_terms
from cellseg_cli.training.windows import Points


def slow_lovasz(logits: np.ndarray, truth: np.ndarray) -> float:
    """Lovász extension by its definition: sort errors, weigh each by the Jaccard step."""
    errors = 1 - logits * np.where(truth, 1, -1)
    order = np.argsort(-errors, kind="stable")
    total, before = 0.0, 0.0
    for count in range(1, len(order) + 1):
        wrong = set(order[:count].tolist())
        kept = sum(1 for i in range(len(truth)) if truth[i] and i not in wrong)
        union = sum(1 for i in range(len(truth)) if truth[i] or i in wrong)
        jaccard_loss = 1 - kept / union if union else 0.0
        total += max(errors[order[count - 1]], 0.0) * (jaccard_loss - before)
        before = jaccard_loss
    return total


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_hinge_equals_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, truth = rng.normal(size=(3, 12)), rng.random((3, 12)) < 0.4
    ours = lovasz_hinge(torch.tensor(logits), torch.tensor(truth), torch.ones(3, 12).bool())
    expected = [slow_lovasz(logits[row], truth[row]) for row in range(3)]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def test_lovasz_hinge_ignores_points_that_are_not_valid() -> None:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(1, 12)), rng.random((1, 12)) < 0.4
    valid = np.ones((1, 12), bool)
    valid[0, 3:6] = False
    ours = lovasz_hinge(torch.tensor(logits), torch.tensor(truth), torch.tensor(valid))
    kept = np.flatnonzero(valid[0])
    np.testing.assert_allclose(ours.numpy(), [slow_lovasz(logits[0, kept], truth[0, kept])])


def test_lovasz_hinge_is_zero_where_every_margin_is_met() -> None:
    truth = torch.tensor([[True, True, False]])
    assert lovasz_hinge(torch.tensor([[1.0, 2.0, -1.0]]), truth, torch.ones(1, 3).bool()) == 0


def test_lovasz_gradient_agrees_with_finite_differences() -> None:
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(size=(2, 9)), requires_grad=True)
    truth = torch.tensor(rng.random((2, 9)) < 0.5)
    valid = torch.tensor(rng.random((2, 9)) < 0.8)
    assert torch.autograd.gradcheck(lambda x: lovasz_hinge(x, truth, valid), logits)


LABELS = torch.tensor([[[0, 1, 1, 0], [2, 2, 1, 0], [2, 0, 0, -1]]])


def some_points() -> Points:
    y, x = np.divmod(np.arange(12), 4)
    points = [torch.tensor(np.stack([axis, axis])) for axis in (y, x)]
    known = LABELS[0].flatten() >= 0
    return Points(
        crop=torch.tensor([0, 0]),
        instance=torch.tensor([1, 2]),
        y=points[0],
        x=points[1],
        valid=torch.stack([known, known]),
    )


def some_embedding() -> Tensor:
    rng = np.random.default_rng(4)
    offsets = rng.normal(size=(1, 2, 3, 4))
    bandwidth = rng.uniform(0.5, 2.0, size=(1, 1, 3, 4))
    return torch.tensor(np.concatenate([offsets, bandwidth, rng.random((1, 1, 3, 4))], axis=1))


def slow_spatial(embedding: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    offset_y, offset_x, bandwidth, seed = embedding[0]
    overlap, variances, seed_errors = [], [], []
    pixels = [(y, x) for y in range(3) for x in range(4) if labels[y, x] >= 0]
    for instance in (1, 2):
        own = [(y, x) for y, x in pixels if labels[y, x] == instance]
        centre_y = np.mean([y + offset_y[y, x] for y, x in own])
        centre_x = np.mean([x + offset_x[y, x] for y, x in own])
        log_sigma = np.mean([np.log(bandwidth[y, x]) for y, x in own])

        def phi(y: int, x: int) -> float:
            squared = (y + offset_y[y, x] - centre_y) ** 2 + (x + offset_x[y, x] - centre_x) ** 2  # noqa: B023
            return float(np.exp(-squared / (2 * np.exp(log_sigma) ** 2)))  # noqa: B023

        values = np.array([phi(y, x) for y, x in pixels])
        truth = np.array([labels[y, x] == instance for y, x in pixels])
        overlap.append(slow_lovasz(2 * values - 1, truth))
        variances += [(np.log(bandwidth[y, x]) - log_sigma) ** 2 for y, x in own]
        seed_errors += [(seed[y, x] - phi(y, x)) ** 2 for y, x in own]
    seed_errors += [seed[y, x] ** 2 for y, x in pixels if labels[y, x] == 0]
    return float(np.mean(overlap)), float(np.mean(variances)), float(np.mean(seed_errors))


def test_spatial_terms_equal_a_loop_over_instances() -> None:
    embedding = some_embedding()
    terms = spatial_terms(embedding, LABELS, some_points(), 2)
    expected = slow_spatial(embedding.numpy(), LABELS[0].numpy())
    np.testing.assert_allclose([float(term) for term in terms], expected, rtol=1e-10)


def test_overlap_and_smoothness_gradients_agree_with_finite_differences() -> None:
    embedding = some_embedding().requires_grad_()
    for name in ("overlap", "smoothness"):
        assert torch.autograd.gradcheck(
            lambda e, name=name: getattr(spatial_terms(e, LABELS, some_points(), 2), name),
            embedding,
        )


def test_seed_gradient_reaches_the_seed_only() -> None:
    """The target phi is held fixed: the seed follows the mask, never the mask the seed."""
    embedding = some_embedding().requires_grad_()
    spatial_terms(embedding, LABELS, some_points(), 2).seed.backward()
    assert embedding.grad is not None
    assert embedding.grad[:, :3].abs().sum() == 0
    assert embedding.grad[:, 3].abs().sum() > 0


def test_a_batch_without_instances_has_a_loss_with_a_gradient() -> None:
    embedding = some_embedding().requires_grad_()
    empty = Points(*(torch.zeros((0, 4), dtype=torch.int64) for _ in range(5)))
    empty = empty._replace(
        crop=torch.zeros(0, dtype=torch.int64),
        instance=torch.zeros(0, dtype=torch.int64),
        valid=torch.zeros((0, 4), dtype=torch.bool),
    )
    terms = spatial_terms(embedding, torch.zeros_like(LABELS), empty, 2)
    torch.stack(list(terms)).sum().backward()
    assert torch.isfinite(embedding.grad).all()  # type: ignore[arg-type]


def test_a_crowded_crop_weighs_no_more_than_an_empty_one() -> None:
    """Two crops, two instances in one and one in the other: the mean of the crops' means."""
    embedding = torch.cat([some_embedding(), some_embedding().flip(2)])
    labels = torch.cat([LABELS, LABELS])
    both = some_points()
    third = Points(
        crop=torch.tensor([0, 0, 1]),
        instance=torch.tensor([1, 2, 2]),
        y=torch.cat([both.y, both.y[1:]]),
        x=torch.cat([both.x, both.x[1:]]),
        valid=torch.cat([both.valid, both.valid[1:]]),
    )
    first = spatial_terms(embedding[:1], LABELS, both, 2).overlap
    alone = Points(torch.tensor([0]), *(axis[1:] for axis in both[1:]))
    second = spatial_terms(embedding[1:], LABELS, alone, 2).overlap
    found = spatial_terms(embedding, labels, third, 2).overlap
    torch.testing.assert_close(found, (first + second) / 2)
