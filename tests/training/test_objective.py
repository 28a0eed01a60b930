"""Losses on an accelerator: those of the CPU, and nothing waits for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellseg_cli.config import TrainSettings
from cellseg_cli.networks.architecture import Output
from cellseg_cli.training.crops import varied
from cellseg_cli.training.objective import OBJECTIVES, target_of


def output_and_labels(recipe: str) -> tuple[Output, np.ndarray, np.ndarray]:
    """What a network might say of two crops of a few cells, some over others."""
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 9, (2, 6, 6)).repeat(8, 1).repeat(8, 2).astype(np.int32)
    under = np.where((labels > 0) & (rng.random(labels.shape) < 0.1), 3, 0).astype(np.int32)
    raw = torch.from_numpy(rng.normal(size=(2, 8, 48, 48)).astype(np.float32))
    if recipe == "spatial":
        embedding = torch.cat([raw[:, :2], raw[:, 2:3].exp(), raw[:, 3:4].sigmoid()], dim=1)
    else:
        embedding = torch.nn.functional.normalize(raw, dim=1)
    return Output(embedding, raw[:, :3]), labels, under


@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_a_cell_under_another_is_told_to_the_spatial_loss_alone(recipe: str) -> None:
    output, labels, under = output_and_labels(recipe)
    settings = TrainSettings(recipe=recipe)  # type: ignore[arg-type]
    plain, told = (
        OBJECTIVES[recipe](
            output, target_of(labels, settings, np.random.default_rng(1), one), settings
        )
        for one in (None, under)
    )
    differing = {name for name in plain if not torch.equal(plain[name], told[name])}
    assert differing == ({"overlap"} if recipe == "spatial" else set())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_an_accelerator_has_the_losses_of_the_cpu_and_is_not_waited_for(recipe: str) -> None:
    """Neither by the losses and their gradients, nor by the variation of intensities."""
    output, labels, under = output_and_labels(recipe)
    settings = TrainSettings(recipe=recipe)  # type: ignore[arg-type]
    target = target_of(labels, settings, np.random.default_rng(1), under)
    expected = OBJECTIVES[recipe](output, target, settings)
    assert output.classes is not None
    there = Output(*(raw.cuda().requires_grad_() for raw in (output.embedding, output.classes)))
    pinned, images = target.pinned(), torch.rand(64, 1, 32, 32, device="cuda")

    def step() -> dict[str, torch.Tensor]:
        varied(images, settings, step=0, rank=0)
        terms = OBJECTIVES[recipe](there, pinned, settings)
        torch.stack(list(terms.values())).sum().backward()
        return terms

    step()  # what is set up once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-4, atol=1e-5)
