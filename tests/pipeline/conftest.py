"""A small real plate for the stages to run on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile


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


@pytest.fixture
def long_plate(plate: Path) -> Path:
    """The plate, and a field with a side longer than a slab of the store."""
    rng = np.random.default_rng(7)
    image = rng.normal(20, 4, (4200, 72)).clip(0, 255).astype(np.uint8)
    for y in range(20, 4200, 45):
        cv2.circle(image, (int(rng.integers(14, 58)), y), int(rng.integers(6, 11)), 200, -1)
    tifffile.imwrite(plate / "long.tif", image, compression="zlib", rowsperstrip=64)
    return plate


@pytest.fixture(scope="session")
def children() -> Iterator[Any]:
    """The module of functions that run in a child process; it can be imported there too."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    import children

    if children.FORKED is None:
        pytest.skip("needs fork and SIGKILL")
    children.FORKED.set_forkserver_preload(children.PRELOADED)
    yield children
    sys.path.remove(folder)
