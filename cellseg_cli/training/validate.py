"""Scores of a model in training on the fields that are held out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.errors import InputError
from cellseg_cli.evaluation.scores import FieldScore, score_field, summarise, summarise_groups
from cellseg_cli.instances import instances_of_labels
from cellseg_cli.networks.architecture import Embedder
from cellseg_cli.networks.checkpoint import ModelHeader
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.training.data import Examples, Source, read_field
from cellseg_cli.training.state import averaged_copy


def validate(
    model: Embedder, header: ModelHeader, examples: Examples, device: str
) -> dict[str, float]:
    """Return mean AP, AP at 0.5 and 0.75 over the fields, and mean AP per cell type.

    Clustering runs with the defaults of the recipe's method.  Without held-out
    fields the result is empty.
    """
    if not examples.sources:
        return {}
    predictor = Predictor(averaged_copy(model), header, device=device)
    scores: dict[str, FieldScore] = {}
    group_of: dict[str, str] = {}
    for number, source in enumerate(examples.sources):
        key = str(number)
        scores[key] = _score(predictor, source, examples)
        group_of[key] = source.group.split(":", 1)[1]
    mean = summarise(scores.values()).mean
    result = {"mean_ap": mean.mean_ap, "ap50": mean.at("ap", 0.5), "ap75": mean.at("ap", 0.75)}
    for group, part in summarise_groups(scores, group_of).items():
        result[f"mean_ap/{group}"] = part.mean.mean_ap
    return {name: 0.0 if math.isnan(value) else value for name, value in result.items()}


def _score(predictor: Predictor, source: Source, examples: Examples) -> FieldScore:
    image, truth = read_field(source, examples.settings)
    embedding = predictor.embed(image)
    header = predictor.header
    method = Clustering(header.cluster.get("method", "auto"))  # that of the model's recipe
    labels = cluster(embedding.values, kind=header.kind, settings=method, classes=embedding.classes)
    return score_field(instances_of_labels(labels), truth)


def statistics(examples: Examples) -> dict[str, Any]:
    """Return what the header says of the truth: fields, instances, areas, groups.

    Pseudo-labelled fields are no truth: only their number is told, where there are any.

    Raises
    ------
    InputError
        There is not one instance to learn from.
    """
    annotated = [n for n, source in enumerate(examples.sources) if source.pseudo is None]
    if not annotated:
        raise InputError("not one training field can be read: there is nothing to learn from")
    areas = np.concatenate([_areas(examples[index].labels) for index in annotated])
    if not areas.size:
        raise InputError("the training fields hold no instance: there is nothing to learn")
    groups = [examples.sources[index].group.split(":", 1)[1] for index in annotated]
    pseudo = len(examples) - len(annotated)
    return {
        "fields": len(annotated),
        **({"pseudo_labelled_fields": pseudo} if pseudo else {}),
        "instances": int(areas.size),
        "median_area_px": float(np.median(areas)),
        "smallest_area_px": int(areas.min()),
        "largest_area_px": int(areas.max()),
        "fields_per_type": _counted(groups),
    }


def _areas(labels: np.ndarray) -> np.ndarray:
    counts = np.bincount(labels.ravel())[1:]
    return counts[counts > 0]


def _counted(names: Iterable[str]) -> dict[str, int]:
    unique, counts = np.unique(list(names), return_counts=True)
    return {str(name): int(count) for name, count in zip(unique, counts, strict=True)}
