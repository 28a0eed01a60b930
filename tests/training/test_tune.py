"""The settings that a model carries are the best of those tried, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cellseg_cli.clustering import cluster
from cellseg_cli.config import TrainSettings
from cellseg_cli.evaluation.scores import score_field, summarise
from cellseg_cli.instances import instances_of_labels
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, load_model, save_model
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.training import tune as tuning
from cellseg_cli.training.data import Examples, open_split, read_field
from cellseg_cli.training.tune import TRIALS, trials, tune

SETTINGS = TrainSettings(in_channels=1)


def saved(path: Path) -> Path:
    torch.manual_seed(3)
    architecture = Architecture(encoder="resnet10t", levels=3, decoder_channels=4, in_channels=1)
    save_model(path, Embedder(architecture), ModelHeader(name="tiny", architecture=architecture))
    return path


@pytest.mark.parametrize("kind", sorted(TRIALS))
def test_every_combination_is_tried_once(kind: str) -> None:
    tried = trials(kind)
    assert len(set(tried)) == len(tried)
    for name, values in TRIALS[kind].items():
        assert {getattr(each, name) for each in tried} == set(values)


def test_the_best_trial_is_written(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"spatial": {"foreground": (0.3, 0.45), "seed_level": (0.4, 0.5), "min_area_px": (4, 9)}}
    monkeypatch.setattr(tuning, "TRIALS", few)
    path = saved(tmp_path / "tiny.safetensors")
    before, _ = load_model(path)
    examples = Examples(open_split([str(discs)]).train, SETTINGS)
    chosen = tune(path, examples, "cpu")
    after, header = load_model(path)
    predictor = Predictor.load(path, device="cpu")

    def mean_ap(settings: object) -> float:
        scores = []
        for source in examples.sources:
            image, truth = read_field(source, SETTINGS)
            labels = cluster(predictor.embed(image).values, kind="spatial", settings=settings)  # type: ignore[arg-type]
            scores.append(score_field(instances_of_labels(labels), truth))
        return summarise(scores).mean.mean_ap

    expected = [mean_ap(settings) for settings in trials("spatial")]
    assert chosen["mean_ap"] == max(expected)
    best = trials("spatial")[expected.index(max(expected))]
    assert {key: getattr(best, key) for key in header.cluster} == header.cluster
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name])


def test_without_held_out_fields_the_file_stays(discs: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny.safetensors")
    content = path.read_bytes()
    assert tune(path, Examples((), SETTINGS), "cpu") == {}
    assert path.read_bytes() == content
