"""What every test may lean on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Field = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images with truth; tests that need it are skipped without it."""
    root = Path(os.environ.get("CELLSEG_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "dsb2018" / "index.csv").is_file():
        pytest.skip(f"real images are not on this machine: {root} (set CELLSEG_DATA)")
    return root


def save_tiny_model(
    path: Path, seed: int, cluster: dict[str, float], encoder: str = "test_resnet", levels: int = 2
) -> Path:
    """Save a random network with the spatial head; its label images are noise, but not empty."""
    import torch

    from cellseg_cli.networks.architecture import Architecture, Embedder
    from cellseg_cli.networks.checkpoint import ModelHeader, save_model

    torch.manual_seed(seed)
    architecture = Architecture(
        kind="spatial",
        encoder=encoder,
        levels=levels,
        decoder_channels=4,
        in_channels=1,
        classes_head=True,
    )
    header = ModelHeader(name="tiny", architecture=architecture, cluster=cluster)
    save_model(path, Embedder(architecture), header)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file tuned to take nearly everything for foreground."""
    tuned = {"foreground": 0.05, "seed_level": 0.1, "min_area_px": 4}
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", 0, tuned)


@pytest.fixture(scope="session")
def light_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `model`, of an encoder that processes load without timm: they start in half the time."""
    tuned = {"foreground": 0.05, "seed_level": 0.1, "min_area_px": 4}
    path = tmp_path_factory.mktemp("model") / "light.safetensors"
    return save_tiny_model(path, 0, tuned, encoder="resnet18", levels=1)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "other.safetensors", 1, {})


def _ellipses(seed: int, shape: tuple[int, int] = (120, 150), wanted: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    for number in range(1, wanted + 1):
        y, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        a, b, turn = rng.uniform(5, 12), rng.uniform(5, 12), rng.uniform(0, np.pi)
        u = (rows - y) * np.cos(turn) + (columns - x) * np.sin(turn)
        v = (columns - x) * np.cos(turn) - (rows - y) * np.sin(turn)
        inside = (u / a) ** 2 + (v / b) ** 2 <= 1
        if not (labels[inside] > 0).any():  # they may touch but do not overlap
            labels[inside] = number
    return np.unique(labels, return_inverse=True)[1].reshape(shape).astype(np.int32)


def _spatial(labels: np.ndarray, noise_px: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: labels.shape[0], : labels.shape[1]].astype(np.float32)
    area = np.maximum(np.bincount(labels.ravel()), 1)
    centre_y = np.bincount(labels.ravel(), rows.ravel()) / area
    centre_x = np.bincount(labels.ravel(), columns.ravel()) / area
    inside = labels > 0
    values = np.zeros((4, *labels.shape), np.float32)
    values[0] = np.where(inside, centre_y[labels] - rows, 0)
    values[1] = np.where(inside, centre_x[labels] - columns, 0)
    values[:2] += noise_px * rng.standard_normal(values[:2].shape)
    values[2] = np.where(inside, 0.4 * np.sqrt(area / np.pi)[labels], 1)
    miss = (values[0] + rows - centre_y[labels]) ** 2 + (
        values[1] + columns - centre_x[labels]
    ) ** 2
    values[3] = np.where(inside, np.exp(-miss / (2 * values[2] ** 2)), 0)
    return values.astype(np.float16)


@pytest.fixture(scope="session")
def ellipses() -> Field:
    """(seed, shape, wanted) -> label image of touching ellipses that do not overlap."""
    return _ellipses


@pytest.fixture(scope="session")
def spatial() -> Field:
    """(labels, noise_px, seed) -> the spatial embedding of a label image, float16."""
    return _spatial


@pytest.fixture(scope="session")
def same_partition() -> Callable[[np.ndarray, np.ndarray], bool]:
    """(one, other) -> whether two label images are equal but for the numbers, 0 staying 0."""

    def compare(one: np.ndarray, other: np.ndarray) -> bool:
        pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
        zeros_agree = bool(((pairs[0] == 0) == (pairs[1] == 0)).all())
        return zeros_agree and all(len(np.unique(side)) == pairs.shape[1] for side in pairs)

    return compare
