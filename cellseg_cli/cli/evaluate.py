"""`cellseg evaluate`: scores of a prediction against the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg_cli.cli.common import AsJson, Overwrite, Quiet, Threads, echo_json
from cellseg_cli.cli.tables import show_table
from cellseg_cli.errors import ConfigError

if TYPE_CHECKING:
    from cellseg_cli.evaluation.scores import Scores
    from cellseg_cli.evaluation.sides import Order
    from cellseg_cli.pipeline.evaluate import Evaluation

#: How many ids of fields without a partner are named; JSON has them all.
_NAMED = 5


class KaggleOrder(StrEnum):
    """How a Kaggle table flattens masks."""

    auto = "auto"
    row_major = "row-major"
    column_major = "column-major"


#: What the words of the command line are called inside.
_ORDERS: dict[KaggleOrder, Order] = {
    KaggleOrder.auto: "auto",
    KaggleOrder.row_major: "row_major",
    KaggleOrder.column_major: "column_major",
}


class MissingFields(StrEnum):
    """What becomes of fields that only one side has."""

    fail = "fail"
    zero = "zero"
    skip = "skip"


def evaluate(
    prediction: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTION",
            help="Store, folder of label images, COCO .json or Kaggle .csv.",
            show_default=False,
        ),
    ],
    truth: Annotated[
        Path,
        typer.Option("--truth", help="The truth, of any of the same kinds, or <id>/masks folders."),
    ],
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--groups",
            metavar="FILE.csv:COLUMN",
            help="Score groups of fields too; the table has a column id. May be repeated.",
        ),
    ] = None,
    order: Annotated[
        KaggleOrder, typer.Option("--order", help="How Kaggle tables flatten masks.")
    ] = KaggleOrder.auto,
    missing: Annotated[
        MissingFields,
        typer.Option(
            "--missing",
            help="Fields that one side lacks: listed and exit code 1 (fail), a missing "
            "prediction scored as no cells (zero), or left out (skip).",
        ),
    ] = MissingFields.fail,
    per_field: Annotated[
        Path | None,
        typer.Option("--per-field", metavar="FILE.csv", help="Write one row per field."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures",
            metavar="DIR",
            help="Write DIR/<id>.png: truth and prediction, outlined by what became of each cell.",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="IMAGES",
            help="With --pictures: the images, shown below the outlines; as embed takes them.",
        ),
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Score predicted cells against the truth.

    Fields are paired by id: the path below the folder given, without suffix.
    Cells are paired one to one at IoU thresholds 0.50, 0.55 ... 0.95.
    AP = TP / (TP + FP + FN); "mean AP" is its mean over the thresholds
    (Kaggle's metric). Rows are means over fields; "pooled" counts all cells
    together. F1, precision, recall and PQ are at 0.50. Fields whose truth
    names one cell type, and fields in folders (plates), are scored by group.
    Mistakes: cells missed, false, split and merged; boundary: right at IoU 0.50,
    but not at 0.75.

    \b
        cellseg evaluate emb.zarr --truth labels/
        cellseg evaluate submission.csv --truth train.csv --missing skip --json
        cellseg evaluate emb.zarr --truth labels/ --pictures mistakes --images plates
    """
    from cellseg_cli.pipeline.evaluate import (
        Comparison,
        check_free,
        document,
        write_fields,
    )
    from cellseg_cli.pipeline.evaluate import evaluate as run_evaluation
    from cellseg_cli.pipeline.gallery import Gallery

    if images is not None and pictures is None:
        raise ConfigError("--images is for --pictures; give both")
    if per_field is not None:
        check_free(per_field, overwrite)
    gallery = Gallery.open(pictures, images, prediction, overwrite=overwrite) if pictures else None
    comparison = Comparison(
        prediction, truth, _ORDERS[order], tuple(groups or ()), missing.value, threads or 0, gallery
    )
    evaluation = run_evaluation(comparison)
    if per_field is not None:
        write_fields(evaluation, per_field)
    for line in _complaints(evaluation, quiet):
        typer.echo(f"cellseg: {line}", err=True)
    if as_json:
        echo_json(document(evaluation))
    elif evaluation.overall is not None:
        show_table(_rows(evaluation))
    return int(evaluation.exit_code)


def _complaints(evaluation: Evaluation, quiet: bool) -> Iterator[str]:
    """Yield one line for each field that failed and each kind of field left out."""
    for failure in evaluation.failed:
        yield f"{failure.field_id}: {failure.reason}"
    comparison = evaluation.comparison
    if comparison.missing == "skip" and quiet:
        return
    if evaluation.without_prediction:
        became = {
            "fail": "not scored (--missing zero counts them as no cells, skip accepts it)",
            "zero": "scored as no cells",
            "skip": "left out",
        }[comparison.missing]
        yield (
            f"{_named(evaluation.without_prediction)} in {comparison.truth}, but not in "
            f"{comparison.prediction}: {became}"
        )
    if evaluation.without_truth:
        became = "left out" if comparison.missing == "skip" else "not scored"
        yield (
            f"{_named(evaluation.without_truth)} in {comparison.prediction}, but not in "
            f"{comparison.truth}: {became}"
        )


def _named(field_ids: Sequence[str]) -> str:
    """Return how many fields there are and the first of them.

    >>> _named(["a", "b"])
    '2 fields (a, b) are'
    """
    rest = f" and {len(field_ids) - _NAMED} more" if len(field_ids) > _NAMED else ""
    names = f"{', '.join(field_ids[:_NAMED])}{rest}"
    return (
        f"1 field ({names}) is" if len(field_ids) == 1 else f"{len(field_ids)} fields ({names}) are"
    )


def _rows(evaluation: Evaluation) -> Iterator[list[str]]:
    """Yield the cells of the table, the header first."""
    yield [
        *(
            "fields of",
            "fields",
            "cells",
            "found",
            "AP50",
            "AP75",
            "mean AP",
            "F1",
            "prec",
            "recall",
        ),
        *("PQ", "missed", "false", "split", "merged", "boundary"),
    ]
    overall = evaluation.overall
    assert overall is not None
    yield _row("all", overall, pooled=False)
    yield _row("all, pooled", overall, pooled=True)
    for grouping, groups in evaluation.by_group.items():
        for group, scores in groups.items():
            yield _row(f"{grouping} {group}", scores, pooled=False)


def _row(name: str, scores: Scores, *, pooled: bool) -> list[str]:
    values = scores.pooled if pooled else scores.mean
    shown = [values.at("ap", 0.5), values.at("ap", 0.75), values.mean_ap]
    shown += [values.at(measure, 0.5) for measure in ("f1", "precision", "recall", "pq")]
    total = scores.total
    mistakes = total.mistakes
    counts = (mistakes.missed, mistakes.false, mistakes.split, mistakes.merged, mistakes.boundary)
    return [
        *(name, str(scores.fields), str(total.truth), str(total.predicted)),
        *("-" if value != value else f"{value:.3f}" for value in shown),
        *map(str, counts),
    ]
