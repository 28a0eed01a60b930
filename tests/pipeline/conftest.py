"""A small real plate for the stages to run on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from cellseg_cli.store import Stage, Store


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


def _results(out: Path) -> set[str]:
    """Every file of a run but temporary ones and the records of runs."""
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return {str(path) for path in files if not {"tmp", "runs"} & set(path.parts)}


def _state(out: Path) -> Store:
    """The store with the marks of a run."""
    inside = out / ".cellseg/segment.zarr"  # of label images that are TIFF files
    return Store.open(inside if Store.is_at(inside) else out)


def _pixels(store: Store, out: Path, field_id: str) -> tuple[np.ndarray, ...]:
    """What a run made of a field."""
    if store.attributes["keeps"] == "embeddings":
        values, classes = store.read_embedding(field_id)
        assert classes is not None
        return values, classes
    if store.path == out:
        return (store.read_labels(field_id),)
    return (tifffile.imread(out / f"{field_id}.tif"),)


def _assert_same_results(out: Path, undisturbed: Path, *, so_far: bool = False) -> None:
    one, other = _state(out), _state(undisturbed)
    assert one.fields() == other.fields()
    assert one.attributes == other.attributes
    stage: Stage = "cluster" if one.attributes["keeps"] == "labels" else "embed"
    if not so_far:
        assert _results(out) == _results(undisturbed)
    for row in other.fields():
        if so_far and not one.has(row.id, stage):
            continue
        assert one.mark(row.id, stage) == other.mark(row.id, stage) is not None
        made, wanted = _pixels(one, out, row.id), _pixels(other, undisturbed, row.id)
        for ours, theirs in zip(made, wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="session")
def same_results() -> Callable[..., None]:
    """(out, undisturbed) asserts that two runs of ``embed`` or ``segment`` left the same.

    With ``so_far`` only fields that have a mark are compared.
    """
    return _assert_same_results
