"""Settings: defaults < file < --set < flags, and everything unknown is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.config import ClusterSettings, EmbedSettings, TrainSettings, parse_part
from cellseg_cli.config_file import (
    cluster_settings_by_type,
    read_provenance,
    settings_from,
    toml_text,
)
from cellseg_cli.errors import ConfigError


def test_flags_win_over_sets_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "cellseg.toml"
    file.write_text('[train]\nsteps = 1\nseed = 1\nencoder = "resnet34"\n[embed]\ntile_px = 64\n')
    settings = settings_from(
        TrainSettings,
        file=file,
        section="train",
        sets=["seed=2", "steps=2", "recipe=contrastive"],
        flags={"steps": 3, "device": None},
    )
    assert (settings.steps, settings.seed, settings.encoder) == (3, 2, "resnet34")
    assert settings.recipe == "contrastive"
    assert settings.device == TrainSettings().device


def test_values_have_the_types_of_their_fields() -> None:
    settings = settings_from(EmbedSettings, sets=["channel=[0, 2]", "z=max", "tile_px=256"])
    assert settings.channel == (0, 2)
    assert settings.z == "max"
    assert settings.tile_px == 256


def test_a_plane_is_named_by_its_number_too() -> None:
    assert settings_from(EmbedSettings, sets=["z=3"]).z == "3"


def test_all_unknown_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        settings_from(EmbedSettings, sets=["tiles=3", "bacth=1"])
    assert str(error.value) == (
        "unknown setting bacth, tiles; known: batch_size, channel, device, exclude, halo_px, "
        "include, model, pattern, scale, t, tile_px, tta, z"
    )


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        settings_from(TrainSettings, sets=["steps=many", "recipe=magic"])
    message = str(error.value)
    assert message.startswith("bad settings: ")
    assert "steps='many': Input should be a valid integer" in message
    assert "recipe='magic': Input should be 'spatial', 'contrastive' or 'binary'" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[embed\n", "is not valid TOML"),
        ("[embbed]\nz = 1\n", "tables embbed; known: cluster, embed, pretrain, run, train, tuned"),
        (
            "[export]\n",
            "has unknown tables export; known: cluster, embed, pretrain, run, train, tuned",
        ),
        ("embed = 3\n", "embed must be a table [embed], got 3"),
    ],
)
def test_a_bad_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        settings_from(EmbedSettings, file=file, section="embed")
    assert message in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        settings_from(EmbedSettings, file=tmp_path / "none.toml", section="embed")
    assert str(error.value) == (
        f"cannot read the configuration {tmp_path / 'none.toml'}: No such file or directory"
    )


@pytest.mark.parametrize("text", ["tile_px", "=7", ""])
def test_a_set_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_from(EmbedSettings, sets=[text])
    assert str(error.value) == f"--set {text!r} is not of the form key=value"


@pytest.mark.parametrize("part", ["0/4", "5/4", "1/0"])
def test_parts_outside_their_number_are_refused(part: str) -> None:
    with pytest.raises(ConfigError, match=r"i must lie in 1\.\.n"):
        parse_part(part)


@pytest.mark.parametrize("part", ["", "1", "1/", "a/b", "-1/4", "1/2/3"])
def test_parts_of_another_form_are_refused(part: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form i/n"):
        parse_part(part)


TYPED = """[tuned]
model = "12ab"
[cluster]
method = "seeds"
foreground = 0.3
min_area_px = 9
[cluster.by_type.cort]
foreground = 0.5
[cluster.by_type."two words"]
min_area_px = 70
"""


def test_settings_of_each_type_stand_on_those_for_all(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(TYPED)
    assert settings_from(ClusterSettings, file=file, section="cluster").foreground == 0.3
    by_type = cluster_settings_by_type(file=file, sets=["seed_level=0.7"], flags={"size": "half"})
    common = {"method": "seeds", "seed_level": 0.7, "size": "half"}
    assert by_type == {
        "cort": ClusterSettings(**common, foreground=0.5, min_area_px=9),  # type: ignore[arg-type]
        "two words": ClusterSettings(**common, foreground=0.3, min_area_px=70),  # type: ignore[arg-type]
    }
    flags = {"foreground": 0.1, "size": None}
    assert {
        one.foreground for one in cluster_settings_by_type(file=file, flags=flags).values()
    } == {0.1}
    assert cluster_settings_by_type() == {}
    assert read_provenance(file) == {"model": "12ab"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[cluster]\nby_type = 3\n",
            "{file}: cluster.by_type must hold a table [cluster.by_type.NAME] each",
        ),
        (
            "[cluster.by_type]\ncort = 0.3\n",
            "{file}: cluster.by_type must hold a table [cluster.by_type.NAME] each",
        ),
        (
            "[cluster.by_type.cort]\nglow = 1\n",
            "unknown setting glow; known: erosion, foreground, merge_distance, method, "
            "min_area_px, overlap_px, seed_level, size, tile_px",
        ),
    ],
)
def test_bad_tables_of_types(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        cluster_settings_by_type(file=file)
    assert str(error.value) == message.format(file=file)


def test_only_cluster_knows_types(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text("[embed.by_type.cort]\nz = 1\n")
    with pytest.raises(ConfigError, match="unknown setting by_type; known: batch_size, channel"):
        settings_from(EmbedSettings, file=file, section="embed")


scalars = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)


@given(
    tables=st.recursive(
        st.dictionaries(st.text(), scalars, min_size=1, max_size=3),
        lambda inner: st.dictionaries(st.text(), st.one_of(scalars, inner), min_size=1, max_size=4),
        max_leaves=6,
    )
)
@settings(deadline=None, max_examples=50)
def test_what_is_written_as_toml_is_read_back(tables: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(tables)) == tables


def test_what_no_file_can_hold_is_replaced() -> None:
    assert toml_text({"a\ud800": "b"}) == '"a?" = "b"\n'
