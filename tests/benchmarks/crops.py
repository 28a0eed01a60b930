"""Crops per second that the host makes for training, and how that grows with threads.

    python tests/benchmarks/crops.py DATA [THREADS ...]

DATA is what ``cellseg train`` takes: a folder of images and labels, or IMAGES=TRUTH.  Fields are
decoded first; then batches of 4 crops of 256×256 px are cut, turned and given their targets as they
are for an accelerator, which varies the intensities itself.  A training on a device can be no
faster.  Printed are crops per second for each number of threads (by default 1 and every power of
two up to the cores), the ratio to the first, and CPU milliseconds per crop.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from cellseg_cli.config import TrainSettings
from cellseg_cli.cores import granted_cores
from cellseg_cli.training.ahead import prepared
from cellseg_cli.training.crops import draw_batch
from cellseg_cli.training.data import open_split, usable
from cellseg_cli.training.draw import Draw
from cellseg_cli.training.objective import Target, target_of

STEPS = 400
SETTINGS = TrainSettings(in_channels=1)


def main(data: str, threads: list[int]) -> None:
    """Print a line for each number of threads."""
    examples, _ = usable(open_split([data]).train, SETTINGS)
    draw = Draw.of(examples.sources, SETTINGS)

    def make(step: int) -> Target:
        batch = draw_batch(examples, draw, SETTINGS, step=step, rank=0, vary=False)
        return target_of(batch.labels, SETTINGS, np.random.default_rng(step), batch.under)

    print(f"{len(examples)} fields; {STEPS} batches of {SETTINGS.batch_size} crops")
    for _ in prepared(make, 0, 20, max(threads)):  # compiled, and memory is there
        pass
    rates: list[float] = []
    for count in threads:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in prepared(make, 0, STEPS, count):
            pass
        crops = STEPS * SETTINGS.batch_size
        rates.append(crops / (time.perf_counter() - wall))
        each = 1e3 * (time.process_time() - cpu) / crops
        print(
            f"{count} threads: {rates[-1]:.0f} crops/s, {rates[-1] / rates[0]:.2f} × of "
            f"{threads[0]}; {each:.2f} CPU ms per crop"
        )


if __name__ == "__main__":
    powers = [1 << power for power in range(granted_cores().bit_length())]
    main(sys.argv[1], [int(one) for one in sys.argv[2:]] or powers)
