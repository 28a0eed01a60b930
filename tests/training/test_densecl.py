"""DenseCL: losses against slow loops, the queue's and the momentum's law, correspondence by eye."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cellseg_cli.training.densecl import (
    PROJECTED,
    DenseCL,
    Projected,
    ProjectedEncoder,
    Queue,
    contrast,
    follow,
    match,
    project,
)
from cellseg_cli.training.state import averaged_copy


def units(*shape: int, seed: int) -> Tensor:
    """Random float64 vectors of length one along dimension 1."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1
    )


def slow_contrast(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> float:
    """Equation 1, pair by pair."""
    total = 0.0
    for query, key in zip(queries.tolist(), keys.tolist(), strict=True):
        own = math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / temperature)
        others = [
            math.exp(sum(a * b for a, b in zip(query, negative, strict=True)) / temperature)
            for negative in negatives.tolist()
        ]
        total -= math.log(own / (own + sum(others)))
    return total / len(queries)


class Stages(nn.Module):
    """An encoder of two stages, of which the coarser one has 6 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images)
        return [fine, self.coarse(fine)]


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_contrast_equals_a_loop_over_pairs(temperature: float) -> None:
    queries, keys, negatives = units(5, 7, seed=0), units(5, 7, seed=1), units(9, 7, seed=2)
    fast = contrast(queries, keys, negatives, temperature)
    assert float(fast) == pytest.approx(slow_contrast(queries, keys, negatives, temperature), 1e-12)


def test_the_contrast_of_what_cannot_be_told_apart_is_the_log_of_the_choices() -> None:
    same = units(1, 4, seed=3)
    assert float(contrast(same, same, same.expand(7, 4), 0.2)) == pytest.approx(math.log(8))


def test_the_gradient_of_the_contrast_agrees_with_finite_differences() -> None:
    queries, keys, negatives = units(3, 4, seed=0), units(3, 4, seed=1), units(5, 4, seed=2)

    def loss(vectors: Tensor) -> Tensor:
        return contrast(functional.normalize(vectors, dim=1), keys, negatives, 0.2)

    assert torch.autograd.gradcheck(loss, (queries.requires_grad_(),))


def test_both_losses_equal_loops_over_views_and_places() -> None:
    batch, places, width = 3, 4, 5
    query = Projected(
        units(batch, width, places, seed=0),
        units(batch, PROJECTED, seed=1),
        units(batch, PROJECTED, places, seed=2),
        units(batch, PROJECTED, seed=3),
    )
    key = Projected(
        units(batch, width, places, seed=4),
        units(batch, PROJECTED, seed=5),
        units(batch, PROJECTED, places, seed=6),
        units(batch, PROJECTED, seed=7),
    )
    model = DenseCL(ProjectedEncoder(Stages(), 6), queue_length=6, seed=0).double()
    whole, dense = model.losses(query, key, 0.2)
    slow = slow_contrast(query.whole, key.whole, model.global_queue.vectors, 0.2)
    assert float(whole) == pytest.approx(slow, 1e-12)
    total = 0.0
    for image in range(batch):
        for place in range(places):
            feature = query.features[image, :, place]
            likeness = [float(feature @ key.features[image, :, there]) for there in range(places)]
            partner = key.dense[image, :, likeness.index(max(likeness))]
            own = query.dense[image, :, place]
            total += slow_contrast(own[None], partner[None], model.dense_queue.vectors, 0.2)
    assert float(dense) == pytest.approx(total / (batch * places), 1e-12)


def test_each_place_is_matched_with_the_one_that_looks_like_it() -> None:
    """A picture of 2×3 places, each a colour of its own, and the same turned by half a circle."""
    picture = torch.eye(6).reshape(1, 6, 2, 3)
    turned = picture.flip(2, 3)
    matched = match(picture.flatten(2), turned.flatten(2)).reshape(2, 3)
    assert matched.tolist() == [[5, 4, 3], [2, 1, 0]]


def test_a_place_that_the_other_view_lacks_is_matched_with_the_nearest_colour() -> None:
    queries = functional.normalize(torch.tensor([[[1.0, 0.2], [0.0, 1.0]]]), dim=1)  # (1, 2, 2)
    keys = functional.normalize(torch.tensor([[[1.0, 1.0], [0.1, 0.9]]]), dim=1)
    assert match(queries, keys).tolist() == [[0, 1]]


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 9),
    batches=st.lists(st.integers(1, 9), max_size=8),
)
def test_the_queue_holds_the_last_keys_whole_batches_first_in_first_out(
    length: int, batches: list[int]
) -> None:
    queue = Queue(length, torch.Generator().manual_seed(0))
    expected = [row.tolist() for row in queue.vectors]  # oldest first
    for number, size in enumerate(batches):
        keys = units(min(size, length), PROJECTED, seed=number).float()
        queue.push(keys)
        expected = [*expected, *keys.tolist()][-length:]
    start = int(queue.position)
    rows = queue.vectors.tolist()
    assert rows[start:] + rows[:start] == expected


def test_the_queue_begins_with_directions_and_takes_no_gradient() -> None:
    queue = Queue(16, torch.Generator().manual_seed(0))
    torch.testing.assert_close(queue.vectors.norm(dim=1), torch.ones(16))
    queue.push(units(4, PROJECTED, seed=0).float().requires_grad_())
    assert not queue.vectors.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.99, 1.0])
def test_the_key_network_follows_by_the_law_of_momentum(momentum: float) -> None:
    torch.manual_seed(0)
    query = ProjectedEncoder(Stages(), 6)
    key = averaged_copy(query)
    with torch.no_grad():
        for weight in query.parameters():
            weight.add_(1.0)
        query.get_buffer("encoder.fine.1.running_mean").fill_(7.0)
    before = {name: tensor.clone() for name, tensor in key.state_dict().items()}
    follow(key, query, momentum)
    weights = {name for name, _ in key.named_parameters()}
    for name, tensor in key.state_dict().items():
        moved = 1 - momentum if name in weights else 0
        torch.testing.assert_close(tensor, before[name] + moved, rtol=0, atol=1e-6)


def test_keys_are_normalised_in_other_groups_than_queries() -> None:
    """Batch norm then cannot tell the pair: each group has statistics of its own."""
    torch.manual_seed(0)
    network = ProjectedEncoder(Stages(), 6)
    images = torch.rand(8, 1, 16, 16)
    order = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])
    shuffled = project(network, images, order)
    for first in range(0, 8, 2):  # four groups of two
        group = order[first : first + 2]
        alone = network(images[group])
        for ours, theirs in zip(shuffled, alone, strict=True):
            torch.testing.assert_close(ours[group], theirs)
    plain = project(network, images)
    for ours, theirs in zip(plain, network(images[2:4]), strict=True):
        torch.testing.assert_close(ours[2:4], theirs)


def test_projections_are_unit_vectors_of_each_place_of_the_coarsest_stage() -> None:
    torch.manual_seed(0)
    projected = ProjectedEncoder(Stages(), 6)(torch.rand(2, 1, 16, 24))
    assert projected.features.shape == (2, 6, 4 * 6)
    assert projected.dense.shape == (2, PROJECTED, 4 * 6)
    assert projected.whole.shape == projected.pooled.shape == (2, PROJECTED)
    for vectors in projected[1:]:
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones_like(vectors[:, 0]))
