"""Fields that wait for an accelerator at the same time are clustered in one pass.

Threads that come while a pass runs wait together; whichever is next takes all those of equal
shape and settings with it.  Nobody waits for company: a thread that finds the device free goes
at once.  The label image of a field does not depend on what else is in its pass.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cellseg_cli.clustering import Clustering

if TYPE_CHECKING:
    from torch import Tensor

#: Pixels of one pass: up to 500 bytes each are taken beside the embeddings.
PASS_PX = 8_000_000


@dataclass(eq=False)
class Waiting:
    """One field: its embedding (E, Y, X) and classes on the device, and what came of it."""

    values: Tensor
    classes: Tensor | None
    kind: str
    settings: Clustering
    labels: np.ndarray | None = None
    fault: Exception | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def like(self) -> tuple[object, ...]:
        """What the fields of one pass have in common."""
        return self.values.shape, self.classes is None, self.kind, self.settings


class Gathering:
    """The passes on one device; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: list[Waiting] = []

    def labels(self, one: Waiting) -> np.ndarray:
        """The label image (Y, X) uint32 of a field.

        Raises
        ------
        Exception
            Why it has none.
        """
        with self._lock:
            self._waiting.append(one)
        with self._turn:
            if not one.ended.is_set():  # else another thread has taken it along
                _cluster(self._taken(one))
        if one.fault is not None:
            raise one.fault
        assert one.labels is not None
        return one.labels

    def _taken(self, one: Waiting) -> list[Waiting]:
        most = max(1, PASS_PX // (one.values.shape[1] * one.values.shape[2]))
        with self._lock:
            same = [other for other in self._waiting if other.like == one.like and other is not one]
            taken = [one, *same[: most - 1]]
            self._waiting = [other for other in self._waiting if other not in taken]
        return taken


def _cluster(fields: list[Waiting]) -> None:
    """Cluster fields of one kind; where memory is short, half of them at a time."""
    import torch

    try:
        _pass(fields)
    except torch.OutOfMemoryError as error:
        if len(fields) > 1:
            torch.cuda.empty_cache()
            half = len(fields) // 2
            _cluster(fields[:half])
            _cluster(fields[half:])
            return
        fields[0].fault = error
    except Exception as error:  # noqa: BLE001 - handed to the threads that wait for it
        for one in fields:
            one.fault = error
    for one in fields:
        one.ended.set()


def _pass(fields: list[Waiting]) -> None:
    import torch

    from cellseg_cli.accelerator import cluster_batch

    first = fields[0]
    classes = [one.classes for one in fields if one.classes is not None]
    made = cluster_batch(
        torch.stack([one.values for one in fields]),
        kind=first.kind,
        settings=first.settings,
        classes=torch.stack(classes) if classes else None,
    )
    images = made.images.cpu().numpy().astype(np.uint32)
    for one, image, fault in zip(fields, images, made.faults, strict=True):
        one.labels, one.fault = image, fault
