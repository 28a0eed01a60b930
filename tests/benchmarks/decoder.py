"""What the decoder's rearranged convolution saves: the usual network with it and without.

    python tests/benchmarks/decoder.py [--device cuda] [--rounds 9]

The plain way enlarges the coarse stage, lays the finer one beside it and convolves what is joined;
:mod:`cellseg_cli.networks.beside` gives the same in fewer products.  Both are measured in turns
on random images, one thread on a CPU: a pass of one image of 512×704 px as `embed` does it, and
forward and backward of 4 crops of 256×256 px as `train` does.  Printed are medians of seconds (CPU
seconds on a CPU, waited for on a device) and their ratio, the bytes a pixel that tensors take at
one time in a pass, and the largest difference of what both say.  The plain way of training is
PyTorch's own operations.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.beside import ConvolveBeside, Stages
from cellseg_cli.networks.devices import computes_bf16
from cellseg_cli.networks.passes import Network, folded
from cellseg_cli.pipeline.calibrate import peak_bytes

PASS_SHAPE, CROPS_SHAPE = (1, 1, 512, 704), (4, 1, 256, 256)


class Plain(ConvolveBeside):
    """The convolution of what is joined."""

    def forward(self, stages: Stages) -> Tensor:
        """Return what :class:`ConvolveBeside` does."""
        enlarged = functional.interpolate(stages.below, stages.skip.shape[-2:], mode="nearest")
        joined = torch.cat([enlarged, stages.skip], dim=1)
        return functional.conv2d(joined, self.weight, self.bias, padding=1)

    def prepared(self) -> Plain:  # type: ignore[override]
        """Return itself."""
        return self


def main() -> None:
    """Print what is compared and three comparisons."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(options.device)
    ours = Embedder(Architecture(in_channels=1))
    plain = copy.deepcopy(ours)
    for module in plain.modules():
        if type(module) is ConvolveBeside:
            module.__class__ = Plain
    print(f"{device}, bfloat16: {computes_bf16(device)}")

    images = torch.rand(PASS_SHAPE, device=device)
    passes = [Network(model.eval(), device) for model in (plain, ours)]
    compare("pass", [lambda n=n: n(images) for n in passes], device, options.rounds)
    small = torch.rand(1, 1, 128, 128)
    before, after = (peak_bytes(folded(model), small) / 128**2 for model in (plain, ours))
    print(f"bytes a pixel in float32: {before:.0f} -> {after:.0f}, {after / before:.2f} ×")
    first, second = (n(images).values.float() for n in passes)
    print(f"largest difference: {(first - second).abs().max():.2g}")

    crops = torch.rand(CROPS_SHAPE, device=device).contiguous(memory_format=torch.channels_last)
    steps = [
        step(model.train().to(device, memory_format=torch.channels_last), crops)
        for model in (plain, ours)
    ]
    compare("forward and backward", steps, device, options.rounds)


def step(model: nn.Module, crops: Tensor) -> Callable[[], object]:
    """Return what does one step without its optimiser."""

    def run() -> None:
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=computes_bf16(crops.device)):
            embedding, classes = model(crops)
        (embedding.square().mean() + classes.square().mean()).backward()

    return run


def compare(name: str, both: list[Callable[[], object]], device: torch.device, rounds: int) -> None:
    """Measure the plain way and ours in turns; print medians and their ratio."""
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for run, kept in zip(both, seconds, strict=True):
            began = now(device)
            run()
            if number:  # the first round warms up
                kept.append(now(device) - began)
    before, after = map(statistics.median, seconds)
    print(f"{name}: {before:.4f} -> {after:.4f} s, {after / before:.2f} ×")


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
