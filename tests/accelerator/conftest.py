"""The CPU is the reference: every field of a batch must have its label image, id for id.

The tests run on PyTorch's CPU backend and, where there is one, on a CUDA device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cellseg_cli.accelerator import cluster_batch
from cellseg_cli.clustering import Clustering, cluster

Check = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the batch lies."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture(scope="session")
def equal_to_reference(device: str) -> Check:
    """(values, kind, settings, classes) -> the label images, after comparing them."""

    def check(
        values: np.ndarray, kind: str, settings: Clustering, classes: np.ndarray | None = None
    ) -> list[np.ndarray]:
        batch = cluster_batch(
            torch.from_numpy(values).to(device),
            kind=kind,
            settings=settings,
            classes=None if classes is None else torch.from_numpy(classes).to(device),
        )
        assert batch.images.dtype == torch.int32
        images = []
        for field, embedding in enumerate(values):
            own = None if classes is None else classes[field]
            expected = cluster(embedding, kind=kind, settings=settings, classes=own)
            image = batch.of(field).cpu().numpy()
            np.testing.assert_array_equal(image, expected)
            images.append(image)
        return images

    return check
