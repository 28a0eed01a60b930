from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from cellseg_cli.accelerator import METHODS, cluster_batch
from cellseg_cli.accelerator import inputs as accelerator_inputs
from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.errors import ConfigError, InputError, LimitError

Check = Callable[..., list[np.ndarray]]
Field = Callable[..., np.ndarray]


def classes_of(labels: np.ndarray) -> np.ndarray:
    """Background, interior and border, blurred: (3, Y, X) uint8."""
    low, high = ndimage.minimum_filter(labels, 3), ndimage.maximum_filter(labels, 3)
    parts = [labels == 0, (labels > 0) & (low == high), (labels > 0) & (low != high)]
    blurred = [ndimage.gaussian_filter(part.astype(float), 0.7) for part in parts]
    return (np.stack(blurred) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def batch(ellipses: Field, spatial: Field) -> tuple[np.ndarray, np.ndarray]:
    """Four fields: spatial embeddings (4, 4, 120, 150) float16 and classes (4, 3, 120, 150)."""
    truth = [ellipses(seed) for seed in range(4)]
    values = [spatial(labels, 0.8, seed) for seed, labels in enumerate(truth)]
    return np.stack(values), np.stack([classes_of(labels) for labels in truth])


@pytest.mark.parametrize("method", METHODS)
def test_a_field_in_a_batch_is_as_alone(
    batch: tuple[np.ndarray, np.ndarray], device: str, method: str
) -> None:
    values, classes = (torch.from_numpy(part).to(device) for part in batch)
    together = cluster_batch(values, kind="spatial", settings=Clustering(method), classes=classes)
    assert together.faults == (None,) * 4
    for field in range(4):
        alone = cluster_batch(
            values[field : field + 1],
            kind="spatial",
            settings=Clustering(method),
            classes=classes[field : field + 1],
        )
        assert torch.equal(alone.of(0), together.of(field))


@pytest.mark.parametrize("kind", ["spatial", "contrastive"])
def test_classes_alone(
    batch: tuple[np.ndarray, np.ndarray], equal_to_reference: Check, kind: str
) -> None:
    found = equal_to_reference(batch[0], kind, Clustering("watershed"), batch[1])
    assert min(image.max() for image in found) > 10


@pytest.mark.parametrize("method", METHODS)
def test_bad_fields_do_not_harm_the_others(
    batch: tuple[np.ndarray, np.ndarray], device: str, method: str
) -> None:
    values, classes = batch[0].copy(), batch[1]
    values[1, 0, :2, :3] = np.nan
    values[1, 3, 0, 0] = np.inf
    values[3, 2, 5, 5:9] = -1

    def alone(field: int) -> np.ndarray:
        own, settings = classes[field], Clustering(method)
        return cluster(values[field], kind="spatial", settings=settings, classes=own)

    found = cluster_batch(
        torch.from_numpy(values).to(device),
        kind="spatial",
        settings=Clustering(method),
        classes=torch.from_numpy(classes).to(device),
    )
    for field, message in (
        (1, "7 of 72000 values of the embedding are not finite (NaN or infinite)"),
        (3, "bandwidths are lengths in px: 4 of 18000 are negative"),
    ):
        for work in (found.of, alone):
            with pytest.raises(InputError) as error:
                work(field)
            assert str(error.value) == message
        assert not found.images[field].any()
    for field in (0, 2):
        np.testing.assert_array_equal(found.of(field).cpu().numpy(), alone(field))


def test_a_bad_contrastive_field_is_left_out(device: str) -> None:
    values = torch.ones(2, 3, 40, 40)
    values[0, :, :20, :20] = torch.tensor([-1.0, 0, 1])[:, None, None]
    values[1, 1, 1, 1] = torch.nan
    found = cluster_batch(values.to(device), kind="contrastive")
    expected = cluster(values[0].numpy(), kind="contrastive")
    assert expected.max() == 1
    np.testing.assert_array_equal(found.of(0).cpu().numpy(), expected)
    assert not found.images[1].any()
    with pytest.raises(InputError, match="1 of 4800 values of the embedding are not finite"):
        found.of(1)


def test_linkage_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        cluster_batch(torch.zeros(1, 3, 4, 4), kind="contrastive", settings=Clustering("linkage"))
    assert str(error.value) == (
        "linkage works on the CPU only; cluster there, or choose one of grid, seeds, watershed"
    )


def test_watershed_needs_classes() -> None:
    with pytest.raises(ConfigError) as error:
        cluster_batch(torch.zeros(1, 4, 4, 4), kind="spatial", settings=Clustering("watershed"))
    assert str(error.value) == (
        "watershed needs class probabilities (background, interior, border) and this model has "
        "no classes head; choose another method or a model with that head"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            torch.zeros(4, 5, 5),
            "a batch of embeddings is (B, E, Y, X) with at least one field; "
            "got float32 of shape (4, 5, 5)",
        ),
        (
            torch.zeros(2, 4, 5, 0),
            "an embedding is a floating array (E, Y, X) with at least one pixel; "
            "got float32 of shape (4, 5, 0)",
        ),
        (
            torch.zeros(2, 4, 5, 5, dtype=torch.int16),
            "an embedding is a floating array (E, Y, X) with at least one pixel; "
            "got int16 of shape (4, 5, 5)",
        ),
        (
            torch.zeros(2, 3, 5, 5),
            "a spatial embedding has the channels offset_y_px, offset_x_px, bandwidth_px, seed; "
            "got 3 channels",
        ),
    ],
)
def test_wrong_forms_are_refused(values: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError) as error:
        cluster_batch(values, kind="spatial")
    assert str(error.value) == message


def test_wrong_classes_are_refused() -> None:
    values = torch.zeros(2, 4, 5, 6)
    for classes, message in (
        (
            torch.zeros(2, 3, 5, 5, dtype=torch.uint8),
            "class probabilities are uint8 of shape (3, 5, 6); got uint8 of shape (3, 5, 5)",
        ),
        (
            torch.zeros(2, 3, 5, 6),
            "class probabilities are uint8 of shape (3, 5, 6); got float32 of shape (3, 5, 6)",
        ),
        (
            torch.zeros(1, 3, 5, 6, dtype=torch.uint8),
            "class probabilities of 1 fields on cpu do not go with embeddings of 2 fields on cpu",
        ),
    ):
        with pytest.raises(InputError) as error:
            cluster_batch(values, kind="spatial", classes=classes)
        assert str(error.value) == message


def test_sums_that_could_be_inexact_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator_inputs, "MAX_GRID_FIELD_PX", 29)
    assert cluster_batch(torch.zeros(1, 4, 5, 6), kind="spatial").images.sum() == 0
    with pytest.raises(LimitError) as error:
        cluster_batch(torch.zeros(1, 4, 5, 6), kind="spatial", settings=Clustering("grid"))
    assert str(error.value) == (
        "a field of 5×6 px is too large for grid on an accelerator (at most 29 px); "
        "cluster it on the CPU"
    )


@pytest.mark.parametrize("method", ["seeds", "grid"])
def test_real_nuclei_of_the_bundled_model(
    real_data: Path, equal_to_reference: Check, method: str
) -> None:
    """What the network gives, untouched: float16 and bytes."""
    from cellseg_cli.images.decode import read_image
    from cellseg_cli.images.normalise import apply, fit_channels, measure
    from cellseg_cli.networks.predict import Predictor

    predictor = Predictor.load("nuclei", device="cpu")
    with (real_data / "dsb2018" / "index.csv").open() as file:
        rows = [row["id"] for row in csv.DictReader(file) if row["split"] == "val"][:3]
    for name in rows:
        (path,) = (real_data / "dsb2018" / "val" / "images").glob(f"{name}.*")
        image = fit_channels(read_image(path), predictor.header.in_channels)
        embedding = predictor.embed(apply(image, measure(image)))
        classes = None if embedding.classes is None else embedding.classes[None]
        labels = tifffile.imread(real_data / "dsb2018" / "val" / "labels" / f"{name}.tif")
        (found,) = equal_to_reference(
            embedding.values[None], "spatial", Clustering(method), classes
        )
        assert 0.5 * len(np.unique(labels)) < found.max() < 2 * len(np.unique(labels))
