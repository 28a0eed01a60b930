"""All contenders on the same cells: CPU seconds per megapixel, memory, and what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import hardware
import measure
import numpy as np
from contenders import CONTENDERS

from cellseg_cli.evaluation.matching import match, overlaps_of_labels


@dataclass(frozen=True)
class Outcome:
    """What one contender did with one field; sums over fields are taken of all but memory."""

    cpu_s: float
    extra_bytes: float
    true: int
    found: int
    matched: int
    iou_sum: float


def outcome(name: str, labels: np.ndarray) -> Outcome:
    """Run a contender on a field, in the process that calls.

    Parameters
    ----------
    name : str
        A key of ``CONTENDERS``.
    labels : (Y, X) int32
        The true cells, from which the contender's own input is made.
    """
    contender = CONTENDERS[name]
    given = contender.prepare(labels)
    cost, found = measure.cost(lambda: contender.work(given))
    pairs = overlaps_of_labels(found, labels)
    matched = match(pairs, 0.5)
    return Outcome(
        cpu_s=cost.cpu_s,
        extra_bytes=cost.extra_bytes,
        true=len(pairs.truth_areas),
        found=len(pairs.prediction_areas),
        matched=len(matched),
        iou_sum=float(pairs.iou[matched].sum()),
    )


def compare(sets: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Print a table of all contenders for each named set of label images."""
    names = [name for name, one in CONTENDERS.items() if hardware.installed(one.package)]
    processes = {name: measure.process() for name in names}
    for title, fields in sets.items():
        outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
        for labels in fields:
            for name in names:  # one after the other: they share a core
                outcomes[name].append(processes[name].submit(outcome, name, labels).result())
        _print(title, fields, outcomes)
    for process in processes.values():
        process.shutdown()


def _print(
    title: str, fields: Sequence[np.ndarray], outcomes: Mapping[str, Sequence[Outcome]]
) -> None:
    pixels = sum(labels.size for labels in fields)
    cells = sum(int(labels.max()) for labels in fields)
    foreground = sum(np.count_nonzero(labels) for labels in fields) / pixels
    print(
        f"\n{title}: {len(fields)} fields, {pixels / 1e6:.1f} MP, {cells} cells, "
        f"{foreground:.0%} foreground\n"
        f"{'':<41} CPU s/MP  of seeds  peak MB  recall  precision   IoU"
    )
    per_megapixel = {
        name: sum(one.cpu_s for one in those) / pixels * 1e6 for name, those in outcomes.items()
    }
    reference = next(iter(per_megapixel.values()))
    for name, those in outcomes.items():
        true, found, matched = (
            sum(getattr(one, count) for one in those) for count in ("true", "found", "matched")
        )
        print(
            f"{name:<41} {per_megapixel[name]:8.4f} {per_megapixel[name] / reference:7.1f}×"
            f" {max(one.extra_bytes for one in those) / 1e6:8.1f}"
            f" {matched / true:7.3f} {matched / max(found, 1):10.3f}"
            f" {sum(one.iou_sum for one in those) / max(matched, 1):5.3f}"
        )
    _print_faster(fields, outcomes)


def _print_faster(fields: Sequence[np.ndarray], outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Say on which fields another contender was faster than the first."""
    first = next(iter(outcomes))
    for name, those in outcomes.items():
        foreground = [
            np.count_nonzero(labels) / labels.size
            for labels, one, ours in zip(fields, those, outcomes[first], strict=True)
            if one.cpu_s < ours.cpu_s
        ]
        if foreground:
            print(
                f"{name} was faster than {first} on {len(foreground)} of {len(fields)} fields, "
                f"of {min(foreground):.1%} to {max(foreground):.1%} foreground"
            )
