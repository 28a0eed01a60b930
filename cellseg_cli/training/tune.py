"""Choose a model's clustering settings on the held-out fields.

The settings that score best (:mod:`cellseg_cli.evaluation.choice`), for all fields and for those
of each cell type, go into the model's header, where `cluster` finds them.  Fields are embedded
anew for each of its few passes, which costs less than keeping the embeddings of a large set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellseg_cli.clustering import Clustering, resolve
from cellseg_cli.config import BY_TYPE
from cellseg_cli.evaluation.choice import (
    Trials,
    choose,
    mean_ap_of_trials,
    searches_for,
    settings_table,
)
from cellseg_cli.networks.checkpoint import load_model, write_tuned
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.training.data import ALL_TYPES, Examples, read_field

_ALL = ""  # the group of all fields; no cell type has an empty name


def tune(path: Path, examples: Examples, device: str) -> dict[str, Any]:
    """Write the best clustering settings into the header of the model file at `path`.

    Without held-out fields, or where no field can be scored, the file stays as
    it is.

    Returns
    -------
    dict
        The settings for all fields and their ``mean_ap``, and ``mean_ap/NAME`` of the settings
        for each cell type; empty where nothing was chosen.
    """
    model, header = load_model(path)
    predictor = Predictor(model, header, device=device)
    with_classes = header.architecture.classes_head
    method = header.cluster.get("method", "auto")  # that of the model's recipe
    start = resolve(Clustering(method), header.kind, with_classes=with_classes)

    def score(trials: Trials) -> Mapping[str, Sequence[float]]:
        return {one: _mean_aps(predictor, examples, int(one), trials[one]) for one in trials}

    searches = searches_for(start, header.kind, with_classes=with_classes)
    best = choose(searches, _groups(examples), score)
    if _ALL not in best:
        return {}
    overall = best.pop(_ALL)
    chosen = settings_table(overall.settings, header.kind)
    by_type = {name: settings_table(one.settings, header.kind) for name, one in best.items()}
    write_tuned(path, {**chosen, BY_TYPE: by_type} if by_type else chosen, overall.mean_ap)
    scores = {f"mean_ap/{name}": one.mean_ap for name, one in best.items()}
    return {**chosen, "mean_ap": overall.mean_ap, **scores}


def _mean_aps(
    predictor: Predictor, examples: Examples, number: int, trials: Sequence[Clustering]
) -> list[float]:
    """The mean AP of one held-out field under each trial."""
    image, truth = read_field(examples.sources[number], examples.settings)
    embedding = predictor.embed(image)
    return mean_ap_of_trials(
        embedding.values,
        kind=predictor.header.kind,
        trials=trials,
        truth=truth,
        classes=embedding.classes,
    )


def _groups(examples: Examples) -> dict[str, list[str]]:
    """The numbers of all fields, and of those of each cell type that is named, as texts."""
    groups: dict[str, list[str]] = {_ALL: []}
    for number, source in enumerate(examples.sources):
        groups[_ALL].append(str(number))
        cell_type = source.group.split(":", 1)[1]
        if cell_type != ALL_TYPES:
            groups.setdefault(cell_type, []).append(str(number))
    return groups
