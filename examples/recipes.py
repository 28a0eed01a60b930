"""Train recipes of cellseg one after another, and print one table of what each reaches.

    python recipes.py OUT --index INDEX.csv --images DIR --truth LABELS_OR_CSV --group kind \\
        --only 'spatial*' -- DATA --val DATA --steps 1000 --set in_channels=1

What follows `--` is given to every `cellseg train`, with the variant's own options after it.
The fields that the index calls `val` (and that `--where COLUMN=PATTERN` match) are then embedded
and clustered from their files in DIR, with the thresholds that `train` chose for each cell type,
and scored against the truth: a row for all of them, and one for each group.  Seconds per
megapixel are those of `cellseg embed` and `cellseg cluster`, reading and writing included, of
this process's cores (`taskset -c 0` for one).  A variant that is trained is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

#: Options of `cellseg train` by the name of the variant.
VARIANTS: dict[str, tuple[str, ...]] = {
    "spatial": (),
    "spatial, AdamW": ("--set", "optimizer=adamw"),
    "spatial, no zoom, right angles": ("--set", "exact_share=1"),
    "spatial, half of the crops so": ("--set", "exact_share=0.5"),
    "spatial, two crops a step": ("--batch-size", "2"),
    "spatial, decoder refinenet": ("--set", "decoder=refinenet"),
    "spatial, decoder upscale": ("--set", "decoder=upscale"),
    "spatial, guides": ("--set", 'guides=["contrast", "edges", "contours"]'),
    "contrastive, window": ("--recipe", "contrastive"),
    "contrastive, uniform": (
        *("--recipe", "contrastive", "--set", "sampler=uniform", "--set", "sampled_pixels=2500"),
    ),
    "contrastive, foreground": ("--recipe", "contrastive", "--set", "sampler=foreground"),
    "contrastive, box": ("--recipe", "contrastive", "--set", "sampler=box"),
    "contrastive, contour": ("--recipe", "contrastive", "--set", "sampler=contour"),
    "binary": ("--recipe", "binary"),
    "origin": ("--config", str(HERE / "origin.toml")),
    "origin, ResNet-18": (
        *("--config", str(HERE / "origin.toml"), "--encoder", "resnet18"),
        *("--set", "levels=4", "--set", "crop_px=256", "--batch-size", "4"),
        *("--set", "optimizer=muon", "--set", "learning_rate=0.0015"),
        *("--set", "schedule=one_cycle", "--set", "ema_decay=0.998"),
    ),
}

#: Options of `cellseg cluster`, where they are not the model's: the origin's post-processing.
CLUSTERED: dict[str, tuple[str, ...]] = {
    name: ("--config", str(HERE / "origin.toml")) for name in ("origin", "origin, ResNet-18")
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train recipes of cellseg and compare them.",
        epilog="The head of this file says what is done.",
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--index", type=Path, required=True, metavar="CSV")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--group", default="cell_type", metavar="COLUMN")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=PATTERN")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--cellseg", nargs="+", default=[sys.executable, "-m", "cellseg_cli"])
    parser.add_argument("train", nargs="+", help="after --: what every training is given")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, embed, cluster, score; a row of Markdown for each group of each variant."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    fields = options.out / "val.lst"
    fields.write_text("".join(f"{path}\n" for path in held_out(options)))
    lines = [
        "| variant | fields | AP@0.5 | AP@0.75 | mean AP | missed | false | split | merged "
        "| training min | embed s/MP | cluster s/MP |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in VARIANTS.items():
        if options.only and not any(fnmatchcase(name, pattern) for pattern in options.only):
            continue
        lines += rows(name, measured(name, own, fields, options))
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        lines = []
    return 0


def held_out(options: argparse.Namespace) -> list[Path]:
    """The image files of the held-out fields, sorted."""
    where = dict(condition.split("=", 1) for condition in options.where)
    with options.index.open(newline="") as file:
        names = {
            row["id"]
            for row in csv.DictReader(file)
            if row["split"] == "val"
            and all(fnmatchcase(row[column], pattern) for column, pattern in where.items())
        }
    found = sorted(path.resolve() for path in options.images.iterdir() if path.stem in names)
    if len(found) != len(names):
        raise SystemExit(f"{options.images} has {len(found)} of {len(names)} held-out fields")
    return found


def measured(
    name: str, own: Sequence[str], fields: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """What one variant reaches: scores, and seconds of its three parts."""
    run = options.out / name.replace(", ", "-").replace(" ", "_")
    kept = run / "result.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    groups = f"{options.index}:{options.group}"
    store = run / "val.zarr"
    began = time.monotonic()
    trained = cellseg(options, "train", *options.train, *own, "--out", run)
    trained["wall_s"] = round(time.monotonic() - began, 1)
    embedded = cellseg(options, "embed", fields, "--model", run, "--out", store, "--overwrite")
    thresholds = CLUSTERED.get(name, ("--types", groups))
    clustered = cellseg(options, "cluster", store, "--overwrite", *thresholds)
    result = {
        "name": name,
        "options": list(own),
        "train": trained,
        "megapixels": megapixels(store),
        "embed_s": embedded["seconds"],
        "cluster_s": clustered["seconds"],
        "scores": cellseg(
            options,
            *("evaluate", store, "--truth", options.truth, "--groups", groups),
            *("--missing", "skip"),
        ),
    }
    kept.write_text(json.dumps(result, indent=2) + "\n")
    return result


def cellseg(options: argparse.Namespace, *arguments: object) -> dict[str, Any]:
    """Run one command; its JSON.  What it says goes through."""
    command = [*options.cellseg, *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    return dict(json.loads(done.stdout))


def megapixels(store: Path) -> float:
    """Size of all fields of a store, in 10⁶ pixels."""
    shapes = (
        json.loads(path.read_text())["shape"] for path in store.rglob("labels/cells/0/zarr.json")
    )
    return sum(shape[-1] * shape[-2] for shape in shapes) / 1e6


def rows(name: str, result: dict[str, Any]) -> list[str]:
    """A row for all fields, and one for each group where there are several."""
    scores = result["scores"]
    groups = next(iter((scores.get("by_group") or {}).values()), {})
    lines = []
    for group, part in {"all": scores["overall"], **(groups if len(groups) > 1 else {})}.items():
        cells = [f"{name}" if group == "all" else "", f"{group} ({part['fields']})"]
        cells += [f"{part['ap'][level]:.3f}" for level in ("0.50", "0.75")]
        cells += [f"{part['mean_ap']:.3f}"]
        mistakes = part["mistakes"]
        cells += [str(mistakes[kind]) for kind in ("missed", "false", "split", "merged")]
        if group == "all":
            size = result["megapixels"]
            cells += [f"{result['train']['wall_s'] / 60:.1f}"]
            cells += [f"{result[part] / size:.2f}" for part in ("embed_s", "cluster_s")]
        else:
            cells += [""] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
