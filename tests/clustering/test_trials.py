"""Every trial gives the label image that `cluster` gives for the same settings."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.clustering import Clustering, cluster, trials
from cellseg_cli.clustering.merging import LADDER
from cellseg_cli.clustering.trials import labels_of_trials
from cellseg_cli.errors import ConfigError, InputError

Field = Callable[..., np.ndarray]

#: Settings that differ in what is cut from a tree, and in what is not.
TRIED: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("seeds", "spatial"): [
        {"foreground": f, "seed_level": s, "min_area_px": a}
        for f, s, a in product((0.2, 0.4), (0.5, 0.8), (4, 30))
    ],
    ("grid", "spatial"): [
        {"merge_distance": d, "foreground": f, "min_area_px": a}
        for d, f, a in product((1.0, 1.7, 2.4), (0.2, 0.4), (4, 30))
    ],
    ("grid", "contrastive"): [
        {"merge_distance": d, "foreground": f, "seed_level": i, "min_area_px": a, **more}
        for d, f, i, a, more in product(
            (0.2, 0.33, 0.6),
            (0.2, 0.4),
            (0.3, 0.6),
            (4, 30),
            ({"erosion": "none", "size": "full"}, {"erosion": "grow", "size": "half"}),
        )
    ],
    ("linkage", "contrastive"): [
        {"merge_distance": d, "foreground": f, "min_area_px": a, "erosion": e, "size": s}
        for d, f, a, e, s in product(
            (0.2, 0.33, 0.6), (0.2, 0.4), (4, 30), ("grow", "origin"), ("160x128", "half")
        )
    ],
    ("watershed", "contrastive"): [
        {"foreground": f, "seed_level": s, "min_area_px": a}
        for f, s, a in product((0.2, 0.4), (0.5, 0.8), (4, 30))
    ],
}


def noisy(ellipses: Field, spatial: Field, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embedding and classes of touching ellipses, with noise."""
    rng = np.random.default_rng(seed)
    labels = ellipses(seed, (50, 60), 12)
    inside = labels > 0
    probability = np.clip(inside * 0.6 + 0.2 + 0.15 * rng.standard_normal(labels.shape), 0, 1)
    classes = (255 * np.stack([1 - probability, probability, 0 * probability])).astype(np.uint8)
    if kind == "spatial":
        return spatial(labels, 3.0, seed), classes
    codes = rng.standard_normal((labels.max() + 1, 6))
    vectors = codes[labels] + 0.4 * rng.standard_normal((*labels.shape, 6))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return np.ascontiguousarray(vectors.transpose(2, 0, 1)).astype(np.float16), classes


@pytest.mark.parametrize(
    ("method", "kind", "with_classes"),
    [(*way, True) for way in sorted(TRIED)]
    + [(*way, False) for way in sorted(TRIED) if way[0] != "watershed"],
)
def test_trials_are_runs(
    ellipses: Field, spatial: Field, method: str, kind: str, with_classes: bool
) -> None:
    embedding, probabilities = noisy(ellipses, spatial, kind, 1)
    classes = probabilities if with_classes else None
    tried = [Clustering(method, **one) for one in TRIED[method, kind]]
    found = dict(labels_of_trials(embedding, kind=kind, trials=tried, classes=classes))
    assert sorted(found) == list(range(len(tried)))
    for index, labels in found.items():
        expected = cluster(embedding, kind=kind, settings=tried[index], classes=classes)
        np.testing.assert_array_equal(labels, expected)
    assert len({labels.tobytes() for labels in found.values()}) > 1


@given(
    seed=st.integers(0, 2**32 - 1),
    chosen=st.lists(
        st.sampled_from(
            [("grid", one) for one in TRIED["grid", "contrastive"]]
            + [("linkage", one) for one in TRIED["linkage", "contrastive"]]
            + [("watershed", one) for one in TRIED["watershed", "contrastive"]]
        ),
        max_size=6,
    ),
)
@settings(deadline=None, max_examples=20)
def test_any_mixture_in_any_order(
    ellipses: Field, spatial: Field, seed: int, chosen: list[tuple[str, dict[str, Any]]]
) -> None:
    embedding, classes = noisy(ellipses, spatial, "contrastive", seed)
    tried = [Clustering(method, **one) for method, one in chosen]
    found = dict(labels_of_trials(embedding, kind="contrastive", trials=tried, classes=classes))
    assert sorted(found) == list(range(len(tried)))
    for index, labels in found.items():
        np.testing.assert_array_equal(
            labels, cluster(embedding, kind="contrastive", settings=tried[index], classes=classes)
        )


@pytest.mark.parametrize(
    ("method", "trees"),
    # a tree for each size; for each size, two levels, and an odd distance
    [("linkage", 2), ("grid", 2 * 4 * 2)],
)
def test_a_tree_grows_once(
    ellipses: Field, spatial: Field, method: str, trees: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, classes = noisy(ellipses, spatial, "contrastive", 1)
    grow, cut = trials._TREES[method]
    grown: list[Clustering] = []

    def counted(*arguments: Any, settings: Clustering, **more: Any) -> Any:
        grown.append(settings)
        return grow(*arguments, settings=settings, **more)

    monkeypatch.setitem(trials._TREES, method, (counted, cut))
    tried = [Clustering(method, **one) for one in TRIED[method, "contrastive"]]
    found = labels_of_trials(embedding, kind="contrastive", trials=tried, classes=classes)
    assert len(dict(found)) == len(tried)
    assert len(grown) == trees


def test_distances_of_the_search_lie_on_the_ladder() -> None:
    assert {1.0, 2.4, 0.2, 0.6} <= set(LADDER)
    assert not {1.7, 0.33} & set(LADDER)


def test_nothing_comes_before_a_fault() -> None:
    field = np.ones((4, 8, 9), np.float16)
    tried = [Clustering("seeds"), Clustering("seeds", foreground=-1)]
    with pytest.raises(ConfigError, match="foreground must be from 0 to 2; got -1"):
        next(labels_of_trials(field, kind="spatial", trials=tried))
    with pytest.raises(InputError, match=r"288 of 288 values of the embedding are not finite"):
        next(labels_of_trials(field * np.nan, kind="spatial", trials=tried[:1]))
