"""Guides: what each shows, that tiles and turns do not matter, and that models keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cellseg_cli.errors import CheckpointError
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, load_model, save_model
from cellseg_cli.networks.guides import GUIDES, REACH_PX, Guides, channels
from cellseg_cli.networks.initial import load_initial
from cellseg_cli.networks.predict import Predictor


def guided(image: np.ndarray, *guides: str) -> np.ndarray:
    """The prepared channels (C', Y, X) of an image (C, Y, X)."""
    return Guides(guides)(torch.from_numpy(image)[None]).numpy()[0]  # type: ignore[arg-type]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_without_guides_nothing_changes() -> None:
    image = noise(2, 20, 30)
    assert np.array_equal(guided(image), image)


@pytest.mark.parametrize("guides", [("edges",), ("contours", "contrast"), GUIDES])
def test_channels_are_what_they_are_said_to_be(guides: tuple[str, ...]) -> None:
    image = noise(3, 40, 50)
    prepared = guided(image, *guides)
    assert prepared.shape == (channels(3, guides), 40, 50)  # type: ignore[arg-type]
    assert np.isfinite(prepared).all()
    if "contrast" not in guides:
        assert np.array_equal(prepared[:3], image)


def test_contrast_is_the_deviation_from_the_window_by_a_slow_loop() -> None:
    image = noise(1, 45, 50)
    prepared = guided(image, "contrast")[0]
    padded = np.pad(image[0].astype(np.float64), 15, mode="edge")
    mean = np.array([[padded[y : y + 31, x : x + 31].mean() for x in range(50)] for y in range(45)])
    apart = np.pad((image[0] - mean) ** 2, 15, mode="edge")
    deviation = np.sqrt(
        [[apart[y : y + 31, x : x + 31].mean() for x in range(50)] for y in range(45)]
    )
    assert prepared == pytest.approx((image[0] - mean) / deviation / 2, abs=1e-4)


def test_contrast_forgets_brightness_and_gain_but_leaves_flat_ground_flat() -> None:
    image = noise(1, 64, 64)
    assert guided(0.3 * image + 0.5, "contrast") == pytest.approx(
        guided(image, "contrast"), abs=1e-4
    )
    flat = 0.5 + 0.001 * noise(1, 64, 64)
    assert np.abs(guided(flat, "contrast")).max() < 0.02


def test_edges_are_where_a_step_is_and_contours_where_a_line_is() -> None:
    step = np.zeros((1, 32, 32), np.float32)
    step[..., 16:] = 1
    edges = guided(step, "edges")[1]
    assert (edges[:, 15:17] > 0.5).all()
    assert edges[:, :11].max() == edges[:, 21:].max() == 0
    line = np.zeros((1, 32, 32), np.float32)
    line[..., 16] = 1
    bright, dark = guided(line, "contours")[1], guided(-line, "contours")[1]
    assert (bright[:, 16] > 0.5).all()
    assert np.array_equal(dark, -bright)
    assert np.abs(bright[:, :9]).max() == np.abs(bright[:, 24:]).max() == 0


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_images_give_turned_channels(turns: int) -> None:
    image = noise(2, 50, 40)
    turned = np.ascontiguousarray(np.rot90(image, turns, (1, 2)))
    prepared = guided(turned, *GUIDES)
    assert prepared == pytest.approx(np.rot90(guided(image, *GUIDES), turns, (1, 2)), abs=1e-5)


def test_a_pixel_is_seen_from_no_farther_than_is_said() -> None:
    image = noise(1, 120, 120)
    changed = image.copy()
    changed[0, 60, 60] += 1
    differ = (guided(image, *GUIDES) != guided(changed, *GUIDES)).any(axis=0)
    rows, columns = np.nonzero(differ)
    assert max(abs(rows - 60).max(), abs(columns - 60).max()) <= REACH_PX
    assert differ[60, 60]


def saved(path: Path, guides: tuple[str, ...]) -> Path:
    torch.manual_seed(0)
    architecture = Architecture(
        encoder="test_resnet", levels=2, decoder_channels=4, in_channels=1, guides=guides
    )  # type: ignore[arg-type]
    save_model(path, Embedder(architecture), ModelHeader("guided", architecture))
    return path


def test_a_model_keeps_its_guides_and_tiles_do_not_show(tmp_path: Path) -> None:
    path = saved(tmp_path / "guided.safetensors", GUIDES)
    model, header = load_model(path)
    assert header.architecture.guides == GUIDES
    assert model.guides.guides == GUIDES
    image = noise(1, 300, 310)
    whole = Predictor(model, header, device="cpu", tile_px=512).embed(image)
    tiled = Predictor(model, header, device="cpu", tile_px=256).embed(image)
    assert tiled.values == pytest.approx(whole.values, abs=2e-3)


def test_weights_of_other_guides_do_not_fit(tmp_path: Path) -> None:
    path = saved(tmp_path / "guided.safetensors", ("edges",))
    plain = Embedder(
        Architecture(encoder="test_resnet", levels=2, decoder_channels=4, in_channels=1)
    )
    with pytest.raises(CheckpointError, match=r"set guides=\['edges'\], or leave --init out"):
        load_initial(plain, path)
