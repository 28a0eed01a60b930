"""What a network takes: bytes counted without computing, seconds from a short pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.networks.views import View
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


def test_a_coarser_stage_takes_hardly_more_and_weights_are_no_pixels() -> None:
    four, five = (Architecture(levels=levels, in_channels=1) for levels in (4, 5))
    cpu = torch.device("cpu")
    before, after = (network_needs(one, cpu).bytes_per_px for one in (four, five))
    assert before <= after <= 1.05 * before


def test_needs_follow_the_view() -> None:
    """The network sees the square of the scale; copies go through it one after the other."""
    architecture = Architecture(encoder="test_resnet", levels=4, decoder_channels=8, in_channels=1)
    cpu = torch.device("cpu")

    def bytes_per_px(view: View) -> float:
        return network_needs(architecture, cpu, view).bytes_per_px

    plain = bytes_per_px(View())
    assert bytes_per_px(View(1.0)) == plain
    for scale in (0.5, 1.25, 2.0, 4.0):
        # and besides, images and answers in both sizes
        assert scale**2 * plain <= bytes_per_px(View(scale)) <= 1.3 * scale**2 * plain + 150
    flips, dihedral = (bytes_per_px(View(tta=kind)) for kind in ("flips", "dihedral"))
    assert plain <= flips <= plain + 150
    assert flips == dihedral


def test_seconds_count_every_pass(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is the network with all that stands around it."""
    view = View(1.5, "flips")
    predictor = Predictor.load(model, device="cpu", tile_px=64, halo_px=16, view=view)
    seen: list[int] = []
    for module in predictor._network._model.modules():
        if isinstance(module, Embedder):
            module.register_forward_hook(lambda _, given, __: seen.append(given[0][0, 0].numel()))
    monkeypatch.setattr(calibrate, "TIMED_S", 0.0)
    seconds_per_megapixel(predictor, tile_px=64, threads=1)
    assert seen == [96 * 96] * 4 * 3  # three rounds


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
