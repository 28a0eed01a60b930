"""Where label images are made: on the CPU, or on an accelerator with the same result."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from cellseg_cli.clustering import Clustering, cluster


@dataclass(frozen=True)
class Labeller:
    """Makes the label images of whole fields; safe for threads.

    Attributes
    ----------
    device
        ``cpu`` or ``cuda:I``.
    """

    device: str = "cpu"
    # one pass at a time on an accelerator: two would only share it and its memory
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def on(cls, wanted: str, method: str) -> Labeller:
        """The labeller of a device; ``auto`` takes an accelerator if there is one that can.

        Raises
        ------
        DeviceError
            The device is not there.
        ConfigError
            It is no device, or one that the method does not work on.
        """
        if wanted == "cpu":
            return cls()  # without loading torch
        from cellseg_cli.accelerator import METHODS, check_method
        from cellseg_cli.networks.devices import resolve_device

        device = resolve_device(wanted)
        if device.type == "cpu" or (wanted == "auto" and method not in METHODS):
            return cls()
        check_method(method)
        return cls(str(device))

    def labels(
        self, values: np.ndarray, classes: np.ndarray | None, kind: str, settings: Clustering
    ) -> np.ndarray:
        """What :func:`cellseg_cli.clustering.cluster` gives: (Y, X) uint32."""
        if self.device == "cpu":
            return cluster(values, kind=kind, settings=settings, classes=classes)
        import torch

        from cellseg_cli.accelerator import cluster_batch

        with self._turn:
            batch = torch.from_numpy(values)[None].to(self.device)
            given = None if classes is None else torch.from_numpy(classes)[None].to(self.device)
            made = cluster_batch(batch, kind=kind, settings=settings, classes=given)
            labels: np.ndarray = made.of(0).cpu().numpy().astype(np.uint32)
        return labels
