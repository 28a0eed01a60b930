"""Scores of a model in training on the fields that are held out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cellseg_cli.clustering import Clustering, resolve
from cellseg_cli.errors import InputError
from cellseg_cli.evaluation.choice import scores_of_trials, searches_for
from cellseg_cli.evaluation.scores import FieldScore, summarise, summarise_groups
from cellseg_cli.networks.architecture import Embedder
from cellseg_cli.networks.checkpoint import ModelHeader
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.training.data import Examples, Source, read_field
from cellseg_cli.training.state import averaged_copy


def validate(
    model: Embedder, header: ModelHeader, examples: Examples, device: str
) -> dict[str, float]:
    """Return mean AP, AP at 0.5 and 0.75 over the fields, and mean AP per cell type.

    They are those under the best of a few settings of the recipe's method, the same for all
    fields: a network in training shifts its levels, and under fixed ones a worse checkpoint may
    come out ahead of a better one.  Without held-out fields the result is empty.
    """
    if not examples.sources:
        return {}
    predictor = Predictor(averaged_copy(model), header, device=device)
    trials = _trials(header)
    scored = [_scores(predictor, source, examples, trials) for source in examples.sources]
    of_trials = [
        {str(n): score for n, score in enumerate(one)} for one in zip(*scored, strict=True)
    ]
    means = [_defined(summarise(one.values()).mean.mean_ap) for one in of_trials]
    scores = of_trials[int(np.argmax(means))]
    mean = summarise(scores.values()).mean
    result = {"mean_ap": mean.mean_ap, "ap50": mean.at("ap", 0.5), "ap75": mean.at("ap", 0.75)}
    types = (source.group.split(":", 1)[1] for source in examples.sources)
    for group, part in summarise_groups(scores, dict(zip(scores, types, strict=True))).items():
        result[f"mean_ap/{group}"] = part.mean.mean_ap
    return {name: _defined(value) for name, value in result.items()}


def _trials(header: ModelHeader) -> list[Clustering]:
    """A few settings of the method of the model's recipe, its defaults first."""
    with_classes = header.architecture.classes_head
    method = Clustering(header.cluster.get("method", "auto"))
    start = resolve(method, header.kind, with_classes=with_classes)
    return searches_for(start, header.kind, with_classes=with_classes)[0].few()


def _scores(
    predictor: Predictor, source: Source, examples: Examples, trials: Sequence[Clustering]
) -> list[FieldScore]:
    image, truth = read_field(source, examples.settings)
    embedding = predictor.embed(image)
    return scores_of_trials(
        embedding.values,
        kind=predictor.header.kind,
        trials=trials,
        truth=truth,
        classes=embedding.classes,
    )


def _defined(value: float) -> float:
    return 0.0 if math.isnan(value) else value


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
