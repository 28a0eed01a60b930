"""A checkpoint's score is that under the best of a few settings, of the same for all fields."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from cellseg_cli.clustering import Clustering, cluster, resolve
from cellseg_cli.config import TrainSettings
from cellseg_cli.evaluation.choice import searches_for
from cellseg_cli.evaluation.scores import Measures, measures, score_field
from cellseg_cli.instances import instances_of_labels
from cellseg_cli.networks.checkpoint import load_model
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.training.data import Examples, open_split, read_field
from cellseg_cli.training.loop import train
from cellseg_cli.training.validate import validate

SETTINGS = TrainSettings(
    encoder="resnet10t",
    levels=3,
    decoder_channels=8,
    in_channels=1,
    crop_px=48,
    batch_size=2,
    steps=60,
    learning_rate=4e-3,
    ema_decay=0.9,
    grid_points=16,
    sampled_pixels=100,
    window_px=12,
    validate_every=0,
    scales=(1.0,),
    device="cpu",
    precision="fp32",
)


@pytest.mark.parametrize("recipe", ["spatial", "contrastive"])
def test_a_checkpoint_is_scored_under_the_best_of_a_few_settings(
    recipe: str, discs: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, recipe=recipe)
    index = tmp_path / "index.csv"
    index.write_text("id,cell_type\nf0,big\nf1,small\nf2,big\nf3,small\n")
    split = open_split([str(discs)], index=index)
    model, header = load_model(train(split, tmp_path / "run", settings).last)
    examples = Examples(split.train, settings)
    predictor = Predictor(model, header, device="cpu")
    start = resolve(Clustering(header.cluster.get("method", "auto")), recipe, with_classes=True)
    trials = searches_for(start, recipe, with_classes=True)[0].few()
    assert trials[0] == start
    by_trial = {trial: [ap(predictor, examples, n, trial) for n in range(4)] for trial in trials}
    best = max(by_trial.values(), key=lambda fields: math.fsum(each.mean_ap for each in fields))

    found = validate(model, header, examples, "cpu")

    assert len({math.fsum(one.mean_ap for one in each) for each in by_trial.values()}) > 2
    expected = {
        "mean_ap": [one.mean_ap for one in best],
        "ap50": [one.at("ap", 0.5) for one in best],
        "ap75": [one.at("ap", 0.75) for one in best],
        "mean_ap/big": [best[n].mean_ap for n in (0, 2)],
        "mean_ap/small": [best[n].mean_ap for n in (1, 3)],
    }
    assert found == pytest.approx({name: np.mean(each) for name, each in expected.items()})


def ap(predictor: Predictor, examples: Examples, number: int, settings: Clustering) -> Measures:
    """The measures of one field, straight from `cluster` and `score_field`."""
    image, truth = read_field(examples.sources[number], SETTINGS)
    embedding = predictor.embed(image)
    labels = cluster(
        embedding.values,
        kind=predictor.header.kind,
        settings=settings,
        classes=embedding.classes,
    )
    return measures(score_field(instances_of_labels(labels), truth))
