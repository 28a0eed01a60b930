"""What a model is sure of on images that nobody has annotated, as a target to learn from.

The images, embeddings and label images of a store are read; nothing is written.  Instances whose
confidence reaches a level are learned from.  Those below it are unknown, with a rim around them,
and so is the background where the model is not sure of it: a loss says nothing there.  An image
that is gone, or is not the one that was embedded, is no source: its field fails with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg_cli.clustering.inputs import SPATIAL_CHANNELS
from cellseg_cli.errors import CellsegError, InputError, StoreError
from cellseg_cli.images.decode import read_header
from cellseg_cli.images.planes import Planes
from cellseg_cli.images.source import Field, Source
from cellseg_cli.rows import FieldRow
from cellseg_cli.store import Store

#: Background this near to an instance that is not trusted is unknown too: its outline may be
#: wrong by a few pixels either way.
RIM_PX = 3

#: Probability from which background counts as background, of 255.
SURE_CLASS = 230
#: Seed value up to which it does.
SURE_SEED = 0.1

_UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class Pseudo:
    """One field of a store as it was when it was opened, and how sure an instance must be.

    Attributes
    ----------
    store, row
        The field.
    mark
        Fingerprint of its label image.
    level
        Confidence from which an instance is learned from.
    """

    store: Store
    row: FieldRow
    mark: str
    level: float

    @property
    def field(self) -> Field:
        """The image, where it was when it was embedded."""
        return Field(self.row.id, Source.of(self.row))

    @property
    def planes(self) -> Planes:
        """The planes that were embedded."""
        return _planes(self.store)

    @property
    def identity(self) -> str:
        """Which image was segmented how: equal ones, equal targets at one level."""
        return f"{self.row.id}@{self.mark}"

    def check(self) -> None:
        """Raise InputError where the image is gone or another one, or is clustered anew.

        The size in bytes and the time of the last change are compared, as resuming does.
        """
        header = read_header(Source.of(self.row), self.planes)
        now = (header.size_bytes, header.mtime_ns)
        if now != (self.row.size_bytes, self.row.mtime_ns):
            raise InputError(
                f"{self.row.source} is not the image that {self.store.path} was made from: it has "
                f"{now[0]} bytes and had {self.row.size_bytes}, or was written since; run cellseg "
                "embed and cluster again"
            )

        if self.store.done_fingerprint(self.row.id, "cluster") != self.mark:
            raise InputError(
                f"{self.row.id} in {self.store.path} was clustered anew since training began; "
                "start training again"
            )

    def labels(self, shape: tuple[int, int]) -> NDArray[np.int32]:
        """Return the target (Y, X): −1 unknown, 0 background, the trusted instances.

        Raises
        ------
        InputError
            The label image is of another size than `shape`.
        StoreError
            The field's arrays are damaged.
        """
        labels = self.store.read_labels(self.row.id)
        if labels.shape != shape:
            raise InputError(
                f"the label image of {self.row.id} in {self.store.path} is {labels.shape[0]}×"
                f"{labels.shape[1]} px, but its image is {shape[0]}×{shape[1]} px"
            )
        values, classes = self.store.read_embedding(self.row.id)
        sure = surety(values, classes, self.store.attributes["model"]["kind"])
        return target(labels, sure, self.level)


class Surety(NamedTuple):
    """What a model says of its own output.

    Attributes
    ----------
    membership
        (Y, X) float32 from 0 to 1: how sure it is that a pixel belongs to a cell.
    centres
        (3, Y, X) float32: predicted centre y and x and bandwidth, px; None where no centres
        are predicted.
    background
        (Y, X) bool: where it is sure of background.
    """

    membership: NDArray[np.float32]
    centres: NDArray[np.float32] | None
    background: NDArray[np.bool_]


def surety(values: np.ndarray, classes: np.ndarray | None, kind: str) -> Surety:
    """Return what an embedding (E, Y, X) and its classes (3, Y, X) uint8 say of themselves."""
    sure = None if classes is None else classes[0] >= SURE_CLASS
    if kind != "spatial":
        assert classes is not None and sure is not None  # open_pseudo has seen to it
        return Surety(1 - classes[0].astype(np.float32) / 255, None, sure)
    offset_y, offset_x, bandwidth, seed = values[: len(SPATIAL_CHANNELS)].astype(np.float32)
    rows, columns = (np.arange(side, dtype=np.float32) for side in seed.shape)
    centres = np.stack([offset_y + rows[:, None], offset_x + columns, bandwidth])
    dark = seed <= SURE_SEED
    return Surety(np.clip(seed, 0, 1), centres, dark if sure is None else dark & sure)


def confidences(labels: np.ndarray, sure: Surety) -> NDArray[np.float64]:
    """Return how sure the model is of each instance, from 0 to 1; index 0 is background's.

    The mean over the instance's pixels of their membership: the seed value of a spatial
    embedding, which is trained to be phi, else one minus the probability of background.  For
    spatial embeddings times the mean of phi itself, with the instance's mean centre and
    bandwidth: pixels that point at two centres are not one cell, however bright their seeds
    are.  For others squared, so that one level serves both.

    Notes
    -----
    Measured with the bundled model on 65 held-out fields of DSB 2018, 2 298 instances of which
    0.943 match the truth at an IoU of 0.5: area under the curve of confidence against such a
    match 0.82 by the seed values, 0.82 by phi, 0.81 by the class probability, 0.83 by the
    lower of the first two and 0.85 by their product.  A product of at least 0.7 has 0.84 of the
    instances, of which 0.977 match (0.6: 0.94 and 0.961; 0.8: 0.60 and 0.991); a squared class
    probability of at least 0.72 has 0.89, of which 0.966 match.
    """
    flat = labels.ravel()
    membership = _means(flat, sure.membership)
    if sure.centres is None:
        return membership**2
    mean_y, mean_x, sigma = (_means(flat, plane) for plane in sure.centres)
    y, x = sure.centres[0].ravel(), sure.centres[1].ravel()
    squared = (y - mean_y[flat]) ** 2 + (x - mean_x[flat]) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        phi = np.exp(-0.5 * squared / sigma[flat] ** 2)
    confidence: NDArray[np.float64] = membership * _means(flat, np.nan_to_num(phi))
    return confidence


def target(labels: np.ndarray, sure: Surety, level: float) -> NDArray[np.int32]:
    """Return (Y, X): instances of at least this confidence, 0 for sure background, else −1."""
    trusted = confidences(labels, sure) >= level
    trusted[0] = False
    doubted = ~trusted[labels] & (labels > 0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RIM_PX + 1, 2 * RIM_PX + 1))
    near = cv2.dilate(doubted.astype(np.uint8), disc) > 0
    background = (labels == 0) & sure.background & ~near
    result = np.where(background, 0, _UNKNOWN).astype(np.int32)
    kept = trusted[labels]
    result[kept] = labels[kept]
    return result


def open_pseudo(path: str | Path, level: float) -> tuple[Pseudo, ...]:
    """Return the fields of a store that a target can be made of, sorted by id.

    Raises
    ------
    StoreError
        No store; one without embeddings; one whose model says nothing of its confidence; one
        where no field is embedded and clustered.
    InputError
        Not one image is what it was when it was embedded.
    """
    store = Store.open(path)
    if store.attributes.get("keeps", "embeddings") != "embeddings":
        raise StoreError(
            f"{path} holds label images alone: how sure the model was is measured on embeddings; "
            "use cellseg embed and cellseg cluster in place of cellseg segment"
        )
    model = store.attributes.get("model", {})
    if model.get("kind") != "spatial" and not model.get("classes"):
        raise StoreError(
            f"the model of {path} has neither a seed map nor a classes head: it says nothing of "
            "how sure it is"
        )
    rows = store.fields()
    fields = []
    for row in rows:
        mark = store.done_fingerprint(row.id, "cluster")
        if mark is not None and store.has(row.id, "embed"):
            fields.append(Pseudo(store, row, mark, level))
    if not fields:
        raise StoreError(
            f"none of the {len(rows)} fields of {path} is embedded and clustered; run cellseg "
            "embed and cellseg cluster"
        )
    _require_one(path, fields)
    return tuple(fields)


def _require_one(path: str | Path, fields: Sequence[Pseudo]) -> None:
    """Raise InputError where no field has its image, with the reasons of the first three."""
    faults = []
    for field in fields:
        try:
            field.check()
        except CellsegError as error:
            faults.append(str(error))
        else:
            return
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    raise InputError(
        f"not one of the {len(fields)} images of {path} can be used: {'; '.join(faults[:3])}{more}"
    )


def _planes(store: Store) -> Planes:
    made = store.attributes.get("embed", {})
    channel = made.get("channel")
    return Planes(None if channel is None else tuple(channel), made.get("z"), made.get("t"))


def _means(groups: NDArray[np.integer], values: np.ndarray) -> NDArray[np.float64]:
    """Return the mean of `values` over the pixels of each id from 0 on; 0 where none is."""
    counts = np.bincount(groups)
    return np.bincount(groups, weights=values.ravel()) / np.maximum(counts, 1)
