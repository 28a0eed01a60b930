"""What a network takes: bytes counted without computing, seconds from a short pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cellseg_cli.networks.architecture import Architecture
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.pipeline import calibrate
from cellseg_cli.pipeline.calibrate import network_needs, peak_bytes, seconds_per_megapixel

TINY = Architecture(encoder="test_resnet", levels=2, decoder_channels=4, in_channels=1)


def test_bytes_are_those_that_are_alive_together() -> None:
    # 1 → 4 → 2 → 1 channels of 8×8 px in float32, 256 bytes each: 4 and 2 are alive together
    chain = nn.Sequential(*(nn.Conv2d(i, o, 1) for i, o in ((1, 4), (4, 2), (2, 1)))).to("meta")
    assert peak_bytes(chain, torch.empty(1, 1, 8, 8, device="meta")) == 6 * 256


def test_what_is_kept_counts_and_views_do_not() -> None:
    def keeps(images: Tensor) -> Tensor:
        doubled = images * 2  # 256 bytes
        kept = doubled.reshape(-1)
        more = doubled + 1  # 256 more
        del doubled
        return torch.cat([kept, more.reshape(-1)])  # 512 more

    assert peak_bytes(keeps, torch.empty(1, 1, 8, 8, device="meta")) == 4 * 256


def test_nothing_alive_is_counted_once_more() -> None:
    def repeats(images: Tensor) -> Tensor:
        for _ in range(5):
            images = images + 1
        return images

    assert peak_bytes(repeats, torch.empty(1, 1, 8, 8, device="meta")) == 2 * 256


def test_needs_follow_the_architecture() -> None:
    cpu = torch.device("cpu")
    needs = network_needs(TINY, cpu)
    assert (needs.in_channels, needs.components, needs.classes) == (1, 4, 3)
    assert needs.result_bytes == 2 * 4 + 3
    # image, the finest stage and what it is made of are alive together: 4 channels, some times
    assert 4 * 2 * 3 < needs.bytes_per_px < 4 * 4 * 100
    wider = Architecture(encoder="test_resnet", levels=2, decoder_channels=8, in_channels=1)
    assert network_needs(wider, cpu).bytes_per_px > needs.bytes_per_px


def test_seconds_are_of_a_megapixel(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.load(model, device="cpu", tile_px=128, halo_px=16)
    monkeypatch.setattr(calibrate, "TIMED_S", 0.05)
    before = predictor.use()
    seconds = seconds_per_megapixel(predictor, tile_px=128, threads=2)
    use = predictor.use()
    # three rounds of one pass at least on each of two threads, all of the only size there is
    passes = use.passes - before.passes
    assert passes >= 6
    assert use.pixels - before.pixels == passes * 128**2
    # not a year, not nothing: it is a time per megapixel and not per pixel or pass
    assert 1e-4 < seconds < 1e4
