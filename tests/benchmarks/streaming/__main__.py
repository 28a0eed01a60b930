"""The whole command against the limits of the stream: memory, throughput, start, processes.

From the root of the repository::

    python tests/benchmarks/streaming [--part PART ...] [--folder FOLDER] [--cores 2]

fields
    ``segment`` and ``embed`` of ``--fields`` (2000) and of ``--few`` (200) separate files of
    520×704 px: peak memory of the one over that of the other (limit 1.1; the other runs three
    times and its median counts), and megapixels per second over those of the bare network on the
    same cores (limit 0.85): the same weights in the same precision, a thread per core that does
    nothing but passes of one such field.  The bare network runs for ``--bare-s`` seconds before,
    between and after.  Takes up to 12 GB of disk for the time of the run.
large
    One field of ``--side`` (16384) px squared and one of ``--small`` (4096) px squared, as
    uncompressed and as tiled, deflated TIFF: peak memory of ``embed``, ``cluster`` and ``segment``
    (limit 1.2), and whether the labels of ``segment`` equal those of ``embed`` and ``cluster``.
    Takes up to 7 GB of disk.
start
    Seconds from the start of the process to the first done-mark (limit 3 s), the median of
    ``--repeat`` (5), and which imports take them.
cluster
    Labels and seconds of ``segment`` by threads and by two processes.
accelerator
    Only if asked for: images per second of ``embed`` (stored) and ``segment`` (not stored) on
    ``--device`` over those of the bare network (limit 0.8), how long the device was busy as the
    run itself says (limit 0.9), for networks on ResNet-18 and EfficientNetV2-M with random
    weights, and the least that bytes and arithmetic would take on the device as measured.
    ``--fields`` counts; disk as above.

Commands run as processes of their own, on the first ``--cores`` (2) cores that this one may use.
Peak memory is the sum over all processes of a command, each at its own highest.  Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "clustering"))
import devices
import hardware
import large
import many
import processes
import starting

PARTS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "fields": many.compare,
    "large": large.compare,
    "start": starting.compare,
    "cluster": processes.compare,
    "accelerator": devices.compare,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks/streaming")
    parser.add_argument("--part", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--folder", type=Path, help="where to work [the system's temporary one]")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--fields", type=int, default=2000)
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--bare-s", type=float, default=30.0)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--small", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cuda", help="of the part accelerator")
    parser.add_argument(
        "--encoder", action="append", help="of the part accelerator; may be given repeatedly"
    )
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # and all children
    print(hardware.described(), flush=True)
    for part in given.part or [part for part in PARTS if part != "accelerator"]:
        print(f"\n{part}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"streaming_{part}_", dir=given.folder) as folder:
            PARTS[part](given, Path(folder))
    print(f"\n{hardware.load()}")


if __name__ == "__main__":
    main()
