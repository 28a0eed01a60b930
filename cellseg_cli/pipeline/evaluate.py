"""Score one source of instances against another, field by field, on threads.

A field that cannot be scored fails with its reason and the others go on.  Only
counts are kept of a field, so memory does not grow with the pixels scored.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cellseg_cli import durable
from cellseg_cli.engine.tasks import FieldWork, Outcome, Produced, Stop, thread_count
from cellseg_cli.engine.threads import run_fields
from cellseg_cli.errors import ConfigError, ExitCode, OutputExistsError
from cellseg_cli.evaluation.grouping import groups_by_cell_type, groups_by_plate, groups_of_fields
from cellseg_cli.evaluation.matching import overlaps
from cellseg_cli.evaluation.scores import (
    THRESHOLDS,
    FieldScore,
    Scores,
    score_overlaps,
    summarise,
    summarise_groups,
)
from cellseg_cli.evaluation.sides import (
    Order,
    check_common,
    open_side,
    places_of,
    read_pair,
    read_truth,
)
from cellseg_cli.evaluation.tables import field_row, scores_document
from cellseg_cli.images.annotations import Kind
from cellseg_cli.instances import Instances
from cellseg_cli.pipeline.events import Failure
from cellseg_cli.pipeline.gallery import Gallery
from cellseg_cli.store import FieldRow

#: What becomes of a field that only one side has: ``fail`` lists it, ``zero`` scores a
#: missing prediction as no cells, ``skip`` leaves it out.
Missing = Literal["fail", "zero", "skip"]
#: Columns of the table of fields that say where on a plate they were taken.
PLACE = ("plate", "well", "field", "t", "channels")


@dataclass(frozen=True)
class Comparison:
    """What is to be compared, and how.

    Attributes
    ----------
    prediction, truth
        Stores, folders or files, as :func:`open_side` knows them.
    order
        How Kaggle tables of either side flatten masks.
    groups
        ``FILE.csv:COLUMN`` texts, one for each grouping.
    missing
        What becomes of a field that only one side has.
    threads
        Threads; 0 means one per core.
    gallery
        Where pictures of the mistakes go; None: nowhere.
    """

    prediction: Path
    truth: Path
    order: Order = "auto"
    groups: tuple[str, ...] = ()
    missing: Missing = "fail"
    threads: int = 0
    gallery: Gallery | None = None


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Attributes
    ----------
    comparison
        What was asked for.
    fields
        The counts of each scored field, by id, sorted.
    group_of
        For each grouping the group of each field.
    failed
        Fields that could not be read or compared; or that were, but could not be drawn.
    without_prediction, without_truth
        Ids of the fields that only one side has.
    places
        Plate, well, field, t and channels of the fields of which a side knows any, by id.
    """

    comparison: Comparison
    fields: Mapping[str, FieldScore]
    group_of: Mapping[str, Mapping[str, str]]
    failed: tuple[Failure, ...]
    without_prediction: tuple[str, ...]
    without_truth: tuple[str, ...]
    places: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)

    @cached_property
    def overall(self) -> Scores | None:
        """The scores of all fields together; None if none could be scored."""
        return summarise(self.fields.values()) if self.fields else None

    @cached_property
    def by_group(self) -> dict[str, dict[str, Scores]]:
        """The scores of each group of each grouping that has any field."""
        groupings = {n: summarise_groups(self.fields, of) for n, of in self.group_of.items()}
        return {name: groups for name, groups in groupings.items() if groups}

    @cached_property
    def place_columns(self) -> tuple[str, ...]:
        """What is known of the place of at least one field."""
        told = {name for place in self.places.values() for name in place}
        return tuple(name for name in PLACE if name in told)

    @property
    def exit_code(self) -> ExitCode:
        """DONE if every field of both sides was scored or may be left out."""
        if not self.fields:
            return ExitCode.NOTHING_DONE
        missing = self.comparison.missing
        unscored = (missing == "fail" and self.without_prediction) or (
            missing != "skip" and self.without_truth
        )
        return ExitCode.SOME_FAILED if self.failed or unscored else ExitCode.DONE


def evaluate(comparison: Comparison) -> Evaluation:
    """Score every field that both sides have.

    Raises
    ------
    InputError
        If a side or a table of groups cannot be opened, no field is in both sides, or none of
        these in a table of groups.
    ConfigError
        If two tables of groups name the same column.
    StoreError
        If a side is a store that cannot be read.
    """
    prediction = open_side(comparison.prediction, comparison.order)
    truth = open_side(comparison.truth, comparison.order)
    found, true = set(prediction.field_ids), set(truth.field_ids)
    check_common((comparison.prediction, comparison.truth), (found, true))
    scored = sorted(true if comparison.missing == "zero" else found & true)
    tables = _tables(comparison.groups, scored)
    places = places_of(prediction, truth)
    fields, failed = _score_all(prediction, truth, scored, comparison)
    return Evaluation(
        comparison=comparison,
        fields=fields,
        group_of={
            "cell_type": groups_by_cell_type(truth, fields),
            "plate": _plates(fields, places),
            **tables,
        },
        failed=failed,
        without_prediction=tuple(sorted(true - found)),
        without_truth=tuple(sorted(found - true)),
        places=places,
    )


def document(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a nested dict: scores, groups, and what was not scored.

    Undefined scores are NaN.
    """
    comparison = evaluation.comparison
    return {
        "prediction": str(comparison.prediction),
        "truth": str(comparison.truth),
        "thresholds": list(THRESHOLDS),
        "fields": len(evaluation.fields),
        "overall": scores_document(evaluation.overall) if evaluation.overall else None,
        "by_group": {
            name: {group: scores_document(scores) for group, scores in groups.items()}
            for name, groups in evaluation.by_group.items()
        },
        "missing": comparison.missing,
        "failed": [{"field": f.field_id, "reason": f.reason} for f in evaluation.failed],
        "without_prediction": list(evaluation.without_prediction),
        "without_truth": list(evaluation.without_truth),
    }


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, before any work is done.

    Raises
    ------
    OutputExistsError
        If something is there that may not be overwritten.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        # The table would take the place of the device itself.
        raise OutputExistsError(f"{path} is a device or pipe; give the name of a file")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; choose another file, or --overwrite")


def write_fields(evaluation: Evaluation, path: Path) -> None:
    """Write one CSV row per field, sorted by id, whole or not at all.

    Undefined scores are empty cells.  Fields that failed have their reason in
    the column ``error`` and nothing else.
    """
    rows = [_row(evaluation, field_id, score) for field_id, score in evaluation.fields.items()]
    names = list(rows[0]) if rows else ["id"]
    rows += [{"id": failure.field_id, "error": failure.reason} for failure in evaluation.failed]
    with durable.temporary_path(path.parent) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, [*names, "error"], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: row["id"]))
        durable.replace(temporary, path)


def _row(evaluation: Evaluation, field_id: str, score: FieldScore) -> dict[str, Any]:
    groupings = [name for name in evaluation.group_of if name in evaluation.by_group]
    groups = {name: evaluation.group_of[name].get(field_id, "") for name in groupings}
    values = {
        name: "" if isinstance(value, float) and math.isnan(value) else value
        for name, value in field_row(score).items()
    }
    place = evaluation.places.get(field_id, {})
    places = {name: place.get(name, "") for name in evaluation.place_columns}
    return {"id": field_id, **places, **groups, **values}


def _plates(
    field_ids: Iterable[str], places: Mapping[str, Mapping[str, str | int]]
) -> dict[str, str]:
    """Return the plate of each field: what a store knows, else the first folder of its id."""
    ids = list(field_ids)
    known = {one: str(places[one]["plate"]) for one in ids if "plate" in places.get(one, {})}
    return {**groups_by_plate(ids), **known}


def _score_all(
    prediction: Kind, truth: Kind, field_ids: Sequence[str], comparison: Comparison
) -> tuple[dict[str, FieldScore], tuple[Failure, ...]]:
    """Return the counts of each field and the failures, both sorted by id."""
    predicted = set(prediction.field_ids)
    scores: dict[str, FieldScore] = {}
    failed: list[Failure] = []

    def score(row: FieldRow, mark: str, stop: Stop) -> Produced:
        del mark, stop
        if row.id in predicted:
            found, true = read_pair(prediction, truth, row.id)
        else:
            true = read_truth(truth, row.id)
            found = Instances(true.shape, ())
        pairs = overlaps(found, true)
        scores[row.id] = score_overlaps(pairs)
        if comparison.gallery is not None:
            comparison.gallery.draw(row.id, found, true, pairs)
        return Produced(true.shape[0] * true.shape[1], len(found))

    def seen(outcome: Outcome) -> None:
        if outcome.failure is not None:
            failed.append(outcome.failure)

    jobs = [(FieldRow(field_id, source=""), "") for field_id in field_ids]
    run_fields(jobs, FieldWork(score), thread_count(comparison.threads), seen)
    failures = tuple(sorted(failed, key=lambda failure: failure.field_id))
    return {field_id: scores[field_id] for field_id in sorted(scores)}, failures


def _tables(texts: Sequence[str], field_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the group of each field by grouping; each must have a name and fields of its own."""
    tables: dict[str, dict[str, str]] = {}
    for text in texts:
        name, group_of = groups_of_fields(text, field_ids)
        if name in tables:
            raise ConfigError(f"two tables of groups have the column {name}; rename one of them")
        tables[name] = group_of
    return tables
