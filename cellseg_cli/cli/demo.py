"""`cellseg demo`: the whole way once, on a plate that it renders itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellseg_cli.cli.common import AsJson, Device, Quiet, Threads, echo_json

if TYPE_CHECKING:
    from cellseg_cli.pipeline.demo import Demo


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")] = Path("cellseg-demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the plate.")] = 0,
    model: Annotated[
        str, typer.Option("--model", help="A bundled model of nuclei, or a model file.")
    ] = "nuclei",
    device: Device = None,
    threads: Threads = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier demo left in the folder.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Render a small plate of nuclei, segment it, score it, show it.

    Four wells of fluorescent nuclei with exact truth are rendered, embedded,
    clustered, scored and exported; demo.png shows image, embedding, truth and
    prediction side by side. Needs no data and no accelerator.

    \b
        cellseg demo
        cellseg demo --seed 1 --overwrite
    """
    from cellseg_cli.cli.screen import screen
    from cellseg_cli.pipeline.demo import DemoSettings, summary
    from cellseg_cli.pipeline.demo import demo as run_demo

    settings = DemoSettings(seed=seed, model=model, device=device or "auto", threads=threads or 0)
    with screen(quiet=quiet) as emit:
        result = run_demo(out, settings, emit=emit, overwrite=overwrite)
    if as_json:
        echo_json(summary(result))
    else:
        for line in _lines(result, model):
            typer.echo(line)
    return int(result.exit_code)


def _lines(result: Demo, model: str) -> Iterator[str]:
    """Yield what a person wants to know: where things lie, how good, how long, what next."""
    plate = result.plate
    yield f"{len(plate.nuclei)} fields with {plate.total} nuclei, segmented by the model {model}"
    yield ""
    yield from _places(result)
    yield ""
    yield from _scores(result)
    yield ""
    taken = "  ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items())
    yield f"seconds       {taken}"
    yield ""
    yield "Next, on a folder of your own:"
    yield ""
    chosen = "" if model == "nuclei" else f" --model {shlex.quote(model)}"
    yield f"    cellseg embed FOLDER --out cells.zarr{chosen}"
    yield "    cellseg cluster cells.zarr"
    yield "    cellseg export cells.zarr --format label-tiff --out labels"


def _places(result: Demo) -> Iterator[str]:
    places = (
        ("images", result.plate.images, "16-bit TIFF"),
        ("truth", result.plate.truth, "label images"),
        ("store", result.store, "embeddings and label images, for napari"),
        ("label images", result.labels, "TIFF, for any program"),
        ("COCO", result.coco, "every cell as a run-length mask"),
        ("picture", result.picture, "image, embedding, truth, prediction"),
    )
    width = max(len(str(where)) for _, where, _ in places)
    for name, where, what in places:
        yield f"{name:<12}  {where!s:<{width}}  {what}"


def _scores(result: Demo) -> Iterator[str]:
    """Yield a table: a row for each well, then all; scores are means over fields."""
    overall = result.evaluation.overall
    if overall is None:
        yield "no field could be scored"
        return
    wells = result.evaluation.by_group.get("plate", {})
    yield f"{'well':<12}  {'nuclei':>6}  {'found':>6}  {'AP50':>6}  {'mean AP':>7}  {'F1':>6}"
    for name, scores in (*wells.items(), ("all", overall)):
        mean = scores.mean
        yield (
            f"{name:<12}  {scores.total.truth:>6}  {scores.total.predicted:>6}  "
            f"{mean.at('ap', 0.5):>6.3f}  {mean.mean_ap:>7.3f}  {mean.at('f1', 0.5):>6.3f}"
        )
