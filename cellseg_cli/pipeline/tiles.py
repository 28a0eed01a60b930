"""Fields that are too large to cluster at once: from the store, tile by tile, into the store.

The embedding is read window by window and the label image is written slab by slab, so that
memory depends on the windows and not on the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.clustering.grid import background_code, sample_places
from cellseg_cli.clustering.large import LargeLabels, Tiling, cluster_in_tiles
from cellseg_cli.clustering.seams import Region
from cellseg_cli.config import ClusterSettings
from cellseg_cli.errors import LimitError
from cellseg_cli.pipeline.sinks import LabelSink
from cellseg_cli.store import FieldRow, Store

#: Fields of at most this many pixels are clustered whole.  The largest takes 1.2 GB by `seeds`
#: (`tests/benchmarks/large_field.py 4096`) and about 2 GB by `grid` if half of it is foreground.
WHOLE_FIELD_PX = 4096 * 4096

_TILE_PX = 2048
#: A window grows to this many times its side: by default to that of a field clustered whole.
_GROWTH = 2


@dataclass(frozen=True)
class Place:
    """Where label images go, and a function that raises when the run is ending."""

    sink: LabelSink
    check: Callable[[], None]


@dataclass(frozen=True)
class Tiles:
    """When a field is cut into tiles, and how.

    Attributes
    ----------
    tiling
        How.
    longest_px
        The longest side of a field that is clustered whole; None: `WHOLE_FIELD_PX` decides.
    """

    tiling: Tiling
    longest_px: int | None

    @classmethod
    def of(cls, settings: ClusterSettings) -> Tiles:
        """What the user has set.

        Raises
        ------
        ConfigError
            Sides that do not go together.
        """
        tile_px = _TILE_PX if settings.tile_px is None else settings.tile_px
        tiling = Tiling(tile_px, settings.overlap_px, _GROWTH * tile_px)
        return cls(tiling, settings.tile_px)

    def for_field(self, row: FieldRow, settings: Clustering) -> Tiling | None:
        """How a field is cut, or None for a field that is clustered whole."""
        if not _can_tile(settings):
            return None
        if self.longest_px is not None:
            longest = max(row.height or 0, row.width or 0)
            return self.tiling if longest > self.longest_px else None
        return self.tiling if row.pixels > WHOLE_FIELD_PX else None

    def identity(self, row: FieldRow, settings: Clustering) -> dict[str, Any]:
        """What fingerprints cover of the tiles; nothing for a field that is clustered whole."""
        if not (tiling := self.for_field(row, settings)):
            return {}
        return {"tile_px": tiling.tile_px, "overlap_px": tiling.overlap_px}


def check_whole(row: FieldRow, settings: Clustering) -> None:
    """Refuse a large field where the method needs all of it at once.

    Raises
    ------
    LimitError
        Says what to do.
    """
    if row.pixels <= WHOLE_FIELD_PX or _can_tile(settings):
        return
    size = f"{row.height} × {row.width} px"
    if settings.method == "linkage":
        raise LimitError(
            f"linkage compares all pixels of a field with each other and takes at most "
            f"{WHOLE_FIELD_PX} px; the field has {size}: use --method grid"
        )
    raise LimitError(
        f"--size {settings.size} shrinks the whole field and takes at most {WHOLE_FIELD_PX} px; "
        f"the field has {size}: use --size full or half"
    )


def _can_tile(settings: Clustering) -> bool:
    """Whether what a method says of a pixel depends on its surroundings alone."""
    if settings.method == "grid":
        return settings.size in {"full", "half"}
    return settings.method in {"seeds", "watershed"}


def cluster_tiles(
    row: FieldRow,
    store: Store,
    kind: str,
    settings: Clustering,
    tiling: Tiling,
    place: Place,
) -> LargeLabels:
    """Write the label image of a field, clustered in tiles; what is returned has no pixels left.

    Parameters
    ----------
    row, store
        An embedded field.
    kind, settings
        As :func:`cellseg_cli.clustering.cluster` takes them.
    tiling
        How the field is cut.
    place
        Where the label image goes, and what is called between tiles: what it raises ends the
        work.

    Raises
    ------
    LimitError
        An instance is longer than windows may grow.
    InputError, StoreError, StoreWriteError
        As for a field that is clustered whole.
    """
    assert settings.min_area_px is not None
    _, height, width = store.embedding_shape(row.id)
    background = _background(row, store, kind, settings)

    def look(window: Region) -> np.ndarray:
        values, classes = store.read_embedding(row.id, window)
        values = values.astype(np.float32)  # here, so that the float16 does not wait beside it
        if settings.size == "half":
            values, classes = _even(values), None if classes is None else _even(classes)
        labels = cluster(
            values, kind=kind, settings=settings, classes=classes, background=background
        )
        rows, columns = window
        return labels[: rows.stop - rows.start, : columns.stop - columns.start]

    with store.scratch() as shelf:
        labels = cluster_in_tiles(
            (height, width),
            look,
            tiling,
            shelf,
            min_area_px=settings.min_area_px,
            check=place.check,
        )
        place.sink.write_large(row.id, (height, width), labels, place.check)
    return labels


def _even(values: np.ndarray) -> np.ndarray:
    """The array (C, Y, X) with the last row and column twice where their number is odd.

    Half of an even number of pixels are pairs from the first one on, the same in every window.
    """
    return np.pad(values, ((0, 0), *((0, side % 2) for side in values.shape[1:])), mode="edge")


def _background(row: FieldRow, store: Store, kind: str, settings: Clustering) -> np.ndarray | None:
    """The background code of the whole field, (E,) float32, where the method needs one."""
    if (settings.method, kind) != ("grid", "contrastive"):
        return None
    _, height, width = store.embedding_shape(row.id)
    rows, columns = sample_places((height, width))
    lines = []
    for y in rows.tolist():
        values, classes = store.read_embedding(row.id, (slice(y, y + 1), slice(0, width)))
        if classes is not None:  # they say what is background
            return None
        lines.append(values[:, 0, columns])
    return background_code(np.stack(lines, axis=1).astype(np.float32))
