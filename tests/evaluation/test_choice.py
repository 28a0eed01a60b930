"""The best settings are found: for all fields, by type, and by few trials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.clustering import Clustering, cluster, resolve
from cellseg_cli.clustering.merging import LADDER
from cellseg_cli.errors import ConfigError
from cellseg_cli.evaluation import choice
from cellseg_cli.evaluation.choice import (
    VALUES,
    Search,
    Trials,
    choose,
    reached_by_trials,
    searches_for,
    settings_table,
)
from cellseg_cli.evaluation.scores import measures, score_field
from cellseg_cli.instances import Instances, instances_of_labels

START = resolve(Clustering(), "spatial")
SEEDS = VALUES["seeds", "spatial"]


def place(trial: Clustering, name: str) -> int:
    """The place of a value among those tried."""
    return SEEDS[name].index(getattr(trial, name))


def usual(**held: float) -> Search:
    (search,) = searches_for(START, "spatial", with_classes=False, held=held)
    return search


@pytest.mark.parametrize("way", sorted(VALUES))
def test_every_value_can_be_tried(way: tuple[str, str]) -> None:
    method, kind = way
    for name, values in VALUES[way].items():
        assert list(values) == sorted(set(values))
        for value in values:
            resolve(Clustering(method, **{name: value}), kind)  # type: ignore[arg-type]
    if method == "grid":
        assert set(VALUES[way]["merge_distance"]) <= set(LADDER)


@given(peaks=st.lists(st.tuples(*(st.integers(0, len(v) - 1) for v in SEEDS.values()))))
@settings(deadline=None, max_examples=50)
def test_a_single_peak_is_found_for_each_group_by_few_trials(peaks: list[tuple[int, ...]]) -> None:
    """The score falls with the distance from a peak, a peak for each type."""
    types = {f"t{number}": peak for number, peak in enumerate(peaks[:3])}
    scored: set[tuple[str, Clustering]] = set()

    def score(trials: Trials) -> dict[str, list[float]]:
        for one, tried in trials.items():
            assert len(set(tried)) == len(tried)
            assert scored.isdisjoint((one, each) for each in tried)
            scored.update((one, each) for each in tried)
        return {one: [near(types[one], each) for each in tried] for one, tried in trials.items()}

    def near(peak: tuple[int, ...], trial: Clustering) -> float:
        if trial == START:
            return 0.1
        places = [place(trial, name) for name in SEEDS]
        return 1 - 0.01 * sum(abs(a - b) for a, b in zip(peak, places, strict=True))

    groups = {"": sorted(types), **{name: [name] for name in types}}
    best = choose([usual()], groups, score)
    assert set(best) == (set(groups) if types else set())
    for name, peak in types.items():
        assert tuple(place(best[name].settings, setting) for setting in SEEDS) == peak
        assert (best[name].score, best[name].before, best[name].fields) == (1.0, 0.1, 1)
        tried = {each for one, each in scored if one == name}
        assert len(tried) <= 1 + 36 + 2 * (26 + 26)


def test_the_settings_in_use_stay_unless_something_is_better() -> None:
    mine = Clustering("seeds", 0.0, 0.33, 0.66, 17, "full", "none")
    groups = {"": ["a", "b"], "t": ["b"]}

    def equal(trials: Trials) -> dict[str, list[float]]:
        return {one: [0.25] * len(tried) for one, tried in trials.items()}

    best = choose([usual()], groups, equal, {"t": mine})
    assert best[""].settings == START
    assert best["t"].settings == mine
    assert best["t"].before == best["t"].score == 0.25


def test_of_equal_trials_the_first_stays() -> None:
    search = Search(START, {"foreground": (0.1, 0.2, 0.4)}, (1,))

    def score(trials: Trials) -> dict[str, list[float]]:
        return {"a": [0.0 if trial.foreground == 0.3 else 0.5 for trial in trials["a"]]}

    assert choose([search], {"": ["a"]}, score)[""].settings.foreground == 0.1


def test_a_field_that_fails_later_counts_in_no_pass() -> None:
    passes = itertools.count()

    def score(trials: Trials) -> Mapping[str, Sequence[float]]:
        failing = next(passes) > 0
        found = {"good": [float(t.foreground or 0) for t in trials.get("good", ())]}
        if not failing:
            found["bad"] = [10.0 for _ in trials["bad"]]
        return found

    best = choose([usual()], {"": ["bad", "good"], "t": ["bad"]}, score)
    assert set(best) == {""}
    assert best[""].settings.foreground == SEEDS["foreground"][-1]
    assert (best[""].fields, best[""].score) == (1, SEEDS["foreground"][-1])


def test_fields_without_a_defined_score_are_left_out() -> None:
    def score(trials: Trials) -> dict[str, list[float]]:
        some = {"a": 0.5, "empty": math.nan}
        return {
            one: [some[one] + 0.1 * (t.foreground == 0.35) for t in tried]
            for one, tried in trials.items()
        }

    best = choose([usual()], {"": ["a", "empty"], "t": ["empty"]}, score)
    assert set(best) == {""}
    assert best[""].settings.foreground == 0.35
    assert (best[""].score, best[""].before) == (0.6, 0.5)


def test_what_is_held_is_not_searched() -> None:
    start = resolve(Clustering(foreground=0.33), "spatial")
    held = {"method", "foreground", "size"}
    (search,) = searches_for(start, "spatial", with_classes=True, held=held)
    assert set(search.values) == {"seed_level", "min_area_px"}
    trials = [*search.coarse(), *search.around(start, 2)]
    assert {trial.foreground for trial in trials} == {0.33}
    assert len({trial.seed_level for trial in trials}) > 2


def test_linkage_without_classes_has_no_foreground_and_one_pass() -> None:
    start = resolve(Clustering("linkage"), "contrastive")
    (without,) = searches_for(start, "contrastive", with_classes=False)
    assert set(without.values) == {"merge_distance", "min_area_px"}
    assert without.strides == (1,)
    every = list(itertools.product(*without.values.values()))
    assert len(without.coarse()) == len(every) == 55


def test_grid_without_classes_has_no_interior() -> None:
    start = resolve(Clustering(), "contrastive", with_classes=True)
    names = ["merge_distance", "foreground", "seed_level", "min_area_px"]
    assert list(searches_for(start, "contrastive", with_classes=True)[0].values) == names
    names.remove("seed_level")
    assert list(searches_for(start, "contrastive", with_classes=False)[0].values) == names


def test_rivals_are_tried_where_there_are_classes_and_no_method_is_held() -> None:
    """A rival begins with its own defaults, and with what is held."""
    start = resolve(Clustering(foreground=0.33), "spatial", with_classes=True)
    held = {"foreground", "overlap_px"}
    found = searches_for(start, "spatial", with_classes=True, held=held)
    assert [search.start.method for search in found] == ["seeds", "watershed"]
    usual = resolve(Clustering("watershed", foreground=0.33), "spatial")
    assert found[1].start == usual
    assert set(found[1].values) == {"seed_level", "min_area_px"}
    for alone in (
        searches_for(start, "spatial", with_classes=False),
        searches_for(start, "spatial", with_classes=True, held={"method"}),
        searches_for(resolve(Clustering("grid"), "spatial"), "spatial", with_classes=True),
    ):
        assert len(alone) == 1


def test_each_group_gets_the_method_that_suits_it() -> None:
    """Round cells score by seeds, long ones by watershed; what is used now counts as before."""
    searches = searches_for(
        resolve(Clustering(), "spatial", with_classes=True), "spatial", with_classes=True
    )
    likes = {"round": "seeds", "long": "watershed"}

    def score(trials: Trials) -> Mapping[str, Sequence[float]]:
        return {
            one: [0.5 * (t.method == likes[one]) + 0.1 * (t.foreground == 0.4) for t in trials[one]]
            for one in trials
        }

    now = {"long": resolve(Clustering("watershed", foreground=0.3), "spatial")}
    best = choose(searches, {"": [*likes], "round": ["round"], "long": ["long"]}, score, now)
    assert {group: (c.settings.method, c.settings.foreground) for group, c in best.items()} == {
        "": ("seeds", 0.4),
        "round": ("seeds", 0.4),
        "long": ("watershed", 0.4),
    }
    assert [best[group].before for group in ("", "round", "long")] == [0.25, 0.5, 0.5]


def test_nothing_left_to_tune() -> None:
    with pytest.raises(ConfigError) as error:
        searches_for(START, "spatial", with_classes=True, held=set(SEEDS))
    assert str(error.value) == (
        "nothing is left to tune: foreground, seed_level, min_area_px of seeds are all given; "
        "leave some of them out"
    )


def test_a_table_names_what_the_method_goes_by() -> None:
    linkage = resolve(Clustering("linkage", size="half"), "contrastive")
    assert settings_table(linkage, "contrastive") == {
        "method": "linkage",
        "merge_distance": 0.45,
        "foreground": 0.5,
        "min_area_px": 16,
        "size": "half",
        "erosion": "grow",
    }
    assert list(settings_table(START, "spatial")) == ["method", *SEEDS]


def field_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A label image of discs that touch, and their spatial embedding with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :50].astype(np.float32)
    labels = np.zeros((40, 50), np.uint32)
    values = np.zeros((4, 40, 50), np.float32)
    values[2] = 2
    for number in range(1, int(rng.integers(1, 8))):
        y, x = rng.uniform(5, 35), rng.uniform(5, 45)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < 30
        labels[inside] = number
        values[0][inside], values[1][inside] = (y - rows)[inside], (x - columns)[inside]
        values[3][inside] = 0.9
    values[:2] += rng.normal(0, 1, (2, 40, 50))
    values[3] = np.clip(values[3] + rng.normal(0, 0.15, (40, 50)), 0, 1)
    return labels, values


@given(seed=st.integers(0, 2**32 - 1), overlapping=st.booleans())
@settings(deadline=None, max_examples=25)
def test_scores_of_trials_are_those_of_evaluate(seed: int, overlapping: bool) -> None:
    labels, values = field_of(seed)
    truth = instances_of_labels(labels)
    if overlapping:
        truth = Instances(truth.shape, (*truth.runs, np.array([[0, 70]], np.int64)))
        truth = Instances(truth.shape, (*truth.runs, np.array([[30, 99]], np.int64)))
    tried = [START, Clustering("seeds", min_area_px=60), Clustering("grid", foreground=0.95)]
    found = reached_by_trials(values, kind="spatial", trials=tried, truth=truth)
    for trial, mean_ap in zip(tried, found, strict=True):
        predicted = instances_of_labels(cluster(values, kind="spatial", settings=trial))
        expected = measures(score_field(predicted, truth)).mean_ap
        np.testing.assert_array_equal(mean_ap, expected)  # NaN where nothing is there


def test_a_covered_instance_counts() -> None:
    """An instance that others cover completely has no pixel of its own, but is one to find."""
    hidden = np.array([[10, 5]], np.int64)
    truth = Instances((1, 30), (np.array([[10, 3]]), np.array([[13, 2]]), hidden))
    assert choice._Flat.of(truth) is None


def test_few_settings_are_those_in_use_and_a_coarse_lattice_of_two() -> None:
    few = Search(START, choice.VALUES["seeds", "spatial"], (4, 2, 1)).few()
    assert few[0] == START
    assert len(few) == len(set(few)) <= 10
    assert {one.seed_level for one in few[1:]} == {0.4, 0.65, 0.85}
    assert {one.foreground for one in few[1:]} == {0.15, 0.35, 0.55}
    assert {one.min_area_px for one in few} == {START.min_area_px}
