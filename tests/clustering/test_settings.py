from __future__ import annotations

import pytest

from cellseg_cli.clustering import METHODS, Clustering, default_method, resolve
from cellseg_cli.errors import ConfigError


def test_auto_takes_the_method_of_the_kind() -> None:
    assert resolve(Clustering(), "spatial").method == default_method("spatial") == "seeds"
    assert resolve(Clustering(), "contrastive").method == default_method("contrastive") == "grid"


@pytest.mark.parametrize("kind", ["spatial", "contrastive"])
def test_nothing_is_left_open(kind: str) -> None:
    for method in METHODS:
        if (method, kind) in {("seeds", "contrastive"), ("linkage", "spatial")}:
            continue
        assert None not in vars(resolve(Clustering(method), kind)).values()


def test_given_values_stay() -> None:
    resolved = resolve(Clustering("linkage", merge_distance=0.2, size="half"), "contrastive")
    assert (resolved.merge_distance, resolved.size, resolved.erosion) == (0.2, "half", "grow")


def test_with_classes_the_foreground_of_grid_is_a_probability() -> None:
    assert resolve(Clustering(), "contrastive", with_classes=True).foreground == 0.5
    given = Clustering(foreground=0.2)
    assert resolve(given, "contrastive", with_classes=True).foreground == 0.2


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (Clustering(), "round", "unknown kind of embedding 'round'; known: contrastive, spatial"),
        (
            Clustering("meanshift"),
            "spatial",
            "unknown clustering method 'meanshift'; known: auto, grid, linkage, seeds, watershed",
        ),
        (
            Clustering("seeds"),
            "contrastive",
            "seeds cannot cluster a contrastive embedding; methods that can: "
            "grid, linkage, watershed",
        ),
        (
            Clustering("linkage"),
            "spatial",
            "linkage cannot cluster a spatial embedding; methods that can: grid, seeds, watershed",
        ),
        (
            Clustering(merge_distance=float("nan"), min_area_px=0, size="quarter"),
            "contrastive",
            "merge_distance must be from 0 to 1000; got nan; "
            "min_area_px must be from 1 to 2147483647; got 0; "
            "size must be one of 160x128, half, full; got 'quarter'",
        ),
        (
            # A model's file may hold anything.
            Clustering(foreground="much", seed_level=[1]),  # type: ignore[arg-type]
            "spatial",
            "foreground must be from 0 to 2; got much; seed_level must be from 0 to 1; got [1]",
        ),
    ],
)
def test_faults_are_told_whole(settings: Clustering, kind: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(settings, kind)
    assert str(caught.value) == message
