"""Which clustering settings a field gets: the user's, the store's, the model's, the method's.

Each of these fills in what those before it leave open.  The store's are the ones that
``cluster --tune`` has found on its fields, the model's those in the header of the model that
made the embeddings.  Both hold for one method and are left out where another is in use, and
both may hold settings of their own for some cell types, which come before those for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cellseg_cli.clustering import Clustering, default_method, ignored, resolve
from cellseg_cli.config import BY_TYPE, ClusterSettings, field_names
from cellseg_cli.config_file import cluster_settings_by_type, read_provenance, settings_from
from cellseg_cli.errors import ConfigError, StoreError
from cellseg_cli.evaluation.grouping import groups_of_fields
from cellseg_cli.store import Store

#: Settings by name, and under ``by_type`` such a table for each cell type.
Tuned: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class CellTypes:
    """Which cell type each field is of, as far as its settings go.

    Attributes
    ----------
    everywhere
        The type of every field.
    table
        ``FILE.csv:COLUMN`` that names the type of each field; not with `everywhere`.
    settings
        What the user sets for a type; types that are not in it have the user's
        settings for all.
    """

    everywhere: str | None = None
    table: str | None = None
    settings: Mapping[str, ClusterSettings] = field(default_factory=dict)


@dataclass(frozen=True)
class FieldSettings:
    """The settings of every field of a store, with nothing left open.

    Attributes
    ----------
    kind
        Of the embeddings.
    overall
        For every field that `by_field` does not name.
    by_field
        For fields of a type that has settings of its own, by field id.
    notes
        What the user should know, one line each.
    """

    kind: str
    overall: Clustering
    by_field: Mapping[str, Clustering]
    notes: tuple[str, ...] = ()

    def of(self, field_id: str) -> Clustering:
        """The settings of one field."""
        return self.by_field.get(field_id, self.overall)


def settings_of_fields(
    store: Store, settings: ClusterSettings, types: CellTypes, field_ids: Iterable[str]
) -> FieldSettings:
    """The settings of every field of a store.

    Parameters
    ----------
    store
        Where the embeddings lie.
    settings, types
        What the user sets, for all fields and by their type.
    field_ids
        All fields of the store.

    Raises
    ------
    ConfigError
        As :func:`cellseg_cli.clustering.resolve`; a cell type without settings of its own is
        asked for, or types in two ways at once; the file of the store's settings is damaged.
    InputError
        The table of types cannot be read, or is of other fields.
    StoreError
        The store does not say what kind its embeddings are, or its model was tuned with
        settings that are not known.
    """
    sources = Sources.of_store(store, settings, types)
    notes = _taken_from(store, sources)
    if types.everywhere is not None and types.everywhere not in sources.known_types:
        raise ConfigError(_unknown_type(store, types.everywhere, sources.known_types))
    overall = sources.resolved(types.everywhere)
    if types.table is None:
        notes += _without_effect(sources, [overall])
        return FieldSettings(sources.kind, overall, {}, notes)
    ids = tuple(field_ids)
    _, type_of = groups_of_fields(types.table, ids)
    of_type = {name: sources.resolved(name) for name in sources.known_types}
    by_field = {one: of_type[name] for one in ids if (name := type_of.get(one)) in of_type}
    notes += _without_effect(sources, [overall, *of_type.values()])
    if left := [type_of.get(one) for one in ids if one not in by_field]:
        notes += (_without_own(types.table, left),)
    return FieldSettings(sources.kind, overall, by_field, notes)


@dataclass(frozen=True)
class Sources:
    """All that settings are taken from.

    Attributes
    ----------
    kind, with_classes
        Of the embeddings.
    settings, types
        What the user sets, for all fields and by their type.
    tuned
        The store's own settings, if there are any, then its model's.
    """

    kind: str
    with_classes: bool
    settings: ClusterSettings
    types: CellTypes
    tuned: tuple[Tuned, ...]

    @classmethod
    def of_store(
        cls, store: Store, settings: ClusterSettings, types: CellTypes = CellTypes()
    ) -> Sources:
        """What there is for a store; raises as :func:`settings_of_fields`."""
        if types.everywhere is not None and types.table is not None:
            raise ConfigError("--cell-type says it for all fields, --types for each: choose one")
        model = store.attributes.get("model", {})
        if (kind := model.get("kind")) is None:
            raise StoreError(f"{store.path} does not say what kind its embeddings are; embed anew")
        own, models = _own(store), _models(store)
        tuned = (models,) if own is None else (own, models)
        return cls(kind, bool(model.get("classes")), settings, types, tuned)

    @property
    def known_types(self) -> tuple[str, ...]:
        """The cell types that have settings of their own, by whoever set them; sorted."""
        tables = (*(tuned.get(BY_TYPE, {}) for tuned in self.tuned), self.types.settings)
        return tuple(sorted({name for table in tables for name in table}))

    def resolved(self, cell_type: str | None = None) -> Clustering:
        """The settings for a cell type, or for all, with nothing left open."""
        user = self.settings
        if cell_type is not None:
            user = self.types.settings.get(cell_type, user)
        given = _given(user)
        tables = [_of_type(tuned, cell_type) for tuned in self.tuned]
        usual = default_method(self.kind)
        given.setdefault("method", next((t["method"] for t in tables if "method" in t), usual))
        for table in tables:
            if table.get("method", usual) == given["method"]:
                given = {**table, **given}
        return resolve(Clustering(**given), self.kind, with_classes=self.with_classes)


def model_of(store: Store) -> str | None:
    """The fingerprint of the model that made the embeddings of a store."""
    fingerprint = store.attributes.get("embed", {}).get("model")
    return None if fingerprint is None else str(fingerprint)


def _given(settings: ClusterSettings) -> dict[str, Any]:
    """What is set, by name."""
    given = {name: getattr(settings, name) for name in field_names(Clustering)}
    return {name: value for name, value in given.items() if value not in (None, "auto")}


def _without_effect(sources: Sources, used: Sequence[Clustering]) -> tuple[str, ...]:
    """What to say of settings of the user's that no method in use looks at."""
    methods = sorted({one.method for one in used})
    unread = frozenset.intersection(*(ignored(method, sources.kind) for method in methods))
    if not (idle := [name for name in _given(sources.settings) if name in unread]):
        return ()
    verb = "have" if len(idle) > 1 else "has"
    return (f"{', '.join(idle)} {verb} no effect on the method {' or '.join(methods)}",)


def _of_type(tuned: Tuned, cell_type: str | None) -> dict[str, Any]:
    """The settings for a type: its own, and for what these leave open those for all."""
    own = tuned.get(BY_TYPE, {}).get(cell_type, {}) if cell_type is not None else {}
    overall = {name: value for name, value in tuned.items() if name != BY_TYPE}
    if own.get("method", overall.get("method")) != overall.get("method"):
        return dict(own)
    return {**overall, **own}


def _own(store: Store) -> Tuned | None:
    """The settings that were tuned on a store; None without, or where its model is another now."""
    path = store.tuned_path
    try:
        if not path.is_file() or read_provenance(path).get("model") != model_of(store):
            return None
        overall = settings_from(ClusterSettings, file=path, section="cluster")
        by_type = cluster_settings_by_type(file=path)
    except ConfigError as error:
        raise ConfigError(f"{error}: mend {path}, or delete it and tune again") from error
    return {**_given(overall), BY_TYPE: {name: _given(one) for name, one in by_type.items()}}


def _models(store: Store) -> Tuned:
    """The settings in the header of the model of a store."""
    tuned: Tuned = store.attributes.get("cluster", {})
    by_type = tuned.get(BY_TYPE, {})
    if not isinstance(by_type, dict) or not all(isinstance(one, dict) for one in by_type.values()):
        raise StoreError(f"{store.path / 'zarr.json'} is damaged: cluster.by_type is no table")
    names = (set(tuned) - {BY_TYPE}).union(*by_type.values())
    if unknown := sorted(names - set(field_names(Clustering))):
        raise StoreError(
            f"{store.path}: its model was tuned with settings that this cellseg does not know: "
            f"{', '.join(unknown)}; use the cellseg that made the model"
        )
    return tuned


def _taken_from(store: Store, sources: Sources) -> tuple[str, ...]:
    """One line, where the store's own settings fill in what the user leaves open."""
    own = sources.tuned[0] if len(sources.tuned) > 1 else {}
    if not set(own) - {BY_TYPE} - set(_given(sources.settings)):
        return ()
    return (f"settings that are not given are those tuned on this store, {store.tuned_path}",)


def _without_own(table: str, types: Sequence[str | None]) -> str:
    """How many fields have the settings for all although a table of types was given."""
    counts = Counter(one for one in types if one is not None)
    parts = [f"without a type in {table} ({types.count(None)})"] if None in types else []
    if counts:
        shown = ", ".join(f"{name}: {counts[name]}" for name in sorted(counts)[:5])
        more = ", ..." if len(counts) > 5 else ""
        parts.append(f"of types without settings of their own ({shown}{more})")
    return f"the settings for all are taken for fields {' and '.join(parts)}"


def _unknown_type(store: Store, cell_type: str, known: tuple[str, ...]) -> str:
    if known:
        return (
            f"there are no settings for the cell type {cell_type!r}; "
            f"there are those of {', '.join(known)}"
        )
    return (
        f"there are no settings for the cell type {cell_type!r}, nor for any other: find them by "
        f"cellseg cluster {store.path} --tune TRUTH, with a truth that has types or with --types"
    )
