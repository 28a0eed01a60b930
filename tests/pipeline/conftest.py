"""A small real plate for the stages to run on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest


def write_image(path: Path, seed: int, shape: tuple[int, int] = (48, 64)) -> None:
    """Write bright discs on a dark, noisy ground as an 8-bit PNG."""
    rng = np.random.default_rng(seed)
    image = rng.normal(20, 4, shape).clip(0, 255).astype(np.uint8)
    for _ in range(5):
        centre = int(rng.integers(shape[1])), int(rng.integers(shape[0]))
        cv2.circle(image, centre, int(rng.integers(4, 8)), int(rng.integers(90, 250)), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    """Six fields in two folders."""
    for index in range(6):
        write_image(tmp_path / f"plate/{'AB'[index % 2]}/f{index}.png", index)
    return tmp_path / "plate"
