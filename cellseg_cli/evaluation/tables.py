"""Scores as plain documents and rows, for JSON, CSV and the terminal alike.

NaN stands for what is undefined; whoever writes a file decides how to spell it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cellseg_cli.evaluation.scores import FieldScore, Measures, Scores, measures

#: The measures that are told at every threshold; the others at `MAIN_THRESHOLD`.
_AT_EACH = ("ap", "precision", "recall", "f1")
#: The usual one to quote; PQ is defined there (Kirillov et al. 2019, section 4.1).
MAIN_THRESHOLD = 0.5


def scores_document(scores: Scores) -> dict[str, Any]:
    """Return the scores of a set of fields as a nested dict, thresholds as ``"0.50"``.

    Measures at the top are means over fields; those under ``pooled`` are of all
    instances together.
    """
    return {
        "fields": scores.fields,
        "empty_fields": scores.empty_fields,
        "truth_instances": scores.total.truth,
        "predicted_instances": scores.total.predicted,
        **_measures_document(scores.mean),
        "pooled": {**_measures_document(scores.pooled), **_counts_document(scores.total)},
        "mistakes": asdict(scores.total.mistakes),
    }


def field_row(score: FieldScore) -> dict[str, float | int]:
    """Return one row of the table of fields: counts, measures at 0.5, then at each threshold."""
    scored = measures(score)
    row: dict[str, float | int] = {
        "truth_instances": score.truth,
        "predicted_instances": score.predicted,
        "mean_ap": scored.mean_ap,
        "pq": scored.at("pq", MAIN_THRESHOLD),
        "matched_iou": scored.at("matched_iou", MAIN_THRESHOLD),
        **asdict(score.mistakes),
    }
    for name in _AT_EACH:
        row |= {f"{name}_{t:.2f}": scored.at(name, t) for t in score.thresholds}
    for name in ("tp", "fp", "fn"):
        values = getattr(score, name)
        row |= {f"{name}_{t:.2f}": n for t, n in zip(score.thresholds, values, strict=True)}
    return row


def _measures_document(scored: Measures) -> dict[str, Any]:
    return {
        "mean_ap": scored.mean_ap,
        **{name: {f"{t:.2f}": scored.at(name, t) for t in scored.thresholds} for name in _AT_EACH},
        "pq": scored.at("pq", MAIN_THRESHOLD),
        "matched_iou": scored.at("matched_iou", MAIN_THRESHOLD),
    }


def _counts_document(score: FieldScore) -> dict[str, dict[str, int]]:
    keys = [f"{t:.2f}" for t in score.thresholds]
    return {name: dict(zip(keys, getattr(score, name), strict=True)) for name in ("tp", "fp", "fn")}
