"""Tune clustering: find the settings that score best on the annotated fields of a store.

Only fields with an embedding and truth are read, one at a time on each thread.  The settings are
found for all of these fields and, where their cell types are known, for each type, and kept with
the store; nothing else in the store changes.  A field that cannot be scored is listed with its
reason and takes no part.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellseg_cli import durable
from cellseg_cli.clustering import Clustering
from cellseg_cli.config import BY_TYPE, ClusterSettings, RunSettings
from cellseg_cli.config_file import read_provenance, toml_text
from cellseg_cli.engine.tasks import (
    FieldWork,
    Outcome,
    Produced,
    Stop,
    peak_rss_bytes,
    thread_count,
)
from cellseg_cli.engine.threads import run_fields
from cellseg_cli.errors import (
    ConfigError,
    ExitCode,
    InputError,
    OutputExistsError,
    StoreError,
)
from cellseg_cli.evaluation.choice import (
    AIMS,
    Aim,
    Choice,
    Score,
    Trials,
    choose,
    reached_by_trials,
    searches_for,
    settings_table,
)
from cellseg_cli.evaluation.grouping import groups_by_cell_type, groups_of_fields
from cellseg_cli.evaluation.sides import check_common, open_side
from cellseg_cli.images.annotations import Kind
from cellseg_cli.pipeline.events import (
    Emit,
    Failure,
    FieldDone,
    FieldFailed,
    StageFinished,
    StageStarted,
    Summary,
)
from cellseg_cli.pipeline.plan import plan_clustering
from cellseg_cli.pipeline.record import plain, versions
from cellseg_cli.pipeline.settings import CellTypes, Sources, model_of
from cellseg_cli.pipeline.tiles import WHOLE_FIELD_PX
from cellseg_cli.store import FieldRow, Store

_ALL = ""  # the group of all fields; no cell type has an empty name


@dataclass(frozen=True)
class Tuning:
    """What is tuned on, and where the settings are written besides the store.

    Attributes
    ----------
    truth
        Whatever :func:`cellseg_cli.evaluation.sides.open_side` knows.
    save
        A ``.toml`` file, or the model file of the store, whose header takes the settings.
    aim
        What is to be highest, a key of :data:`cellseg_cli.evaluation.choice.AIMS`.
    """

    truth: Path
    save: Path | None = None
    aim: Aim = "mean_ap"

    def __post_init__(self) -> None:
        if self.aim not in AIMS:
            raise ConfigError(f"--aim {self.aim} is not one of {', '.join(AIMS)}")


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes
    ----------
    tuning
        What was tuned on, and for what.
    kind
        Of the embeddings.
    overall, by_type
        The best settings for all fields, and for those of each cell type.
    trials
        Number of settings tried.
    failed
        Annotated fields that could not be scored.
    seconds
        How long it took.
    written
        Files that hold the settings now; none in a dry run.
    """

    tuning: Tuning
    kind: str
    overall: Choice
    by_type: Mapping[str, Choice]
    trials: int
    failed: tuple[Failure, ...]
    seconds: float
    written: tuple[Path, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """DONE if every annotated field was scored."""
        return ExitCode.SOME_FAILED if self.failed else ExitCode.DONE

    @property
    def table(self) -> dict[str, Any]:
        """The settings as they are kept: by name, and under ``by_type`` a table for each type."""
        by_type = {name: settings_table(c.settings, self.kind) for name, c in self.by_type.items()}
        overall = settings_table(self.overall.settings, self.kind)
        return {**overall, BY_TYPE: by_type} if by_type else overall

    @property
    def document(self) -> dict[str, Any]:
        """A tuning as a nested dict: settings and scores, and what was not scored."""
        return {
            "truth": str(self.tuning.truth),
            "aim": self.tuning.aim,
            "trials": self.trials,
            "overall": self._told(self.overall),
            "by_type": {name: self._told(choice) for name, choice in self.by_type.items()},
            "failed": [{"field": one.field_id, "reason": one.reason} for one in self.failed],
            "written": [str(path) for path in self.written],
            "seconds": round(self.seconds, 3),
        }

    def _told(self, choice: Choice) -> dict[str, Any]:
        scores = {"fields": choice.fields, self.tuning.aim: choice.score, "before": choice.before}
        return {**scores, "settings": settings_table(choice.settings, self.kind)}

    def wanted(
        self, settings: ClusterSettings, types: CellTypes
    ) -> tuple[ClusterSettings, CellTypes]:
        """What the user has set, filled up with what was found, for all fields and by type."""
        by_type = self.table.get(BY_TYPE, {})
        overall = {name: value for name, value in self.table.items() if name != BY_TYPE}
        filled = {name: replace(settings, **one) for name, one in by_type.items()}
        return replace(settings, **overall), replace(types, settings=filled)


@dataclass
class _Annotated:
    """The fields with truth, and what happens to them."""

    store: Store
    kind: str
    aim: Aim
    truth: Kind
    rows: Mapping[str, FieldRow]
    failed: list[Failure]
    tried: set[Clustering] = field(default_factory=set)


def tune(
    path: str | Path,
    tuning: Tuning,
    settings: ClusterSettings,
    run: RunSettings,
    emit: Emit,
    types: CellTypes = CellTypes(),
) -> Tuned:
    """Find the clustering settings that score best, and write them.

    Parameters
    ----------
    path
        A store that ``embed`` has made.
    tuning
        What to tune on, and where to write besides the store.
    settings
        What the user sets stays as it is; the rest is searched.
    run
        ``threads``, ``overwrite`` (of `save`) and ``dry_run`` (nothing is written) are used.
    emit
        Who is told.
    types
        A table of types is taken before those that the truth names.

    Raises
    ------
    ConfigError
        Nothing is left to tune, settings by type are given, no annotated field is of the type
        asked for, or `save` is neither TOML nor the model of the store.
    InputError
        No field is in both, the truth or the table of types cannot be opened, or no field
        could be scored.
    OutputExistsError
        `save` is a file that no tuning wrote.
    StoreError
        No store, or one without a list of fields or the kind of its embeddings.

    Notes
    -----
    The settings chosen depend neither on the number of threads nor on the order of fields.
    """
    began = time.perf_counter()
    store = Store.open(path)
    sources = Sources.of_store(store, settings, types)
    held = {name for name, value in asdict(settings).items() if value not in (None, "auto")}
    searches = searches_for(
        sources.resolved(), sources.kind, with_classes=sources.with_classes, held=held
    )
    _check_request(store, tuning, types, overwrite=run.overwrite)
    fields = _annotated(store, tuning, sources.kind)
    groups = _groups(fields, types)
    in_use = {name: sources.resolved(name) for name in groups if name in sources.known_types}
    passes = sum(len(search.strides) for search in searches)
    score = _scoring(fields, passes, run.threads, emit)
    best = choose(searches, groups, score, in_use)
    if _ALL not in best:
        raise InputError(_nothing_scored(tuning.truth, fields))
    overall, failed = best.pop(_ALL), sorted(fields.failed, key=lambda one: one.field_id)
    trials, seconds = len(fields.tried), time.perf_counter() - began
    tuned = Tuned(tuning, sources.kind, overall, best, trials, tuple(failed), seconds)
    if not run.dry_run:
        tuned = replace(tuned, written=_written(store, tuned))
    record = None if run.dry_run else _record(store, settings, run, tuned)
    emit(StageFinished(Summary("tune", overall.fields, 0, tuned.failed, seconds), record))
    return tuned


def _check_request(store: Store, tuning: Tuning, types: CellTypes, *, overwrite: bool) -> None:
    """Refuse what could not be written or used in the end, before any work is done."""
    if types.settings:
        raise ConfigError(
            "--tune finds the settings of each cell type: leave the tables [cluster.by_type] out "
            "of the file given by --config"
        )
    save = tuning.save
    if save is None:
        return
    if save.suffix == ".safetensors":
        from cellseg_cli.networks.checkpoint import fingerprint  # loads torch

        if fingerprint(save) != model_of(store):
            raise ConfigError(
                f"{save} is not the model that {store.path} was made with; only that one takes "
                "these settings: give its file, or a .toml file for --config"
            )
    elif save.suffix != ".toml":
        raise ConfigError(
            f"--save {save}: settings are kept in a .toml file or in the model's .safetensors"
        )
    elif save.exists() and not overwrite and not (save.is_file() and read_provenance(save)):
        raise OutputExistsError(
            f"{save} exists and is not of an earlier --tune; choose another file, or --overwrite"
        )


def _annotated(store: Store, tuning: Tuning, kind: str) -> _Annotated:
    """The fields that both the store and the truth have; those that cannot be used have failed."""
    rows = store.fields()
    if not rows:
        raise StoreError(f"{store.path} lists no fields: run cellseg embed first")
    truth = open_side(tuning.truth)
    ids = [row.id for row in rows]
    check_common((store.path, tuning.truth), (ids, truth.field_ids))
    known = set(truth.field_ids)
    plan = plan_clustering([r for r in rows if r.id in known], lambda _: {}, store, redo=True)
    usable = {row.id: row for row, _ in plan.to_do if row.pixels <= WHOLE_FIELD_PX}
    large = [row for row, _ in plan.to_do if row.id not in usable]
    failed = [*plan.unusable, *(Failure(row.id, _too_large(row)) for row in large)]
    return _Annotated(store, kind, tuning.aim, truth, usable, failed)


def _too_large(row: FieldRow) -> str:
    return (
        f"too large to tune on: {row.height}×{row.width} px, at most {WHOLE_FIELD_PX} px; embed "
        "and annotate a part of it"
    )


def _groups(fields: _Annotated, types: CellTypes) -> dict[str, list[str]]:
    """The ids of all usable fields, and of those of each cell type."""
    ids = sorted(fields.rows)
    if types.table is None or not ids:
        type_of = groups_by_cell_type(fields.truth, ids)
    else:
        _, type_of = groups_of_fields(types.table, ids)
    groups: dict[str, list[str]] = {_ALL: ids}
    for name in sorted(set(type_of.values())):
        groups[name] = [one for one in ids if type_of.get(one) == name]
    if types.everywhere is not None and types.everywhere not in groups:
        there = ", ".join(list(groups)[1:]) or "none"
        raise ConfigError(
            f"no annotated field is of the cell type {types.everywhere!r}; known types: {there}"
        )
    return groups


def _scoring(fields: _Annotated, passes: int, threads: int, emit: Emit) -> Score:
    """What scores fields, one pass after the other, on threads."""
    count = thread_count(threads)
    for failure in fields.failed:
        emit(FieldFailed("tune", failure))
    numbers = itertools.count(1)

    def score(trials: Trials) -> Mapping[str, Sequence[float]]:
        stage = f"tune, pass {next(numbers)} of {passes}"
        found: dict[str, list[float]] = {}

        def work(row: FieldRow, mark: str, stop: Stop) -> Produced:
            del mark
            found[row.id] = _reached(fields, row.id, trials[row.id], stop)
            return Produced(row.pixels)

        def seen(outcome: Outcome) -> None:
            if outcome.failure is not None:
                fields.failed.append(outcome.failure)
                emit(FieldFailed(stage, outcome.failure))
            elif outcome.produced is not None:
                pixels = outcome.produced.pixels
                emit(FieldDone(stage, outcome.field_id, outcome.seconds, pixels))

        emit(StageStarted(stage, len(trials), 0, count))
        run_fields([(fields.rows[one], "") for one in trials], FieldWork(work), count, seen)
        fields.tried.update(trial for one in found for trial in trials[one])
        return found

    return score


def _reached(
    fields: _Annotated, field_id: str, trials: Sequence[Clustering], stop: Stop
) -> list[float]:
    """Read a field and its truth, and score it under each trial."""
    embedding, classes = fields.store.read_embedding(field_id)
    shape = (embedding.shape[1], embedding.shape[2])
    told = fields.truth.shape(field_id)
    if told in (None, shape):
        truth = fields.truth.instances(field_id, shape)
        told = truth.shape
    if told != shape:
        raise InputError(
            f"the truth is {told[0]}×{told[1]} px, the embedding is {shape[0]}×{shape[1]} px"
        )
    stop.check()
    return reached_by_trials(
        embedding,
        kind=fields.kind,
        trials=trials,
        truth=truth,
        classes=classes,
        aim=fields.aim,
    )


def _nothing_scored(source: Path, fields: _Annotated) -> str:
    if not fields.tried:
        return f"none of the fields with truth in {source} could be scored"
    return f"neither {source} nor any trial has a cell in these fields: nothing to choose by"


def _written(store: Store, tuned: Tuned) -> tuple[Path, ...]:
    """Write the settings into the store and where else they are wanted; the paths."""
    reached: dict[str, float] = {tuned.tuning.aim: tuned.overall.score}
    origin = {
        "model": model_of(store),
        "truth": str(tuned.tuning.truth),
        "fields": tuned.overall.fields,
        **reached,
    }
    text = toml_text({"tuned": origin, "cluster": tuned.table})
    written = (store.write_tuned(text),)
    if (save := tuned.tuning.save) is None:
        return written
    if save.suffix == ".safetensors":
        from cellseg_cli.networks.checkpoint import write_tuned

        # Thresholds hold for the scale at which the store was made.
        scale = float(store.attributes["embed"].get("scale", 1.0))
        write_tuned(save, tuned.table, reached, scale)
    else:
        with durable.temporary_path(save.parent) as temporary:
            temporary.write_text(text, encoding="utf-8")
            durable.replace(temporary, save)
    return (*written, save)


def _record(store: Store, settings: ClusterSettings, run: RunSettings, tuned: Tuned) -> str:
    """Leave a run record; its path."""
    ended = datetime.now(UTC)
    content = {
        "stage": "tune",
        "ended": "finished",
        "ended_utc": ended.isoformat(timespec="seconds"),
        "peak_rss_bytes": peak_rss_bytes(),
        "versions": versions(),
        "model_fingerprint": model_of(store),
        "threads": thread_count(run.threads),
        "settings": {**asdict(settings), "run": plain(run)},
        **tuned.document,
    }
    return str(store.write_record(f"{ended:%Y%m%dT%H%M%S.%fZ}-tune-{os.getpid()}", content))
