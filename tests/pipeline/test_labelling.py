from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.clustering.settings import resolve
from cellseg_cli.errors import ConfigError, DeviceError
from cellseg_cli.pipeline.labelling import Labeller

Field = Callable[..., np.ndarray]

SEEDS = resolve(Clustering("seeds"), "spatial")


@pytest.mark.parametrize("wanted", ["cpu", "auto"])
def test_without_an_accelerator_it_is_the_cpu(
    wanted: str, ellipses: Field, spatial: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    labeller = Labeller.on(wanted, "seeds")
    assert labeller.device == "cpu"
    embedding = spatial(ellipses(0))
    labels = labeller.labels(embedding, None, "spatial", SEEDS)
    assert (labels == cluster(embedding, kind="spatial")).all()


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="PyTorch sees 0 CUDA devices"):
        Labeller.on("cuda", "seeds")
    with pytest.raises(ConfigError, match="none of auto, cpu, cuda"):
        Labeller.on("tpu", "seeds")


def test_linkage_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Labeller.on("auto", "linkage").device == "cpu"
    assert Labeller.on("auto", "seeds").device == "cuda"
    with pytest.raises(ConfigError) as caught:
        Labeller.on("cuda", "linkage")
    assert str(caught.value) == (
        "linkage works on the CPU only; cluster there, or choose one of grid, seeds, watershed"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_labels_of_the_cpu(ellipses: Field, spatial: Field) -> None:
    embedding = spatial(ellipses(3), 0.6)
    made = Labeller.on("cuda", "seeds").labels(embedding, None, "spatial", SEEDS)
    assert (made == cluster(embedding, kind="spatial")).all()
