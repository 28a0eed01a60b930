"""What the project's origin does otherwise than the usual training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cellseg_cli.config import TrainSettings
from cellseg_cli.networks.architecture import Output
from cellseg_cli.networks.checkpoint import read_header
from cellseg_cli.training.crops import cut_crop, vary_brightness
from cellseg_cli.training.data import Example, open_split
from cellseg_cli.training.loop import learning_rate, train
from cellseg_cli.training.losses import contrastive_loss
from cellseg_cli.training.objective import OBJECTIVES, target_of

ORIGIN = TrainSettings(
    recipe="contrastive",
    decoder="upscale",
    in_channels=1,
    classes_head=False,
    sampler="uniform",
    sampled_pixels=5000,
    self_pairs=True,
    optimizer="adamw",
    learning_rate=1e-4,
    schedule="constant",
    weight_decay=0.0,
    ema_decay=0.0,
    augment="origin",
    scale_min=1.0,
    scale_max=1.0,
    balance=1.0,
)


def test_it_trains(discs: Path, tmp_path: Path) -> None:
    small = dataclasses.replace(
        ORIGIN,
        encoder="resnet10t",
        levels=3,
        decoder_channels=4,
        crop_px=48,
        batch_size=1,
        steps=3,
        device="cpu",
        precision="fp32",
        guides=("contrast", "edges", "contours"),
    )
    result = train(open_split([str(discs)]), tmp_path / "run", small)
    header = read_header(result.best)
    assert (header.kind, header.cluster) == ("contrastive", {})
    assert header.architecture.guides == small.guides
    assert header.channels == tuple(f"unit_{number}" for number in range(8))


def test_its_rate_stays() -> None:
    assert {learning_rate(step, ORIGIN) for step in range(ORIGIN.steps)} == {1e-4}


def test_its_loss_counts_a_pixel_as_its_own_partner() -> None:
    """A crop of 8×8 px is sampled as a whole: each pixel once, in whatever order."""
    labels = np.arange(64).reshape(1, 8, 8) // 20
    embedding = torch.nn.functional.normalize(torch.randn(1, 8, 8, 8), dim=1)
    rng = np.random.default_rng(0)
    target = target_of(labels, ORIGIN, rng)
    terms = OBJECTIVES["contrastive"](Output(embedding, None), target, ORIGIN)
    vectors, flat = embedding[0].flatten(1).T, torch.tensor(labels.ravel())
    assert set(terms) == {"contrast"}
    torch.testing.assert_close(
        terms["contrast"], contrastive_loss(vectors, flat, 0.2, with_itself=True)
    )


def test_it_turns_no_crop_and_mirrors_a_quarter_of_them_left_to_right() -> None:
    """Ramps tell: one grows by 1 a row, the other by 1 or −1 a column."""
    rows, columns = np.mgrid[:96, :96].astype(np.float16)
    ramps = Example("ramps", np.stack([rows, columns]), np.ones((96, 96), np.uint8))
    settings = dataclasses.replace(ORIGIN, crop_px=32, in_channels=2)
    mirrored = 0
    for seed in range(400):
        image, labels, _ = cut_crop(ramps, settings, np.random.default_rng(seed))
        # beyond the field the image is mirrored, within half a pixel of its border too
        inside = ((labels > 0) & (image > 2).all(0) & (image < 93).all(0))[1:, 1:]
        down, right = np.diff(image, axis=1)[:, :, 1:], np.diff(image, axis=2)[:, 1:]
        # OpenCV interpolates at multiples of 1/32 px
        assert np.abs(down[0][inside] - 1).max() < 0.07
        assert max(np.abs(right[0][inside]).max(), np.abs(down[1][inside]).max()) < 0.07
        sign = np.sign(right[1][inside].mean())
        assert np.abs(right[1][inside] - sign).max() < 0.07
        mirrored += int(sign < 0)
    assert abs(mirrored - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)


def test_it_varies_contrast_and_brightness_of_half_of_the_crops() -> None:
    images = torch.rand(400, 1, 1, 1) * torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3)
    changed = vary_brightness(images, torch.Generator().manual_seed(0))
    offset = changed[..., 0]  # where the image is 0
    contrast = (changed[..., 1] - offset) / images[..., 1]
    # the same line through the third point
    torch.testing.assert_close(changed[..., 2], offset + contrast * images[..., 2])
    assert 0.7 - 1e-4 < contrast.min() < 0.75
    assert 1.25 < contrast.max() < 1.3 + 1e-4
    assert -0.1 <= offset.min() < -0.09
    assert 0.09 < offset.max() <= 0.1
    assert int((offset == 0).sum()) == pytest.approx(200, abs=4 * 10)
