"""Where label images are made: on the CPU, or on an accelerator with the same result."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.pipeline.gathering import Gathering, Waiting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Labeller:
    """Makes the label images of whole fields; safe for threads.

    Attributes
    ----------
    device
        ``cpu``; any other name is one of torch's.
    """

    device: str = "cpu"

    @classmethod
    def on(cls, wanted: str, method: str, *, or_cpu: bool = False) -> Labeller:
        """The labeller of a device; ``auto`` takes an accelerator if there is one that can.

        With ``or_cpu`` a method that does not work on the accelerator works on the CPU.

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
        if device.type == "cpu" or ((or_cpu or wanted == "auto") and method not in METHODS):
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

        on_device = torch.from_numpy(values).to(self.device)
        given = None if classes is None else torch.from_numpy(classes).to(self.device)
        return self.labels_on_device(on_device, given, kind, settings)

    def prepare(self, channels: int, kind: str, settings: Clustering) -> None:
        """Load the kernels of the CPU, by the label image of nothing, while others compute."""
        if self.device == "cpu":
            nothing = np.zeros((channels, 8, 8), np.float16), np.zeros((3, 8, 8), np.uint8)
            self.labels(*nothing, kind, settings)

    def labels_on_device(
        self, values: Tensor, classes: Tensor | None, kind: str, settings: Clustering
    ) -> np.ndarray:
        """The same from an embedding that lies on the device; (Y, X) uint32 in host memory."""
        return _gathering(self.device).labels(Waiting(values, classes, kind, settings))


_gatherings: dict[str, Gathering] = {}
_lock = threading.Lock()


def _gathering(device: str) -> Gathering:
    """The one of this process for a device."""
    with _lock:
        return _gatherings.setdefault(device, Gathering())
