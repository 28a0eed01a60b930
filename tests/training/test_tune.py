"""The settings that a model carries are the best of those tried, and nothing else changes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from cellseg_cli.clustering import Clustering, cluster, resolve
from cellseg_cli.config import TrainSettings
from cellseg_cli.evaluation import choice
from cellseg_cli.evaluation.scores import measures, score_field
from cellseg_cli.instances import instances_of_labels
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, fingerprint, load_model, save_model
from cellseg_cli.networks.predict import Embedding, Predictor
from cellseg_cli.training import tune as tuning
from cellseg_cli.training.data import Examples, open_split, read_field
from cellseg_cli.training.tune import tune

SETTINGS = TrainSettings(in_channels=1, scales=(1.0,))
FEW = {"foreground": (0.3, 0.45), "seed_level": (0.4, 0.5), "min_area_px": (4, 9)}


def saved(path: Path) -> Path:
    torch.manual_seed(3)
    architecture = Architecture(encoder="resnet10t", levels=3, decoder_channels=4, in_channels=1)
    save_model(path, Embedder(architecture), ModelHeader(name="tiny", architecture=architecture))
    return path


def mean_ap(predictor: Predictor, examples: Examples, settings: Clustering) -> list[float]:
    """The mean AP of each field, straight from `cluster` and `score_field`."""
    found = []
    for source in examples.sources:
        image, truth = read_field(source, SETTINGS)
        embedding = predictor.embed(image)
        labels = cluster(
            embedding.values, kind="spatial", settings=settings, classes=embedding.classes
        )
        found.append(measures(score_field(instances_of_labels(labels), truth)).mean_ap)
    return found


def test_the_best_settings_are_written_for_all_and_by_type(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choice.VALUES, ("seeds", "spatial"), FEW)
    index = tmp_path / "index.csv"
    index.write_text("id,cell_type\nf0,big\nf1,\nf2,big\nf3,small\n")
    path = saved(tmp_path / "tiny.safetensors")
    before, _ = load_model(path)
    mark = fingerprint(path)
    examples = Examples(open_split([str(discs)], index=index).train, SETTINGS)
    assert [source.group for source in examples.sources] == ["0:big", "0:all", "0:big", "0:small"]
    chosen = tune(path, examples, "cpu")

    after, header = load_model(path)
    predictor = Predictor.load(path, device="cpu")
    combined = [dict(zip(FEW, values, strict=True)) for values in itertools.product(*FEW.values())]
    tried = [resolve(Clustering(), "spatial", with_classes=True)]
    tried += [Clustering("seeds", **one) for one in combined]  # type: ignore[arg-type]
    scores = [mean_ap(predictor, examples, settings) for settings in tried]
    best = max(sum(one) / 4 for one in scores)
    assert chosen["mean_ap"] == pytest.approx(best, abs=1e-12)
    assert chosen["mean_ap/big"] == pytest.approx(max((s[0] + s[2]) / 2 for s in scores), abs=1e-12)
    assert chosen["mean_ap/small"] == pytest.approx(max(s[3] for s in scores), abs=1e-12)

    by_type = header.cluster.pop("by_type")
    assert sorted(by_type) == ["big", "small"]
    for settings, reached, fields in (
        (header.cluster, chosen["mean_ap"], [0, 1, 2, 3]),
        (by_type["big"], chosen["mean_ap/big"], [0, 2]),
        (by_type["small"], chosen["mean_ap/small"], [3]),
    ):
        assert set(settings) == {"method", "foreground", "seed_level", "min_area_px"}
        found = mean_ap(predictor, examples, Clustering(**settings))
        assert sum(found[i] for i in fields) / len(fields) == pytest.approx(reached, abs=1e-12)
    assert header.training["tuned_mean_ap"] == chosen["mean_ap"]
    assert fingerprint(path) == mark
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name])


@pytest.mark.parametrize(("gain", "larger"), [(-1.0, True), (1.0, False)])
def test_a_larger_working_scale_is_taken_only_for_its_gain(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, larger: bool
) -> None:
    """What is written is what tuning at that scale alone finds, whatever the order of scales."""
    monkeypatch.setitem(choice.VALUES, ("seeds", "spatial"), FEW)
    monkeypatch.setitem(choice.VALUES, ("watershed", "spatial"), FEW)
    monkeypatch.setattr(tuning, "LEAST_GAIN", gain)
    path = saved(tmp_path / "tiny.safetensors")

    def tuned(*scales: float) -> tuple[dict[str, object], dict[str, object]]:
        settings = dataclasses.replace(SETTINGS, scales=scales)
        chosen = tune(path, Examples(open_split([str(discs)]).train, settings), "cpu")
        header = load_model(path)[1]
        assert header.scale == chosen["scale"]
        return chosen, header.cluster

    alone = {scale: tuned(scale) for scale in (1.0, 1.5)}
    assert alone[1.0] != alone[1.5]
    assert tuned(1.5, 1.0) == tuned(1.0, 1.5) == alone[1.5 if larger else 1.0]
    monkeypatch.setattr(tuning, "fits", lambda stride, scale: scale == 1.0)
    assert tuned(1.0, 1.5) == alone[1.0]


@pytest.mark.parametrize(("kept", "made_again"), [(0, 4), (3 * 64 * 64 * 11, 1), (2**30, 0)])
def test_what_stays_in_memory_changes_nothing(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, made_again: int
) -> None:
    """A field of 64×64 px has 4 components of 2 bytes and 3 classes of one."""
    monkeypatch.setitem(choice.VALUES, ("seeds", "spatial"), FEW)
    path = saved(tmp_path / "tiny.safetensors")
    examples = Examples(open_split([str(discs)]).train, SETTINGS)
    expected = tune(path, examples, "cpu")
    embedded: list[int] = []
    embed = Predictor.embed

    def counted(self: Predictor, image: np.ndarray) -> Embedding:
        embedded.append(image.size)
        return embed(self, image)

    monkeypatch.setattr(Predictor, "embed", counted)
    monkeypatch.setattr(tuning, "KEPT_BYTES", kept)
    assert tune(path, examples, "cpu") == expected
    further = len(embedded) - 4  # after the first pass
    assert further % made_again == 0 < further if made_again else further == 0


def test_without_held_out_fields_the_file_stays(discs: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny.safetensors")
    content = path.read_bytes()
    assert tune(path, Examples((), SETTINGS), "cpu") == {}
    assert path.read_bytes() == content
