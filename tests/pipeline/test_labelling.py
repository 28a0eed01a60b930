from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.clustering.settings import resolve
from cellseg_cli.errors import ConfigError, DeviceError, InputError
from cellseg_cli.pipeline import gathering
from cellseg_cli.pipeline.gathering import Waiting
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


def test_fields_that_wait_together_are_labelled_as_each_alone(
    ellipses: Field, spatial: Field
) -> None:
    """On torch's CPU backend: two shapes, one field that has a fault, sixteen threads."""
    labeller = Labeller("cpu:0")
    fields = [spatial(ellipses(seed)) for seed in range(12)]
    fields += [np.ascontiguousarray(one[:, :40, :50]) for one in fields[:4]]
    fields[5] = fields[5].copy()
    fields[5][0, 3, 3] = np.nan

    def labels(embedding: np.ndarray) -> np.ndarray | str:
        try:
            return labeller.labels(embedding, None, "spatial", SEEDS)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(labels, fields))
    fault = made.pop(5)
    assert isinstance(fault, str)
    assert fault.startswith("1 of ")
    del fields[5]
    for found, embedding in zip(made, fields, strict=True):
        np.testing.assert_array_equal(found, cluster(embedding, kind="spatial"))
        assert found.dtype == np.uint32


def test_a_pass_without_memory_is_halved(
    ellipses: Field, spatial: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of more than two fields find no memory; a field alone says so."""
    sizes = []

    def pass_of(fields: list[Waiting]) -> None:
        sizes.append(len(fields))
        if len(fields) > 2:
            raise torch.OutOfMemoryError("no room")
        real(fields)

    real = gathering._pass
    monkeypatch.setattr(gathering, "_pass", pass_of)
    embeddings = [spatial(ellipses(seed)) for seed in range(5)]
    fields = [Waiting(torch.from_numpy(one), None, "spatial", SEEDS) for one in embeddings]
    gathering._cluster(fields)
    assert sizes == [5, 2, 3, 1, 2]
    for one, embedding in zip(fields, embeddings, strict=True):
        np.testing.assert_array_equal(one.labels, cluster(embedding, kind="spatial"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_labels_of_the_cpu(ellipses: Field, spatial: Field) -> None:
    embedding = spatial(ellipses(3), 0.6)
    made = Labeller.on("cuda", "seeds").labels(embedding, None, "spatial", SEEDS)
    assert (made == cluster(embedding, kind="spatial")).all()
