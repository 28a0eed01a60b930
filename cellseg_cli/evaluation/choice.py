"""Choose clustering settings by their scores on fields with truth.

A field is scored under every trial by its mean AP over IoU 0.50:0.05:0.95 (or another of
:data:`AIMS`), a trial by the mean over all fields for which that is defined (Kaggle's metric).  The
highest is chosen; of equal ones the first, and the settings in use come first, so that only what is
better takes their place.

The values of each setting are tried from coarse to fine: every fourth one in all combinations,
then the neighbours of the best at half the distance, then at a quarter.  With ``seeds`` on the
held-out images of DSB 2018 and of Sartorius, for all of them and for each of three kinds, 56
trials so came within 0.0022 of the mean AP of the best of 880 combinations, and within 0.0002 on
average.  ``linkage`` has one merge tree for all trials, which costs more than what is cut from
it: all its values are tried at once.

Knows embeddings, label images and instances, neither files nor stores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg_cli.clustering import Clustering, resolve
from cellseg_cli.clustering.trials import labels_of_trials
from cellseg_cli.errors import ConfigError
from cellseg_cli.evaluation.matching import Overlaps
from cellseg_cli.evaluation.scores import (
    FieldScore,
    Measures,
    measures,
    score_field,
    score_overlaps,
)
from cellseg_cli.instances import Instances, areas, instances_of_labels, labels_of

_FOREGROUND = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
_SEED_LEVEL = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
_MIN_AREA_PX = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_COSINE = (0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8)
_BANDWIDTHS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.5, 4.0)

#: The values tried of each setting, by method and kind of embedding; merge distances of ``grid``
#: lie on its ladder, so that a tree holds all of them.
VALUES: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("seeds", "spatial"): {
        "foreground": _FOREGROUND,
        "seed_level": _SEED_LEVEL,
        "min_area_px": _MIN_AREA_PX,
    },
    ("grid", "spatial"): {
        "merge_distance": _BANDWIDTHS,
        "foreground": _FOREGROUND,
        "min_area_px": _MIN_AREA_PX,
    },
    ("grid", "contrastive"): {
        "merge_distance": _COSINE,
        "foreground": _FOREGROUND,
        "seed_level": _SEED_LEVEL,
        "min_area_px": _MIN_AREA_PX,
    },
    ("linkage", "contrastive"): {
        "merge_distance": _COSINE[2:-1],
        "foreground": _FOREGROUND[2:-2:2],
        "min_area_px": (8, 16, 32, 64, 128),
    },
    **{
        ("watershed", kind): {
            "foreground": _FOREGROUND,
            "seed_level": _SEED_LEVEL,
            "min_area_px": _MIN_AREA_PX,
        }
        for kind in ("spatial", "contrastive")
    },
}

#: What is not searched without classes, because it only means something for these.
_OF_CLASSES = {("linkage", "contrastive"): "foreground", ("grid", "contrastive"): "seed_level"}

#: Methods that are tried in each other's place, where there are classes: with ``seeds`` predicted
#: centres part small touching cells, with ``watershed`` long branching ones, which no centre
#: describes, are parted where a border is seen.
_RIVALS = {"spatial": ("seeds", "watershed"), "contrastive": ("grid", "watershed")}

#: Distances of the values that are tried one after the other, by method.
_STRIDES = {"linkage": (1,)}
_USUAL_STRIDES = (4, 2, 1)

Aim: TypeAlias = Literal["mean_ap", "ap50", "ap75"]

#: What settings can be chosen by: outlines and counts together, whether cells are found at all
#: (IoU 0.5, for counting), or whether their outlines are good (0.75).
AIMS: dict[Aim, Callable[[Measures], float]] = {
    "mean_ap": lambda scored: scored.mean_ap,
    "ap50": lambda scored: scored.at("ap", 0.5),
    "ap75": lambda scored: scored.at("ap", 0.75),
}

Trials: TypeAlias = Mapping[str, Sequence[Clustering]]
#: Takes the trials of each field, by id, and gives what each reaches, NaN where it is not
#: defined; fields that cannot be scored are left out.
Score: TypeAlias = Callable[[Trials], Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Search:
    """Which settings are tried.

    Attributes
    ----------
    start
        Resolved settings; what `values` does not name stays as it is here.
    values
        Ascending values of each setting that is searched.
    strides
        Distances between the values tried, in places, one pass after the other.
    """

    start: Clustering
    values: Mapping[str, tuple[float, ...]]
    strides: tuple[int, ...]

    def coarse(self) -> list[Clustering]:
        """The trials of the first pass: all combinations of values at its distance."""
        first = self.strides[0]
        return self._combined(tuple(v[first // 4 :: first] for v in self.values.values()))

    def few(self) -> list[Clustering]:
        """The settings in use, and those with every fourth value of the first two settings."""
        tried = [
            values[1::4] if number < 2 else (getattr(self.start, name),)
            for number, (name, values) in enumerate(self.values.items())
        ]
        return list(dict.fromkeys((self.start, *self._combined(tried))))

    def around(self, best: Clustering, stride: int) -> list[Clustering]:
        """The trials at a distance from the best ones so far, and all combinations with them."""
        near = []
        for name, values in self.values.items():
            middle = int(np.argmin(np.abs(np.array(values) - getattr(best, name))))
            places = (middle - stride, middle, middle + stride)
            near.append(tuple(values[place] for place in places if 0 <= place < len(values)))
        return self._combined(near)

    def _combined(self, values: Sequence[Sequence[float]]) -> list[Clustering]:
        named: list[dict[str, Any]] = [
            dict(zip(self.values, one, strict=True)) for one in itertools.product(*values)
        ]
        return [replace(self.start, **one) for one in named]


@dataclass(frozen=True)
class Choice:
    """The best settings for some fields.

    Attributes
    ----------
    settings
        Resolved.
    score, before
        What they reach, and what the settings in use do (NaN if that is not defined).
    fields
        Number of fields that were scored.
    """

    settings: Clustering
    score: float
    before: float
    fields: int


def searches_for(
    start: Clustering, kind: str, *, with_classes: bool, held: Collection[str] = ()
) -> list[Search]:
    """What is tried: for the method of some settings and, unless it is held, for its rivals.

    Parameters
    ----------
    start
        Resolved: the settings in use.
    kind, with_classes
        Of the embeddings.
    held
        Settings that stay as they are in `start`.

    Returns
    -------
    list of Search
        The method in use first.

    Raises
    ------
    ConfigError
        If nothing is left to try for the method in use.
    """
    searches = [_search(start, kind, with_classes, held)]
    if not searches[0].values:
        raise ConfigError(
            f"nothing is left to tune: {', '.join(_values(start.method, kind, with_classes))} of "
            f"{start.method} are all given; leave some of them out"
        )
    rivals = _RIVALS.get(kind, ()) if with_classes and "method" not in held else ()
    for method in rivals:
        if method != start.method and start.method in rivals:
            given = {name: value for name, value in asdict(start).items() if name in held}
            other = resolve(Clustering(**{**given, "method": method}), kind, with_classes=True)
            searches.append(_search(other, kind, with_classes, held))
    return searches


def _search(start: Clustering, kind: str, with_classes: bool, held: Collection[str]) -> Search:
    """The search of one method; without values where all are held."""
    values = _values(start.method, kind, with_classes)
    left = {name: tried for name, tried in values.items() if name not in held}
    return Search(start, left, _STRIDES.get(start.method, _USUAL_STRIDES))


def _values(method: str, kind: str, with_classes: bool) -> dict[str, tuple[float, ...]]:
    idle = None if with_classes else _OF_CLASSES.get((method, kind))
    return {name: tried for name, tried in VALUES[method, kind].items() if name != idle}


def choose(
    searches: Sequence[Search],
    fields: Mapping[str, Sequence[str]],
    score: Score,
    in_use: Mapping[str, Clustering] | None = None,
) -> dict[str, Choice]:
    """The best settings for each group of fields.

    Parameters
    ----------
    searches
        What is tried, method by method; the `start` of the first are the settings in use for all.
    fields
        Ids of the fields of each group; a field may be in several, and is scored once for all.
    score
        Scores fields, once a pass; a field that it leaves out counts no more in any pass.
    in_use
        The settings in use for a group, where these are others than for all.

    Returns
    -------
    dict
        By group, for those that have a field with a defined score.
    """
    starts = {group: (in_use or {}).get(group, searches[0].start) for group in fields}
    scores: dict[str, dict[Clustering, float]] = {one: {} for ids in fields.values() for one in ids}

    def best(starts: Mapping[str, Clustering], method: str | None = None) -> dict[str, Choice]:
        found = {
            group: _best([scores[one] for one in ids if one in scores], starts[group], method)
            for group, ids in fields.items()
        }
        return {group: choice for group, choice in found.items() if choice}

    for search in searches:
        method = search.start.method
        own = {g: one if one.method == method else search.start for g, one in starts.items()}
        trials = {g: [starts[g], own[g], *search.coarse()] for g in fields}
        for number, stride in enumerate(search.strides):
            if number:
                near = best(own, method)
                trials = {g: search.around(near[g].settings, stride) for g in near}
            _score_new(scores, fields, trials, score)
    return best(starts)


def _score_new(
    scores: dict[str, dict[Clustering, float]],
    fields: Mapping[str, Sequence[str]],
    trials: Trials,
    score: Score,
) -> None:
    """Score each field under the trials of its groups that are new to it; fill in `scores`."""
    wanted: dict[str, list[Clustering]] = {}
    for group, settings in trials.items():
        for one in fields[group]:
            if one in scores:
                wanted.setdefault(one, []).extend(settings)
    new = {one: [t for t in dict.fromkeys(w) if t not in scores[one]] for one, w in wanted.items()}
    new = {one: settings for one, settings in sorted(new.items()) if settings}
    found = score(new) if new else {}
    for one, settings in new.items():
        if one in found:
            scores[one].update(zip(settings, found[one], strict=True))
        else:
            del scores[one]


def _best(
    scores: Sequence[Mapping[Clustering, float]], start: Clustering, method: str | None
) -> Choice | None:
    """The best of the trials (of a method) that all of some fields were scored under."""
    if not scores:
        return None
    common = [trial for trial in scores[0] if all(trial in field for field in scores)]
    asked = [trial for trial in common if method is None or trial.method == method]
    candidates = [start, *(trial for trial in asked if trial != start)]
    means = [_mean([field[trial] for field in scores]) for trial in candidates]
    defined = [index for index, mean in enumerate(means) if not math.isnan(mean)]
    if not defined:
        return None
    chosen = max(defined, key=lambda index: means[index])
    return Choice(candidates[chosen], means[chosen], means[0], len(scores))


def _mean(values: Sequence[float]) -> float:
    """The mean of what is defined."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def settings_table(settings: Clustering, kind: str) -> dict[str, Any]:
    """Chosen settings as tables and headers keep them: the method and all that it goes by."""
    used = set(VALUES[settings.method, kind])
    if settings.method in ("grid", "linkage"):
        used |= {"size", "erosion"}
    return {k: v for k, v in asdict(settings).items() if k == "method" or k in used}


def reached_by_trials(
    embedding: NDArray[np.floating],
    *,
    kind: str,
    trials: Sequence[Clustering],
    truth: Instances,
    classes: NDArray[np.uint8] | None = None,
    aim: Aim = "mean_ap",
) -> list[float]:
    """What one field reaches under each trial, in their order; NaN where it is not defined.

    Takes and raises what :func:`scores_of_trials` does, and the key of :data:`AIMS`.
    """
    scored = scores_of_trials(embedding, kind=kind, trials=trials, truth=truth, classes=classes)
    return [AIMS[aim](measures(one)) for one in scored]


def scores_of_trials(
    embedding: NDArray[np.floating],
    *,
    kind: str,
    trials: Sequence[Clustering],
    truth: Instances,
    classes: NDArray[np.uint8] | None = None,
) -> list[FieldScore]:
    """The score of one field under each trial, in their order, without kinds of error.

    Parameters
    ----------
    embedding, kind, classes
        As :func:`cellseg_cli.clustering.cluster` takes them.
    trials
        Settings.
    truth
        Of the same size as the embedding.

    Raises
    ------
    ConfigError, InputError, LimitError
        As ``cluster``.
    """
    assert truth.shape == embedding.shape[1:]
    flat = _Flat.of(truth)
    found: dict[int, FieldScore] = {}
    for index, labels in labels_of_trials(embedding, kind=kind, trials=trials, classes=classes):
        if flat is None:
            found[index] = score_field(instances_of_labels(labels), truth)
        else:
            found[index] = score_overlaps(flat.overlaps(labels))
    return [found[index] for index in range(len(trials))]


@dataclass(frozen=True, eq=False)
class _Flat:
    """Truth without overlaps, ready to be compared with many label images.

    What :func:`cellseg_cli.evaluation.matching.overlaps_of_labels` gives, at a quarter of its
    time: of the truth only the pixels of instances are kept, and ``cluster`` promises dense ids.

    Attributes
    ----------
    pixel : (n,) int64
        Flat indices of the pixels of all instances.
    instance : (n,) int64
        The instance of each, from 0.
    areas : (T,) int64
        Pixels of each instance.
    """

    pixel: NDArray[np.int64]
    instance: NDArray[np.int64]
    areas: NDArray[np.int64]

    @classmethod
    def of(cls, truth: Instances) -> _Flat | None:
        """The truth; None where instances overlap."""
        labels = labels_of(truth).ravel()
        pixel = np.flatnonzero(labels)
        sizes = areas(truth)
        if len(pixel) != sizes.sum():
            return None
        return cls(pixel, labels[pixel].astype(np.int64) - 1, sizes)

    def overlaps(self, labels: NDArray[np.uint32]) -> Overlaps:
        """The pairs that share a pixel with a label image of dense ids."""
        flat = labels.ravel()
        sizes = np.bincount(flat)
        width = len(sizes)
        codes = self.instance * width + flat[self.pixel]
        counts = np.bincount(codes, minlength=len(self.areas) * width)
        counts[::width] = 0  # background of the prediction
        shared = np.flatnonzero(counts)
        return Overlaps(self.areas, sizes[1:], shared // width, shared % width - 1, counts[shared])
