"""Each loss against a slow loop in float64, and its gradient against finite differences."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cellseg_cli.training import losses
from cellseg_cli.training.losses import class_targets, classes_loss, contrastive_loss


def slow_contrast(
    vectors: np.ndarray, labels: np.ndarray, temperature: float, *, with_itself: bool = False
) -> float:
    """Equation 2 of arXiv 2004.11362 with explicit loops; NaN without any pair."""
    losses = []
    for i in range(len(vectors)):
        others = [a for a in range(len(vectors)) if a != i or with_itself]
        partners = [p for p in others if labels[p] == labels[i]]
        if not partners:
            continue
        total = sum(np.exp(vectors[i] @ vectors[a] / temperature) for a in others)
        logs = [np.log(np.exp(vectors[i] @ vectors[p] / temperature) / total) for p in partners]
        losses.append(-np.mean(logs))
    return float(np.mean(losses)) if losses else float("nan")


def sample_of(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in four dimensions, and labels; the first pixel has no partner."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(*shape, 4))
    labels = rng.integers(0, 4, shape)
    labels[..., 0] = 9
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), labels


@pytest.mark.parametrize("with_itself", [False, True])
@pytest.mark.parametrize("pairs_at_once", [1, 40, 1 << 18])
def test_contrastive_loss_equals_its_definition(
    pairs_at_once: int, with_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "PAIRS_AT_ONCE_CPU", pairs_at_once)
    vectors, labels = sample_of(2, 15)
    ours = contrastive_loss(
        torch.tensor(vectors), torch.tensor(labels), 0.2, with_itself=with_itself
    )
    expected = slow_contrast(vectors, labels, 0.2, with_itself=with_itself)
    assert float(ours) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pairs_at_once", [1, 100, 1 << 18])
def test_samples_of_several_lengths_are_each_contrasted_alone(
    pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over the samples that hold a pair: not of one pixel, nor of none."""
    monkeypatch.setattr(losses, "PAIRS_AT_ONCE_CPU", pairs_at_once)
    lengths = (12, 7, 1, 0, 9)
    vectors, labels = sample_of(3, len(lengths), 12)
    for row, length in enumerate(lengths):
        labels[row, length:] = -1
    ours = contrastive_loss(torch.tensor(vectors), torch.tensor(labels), 0.3)
    alone = [slow_contrast(vectors[r, :n], labels[r, :n], 0.3) for r, n in enumerate(lengths)]
    assert float(ours) == pytest.approx(np.nanmean(alone), rel=1e-12)
    assert np.isnan(alone).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("with_itself", [False, True])
@pytest.mark.parametrize("pairs_at_once", [20, 1 << 18])
def test_contrastive_gradient_agrees_with_finite_differences(
    pairs_at_once: int, with_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "PAIRS_AT_ONCE_CPU", pairs_at_once)
    rng = np.random.default_rng(3)
    vectors = torch.tensor(rng.normal(size=(3, 7, 3)), requires_grad=True)
    labels = torch.tensor(
        [[0, 0, 1, 1, 1, 2, 3], [1, 1, 1, 1, -1, -1, -1], [5, -1, -1, -1, -1, -1, -1]]
    )
    assert torch.autograd.gradcheck(
        lambda v: contrastive_loss(v, labels, 0.5, with_itself=with_itself), vectors
    )


@given(seed=st.integers(0, 2**32 - 1), shift=st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_neither_order_nor_number_of_the_labels_matters(seed: int, shift: int) -> None:
    vectors, labels = sample_of(seed, 20)
    order = np.random.default_rng(seed).permutation(20)
    ours = contrastive_loss(torch.tensor(vectors), torch.tensor(labels), 0.2)
    other = contrastive_loss(torch.tensor(vectors[order]), torch.tensor(labels[order] + shift), 0.2)
    assert float(ours) == pytest.approx(float(other), rel=1e-12)


def test_a_low_temperature_does_not_overflow() -> None:
    """Of one pair and a stranger at a right angle the loss is log(1 + exp(−1/T)), thus 0."""
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert float(contrastive_loss(vectors, torch.tensor([1, 1, 2]), 1e-4)) == pytest.approx(0)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1), (1, 0)])
def test_contrastive_loss_without_any_pair_is_zero_and_keeps_the_graph(
    shape: tuple[int, ...],
) -> None:
    vectors = torch.randn(*shape, 4, requires_grad=True)
    loss = contrastive_loss(vectors, torch.arange(shape[-1]).expand(shape), 0.2)
    loss.backward()
    assert float(loss.detach()) == 0
    assert vectors.grad is not None
    assert not vectors.grad.any()


class Memory(TorchDispatchMode):
    """Keeps the size of the largest tensor, and the most bytes that are alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def dense_contrast(vectors: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """The loss as a whole pair matrix gives it."""
    similarity = (vectors @ vectors.T / temperature).fill_diagonal_(-torch.inf)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    logs = similarity.log_softmax(1).masked_fill(~same, 0).sum(1)
    return -(logs / same.sum(1)).mean()


@pytest.mark.parametrize("pixels", [5000, 80 * 80])
def test_a_contrast_holds_a_small_part_of_its_pair_matrix(pixels: int) -> None:
    """Forward and backward of the origin's samples, in float32."""
    torch.manual_seed(pixels)
    vectors = torch.nn.functional.normalize(torch.randn(pixels, 8), dim=1).requires_grad_()
    labels = torch.randint(0, 20, (pixels,))
    with Memory() as memory:
        contrastive_loss(vectors, labels, 0.2).backward()
    assert memory.largest <= losses.PAIRS_AT_ONCE_CPU < pixels**2 / 90
    assert 4 * losses.PAIRS_AT_ONCE_CPU < memory.peak < 3 * 2**20


def test_the_memory_is_counted_right() -> None:
    """A pair matrix that exists is seen; and the loss of 700 pixels agrees with it."""
    vectors = torch.nn.functional.normalize(torch.randn(700, 8), dim=1)
    labels = torch.randint(0, 20, (700,))
    with Memory() as memory:
        expected = dense_contrast(vectors, labels, 0.2)
    assert memory.largest == 700**2
    # similarity twice (raw and over T), its logs and their masked copy; the first of these is
    # given up before the last is made, and masks are a quarter of the size
    assert 3 * 4 * 700**2 < memory.peak < 4 * 4 * 700**2
    torch.testing.assert_close(contrastive_loss(vectors, labels, 0.2), expected)


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


def test_classes_loss_is_the_mean_of_minus_log_probability_over_known_pixels() -> None:
    logits = np.random.default_rng(5).normal(size=(2, 3, 4, 5))
    labels = np.zeros((2, 4, 5), np.int64)
    labels[0, 1:4, 1:4], labels[1, :, :2] = 1, -1
    targets = class_targets(torch.tensor(labels)).numpy()
    logs = []
    for place in np.argwhere(labels >= 0):
        crop, y, x = place
        scores = np.exp(logits[crop, :, y, x])
        logs.append(-np.log(scores[targets[crop, y, x]] / scores.sum()))
    ours = classes_loss(torch.tensor(logits), torch.tensor(labels))
    assert float(ours) == pytest.approx(np.mean(logs), rel=1e-12)


def test_classes_gradient_agrees_with_finite_differences() -> None:
    rng = np.random.default_rng(6)
    logits = torch.tensor(rng.normal(size=(1, 3, 3, 4)), requires_grad=True)
    labels = torch.tensor([[[0, 1, 1, -1], [0, 1, 1, 2], [0, 0, 2, 2]]])
    assert torch.autograd.gradcheck(lambda each: classes_loss(each, labels), logits)
