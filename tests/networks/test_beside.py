"""The fast joining of two stages is the plain one, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cellseg_cli.networks.beside import beside


def plain(below: Tensor, skip: Tensor) -> Tensor:
    enlarged = functional.interpolate(below, size=skip.shape[-2:], mode="nearest")
    return torch.cat([enlarged, skip], dim=1)


def stages(dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, 5, 3, 4), (2, 3, 6, 8))
    below, skip = (
        torch.randn(shape, generator=generator).to(dtype).to(memory_format=layout)
        for shape in shapes
    )
    return below.requires_grad_(), skip.requires_grad_()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_the_same_and_gradients_as_exact(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """The gradient of each coarse pixel is the sum over its four; in float64 to compare with."""
    below, skip = stages(dtype, layout)
    joined = beside(below, skip)
    assert torch.equal(joined, plain(below, skip))
    assert joined.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn(joined.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    joined.backward(weights)
    exact = weights.double()
    four = sum(exact[:, :5, y::2, x::2] for y in (0, 1) for x in (0, 1))
    assert below.grad is not None
    assert skip.grad is not None
    close = 2**-7 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(below.grad.double(), four, rtol=close, atol=close)
    assert torch.equal(skip.grad.double(), exact[:, 5:])


def test_gradients_agree_with_finite_differences() -> None:
    below, skip = stages(torch.float64, torch.channels_last)
    assert torch.autograd.gradcheck(lambda *both: beside(*both).square(), (below, skip))


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (12, 8)])
def test_any_size_and_no_gradient_are_the_plain_way(size: tuple[int, int]) -> None:
    below = torch.randn(2, 5, 3, 4)
    skip = torch.randn(2, 3, *size)
    assert torch.equal(beside(below, skip), plain(below, skip))
    with_gradient = below.clone().requires_grad_()
    assert torch.equal(beside(with_gradient, skip), plain(below, skip))
