"""Choose a model's working scale and clustering settings on the held-out fields.

The settings that score best (:mod:`cellseg_cli.evaluation.choice`), for all fields and for those
of each cell type, go into the model's header, where `cluster` finds them, and so does the working
scale, where `embed` finds it.  Of a large set the fields for which :data:`KEPT_BYTES` have no room
are embedded anew in each of the few passes at each scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellseg_cli.clustering import Clustering, resolve
from cellseg_cli.config import BY_TYPE
from cellseg_cli.evaluation.choice import (
    Choice,
    Trials,
    choose,
    reached_by_trials,
    searches_for,
    settings_table,
)
from cellseg_cli.instances import Instances
from cellseg_cli.networks.checkpoint import load_model, read_header, write_tuned
from cellseg_cli.networks.predict import Embedding, Predictor
from cellseg_cli.networks.scaled import fits
from cellseg_cli.networks.views import View
from cellseg_cli.training.data import ALL_TYPES, Examples, read_field

_ALL = ""  # the group of all fields; no cell type has an empty name

#: How much of the embeddings stays in memory from one pass to the next.
KEPT_BYTES = 2**30

#: What a larger scale must gain in mean AP over a smaller one: scale s takes s² times as long.
LEAST_GAIN = 0.005


def tune(path: Path, examples: Examples, device: str) -> dict[str, Any]:
    """Write the best working scale and clustering settings into the header of the model at `path`.

    Of the scales of ``TrainSettings.scales`` that fit the network a larger one is taken only
    where it gains :data:`LEAST_GAIN` for all fields together.  Without held-out fields, or where
    no field can be scored, the file stays as it is.

    Returns
    -------
    dict
        ``scale``, the settings for all fields and their ``mean_ap``, and ``mean_ap/NAME`` of the
        settings for each cell type; empty where nothing was chosen.
    """
    header = read_header(path)
    stride = header.architecture.stride
    scales = [scale for scale in examples.settings.scales if fits(stride, scale)]
    found = {scale: _chosen(path, examples, device, scale) for scale in scales}
    found = {scale: best for scale, best in sorted(found.items()) if _ALL in best}
    if not found:
        return {}
    scale = next(iter(found))
    for other, best in found.items():
        if best[_ALL].score >= found[scale][_ALL].score + LEAST_GAIN:
            scale = other
    overall = found[scale].pop(_ALL)
    chosen = settings_table(overall.settings, header.kind)
    by_type = {
        name: settings_table(one.settings, header.kind) for name, one in found[scale].items()
    }
    table = {**chosen, BY_TYPE: by_type} if by_type else chosen
    write_tuned(path, table, {"mean_ap": overall.score}, scale)
    scores = {f"mean_ap/{name}": one.score for name, one in found[scale].items()}
    return {"scale": scale, **chosen, "mean_ap": overall.score, **scores}


def _chosen(path: Path, examples: Examples, device: str, scale: float) -> dict[str, Choice]:
    """The best settings at one scale, for all fields and for those of each cell type."""
    model, header = load_model(path)
    predictor = Predictor(model, header, device=device, view=View(scale))
    with_classes = header.architecture.classes_head
    method = header.cluster.get("method", "auto")  # that of the model's recipe
    start = resolve(Clustering(method), header.kind, with_classes=with_classes)

    fields = _Embedded(predictor, examples)

    def score(trials: Trials) -> Mapping[str, Sequence[float]]:
        return {one: fields.mean_aps(int(one), trials[one]) for one in trials}

    searches = searches_for(start, header.kind, with_classes=with_classes)
    return choose(searches, _groups(examples), score)


class _Embedded:
    """Fields with their embeddings: the first ones are kept, the others made again each time."""

    def __init__(self, predictor: Predictor, examples: Examples) -> None:
        self.predictor, self.examples = predictor, examples
        self.kept: dict[int, tuple[Embedding, Instances]] = {}
        self.room = KEPT_BYTES

    def mean_aps(self, number: int, trials: Sequence[Clustering]) -> list[float]:
        """The mean AP of one field under each trial."""
        embedding, truth = self.kept.get(number) or self._embedded(number)
        return reached_by_trials(
            embedding.values,
            kind=self.predictor.header.kind,
            trials=trials,
            truth=truth,
            classes=embedding.classes,
        )

    def _embedded(self, number: int) -> tuple[Embedding, Instances]:
        image, truth = read_field(self.examples.sources[number], self.examples.settings)
        embedding = self.predictor.embed(image)
        classes = 0 if embedding.classes is None else embedding.classes.nbytes
        size = embedding.values.nbytes + classes
        if size <= self.room:
            self.room -= size
            self.kept[number] = (embedding, truth)
        return embedding, truth


def _groups(examples: Examples) -> dict[str, list[str]]:
    """The numbers of all fields, and of those of each cell type that is named, as texts."""
    groups: dict[str, list[str]] = {_ALL: []}
    for number, source in enumerate(examples.sources):
        groups[_ALL].append(str(number))
        cell_type = source.group.split(":", 1)[1]
        if cell_type != ALL_TYPES:
            groups.setdefault(cell_type, []).append(str(number))
    return groups
