"""What every test may lean on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images with truth; tests that need it are skipped without it."""
    root = Path(os.environ.get("CELLSEG_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "dsb2018" / "index.csv").is_file():
        pytest.skip(f"real images are not on this machine: {root} (set CELLSEG_DATA)")
    return root


def save_tiny_model(path: Path, seed: int, cluster: dict[str, float]) -> Path:
    """Save a random network with the spatial head; its label images are noise, but not empty."""
    import torch

    from cellseg_cli.networks.architecture import Architecture, Embedder
    from cellseg_cli.networks.checkpoint import ModelHeader, save_model

    torch.manual_seed(seed)
    architecture = Architecture(
        kind="spatial",
        encoder="test_resnet",
        levels=2,
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
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "other.safetensors", 1, {})
