"""A small data set that a network can learn in seconds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile


def write_field(root: Path, name: str, seed: int, side: int = 64) -> None:
    """Write bright discs that do not touch, and their label image."""
    rng = np.random.default_rng(seed)
    image = rng.normal(20, 3, (side, side))
    labels = np.zeros((side, side), np.uint16)
    for number, (row, column) in enumerate(np.ndindex(3, 3), start=1):
        centre = (12 + 20 * column + int(rng.integers(-2, 3)), 12 + 20 * row)
        disc = np.zeros((side, side), np.uint8)
        cv2.circle(disc, centre, int(rng.integers(4, 8)), 1, -1)
        image[disc > 0] = rng.integers(120, 220)
        labels[disc > 0] = number
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / "images" / f"{name}.png"), image.clip(0, 255).astype(np.uint8))
    tifffile.imwrite(root / "labels" / f"{name}.tif", labels)


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """A folder with images/ and labels/ of four fields."""
    root = tmp_path / "discs"
    for number in range(4):
        write_field(root, f"f{number}", number)
    return root
