"""The bare network: passes of one tile on each of some threads, and nothing else.

    python bare.py MODEL DEVICE HEIGHT WIDTH SECONDS THREADS TILES

Nothing is read, normalised, tiled, checked, clustered or written, and nothing is copied to the
device.  Prints JSON: megapixels per second and CPU seconds per megapixel, of HEIGHT × WIDTH
pixels a tile; on the device sides are rounded up to the stride of the network, as ``cellseg``
does.  The first passes are not timed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

from command import environment

_WARM_UP = 3


@dataclass(frozen=True)
class Rate:
    """How fast the bare network is."""

    megapixels_per_s: float
    cpu_s_per_megapixel: float


@dataclass(frozen=True)
class Passes:
    """What a pass takes: ``tiles`` of ``size`` px, on each of ``threads`` threads."""

    size: tuple[int, int]
    threads: int = 1
    tiles: int = 1


def measured(model: str | Path, passes: Passes, seconds: float, device: str = "cpu") -> Rate:
    """Run this file in a process of its own."""
    numbers = (*passes.size, seconds, passes.threads, passes.tiles)
    command = [sys.executable, __file__, str(model), device, *map(str, numbers)]
    told = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
    return Rate(*json.loads(told.stdout))


def run(model: str, device: str, passes: Passes, seconds: float) -> Rate:
    """Measure in this process."""
    import torch

    from cellseg_cli.networks.checkpoint import find_model, load_model
    from cellseg_cli.networks.devices import resolve_device
    from cellseg_cli.networks.passes import Network

    embedder, header = load_model(find_model(model))
    target = resolve_device(device)
    network = Network(embedder, target)
    stride = header.architecture.stride
    padded = [-(-side // stride) * stride for side in passes.size]
    shape = (passes.tiles, header.in_channels, *padded)
    images = torch.rand(shape, dtype=network.input_dtype, device=target)
    ready = Barrier(passes.threads)

    def queued() -> Callable[[], object]:
        """Queue a pass; what waits for its end."""
        network(images)
        if target.type == "cpu":
            return lambda: None
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def work() -> tuple[int, float]:
        torch.set_num_threads(1)
        for _ in range(_WARM_UP):
            queued()()
        ready.wait()
        began, count, before = time.perf_counter(), 0, queued()
        while time.perf_counter() < began + seconds:
            after = queued()  # so that the device never waits for this thread
            before()
            before, count = after, count + 1
        before()
        return count + 1, time.perf_counter() - began

    computed = time.process_time()
    with ThreadPoolExecutor(passes.threads) as pool:
        done = [one.result() for one in [pool.submit(work) for _ in range(passes.threads)]]
    computed = time.process_time() - computed
    megapixels = passes.tiles * passes.size[0] * passes.size[1] / 1e6
    warmed = sum(count + _WARM_UP for count, _ in done)
    return Rate(
        megapixels * sum(count / spent for count, spent in done),
        computed / (megapixels * warmed),
    )


def main(model: str, device: str, *numbers: str) -> None:
    height, width, seconds, threads, tiles = map(float, numbers)
    passes = Passes((int(height), int(width)), int(threads), int(tiles))
    rate = run(model, device, passes, seconds)
    print(json.dumps([rate.megapixels_per_s, rate.cpu_s_per_megapixel]))


if __name__ == "__main__":
    main(*sys.argv[1:])
