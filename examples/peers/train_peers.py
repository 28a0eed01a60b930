"""StarDist, Cellpose 3 or InstanSeg, from scratch, in the time that cellseg had.

    python train_peers.py {stardist,cellpose,instanseg} --images DIR … --labels DIR … \\
        --index index.csv --kind 'fluo*' --minutes 15 --out OUT

Trains on the fields that the index calls `train`, for so many minutes from the first step
(reading, and what a tool prepares once, do not count), then segments those called `val`: with
the tool's default thresholds (OUT/labels_default), and with those that a coarse search on the
same fields finds best in mean AP (OUT/labels_tuned), as `cellseg train --tune` does.
OUT/result.json says how: settings, versions, steps, crops, seconds of the training, and CPU
seconds per megapixel of network and post-processing.  What each tool is given, and what is
not its own, stands at the head of `peer_stardist.py`, `peer_cellpose.py`, `peer_instanseg.py`.
All take one grey channel and normalise it as they do by themselves; none downloads weights.

The table is that of `cellseg evaluate`, where that program is found (beside this Python, on the
path, or as `--cellseg`); the choice of thresholds uses a score of this script's own, which is
equal to it but for overlapping truth.  Pin the process to the core that cellseg had
(`taskset -c 0`); `--clock cpu` counts CPU seconds instead, for a machine that is shared.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOOLS = ("stardist", "cellpose", "instanseg")

#: Packages whose versions are recorded.
PACKAGES = (
    *("stardist", "csbdeep", "tensorflow-cpu", "keras"),
    *("cellpose", "torch", "instanseg-torch", "monai", "edt", "numpy"),
)

#: What libraries read before they are loaded.
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train a peer from scratch and score it.",
        epilog="The head of this file says what is done.",
    )
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--labels", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--index", type=Path, required=True, metavar="CSV")
    parser.add_argument("--kind", metavar="PATTERN", help="fields of this kind (or cell_type)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=PATTERN", help="may be repeated"
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--truth", type=Path, help="for the table; default: the label images")
    parser.add_argument("--cellseg", type=shlex.split, metavar="COMMAND", default=find_cellseg())
    parser.add_argument("--tune-minutes", type=float, default=15.0, help="at most so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="default: the tool's own")
    parser.add_argument("--grid", type=int, choices=(1, 2, 4), default=2, help="StarDist's stride")
    parser.add_argument("--diam-mean", type=float, default=30.0, help="Cellpose's working size")
    parser.add_argument("--min-train-masks", type=int, default=5, help="Cellpose: fewer: left out")
    parser.add_argument("--sgd", action="store_true", help="Cellpose: SGD at 0.2, not AdamW")
    parser.add_argument("--hot-start", type=float, default=1.0, help="InstanSeg: part of the time")
    return parser.parse_args(arguments)


def find_cellseg() -> list[str]:
    """`cellseg` beside this Python, or on the path; an empty list where there is none."""
    beside = Path(sys.executable).with_name("cellseg")
    found = str(beside) if beside.exists() else shutil.which("cellseg")
    return [] if found is None else [found]


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Train, predict, tune, score."""
    settings = parse(arguments)
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(settings.threads)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import peer_data
    import peer_scores

    where = dict(condition.split("=", 1) for condition in settings.where)
    if settings.kind is not None:
        where["kind"] = settings.kind
    selection = peer_data.Selection(settings.index, where)
    training, validation = peer_data.read_split(selection, settings.images, settings.labels)
    say(f"{settings.tool}: {len(training)} fields to train on, {len(validation)} to validate")
    settings.out.mkdir(parents=True, exist_ok=True)

    tool = importlib.import_module(f"peer_{settings.tool}")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(settings.threads)
    budget = peer_data.Budget(60 * settings.minutes, settings.clock)
    with tempfile.TemporaryDirectory() as work:
        options = {**vars(settings), "work": work}
        segmenter, record = tool.train(training, validation, budget, options)
    spent = budget.spent()
    say(f"trained: {record['steps']} steps, {record['crops']} crops, {spent}")

    bench = peer_scores.Bench(segmenter, validation)
    first = bench.run(segmenter.default)
    say(f"default {first.thresholds}: mean AP {first.mean_ap:.4f}")
    best, search = peer_scores.tune(bench, first, settings.tune_minutes, say)
    megapixels = sum(field.megapixels for field in validation)
    result: dict[str, Any] = {
        "tool": settings.tool,
        "minutes": settings.minutes,
        "clock": settings.clock,
        "threads": settings.threads,
        "where": where,
        "fields": {"train": len(training), "val": len(validation)},
        "training": {**spent, **record},
        "tuning": search,
        "versions": versions(),
        "device": f"cpu ({platform.processor() or platform.machine()})",
    }
    truth = settings.truth
    if truth is None:
        truth = settings.out / "truth"
        peer_scores.write_labels(truth, validation, [field.truth for field in validation])
    for name, outcome in (("default", first), ("tuned", best)):
        folder = settings.out / f"labels_{name}"
        peer_scores.write_labels(folder, validation, outcome.labels)
        result[name] = peer_scores.summary(outcome, megapixels)
        if settings.cellseg:
            column = groups(settings.index)
            result[name]["evaluate"] = peer_scores.evaluate(settings.cellseg, folder, truth, column)
    (settings.out / "result.json").write_text(json.dumps(result, indent=2, default=str) + "\n")
    sys.stdout.write(peer_scores.table(result))
    return 0


def groups(index: Path) -> str | None:
    """What `cellseg evaluate --groups` takes: the table and its column of kinds."""
    from peer_data import KIND_COLUMNS

    with index.open() as file:
        columns = file.readline().strip().split(",")
    return next((f"{index}:{name}" for name in KIND_COLUMNS if name in columns), None)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
