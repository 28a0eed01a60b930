"""Fields per second of the clustering methods: the CPU, one by one, and a device, in batches.

    python tests/benchmarks/accelerator.py --device cuda --batch 32

Every field is 520×704 px of 300 cells, in part touching, with the embedding a network would give
(``clustering/embeddings.py``).  The CPU gets one field after the other on one thread, and all at
once on as many threads as there are cores.  The device gets them as one batch that already lies
on it, and the time ends when its label images do; their copy to the host is told apart.  Then
the same batch once more with a stop after each step, which adds up to more than the whole.

``equal`` is the number of fields whose label image is that of the CPU, id for id; the run ends
with exit code 1 where it is not all of them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "clustering"))
import embeddings
import fields
import hardware

from cellseg_cli.accelerator import cluster_batch
from cellseg_cli.clustering import Clustering, cluster

# by name: the package calls its methods as their modules are called
grid, merging, seeds, turns, watershed = (
    import_module(f"cellseg_cli.accelerator.{name}")
    for name in ("grid", "merging", "seeds", "turns", "watershed")
)


@dataclass(frozen=True)
class Way:
    """A method, what it clusters, and the functions that are its steps (module, name)."""

    method: str
    kind: str
    size: str
    with_classes: bool
    steps: tuple[tuple[object, str], ...]
    round: tuple[object, str] | None

    @property
    def title(self) -> str:
        return f"{self.method} {self.kind} {self.size}{' classes' * self.with_classes}"


_SEEDS = tuple(
    (seeds, name) for name in ("plane_of", "_by_falling_seed", "_grow", "nearest_discs", "finished")
)
_GRID = tuple(
    (grid, name)
    for name in ("_foreground", "_centres", "resized_bilinear", "merged", "separated", "flooded",
                 "finished")
)  # fmt: skip
_WATERSHED = tuple((watershed, name) for name in ("connected_pieces", "flooded", "finished"))

WAYS = (
    Way("seeds", "spatial", "full", False, _SEEDS, (turns.Turns, "next")),
    Way("grid", "spatial", "full", False, _GRID, (merging, "_joined")),
    Way("grid", "contrastive", "full", False, _GRID, (merging, "_joined")),
    Way("grid", "contrastive", "half", False, _GRID, (merging, "_joined")),
    Way("grid", "contrastive", "full", True, _GRID, (merging, "_joined")),
    Way("watershed", "spatial", "full", True, _WATERSHED, None),
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="fields")
    parser.add_argument("--cells", type=int, default=300, help="per field")
    parser.add_argument("--repeat", type=int, default=5, help="the median of so many runs is told")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(hardware.described())
    if given.device.startswith("cuda"):
        print(f"device: {torch.cuda.get_device_name(given.device)}")
    else:
        print("device: PyTorch's CPU backend, one thread; this says nothing about a GPU")
    labels = fields.discs(given.cells, (520, 704))
    truth = [np.roll(labels, 88 * i, 1) for i in range(given.batch)]
    return max([_compare(way, truth, torch.device(given.device), given.repeat) for way in WAYS])


def _compare(way: Way, truth: list[np.ndarray], device: torch.device, repeat: int) -> int:
    """Print one method's figures; 1 if a field differs."""
    settings = Clustering(way.method, size=way.size)
    embed = embeddings.spatial if way.kind == "spatial" else embeddings.contrastive
    values = np.stack([embed(labels) for labels in truth])
    classes = np.stack([embeddings.classes(labels) for labels in truth])

    def alone(i: int) -> np.ndarray:
        own = classes[i] if way.with_classes else None
        return cluster(values[i], kind=way.kind, settings=settings, classes=own)

    there = torch.from_numpy(values).to(device)
    own = torch.from_numpy(classes).to(device) if way.with_classes else None

    def together() -> torch.Tensor:
        return cluster_batch(there, kind=way.kind, settings=settings, classes=own).images

    alone(0)  # compiles or loads the kernels
    one_s, expected = _timed(lambda: [alone(i) for i in range(len(truth))], device, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        all_s, _ = _timed(lambda: list(pool.map(alone, range(len(truth)))), device, 1)
    together()
    _reset_peak(device)
    device_s, images = _timed(together, device, repeat)
    peak = _peak(device) / there[:, 0].numel()
    copy_s, found = _timed(lambda: images.cpu().numpy(), device, 1)
    wrong = [int(np.count_nonzero(a != b)) for a, b in zip(found, expected, strict=True)]
    count = len(truth)
    print(
        f"\n{way.title}: {count} fields; fields/s: CPU {count / one_s:.1f} on one thread, "
        f"{count / all_s:.1f} on {cores}; {device} {count / device_s:.1f} "
        f"(copy to the host {1e3 * copy_s:.1f} ms, {peak:.0f} bytes/px)\n"
        f"  equal: {wrong.count(0)} of {count} fields, {sum(wrong)} px differ"
    )
    _print_steps(way, together, device)
    return int(any(wrong))


def _timed(work: Callable[[], object], device: torch.device, repeat: int) -> tuple[float, object]:
    """Median seconds of some runs, each with all its work on the device done; the last result."""
    seconds = []
    for _ in range(repeat):
        _wait(device)
        began = time.perf_counter()
        result = work()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)), result


def _print_steps(way: Way, work: Callable[[], object], device: torch.device) -> None:
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    with ExitStack() as patches:
        for owner, name in way.steps:
            patches.enter_context(_watched(owner, name, device, spent, calls))
        work()
    if way.round is not None:
        with _watched(*way.round, device, Counter(), calls):
            work()
        print(f"  {calls.pop(way.round[1])} rounds")
    for name, seconds in spent.items():
        print(f"  {name.strip('_'):<20} {1e3 * seconds:9.2f} ms  {calls[name]} calls")


@contextmanager
def _watched(
    owner: object, name: str, device: torch.device, spent: Counter[str], calls: Counter[str]
) -> Iterator[None]:
    """Count the calls of a function and the seconds in it while the block runs."""
    function = getattr(owner, name)

    def watched(*given: object, **named: object) -> object:
        seconds, result = _timed(lambda: function(*given, **named), device, 1)
        spent[name] += seconds
        calls[name] += 1
        return result

    with mock.patch.object(owner, name, watched):
        yield


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float:
    """The most bytes held at once, NaN where the device does not tell."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else np.nan


if __name__ == "__main__":
    sys.exit(main())
