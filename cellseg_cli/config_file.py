"""Settings from defaults, a file, ``--set`` and flags, each above those before; back to TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cellseg_cli.config import (
    BY_TYPE,
    ClusterSettings,
    EmbedSettings,
    PretrainSettings,
    RunSettings,
    TrainSettings,
    field_names,
)
from cellseg_cli.errors import ConfigError

Settings = TypeVar(
    "Settings", EmbedSettings, ClusterSettings, RunSettings, TrainSettings, PretrainSettings
)


def settings_from(
    cls: type[Settings],
    *,
    file: Path | None = None,
    section: str = "",
    sets: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Return the settings: defaults < ``file[section]`` < ``--set key=value`` < flags.

    Parameters
    ----------
    file
        A TOML file with one table per command.
    section
        The table that holds the settings of this command.
    sets
        ``key=value`` texts; the value is read as TOML, else taken as text.
    flags
        Values from the command line; ``None`` means not given.

    Raises
    ------
    ConfigError
        All unknown keys and all bad values, in one message.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_table(file, section))
        if cls is ClusterSettings:
            values.pop(BY_TYPE, None)  # cluster_settings_by_type reads it
    values.update(_pairs(sets))
    values.update({key: value for key, value in (flags or {}).items() if value is not None})
    return _validated(cls, values)


def cluster_settings_by_type(
    *,
    file: Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
) -> dict[str, ClusterSettings]:
    """Return the settings of each cell type that ``[cluster.by_type.NAME]`` of a file names.

    What such a table leaves open is taken from ``[cluster]``; ``sets`` and ``flags`` hold for
    all types, as in :func:`settings_from`.

    Raises
    ------
    ConfigError
        As :func:`settings_from`; and where ``by_type`` is no table of tables.
    """
    if file is None:
        return {}
    table = _table(file, "cluster")
    by_type = table.pop(BY_TYPE, {})
    if not isinstance(by_type, dict) or not all(isinstance(one, dict) for one in by_type.values()):
        raise ConfigError(f"{file}: cluster.by_type must hold a table [cluster.by_type.NAME] each")
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    return {
        name: _validated(ClusterSettings, {**table, **one, **_pairs(sets), **given})
        for name, one in by_type.items()
    }


def read_provenance(file: Path) -> dict[str, Any]:
    """Return what ``[tuned]`` of a file says of the tuning that wrote it; empty if nothing.

    Raises
    ------
    ConfigError
        As :func:`settings_from`.
    """
    return _table(file, "tuned")


def toml_text(tables: Mapping[str, Any]) -> str:
    """Return nested tables of numbers, texts and booleans as TOML; scalars first in each table.

    Characters that no file can hold (lone surrogates) become question marks.

    >>> print(toml_text({"cluster": {"size": "half", "by_type": {"T 1": {"foreground": 0.3}}}}))
    [cluster]
    size = "half"
    <BLANKLINE>
    [cluster.by_type."T 1"]
    foreground = 0.3
    <BLANKLINE>
    """
    return "\n".join(_toml_tables(tables, ())).encode("utf-8", "replace").decode("utf-8")


def _toml_tables(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the text of a table, if it has scalars, and then those inside it."""
    scalars = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if scalars:
        head = [f"[{'.'.join(map(_toml_key, path))}]"] if path else []
        lines = [f"{_toml_key(key)} = {_toml_scalar(value)}" for key, value in scalars.items()]
        yield "\n".join([*head, *lines, ""])
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml_tables(value, (*path, key))


def _toml_key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else _toml_scalar(key)


def _toml_scalar(value: str | float | bool) -> str:
    # JSON's texts, numbers and booleans are TOML's, but for one control character.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def _table(file: Path, section: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    # the commands that take --config, and what tuning says of the file it writes
    known = {"train", "pretrain", "embed", "cluster", "run", "tuned"}
    if unknown := sorted(set(content) - known):
        raise ConfigError(
            f"{file} has unknown tables {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    table = content.get(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: {section} must be a table [{section}], got {table!r}")
    return table


def _pairs(sets: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r} is not of the form key=value")
        values[key.strip()] = _toml_value(value.strip())
    return values


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _validated(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    from pydantic import TypeAdapter, ValidationError

    known = field_names(cls)
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        for fault in error.errors():
            if isinstance(own := fault.get("ctx", {}).get("error"), ConfigError):
                raise own from error  # two settings that do not go together
        faults = "; ".join(
            f"{fault['loc'][0]}={fault['input']!r}: {fault['msg']}" for fault in error.errors()
        )
        raise ConfigError(f"bad settings: {faults}") from error
