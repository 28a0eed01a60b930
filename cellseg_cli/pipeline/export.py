"""The stage ``export``: label images of a store to the files of other programs.

Only finished label images are exported.  Every other field of the store is a
failure with its reason, so that a file that lacks cells never looks complete.
The store itself is not touched.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from cellseg_cli.errors import ConfigError, StoreError
from cellseg_cli.exports import FieldInfo, Written, coco, kaggle, label_tiff, table
from cellseg_cli.exports.output import check_output_file, check_output_folder
from cellseg_cli.images.discover import SUFFIXES
from cellseg_cli.instances import Instances, instances_of_labels
from cellseg_cli.pipeline.events import (
    Emit,
    Failure,
    FieldDone,
    FieldFailed,
    StageFinished,
    StageStarted,
    Summary,
)
from cellseg_cli.runlength import Order
from cellseg_cli.store import FieldRow, Store

Format = Literal["label-tiff", "coco", "kaggle", "table"]


@dataclass(frozen=True)
class Export:
    """What to write and where.

    Attributes
    ----------
    format
        ``label-tiff`` (a folder), ``coco``, ``kaggle`` or ``table`` (a file each).
    out
        The folder or file.
    order
        How a Kaggle table flattens masks; None takes that of Sartorius.
    overwrite
        Replace what is there.
    """

    format: Format
    out: Path
    order: Order | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What came of an export: the fields that failed, and what the files hold."""

    summary: Summary
    written: Written


def export_store(path: str | Path, export: Export, emit: Emit) -> Exported:
    """Write the label images of a store in one format; fields come by ascending id.

    Nothing is written when no field can be exported.

    Raises
    ------
    StoreError
        No store, or one without a list of fields.
    ConfigError
        An order for a format that has none, an output of the wrong kind or that
        cannot be written.
    OutputExistsError
        The output is there and may not be replaced.
    """
    began = time.perf_counter()
    _check(export)
    store = Store.open(path)
    _refuse_inside(store, export.out)
    rows = store.fields()
    if not rows:
        raise StoreError(f"{store.path} lists no fields: run cellseg embed first")
    emit(StageStarted("export", len(rows), 0, 1))
    failed: list[Failure] = []
    fields = _finished(store, rows, failed, emit, scored=export.format in ("coco", "table"))
    first = next(fields, None)
    written = Written(0, 0) if first is None else _write(chain([first], fields), export)
    seconds = time.perf_counter() - began
    summary = Summary("export", written.fields, 0, tuple(failed), seconds)
    emit(StageFinished(summary))
    return Exported(summary, written)


def _check(export: Export) -> None:
    if export.order is not None and export.format != "kaggle":
        raise ConfigError(f"an order is for the format kaggle only, not for {export.format}")
    checks = {"label-tiff": check_output_folder, "table": table.check_output}
    checks.get(export.format, check_output_file)(export.out, overwrite=export.overwrite)


def _refuse_inside(store: Store, out: Path) -> None:
    """Raise ConfigError for an output that would replace files of the store itself."""
    inner, outer = out.resolve(), store.path.resolve()
    if outer in (inner, *inner.parents):
        raise ConfigError(f"{out} is inside the store {store.path}; choose another output")


def _write(fields: Iterable[tuple[FieldInfo, Instances]], export: Export) -> Written:
    if export.format == "kaggle":
        order = export.order or "row_major"
        return kaggle.write(fields, export.out, order=order, overwrite=export.overwrite)
    writers = {"label-tiff": label_tiff.write, "coco": coco.write, "table": table.write}
    return writers[export.format](fields, export.out, overwrite=export.overwrite)


def _finished(
    store: Store, rows: Iterable[FieldRow], failed: list[Failure], emit: Emit, *, scored: bool
) -> Iterator[tuple[FieldInfo, Instances]]:
    """Yield every field that has its label image; note the others in `failed`.

    Instances carry scores where `scored` asks for them and the store knows any.
    """
    for row in rows:
        began = time.perf_counter()
        try:
            labels = _labels(store, row)
        except StoreError as error:
            failed.append(Failure(row.id, str(error)))
            emit(FieldFailed("export", failed[-1]))
            continue
        instances = instances_of_labels(labels)
        if scored:
            instances = replace(instances, scores=_scores(store, row, labels))
        yield _info(store, row, instances.shape), instances
        # The writer asks for the next field when this one is in its file.
        seconds = time.perf_counter() - began
        emit(FieldDone("export", row.id, seconds, labels.size, len(instances)))


def _labels(store: Store, row: FieldRow) -> np.ndarray:
    if row.error is not None:
        raise StoreError(row.error)
    if not store.has(row.id, "cluster"):
        if known := store.failure(row.id, "embed") or store.failure(row.id, "cluster"):
            raise StoreError(known)
        raise StoreError(f"its label image is not finished: run cellseg cluster {store.path}")
    return store.read_labels(row.id)


def _scores(store: Store, row: FieldRow, labels: np.ndarray) -> tuple[float, ...] | None:
    """How sure the network is of each instance, by ascending id; None where it does not say.

    The mean over the instance's pixels, in [0, 1]: of the seed value of a
    spatial embedding, which is trained to be the membership phi of the pixel in
    its instance, else of the probability of not being background.
    """
    if not store.has(row.id, "embed"):
        return None
    values, classes = store.read_embedding(row.id)
    channels = store.attributes.get("model", {}).get("channels", [])
    if "seed" in channels:
        sure = values[channels.index("seed")].astype(np.float64)
    elif classes is not None:
        sure = 1 - classes[0] / 255
    else:
        return None
    sums = np.bincount(labels.ravel(), weights=sure.ravel())
    areas = np.bincount(labels.ravel())
    ids = np.flatnonzero(areas[1:]) + 1
    return tuple(round(float(score), 4) for score in np.clip(sums[ids] / areas[ids], 0, 1))


def _info(store: Store, row: FieldRow, shape: tuple[int, int]) -> FieldInfo:
    channels = row.chosen_channels(store.attributes.get("embed", {}).get("channel"))
    place = (row.plate, row.well, row.field, row.t)
    return FieldInfo(row.id, _file_name(row), shape, *place, channels)


def _file_name(row: FieldRow) -> str:
    """Return the path of the image relative to the root of its run, with its suffix."""
    name = row.source.lower()
    length = next((len(suffix) for suffix in SUFFIXES if name.endswith(suffix)), 0)
    return row.id + row.source[len(row.source) - length :]
