"""Which settings a field gets: the user's, the store's, the model's, the method's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cellseg_cli.config import ClusterSettings
from cellseg_cli.config_file import toml_text
from cellseg_cli.errors import CellsegError, ConfigError, InputError, StoreError
from cellseg_cli.pipeline.settings import CellTypes, FieldSettings, settings_of_fields
from cellseg_cli.store import Store

IDS = ("a", "b", "c", "d")
SEEDS = {"method": "seeds", "foreground": 0.2, "seed_level": 0.4, "min_area_px": 8}


def store_of(path: Path, header: dict[str, Any], own: dict[str, Any] | None = None) -> Store:
    """A store whose model was tuned to `header`, and that was tuned itself to `own`."""
    attributes = {"model": {"kind": "spatial"}, "embed": {"model": "12ab"}, "cluster": header}
    store = Store.create(path / "s.zarr", attributes)
    if own is not None:
        store.write_tuned(toml_text({"tuned": {"model": "12ab", "fields": 2}, "cluster": own}))
    return store


def found(
    store: Store, settings: ClusterSettings = ClusterSettings(), types: CellTypes = CellTypes()
) -> FieldSettings:
    return settings_of_fields(store, settings, types, IDS)


def message(function: Callable[[], Any], kind: type[CellsegError]) -> str:
    with pytest.raises(kind) as caught:
        function()
    return str(caught.value)


def types_table(path: Path, text: str = "id,type\na,cort\nb,astro\nc,\nz,cort\n") -> str:
    (path / "t.csv").write_text(text)
    return f"{path / 't.csv'}:type"


def test_the_user_then_the_model_then_the_method(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"foreground": 0.3, "seed_level": 0.4})
    chosen = found(store, ClusterSettings(seed_level=0.9))
    assert (chosen.kind, chosen.overall.method) == ("spatial", "seeds")
    assert (chosen.overall.foreground, chosen.overall.seed_level) == (0.3, 0.9)
    assert chosen.overall.min_area_px == 16
    assert chosen.notes == ()
    # tuned for seeds: nothing of it is taken for another method
    (tmp_path / "plain").mkdir()
    plain = store_of(tmp_path / "plain", {})
    grid = ClusterSettings(method="grid")
    assert found(store, grid).overall == found(plain, grid).overall


def test_the_store_comes_before_its_model(tmp_path: Path) -> None:
    store = store_of(tmp_path, SEEDS | {"foreground": 0.6}, {"method": "seeds", "foreground": 0.1})
    chosen = found(store, ClusterSettings(min_area_px=99))
    overall = chosen.overall
    assert (overall.foreground, overall.seed_level, overall.min_area_px) == (0.1, 0.4, 99)
    assert chosen.notes == (
        f"settings that are not given are those tuned on this store, {store.tuned_path}",
    )
    assert found(store, ClusterSettings(method="seeds", foreground=0.7)).notes == ()


def test_each_holds_for_its_method(tmp_path: Path) -> None:
    store = store_of(tmp_path, SEEDS, {"method": "grid", "merge_distance": 1.2, "min_area_px": 5})
    assert found(store).overall.method == "grid"
    assert found(store).overall.merge_distance == 1.2
    seeds = found(store, ClusterSettings(method="seeds")).overall
    assert (seeds.foreground, seeds.seed_level, seeds.min_area_px) == (0.2, 0.4, 8)


def test_settings_tuned_for_another_model_are_left_out(tmp_path: Path) -> None:
    store = store_of(tmp_path, SEEDS)
    store.write_tuned(toml_text({"tuned": {"model": "other"}, "cluster": {"foreground": 0.9}}))
    assert found(store).overall.foreground == 0.2
    assert found(store).notes == ()


def test_the_settings_of_one_type_for_all_fields(tmp_path: Path) -> None:
    by_type = {"cort": {"foreground": 0.5}, "astro": SEEDS | {"min_area_px": 90}}
    store = store_of(tmp_path, SEEDS | {"by_type": by_type})
    cort = found(store, types=CellTypes("cort"))
    assert (cort.overall.foreground, cort.overall.seed_level) == (0.5, 0.4)
    assert cort.of("a") == cort.of("d") == cort.overall
    assert found(store, types=CellTypes("astro")).overall.min_area_px == 90
    given = found(store, ClusterSettings(foreground=0.9), CellTypes("cort"))
    assert given.overall.foreground == 0.9


def test_a_type_of_another_method_takes_nothing_from_all(tmp_path: Path) -> None:
    by_type = {"cort": {"method": "grid", "merge_distance": 1.0}}
    store = store_of(tmp_path, SEEDS | {"by_type": by_type})
    overall = found(store, types=CellTypes("cort")).overall
    assert (overall.method, overall.merge_distance, overall.min_area_px) == ("grid", 1.0, 16)


def test_each_field_has_the_settings_of_its_type(tmp_path: Path) -> None:
    store = store_of(tmp_path, {}, SEEDS | {"by_type": {"cort": SEEDS | {"foreground": 0.5}}})
    table = types_table(tmp_path)
    chosen = found(store, types=CellTypes(table=table))
    assert [chosen.of(one).foreground for one in IDS] == [0.5, 0.2, 0.2, 0.2]
    assert chosen.notes[1:] == (
        f"the settings for all are taken for fields without a type in {table} (2) and of types "
        "without settings of their own (astro: 1)",
    )


def test_the_user_sets_a_type_too(tmp_path: Path) -> None:
    store = store_of(tmp_path, SEEDS | {"by_type": {"cort": {"foreground": 0.5}}})
    types = CellTypes(
        table=types_table(tmp_path), settings={"cort": ClusterSettings(seed_level=0.8)}
    )
    chosen = found(store, ClusterSettings(min_area_px=50), types)
    assert (chosen.of("a").foreground, chosen.of("a").seed_level) == (0.5, 0.8)
    assert chosen.of("a").min_area_px == 8
    assert chosen.of("b").min_area_px == 50


def test_a_type_without_settings(tmp_path: Path) -> None:
    store = store_of(tmp_path, SEEDS | {"by_type": {"cort": {}, "astro": {}}})
    assert message(lambda: found(store, types=CellTypes("hela")), ConfigError) == (
        "there are no settings for the cell type 'hela'; there are those of astro, cort"
    )
    (tmp_path / "plain").mkdir()
    plain = store_of(tmp_path / "plain", {})
    assert message(lambda: found(plain, types=CellTypes("hela")), ConfigError) == (
        "there are no settings for the cell type 'hela', nor for any other: find them by cellseg "
        f"cluster {plain.path} --tune TRUTH, with a truth that has types or with --types"
    )


def test_types_are_told_in_one_way(tmp_path: Path) -> None:
    store = store_of(tmp_path, SEEDS)
    assert message(lambda: found(store, types=CellTypes("x", "t.csv:type")), ConfigError) == (
        "--cell-type says it for all fields, --types for each: choose one"
    )


def test_a_table_of_other_fields(tmp_path: Path) -> None:
    store = store_of(tmp_path, SEEDS)
    table = types_table(tmp_path, "id,type\nz,cort\n")
    assert message(lambda: found(store, types=CellTypes(table=table)), InputError) == (
        f"{table}: no field has a group there; its ids are of other fields (such as z), the "
        "fields are such as a"
    )


@pytest.mark.parametrize(
    "header", [{"glow": 1}, {"by_type": {"cort": {"glow": 1}}}, {"foreground": 0.2, "glow": 1}]
)
def test_tuned_settings_that_are_not_known(tmp_path: Path, header: dict[str, Any]) -> None:
    store = store_of(tmp_path, header)
    assert message(lambda: found(store), StoreError) == (
        f"{store.path}: its model was tuned with settings that this cellseg does not know: glow; "
        "use the cellseg that made the model"
    )


@pytest.mark.parametrize("by_type", [3, {"cort": 0.3}])
def test_types_that_are_no_tables(tmp_path: Path, by_type: object) -> None:
    store = store_of(tmp_path, {"by_type": by_type})
    assert message(lambda: found(store), StoreError) == (
        f"{store.path / 'zarr.json'} is damaged: cluster.by_type is no table"
    )


def test_a_damaged_file_of_settings(tmp_path: Path) -> None:
    store = store_of(tmp_path, SEEDS, {"glow": 1})
    assert message(lambda: found(store), ConfigError) == (
        "unknown setting glow; known: erosion, foreground, merge_distance, method, min_area_px, "
        f"overlap_px, seed_level, size, tile_px: mend {store.tuned_path}, or delete it and tune "
        "again"
    )


def test_a_store_of_no_kind(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s.zarr", {})
    assert message(lambda: found(store), StoreError) == (
        f"{store.path} does not say what kind its embeddings are; embed anew"
    )


def test_settings_without_effect_are_told(tmp_path: Path) -> None:
    store = store_of(tmp_path, {})
    idle = ClusterSettings(merge_distance=0.3, size="half", foreground=0.4)
    assert found(store, idle).notes == ("merge_distance, size have no effect on the method seeds",)
    grid = found(store, replace(idle, method="grid", erosion="none"))
    assert grid.notes == ("erosion has no effect on the method grid",)
    types = CellTypes(table=types_table(tmp_path), settings={"cort": replace(idle, method="grid")})
    assert not any("no effect" in note for note in found(store, idle, types).notes)
