"""How a batch gets to a device, through the network and back.

On CUDA three streams work at the same time: one copies images up, one computes, one copies
results down; events order them, and the calling thread never waits.  Host memory is pinned,
without which copies would wait for the host; PyTorch keeps pinned blocks and hands one out again
only when the copies that use it are over.  Tensors of a pass are held until it is over, since
the allocator knows only of the stream on which a tensor was made.

:class:`HostLane` does the same in order on the CPU, so that what stands above can be tested
without an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cellseg_cli.networks.passes import Network, Rounded

#: Share of the free memory that passes may take: the rest is for clustering on the same
#: device, for the images and results of the passes before and after, and for fragmentation.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Wanted:
    """Where the results of a pass are wanted: in host memory, on the device, or both."""

    host: bool = False
    kept: bool = False


class Started:
    """A pass on its way.

    Attributes
    ----------
    kept
        Results on the device, one row for each image, or None where nobody asked for them.
    host
        The same in host memory.
    wait
        Returns when both are there; raises what the device raised.
    """

    def __init__(
        self, kept: Rounded | None, host: Rounded | None, wait: Callable[[], None]
    ) -> None:
        self.kept, self.host, self.wait = kept, host, wait


class Lane(Protocol):
    """The way to one device and back."""

    def staging(self, shape: tuple[int, ...]) -> Tensor:
        """Host memory for images, (B, C, H, W), from which they are copied to the device."""

    def start(self, images: Tensor, length: int, wanted: Wanted) -> Started:
        """Begin a pass over at most ``length`` images; those that are missing are zeros.

        Raises
        ------
        torch.OutOfMemoryError
            The device has no room for ``length`` images.
        """

    def room_px(self, shape: tuple[int, int, int]) -> float:
        """How many pixels one pass may have, measured by a pass of one image (C, H, W)."""

    def release(self) -> None:
        """Give unused memory back, after an error and before another attempt."""

    def hand_over(self, kept: Rounded) -> None:
        """Let the calling thread use results on the device after the batch is forgotten."""


class HostLane:
    """The CPU as a device; ``start`` returns when the pass is over."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def staging(self, shape: tuple[int, ...]) -> Tensor:
        """Ordinary memory."""
        return torch.empty(shape, dtype=self._network.input_dtype)

    def start(self, images: Tensor, length: int, wanted: Wanted) -> Started:
        """As :class:`Lane`."""
        given = torch.zeros((length, *images.shape[1:]), dtype=images.dtype)
        given[: len(images)].copy_(images)
        rounded = _first(self._network(given), len(images))
        return Started(rounded, rounded, lambda: None)

    def room_px(self, shape: tuple[int, int, int]) -> float:
        """No limit is known."""
        return float("inf")

    def release(self) -> None:
        """Nothing is held."""

    def hand_over(self, kept: Rounded) -> None:
        """Memory of the CPU is everyone's."""


class CudaLane:
    """One CUDA device; ``start`` returns when the work is queued."""

    def __init__(self, network: Network) -> None:
        # Benchmarking would choose algorithms by their speed in this very run, and some cuDNN
        # algorithms add in the order in which threads come: both make equal runs differ.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self._network = network
        self._device = network.target
        self._up, self._compute, self._down = (
            torch.cuda.Stream(self._device),
            torch.cuda.Stream(self._device),
            torch.cuda.Stream(self._device),
        )

    def staging(self, shape: tuple[int, ...]) -> Tensor:
        """Pinned memory; planes stay planes, the device interleaves channels faster."""
        return torch.empty(shape, dtype=self._network.input_dtype, pin_memory=True)

    def start(self, images: Tensor, length: int, wanted: Wanted) -> Started:
        """As :class:`Lane`; ``images`` are pinned and stay as they are until it is over."""
        with torch.cuda.device(self._device):
            with torch.cuda.stream(self._up):
                given = torch.zeros(
                    (length, *images.shape[1:]), dtype=images.dtype, device=self._device
                )
                given[: len(images)].copy_(images, non_blocking=True)
            self._compute.wait_stream(self._up)
            with torch.cuda.stream(self._compute):
                whole = _first(self._network(given), len(images))
            host = None
            if wanted.host:
                self._down.wait_stream(self._compute)
                with torch.cuda.stream(self._down):
                    host = _to_pinned(whole)
            done = torch.cuda.Event(blocking=True)  # waiting sleeps, so that others may compute
            done.record(self._down if wanted.host else self._compute)
        held = [given, whole]  # until `done`

        def wait() -> None:
            done.synchronize()
            held.clear()

        return Started(whole if wanted.kept else None, host, wait)

    def room_px(self, shape: tuple[int, int, int]) -> float:
        """As :class:`Lane`; 0 where not even one image fits."""
        free, _ = torch.cuda.mem_get_info(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        try:
            self.start(self.staging((1, *shape)).zero_(), 1, Wanted(host=True)).wait()
        except torch.OutOfMemoryError:
            self.release()
            return 0.0
        taken = torch.cuda.max_memory_allocated(self._device) - before
        return MEMORY_SHARE * free / max(taken, 1) * shape[1] * shape[2]

    def release(self) -> None:
        """Wait for the device, and return the blocks that PyTorch keeps for later."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def hand_over(self, kept: Rounded) -> None:
        """Tell the allocator that the calling thread's stream reads these too."""
        stream = torch.cuda.current_stream(self._device)
        for tensor in kept:
            if tensor is not None:
                tensor.record_stream(stream)


def _first(rounded: Rounded, count: int) -> Rounded:
    classes = None if rounded.classes is None else rounded.classes[:count]
    return Rounded(rounded.values[:count], classes)


def _to_pinned(rounded: Rounded) -> Rounded:
    """A copy in pinned memory, there when the current stream is."""

    def copy(tensor: Tensor) -> Tensor:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)

    classes = None if rounded.classes is None else copy(rounded.classes)
    return Rounded(copy(rounded.values), classes)
