"""The demo: a rendered plate through every stage, as a user would run them.

Only places and order are decided here; each stage is the one that the command
line calls.  Everything lies in one folder that carries a mark of its own, so
that nothing but an earlier demo is ever removed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellseg_cli import __version__, durable
from cellseg_cli.config import ClusterSettings, EmbedSettings, RunSettings
from cellseg_cli.errors import ConfigError, ExitCode, OutputExistsError
from cellseg_cli.evaluation.scores import measures
from cellseg_cli.images.annotations import open_annotations
from cellseg_cli.images.decode import read_image
from cellseg_cli.images.synthetic import FIELD_SIZE, Plate, render_plate
from cellseg_cli.instances import labels_of
from cellseg_cli.networks.checkpoint import find_model
from cellseg_cli.pipeline.cluster import cluster_store
from cellseg_cli.pipeline.embed import embed
from cellseg_cli.pipeline.evaluate import Comparison, Evaluation, document, evaluate
from cellseg_cli.pipeline.events import Emit, FieldDone, StageStarted
from cellseg_cli.pipeline.export import Export, export_store
from cellseg_cli.report.pictures import embedding_rgb, image_rgb, overlay, panel, stack, write_png
from cellseg_cli.store import Store

#: What a demo writes into its folder; the mark comes first and says at the end what came out.
MARK = "demo.json"
_CONTENTS = ("plate", "truth", "emb.zarr", "labels", "cells.json", "demo.png", MARK)

#: Part of a field that the picture shows, from its middle, in px (Y, X).
_SHOWN_PX = (360, 480)


@dataclass(frozen=True)
class DemoSettings:
    """What is rendered, and by which model it is segmented.

    Attributes
    ----------
    seed
        Of the plate; the rest of the demo draws nothing.
    wells, fields_per_well, size
        The plate, as :func:`cellseg_cli.images.synthetic.render_plate` takes it.
    model, device
        As in :class:`cellseg_cli.config.EmbedSettings`.
    threads
        Threads; 0 means one per core.
    """

    seed: int = 0
    wells: tuple[str, ...] = ("A01", "A02", "B01", "B02")
    fields_per_well: int = 2
    size: tuple[int, int] = FIELD_SIZE
    model: str = "nuclei"
    device: str = "auto"
    threads: int = 0


@dataclass(frozen=True)
class Demo:
    """Where everything lies and what came out.

    Attributes
    ----------
    plate
        Images, truth and number of nuclei.
    store, labels, coco, picture
        Embeddings and label images; label TIFFs; COCO file; PNG.
    evaluation
        Scores of the store against the truth.
    seconds
        By stage, in the order of the run.
    exit_code
        The worst of the stages.
    """

    plate: Plate
    store: Path
    labels: Path
    coco: Path
    picture: Path
    evaluation: Evaluation
    seconds: Mapping[str, float]
    exit_code: ExitCode


@dataclass
class _Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def demo(out: str | Path, settings: DemoSettings, *, emit: Emit, overwrite: bool = False) -> Demo:
    """Render a plate below ``out``, embed, cluster, score, export and picture it.

    Parameters
    ----------
    out
        Folder; must be missing, empty, or an earlier demo that may be replaced.
    settings
        What to render and with which model.
    emit
        Called with the events of every stage.
    overwrite
        Remove what an earlier demo left in ``out``, and nothing else.

    Raises
    ------
    OutputExistsError
        ``out`` holds an earlier demo and ``overwrite`` is false, or anything else.
    CheckpointError
        The model is not there; nothing is written then.
    """
    out = Path(out)
    find_model(settings.model)
    _make_room(out, overwrite=overwrite)
    clock = _Clock()
    with clock.stage("render"):
        plate = _rendered(out, settings, emit)
    store = out / "emb.zarr"
    run = RunSettings(threads=settings.threads)
    with clock.stage("embed"):
        embedding = EmbedSettings(model=settings.model, device=settings.device)
        codes = [embed(plate.images, store, embedding, run, emit).exit_code]
    with clock.stage("cluster"):
        codes.append(cluster_store(store, ClusterSettings(), run, emit).exit_code)
    with clock.stage("evaluate"):
        evaluation = evaluate(Comparison(store, plate.truth, threads=settings.threads))
        codes.append(evaluation.exit_code)
    labels, coco, picture = out / "labels", out / "cells.json", out / "demo.png"
    with clock.stage("export"):
        for export in (Export("label-tiff", labels), Export("coco", coco)):
            codes.append(export_store(store, export, emit).summary.exit_code)
    with clock.stage("picture"):
        write_png(picture, _picture(plate, Store.open(store), evaluation, _shown(settings)))
    result = Demo(plate, store, labels, coco, picture, evaluation, clock.seconds, max(codes))
    _write_mark(out, {"finished": True, **summary(result)})
    return result


def summary(result: Demo) -> dict[str, Any]:
    """Return a demo as a nested dict: places, counts, seconds, scores. Undefined scores are NaN."""
    return {
        "images": str(result.plate.images),
        "truth": str(result.plate.truth),
        "store": str(result.store),
        "labels": str(result.labels),
        "coco": str(result.coco),
        "picture": str(result.picture),
        "nuclei": dict(result.plate.nuclei),
        "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
        "evaluation": document(result.evaluation),
    }


def _make_room(out: Path, *, overwrite: bool) -> None:
    """Leave ``out`` empty but for a fresh mark, or raise."""
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file; the demo needs a folder, choose another --out")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there and not _is_marked(out):
        raise OutputExistsError(
            f"{out} holds files that no demo made, such as {min(there)}; choose another --out"
        )
    if there and not overwrite:
        raise OutputExistsError(
            f"{out} holds a demo already; to run it anew: cellseg demo --out {out} --overwrite"
        )
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        _write_mark(out, {"finished": False})
        for name in there.intersection(_CONTENTS) - {MARK}:
            path = out / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Say what cannot be written where the system only says why."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from error


def _is_marked(out: Path) -> bool:
    """Whether an earlier demo, finished or not, made this folder."""
    try:
        mark = json.loads((out / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and str(mark.get("made_by", "")).startswith("cellseg demo")


def _write_mark(out: Path, content: Mapping[str, Any]) -> None:
    with durable.temporary_path(out) as temporary:
        durable.write_json(
            temporary, {"made_by": f"cellseg demo {__version__}", **_defined(content)}
        )
        durable.replace(temporary, out / MARK)


def _defined(value: Any) -> Any:
    """Return nested dicts and lists with None for NaN, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: _defined(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_defined(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


def _rendered(out: Path, settings: DemoSettings, emit: Emit) -> Plate:
    emit(StageStarted("render", len(settings.wells) * settings.fields_per_well, 0, 1))
    began = time.perf_counter()
    pixels = settings.size[0] * settings.size[1]

    def done(field_id: str) -> None:
        nonlocal began
        now = time.perf_counter()
        emit(FieldDone("render", field_id, now - began, pixels))
        began = now

    return render_plate(
        out,
        wells=settings.wells,
        fields_per_well=settings.fields_per_well,
        size=settings.size,
        seed=settings.seed,
        done=done,
    )


def _shown(settings: DemoSettings) -> tuple[str, ...]:
    """The first field of each well."""
    return tuple(f"{well}/field1" for well in settings.wells)


def _picture(
    plate: Plate, store: Store, evaluation: Evaluation, field_ids: Sequence[str]
) -> np.ndarray:
    """Return a row of panels for each field that is finished: (Y, X, 3) uint8."""
    kind = store.attributes["model"]["kind"]
    meaning = {"spatial": "predicted centre", "contrastive": "principal components"}[kind]
    truth = open_annotations(plate.truth)
    rows = []
    for field_id in field_ids:
        if field_id not in evaluation.fields:
            continue
        image = read_image(plate.images / f"{field_id}.tif")
        values, classes = store.read_embedding(field_id)
        foreground = None if classes is None else 1 - classes[0] / np.float32(255)
        pictures = (
            (field_id, image_rgb(image)),
            (f"embedding ({meaning})", embedding_rgb(values, kind, foreground)),
            ("truth", overlay(image, labels_of(truth.read(field_id)))),
            (_title(evaluation, field_id), overlay(image, store.read_labels(field_id))),
        )
        rows.append(panel([(title, _middle(picture)) for title, picture in pictures]))
    return stack(rows)


def _title(evaluation: Evaluation, field_id: str) -> str:
    score = evaluation.fields[field_id]
    return f"prediction, AP50 {measures(score).at('ap', 0.5):.2f}"


def _middle(picture: np.ndarray) -> np.ndarray:
    """Return the part that is shown: the middle, or the whole of a smaller picture."""
    y0, x0 = (max(0, (n - m) // 2) for n, m in zip(picture.shape, _SHOWN_PX, strict=False))
    return picture[y0 : y0 + _SHOWN_PX[0], x0 : x0 + _SHOWN_PX[1]]
