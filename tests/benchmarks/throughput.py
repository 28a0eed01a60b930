"""CPU seconds per megapixel of each part of the main job, on one core.

    python tests/benchmarks/throughput.py FOLDER [MODEL]

The limit is the bare network: one pass over each field, nothing read, tiled,
checked or written.  Ratios are against it, from the same run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import sys
import time
from collections import Counter

import numpy as np
import torch

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.images.decode import read_image
from cellseg_cli.images.discover import find_fields
from cellseg_cli.images.normalise import apply, check_usable, fit_channels, measure
from cellseg_cli.networks.checkpoint import find_model, load_model
from cellseg_cli.networks.devices import computes_bf16
from cellseg_cli.networks.predict import Predictor, _padded


def main(folder: str, name: str = "nuclei") -> None:
    torch.set_num_threads(1)
    predictor = Predictor.load(name, device="cpu")
    network, header = load_model(find_model(name))
    network = network.to(memory_format=torch.channels_last)
    bf16 = computes_bf16(torch.device("cpu"))
    settings = Clustering(**header.cluster)
    seconds: Counter[str] = Counter()
    pixels = 0

    def timed(part: str, work: object, *arguments: object, **named: object) -> object:
        began = time.process_time()
        result = work(*arguments, **named)  # type: ignore[operator]
        seconds[part] += time.process_time() - began
        return result

    def prepare(path: object) -> np.ndarray:
        image = read_image(path)  # type: ignore[arg-type]
        check_usable(image)
        image = fit_channels(image, header.in_channels)
        return apply(image, measure(image, header.low_percentile, header.high_percentile))

    def bare(image: np.ndarray) -> None:
        batch = torch.from_numpy(_padded(image, header.architecture.stride)[None])
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network(batch)

    fields = find_fields(folder)
    for turn in ("warm-up", "measured"):
        seconds.clear()
        pixels = 0
        for field in fields[: 3 if turn == "warm-up" else None]:
            image = timed("read and normalise", prepare, field.path)
            timed("bare network", bare, image)
            embedding = timed("embed", predictor.embed, image)
            timed(
                "cluster",
                cluster,
                embedding.values,  # type: ignore[attr-defined]
                kind=header.kind,
                settings=settings,
                classes=embedding.classes,  # type: ignore[attr-defined]
            )
            pixels += image[0].size  # type: ignore[index]
    print(f"{len(fields)} fields, {pixels / 1e6:.1f} MP, bf16 {bf16}, 1 thread")
    for part, spent in seconds.items():
        per_megapixel = spent / pixels * 1e6
        print(f"{part:<20} {per_megapixel:7.3f} CPU s/MP  {spent / seconds['bare network']:5.2f}×")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory          {peak:7.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
