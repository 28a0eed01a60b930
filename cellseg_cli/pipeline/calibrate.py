"""What a network takes: bytes counted in a small pass, seconds measured in a few.

Only plans need these; nothing here changes what a run gives.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cellseg_cli.networks import resnet
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.devices import computes_bf16
from cellseg_cli.networks.passes import folded
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.networks.scaled import period_px
from cellseg_cli.networks.views import View
from cellseg_cli.pipeline.budget import NetworkNeeds

#: Side of the image that bytes are counted on: a multiple of every stride.
COUNTED_PX = 128
#: Side of the first, short window in time; a 3 s calibration of slow networks stays there.
SHORT_PX = 256
#: What kernels lay down for themselves in a pass in float32, per pixel that the network sees, as
#: the peaks of runs show it: of 1.3 megapixels about 40, of 0.4 up to 250.
KERNEL_BYTES_PER_PX = 250
#: Of a process that builds its encoder by timm: 1.14 GB at the peak instead of 0.89 GB, on the
#: same four fields of 520×704 px.
TIMM_BYTES = 260_000_000
#: Seconds of passes that are timed, and the most that one of them may take.
TIMED_S = 1.5


def network_needs(
    architecture: Architecture, device: torch.device, view: View = View()
) -> NetworkNeeds:
    """Return what a network of this architecture takes on a device that looks at fields so.

    Notes
    -----
    A network without weights looks at a small image on the CPU in float32, and the storages
    that are alive at the same time are added up, 318 bytes a pixel for the bundled model; then
    :data:`KERNEL_BYTES_PER_PX`, which counting does not see.  bfloat16 takes half of both.
    (PyTorch's ``meta`` device computes nothing, but loads PyTorch's compiler to do so: 200 MB
    and a second.)
    """
    with torch.device("meta"):
        model = Embedder(architecture, trained=True).eval()
    zeros = {
        name: torch.zeros(one.shape, dtype=one.dtype) for name, one in model.state_dict().items()
    }
    model.load_state_dict(zeros, assign=True)
    seen = view.through(folded(model), architecture.channels)
    side_px = _counted_px(architecture.stride, view)
    images = torch.zeros(1, architecture.in_channels, side_px, side_px)
    counted = peak_bytes(seen, images) / side_px**2 + KERNEL_BYTES_PER_PX * view.factor**2
    plain = architecture.encoder in resnet.BLOCKS and architecture.levels <= len(resnet.WIDTHS)
    loaded = sum(one.nbytes for one in zeros.values())
    return NetworkNeeds(
        loaded_bytes=loaded + (0 if plain else TIMM_BYTES),
        bytes_per_px=counted / 2 if computes_bf16(device) else counted,
        in_channels=architecture.in_channels,
        components=len(architecture.channels),
        classes=3 if architecture.classes_head else 0,
    )


def _counted_px(stride: int, view: View) -> int:
    """Side of an image of which the network sees about as much at every scale."""
    period = period_px(stride, view.factor)
    return max(1, round(COUNTED_PX / view.factor / period)) * period


@torch.inference_mode()
def peak_bytes(model: Callable[[Tensor], Any], images: Tensor) -> int:
    """Return the most bytes of tensors that a model makes and that are alive at one time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waking others takes longer than a small pass
    try:
        with _Alive() as alive:
            model(images)
    finally:
        torch.set_num_threads(threads)
    return alive.peak


class _Alive(TorchDispatchMode):
    """Adds up the bytes of every storage that is made, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; to be told so, PyTorch would load its compiler (200 MB)."""
        return False

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation, and count what it returns."""
        del types
        made = function(*args, **(kwargs or {}))
        before = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in before:
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def seconds_per_megapixel(predictor: Predictor, *, tile_px: int, threads: int) -> float:
    """Return the seconds that a megapixel takes in the network, ``threads`` fields at a time.

    Parameters
    ----------
    predictor
        Of the run.
    tile_px
        Side of the windows that will go through, pixels.
    threads
        As many are used here, since they share caches and memory.

    Notes
    -----
    On noise; the network takes the same time for everything.  About two seconds, unless the
    first short window alone takes longer.
    """
    short = min(SHORT_PX, tile_px)
    _rate(predictor, short, threads, 0.0)  # kernels are chosen in the first pass
    seconds = _rate(predictor, short, threads, 0.0)
    if seconds * tile_px**2 * threads / 1e6 <= TIMED_S:
        short = tile_px
    return _rate(predictor, short, threads, TIMED_S)


def _rate(predictor: Predictor, side_px: int, threads: int, seconds: float) -> float:
    """Seconds per megapixel, of at least one window per thread and for about ``seconds``."""
    shape = (predictor.header.in_channels, side_px, side_px)
    image = np.random.default_rng(0).random(shape, np.float32)
    barrier = threading.Barrier(threads)

    def passes() -> tuple[float, float, int]:
        barrier.wait()
        began, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - began < seconds:
            predictor.embed(image)
            count += 1
        return began, time.perf_counter(), count

    with ThreadPoolExecutor(threads) as pool:
        done = [one.result() for one in [pool.submit(passes) for _ in range(threads)]]
    # each thread's own rate: the last one to end may have had the machine for itself
    megapixels_per_s = sum(count / (end - began) for began, end, count in done)
    return 1.0 / (megapixels_per_s * side_px**2 / 1e6)
