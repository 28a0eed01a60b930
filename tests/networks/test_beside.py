"""The rearranged convolution is the plain one: enlarge, join, convolve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cellseg_cli.networks.beside import ConvolveBeside, Stages

BELOW, SKIP, OUT = 5, 3, 4


def plain(convolution: ConvolveBeside, stages: Stages) -> Tensor:
    enlarged = functional.interpolate(stages.below, scale_factor=2, mode="nearest")
    joined = torch.cat([enlarged, stages.skip], dim=1)
    return functional.conv2d(joined, convolution.weight, convolution.bias, padding=1)


def convolution(*, bias: bool = False) -> ConvolveBeside:
    torch.manual_seed(1)
    made = ConvolveBeside(BELOW, SKIP, OUT).double()
    if bias:
        made.bias = torch.nn.Parameter(torch.randn(OUT, dtype=torch.float64))
    return made


def stages(
    height: int, width: int, layout: torch.memory_format = torch.contiguous_format
) -> Stages:
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, BELOW, height, width), (2, SKIP, 2 * height, 2 * width))
    return Stages(
        *(
            torch.randn(shape, generator=generator, dtype=torch.float64)
            .to(memory_format=layout)
            .requires_grad_()
            for shape in shapes
        )
    )


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (6, 5)])
def test_values_and_gradients_are_those_of_the_plain_way(
    size: tuple[int, int], bias: bool, layout: torch.memory_format
) -> None:
    """In float64, so that the order of sums does not show; rims, where zeros are, included."""
    ours, theirs = convolution(bias=bias), convolution(bias=bias)
    mine, yours = stages(*size, layout), stages(*size, layout)
    result, expected = ours(mine), plain(theirs, yours)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    pull = torch.randn(result.shape, generator=torch.Generator().manual_seed(3)).double()
    result.backward(pull)
    expected.backward(pull)
    for one, other in zip((*ours.parameters(), *mine), (*theirs.parameters(), *yours), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-11)


def test_gradients_agree_with_finite_differences() -> None:
    ours, given = convolution(), stages(2, 3)
    assert torch.autograd.gradcheck(
        lambda below, skip, weight: torch.func.functional_call(
            ours, {"weight": weight}, (Stages(below, skip),)
        ).square(),
        (*given, ours.weight),
    )


@pytest.mark.parametrize("bias", [False, True])
def test_prepared_it_gives_the_same_numbers_to_the_bit(bias: bool) -> None:
    ours, given = convolution(bias=bias).float(), Stages(*(s.float() for s in stages(6, 5)))
    with torch.inference_mode():
        assert torch.equal(ours(given), ours.prepared()(given))


def test_what_comes_in_is_left_as_it_is() -> None:
    ours, given = convolution(), stages(3, 4)
    before = [stage.detach().clone() for stage in given]
    with torch.no_grad():
        ours(given)
    ours(given).sum().backward()
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


def test_half_precision_errs_no_more_than_rounding_does() -> None:
    """Two rounded sums are added where there was one: twice the plain way's error at most."""
    ours, given = convolution(), stages(16, 16)
    with torch.no_grad():
        exact = plain(ours, given)
        ours.bfloat16()
        rounded = Stages(*(stage.bfloat16() for stage in given))
        error = (ours(rounded).double() - exact).abs().mean()
        usual = (plain(ours, rounded).double() - exact).abs().mean()
    assert error < 2 * usual


def test_nothing_random_is_drawn_where_weights_are_prepared() -> None:
    ours = convolution()
    state = torch.random.get_rng_state()
    ours.prepared()
    assert torch.equal(torch.random.get_rng_state(), state)
