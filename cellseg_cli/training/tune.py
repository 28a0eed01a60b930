"""Choose a model's clustering settings on the held-out fields.

Every field is embedded once and clustered under every trial; the trial of the
highest mean AP (mean over fields, Kaggle's metric) goes into the model's
header, where `cluster` finds it.  Of equal trials the first one stays, so the
choice is deterministic.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cellseg_cli.clustering import Clustering, cluster, default_method
from cellseg_cli.evaluation.scores import FieldScore, score_field, summarise
from cellseg_cli.instances import instances_of_labels
from cellseg_cli.networks.checkpoint import load_model, save_model
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.training.data import Examples, read_field

#: Values tried for each setting of the default method of a kind; all combinations.
TRIALS: dict[str, dict[str, tuple[float, ...]]] = {
    "spatial": {
        "foreground": (0.25, 0.3, 0.35, 0.4),
        "seed_level": (0.5, 0.6, 0.7, 0.8, 0.85),
        "min_area_px": (16, 24, 32),
    },
    "contrastive": {
        "merge_distance": (0.2, 0.3, 0.45, 0.6),
        "foreground": (0.4, 0.5, 0.6),
        "min_area_px": (16, 24, 32),
    },
}


def trials(kind: str) -> tuple[Clustering, ...]:
    """Return every setting that is tried for embeddings of a kind."""
    method = default_method(kind)
    combinations: list[dict[str, Any]] = [
        dict(zip(TRIALS[kind], values, strict=True))
        for values in itertools.product(*TRIALS[kind].values())
    ]
    return tuple(Clustering(method=method, **combination) for combination in combinations)


def tune(path: Path, examples: Examples, device: str) -> dict[str, Any]:
    """Write the best clustering settings into the header of the model file at `path`.

    Without held-out fields, or where no field can be scored, the file stays as
    it is.

    Returns
    -------
    dict
        The settings and their ``mean_ap``; empty where nothing was chosen.
    """
    model, header = load_model(path)
    predictor = Predictor(model, header, device=device)
    tried = trials(header.kind)
    scores: list[list[FieldScore]] = [[] for _ in tried]
    for source in examples.sources:
        image, truth = read_field(source, examples.settings)
        embedding = predictor.embed(image)
        for settings, column in zip(tried, scores, strict=True):
            labels = cluster(
                embedding.values, kind=header.kind, settings=settings, classes=embedding.classes
            )
            column.append(score_field(instances_of_labels(labels), truth))
    means = [summarise(column).mean.mean_ap if column else float("nan") for column in scores]
    known = [index for index, mean in enumerate(means) if mean == mean]
    if not known:
        return {}
    best = max(known, key=lambda index: means[index])
    chosen = {key: value for key, value in asdict(tried[best]).items() if value is not None}
    training = {**header.training, "tuned_mean_ap": means[best]}
    save_model(path, model.cpu(), replace(header, cluster=chosen, training=training))
    return {**chosen, "mean_ap": means[best]}
