"""Scores while thresholds are chosen, the choice itself, and the final table.

The choice is made as `cellseg train --tune` makes it: on the validation fields, for the mean
over fields of the mean average precision.  The final table is that of `cellseg evaluate`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from peer_data import Field

#: The thresholds of the Data Science Bowl 2018 and of COCO.
IOU_LEVELS = np.arange(10) * 0.05 + 0.5

Thresholds = dict[str, Any]


class Segmenter(Protocol):
    """A trained network with its post-processing."""

    #: Where the tool starts, as its own prediction does.
    default: Thresholds
    #: What may be tried of each threshold.
    search: Mapping[str, Sequence[Any]]
    #: Those thresholds that the network's part needs.
    of_network: Sequence[str]

    def network(self, field: Field, thresholds: Thresholds) -> Any:
        """What the network says of a field, in whatever form."""
        ...

    def instances(self, field: Field, raw: Any, thresholds: Thresholds) -> np.ndarray:
        """The label image (Y, X), made of what the network has said."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Label images of all validation fields at one setting."""

    thresholds: Thresholds
    labels: list[np.ndarray]
    precision: np.ndarray
    network_cpu_s: float
    post_cpu_s: float

    @property
    def mean_ap(self) -> float:
        """Mean over fields and IoU levels."""
        return float(self.precision.mean())


def average_precision(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) at each of the ten IoU levels; 1 where both images are empty.

    From 0.5 on an instance has at most one partner, but for two halves at exactly 0.5, which
    count once.
    """
    _, ids = np.unique(np.append(found.ravel(), 0), return_inverse=True)
    ids = ids[:-1].reshape(truth.shape)
    rows, columns = int(truth.max()) + 1, int(ids.max()) + 1
    table = np.bincount((truth.astype(np.int64) * columns + ids).ravel(), minlength=rows * columns)
    table = table.reshape(rows, columns)
    union = table.sum(axis=1)[1:, None] + table.sum(axis=0)[None, 1:] - table[1:, 1:]
    overlap = table[1:, 1:] / np.maximum(union, 1)
    if overlap.size == 0:
        return np.full(len(IOU_LEVELS), float(rows == columns))
    best = overlap.max(axis=1)
    hits = (best[None, :] >= IOU_LEVELS[:, None] - 1e-9).sum(axis=1)
    return hits / (rows - 1 + columns - 1 - hits)


class Bench:
    """A segmenter on the validation fields; the network's answers are kept."""

    def __init__(self, segmenter: Segmenter, fields: Sequence[Field]) -> None:
        self.segmenter = segmenter
        self.fields = fields
        self._raw: dict[tuple[Any, ...], tuple[list[Any], float]] = {}

    def run(self, thresholds: Thresholds) -> Outcome:
        """All fields at one setting, with the CPU seconds of both parts."""
        raws, network_s = self._network(thresholds)
        start = time.process_time()
        labels = [
            self.segmenter.instances(field, raw, thresholds)
            for field, raw in zip(self.fields, raws, strict=True)
        ]
        post_s = time.process_time() - start
        precision = np.array(
            [
                average_precision(field.truth, found)
                for field, found in zip(self.fields, labels, strict=True)
            ]
        )
        return Outcome(thresholds, labels, precision, network_s, post_s)

    def _network(self, thresholds: Thresholds) -> tuple[list[Any], float]:
        key = tuple(thresholds[name] for name in self.segmenter.of_network)
        if key not in self._raw:
            start = time.process_time()
            raws = [self.segmenter.network(field, thresholds) for field in self.fields]
            self._raw[key] = raws, time.process_time() - start
        return self._raw[key]


def tune(
    bench: Bench, first: Outcome, minutes: float, say: Callable[[str], None]
) -> tuple[Outcome, dict[str, Any]]:
    """The best setting found by changing one threshold at a time, in at most two rounds.

    The first round takes the thresholds in the order of `search`; a second, where it finds
    nothing, ends the search, and so does the time.

    Returns
    -------
    tuple
        The best outcome, and a record: settings tried, rounds done, whether time ran out.
    """
    best, seen, end = first, {_key(first.thresholds)}, time.monotonic() + 60 * minutes
    for number in (1, 2):
        start = best
        for name, values in bench.segmenter.search.items():
            for value in values:
                candidate = {**best.thresholds, name: value}
                if _key(candidate) in seen:
                    continue
                if time.monotonic() > end:
                    return best, {"tried": len(seen), "rounds": number - 1, "in_time": False}
                seen.add(_key(candidate))
                outcome = bench.run(candidate)
                say(f"{candidate}: mean AP {outcome.mean_ap:.4f}")
                if outcome.mean_ap > best.mean_ap:
                    best = outcome
        if best is start:
            break
    return best, {"tried": len(seen), "rounds": number, "in_time": True}


def _key(thresholds: Thresholds) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(thresholds.items()))


def write_labels(folder: Path, fields: Sequence[Field], labels: Sequence[np.ndarray]) -> None:
    """Label images as TIFF: uint16, or uint32 where there are more instances."""
    folder.mkdir(parents=True, exist_ok=True)
    for field, found in zip(fields, labels, strict=True):
        kind = np.uint16 if found.max(initial=0) < 2**16 else np.uint32
        tifffile.imwrite(folder / f"{field.name}.tif", found.astype(kind), compression="zlib")


def evaluate(
    program: Sequence[str], folder: Path, truth: Path, groups: str | None
) -> dict[str, Any] | None:
    """What `cellseg evaluate` says of a folder; None where the program is not there."""
    command = [*program, "evaluate", str(folder), "--truth", str(truth)]
    command += ["--missing", "skip", "--json", "--quiet", "--overwrite"]
    if groups is not None:
        command += ["--groups", groups]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if done.returncode != 0:
        sys.stderr.write(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return None
    return dict(json.loads(done.stdout))


def summary(outcome: Outcome, megapixels: float) -> dict[str, Any]:
    """Thresholds, this script's own scores, and CPU seconds per megapixel."""
    mean = outcome.precision.mean(axis=0)
    return {
        "thresholds": outcome.thresholds,
        "scores": {
            "mean_ap": round(outcome.mean_ap, 4),
            "ap": {f"{level:.2f}": round(float(v), 4) for level, v in zip(IOU_LEVELS, mean)},  # noqa: B905
        },
        "network_cpu_s_per_mp": round(outcome.network_cpu_s / megapixels, 3),
        "post_cpu_s_per_mp": round(outcome.post_cpu_s / megapixels, 3),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result in Markdown: a row for each setting and each group."""
    lines = [
        "| peer | thresholds | fields | AP@0.5 | AP@0.75 | AP@0.9 | mean AP "
        "| network CPU s/MP | post CPU s/MP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in ("default", "tuned"):
        part = result[setting]
        cost = f"{part['network_cpu_s_per_mp']:.2f} | {part['post_cpu_s_per_mp']:.2f}"
        for group, scores in _groups(part).items():
            ap = scores["ap"]
            figures = [ap["0.50"], ap["0.75"], ap["0.90"], scores["mean_ap"]]
            cells = " | ".join(f"{figure:.3f}" for figure in figures)
            lines.append(f"| {result['tool']} | {setting} | {group} | {cells} | {cost} |")
    return "\n".join(lines) + "\n"


def _groups(part: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of all fields, and of each group where there are several."""
    scored = part.get("evaluate")
    if scored is None:
        return {"all (own score)": part["scores"]}
    groups = next(iter((scored.get("by_group") or {}).values()), {})
    return {"all": scored["overall"], **(groups if len(groups) > 1 else {})}
