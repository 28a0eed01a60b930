"""A small real model, a small real plate, and the stages run on them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, save_model


def write_image(path: Path, seed: int, shape: tuple[int, int] = (48, 64)) -> None:
    """Write bright discs on a dark, noisy ground as an 8-bit PNG."""
    rng = np.random.default_rng(seed)
    image = rng.normal(20, 4, shape).clip(0, 255).astype(np.uint8)
    for _ in range(5):
        centre = int(rng.integers(shape[1])), int(rng.integers(shape[0]))
        cv2.circle(image, centre, int(rng.integers(4, 8)), int(rng.integers(90, 250)), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def save_tiny_model(path: Path, seed: int, cluster: dict[str, float]) -> Path:
    """Save a random network with the spatial head; its label images are noise, but not empty."""
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


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    """Six fields in two folders."""
    for index in range(6):
        write_image(tmp_path / f"plate/{'AB'[index % 2]}/f{index}.png", index)
    return tmp_path / "plate"
