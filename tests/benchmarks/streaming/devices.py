"""How busy a run keeps an accelerator, beside the bare network and the least it could take."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import bare
import pictures
from command import Ran, cellseg, check_room, environment

from cellseg_cli.images.synthetic import FIELD_SIZE

RATE_LIMIT, BUSY_LIMIT = 0.8, 0.9
ENCODERS = ("resnet18", "tf_efficientnetv2_m")
#: As many tiles as a run takes in a pass by default: 8 million pixels, a power of two.
TILES = 16
FIELD_MP = FIELD_SIZE[0] * FIELD_SIZE[1] / 1e6


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Print a table for each encoder."""
    check_room(folder, given.fields * 5e6)
    source, warm = folder / "images", folder / "warm"
    pictures.write_fields(source, given.fields)
    pictures.write_fields(warm, 2 * TILES)
    limits = _asked("limits", given.device)
    print(f"  measured on {limits['device']}: {limits['flops'] / 1e12:.1f} TFLOP/s", end="")
    print(f", {limits['memory_bytes_per_s'] / 1e9:.0f} GB/s, copies up", end="")
    print(f" {limits['up_bytes_per_s'] / 1e9:.1f} and down", end="")
    print(f" {limits['down_bytes_per_s'] / 1e9:.1f} GB/s", flush=True)
    for encoder in given.encoder or ENCODERS:
        model = folder / f"{encoder}.safetensors"
        needs = _asked("needs", encoder, str(model))
        _print_floors(encoder, needs, limits)
        cpu = given.device == "cpu"
        passes = bare.Passes(FIELD_SIZE, given.cores if cpu else 1, 1 if cpu else TILES)
        for stage in ("embed", "segment"):
            _ran(given, stage, model, warm)  # kernels are chosen and compiled
            rates = [bare.measured(model, passes, given.bare_s, given.device)]
            ran = _ran(given, stage, model, source)
            rates.append(bare.measured(model, passes, given.bare_s, given.device))
            _print_ran(f"{encoder}, {stage}", ran, rates)


def _ran(given: argparse.Namespace, stage: str, model: Path, source: Path) -> Ran:
    out = source.with_name(f"{source.name}_{stage}{'.zarr' * (stage == 'embed')}")
    ran = cellseg(stage, source, "--out", out, "--model", model, "--device", given.device, out=out)
    shutil.rmtree(out)
    return ran


def _print_ran(title: str, ran: Ran, rates: list[bare.Rate]) -> None:
    images = float(ran.record["fields_per_s"])
    network = sum(one.megapixels_per_s for one in rates) / len(rates) / FIELD_MP
    whole = ran.record["counts"]["done"] / ran.wall_s
    kept = "stored" if title.endswith("embed") else "not stored"
    print(
        f"{title} ({kept}): {images:.1f} images/s, {whole:.1f} with start and end; bare network "
        f"{network:.1f}; ratio {images / network:.3f} (limit {RATE_LIMIT}); device busy "
        f"{ran.record['device_busy']} (limit {BUSY_LIMIT}); "
        f"{ran.record['bytes_written'] / 1e6 / ran.record['seconds']:.0f} MB/s to write",
        flush=True,
    )


@dataclass(frozen=True)
class _Floor:
    name: str
    amount: float
    per_s: float

    @property
    def images_per_s(self) -> float:
        return self.per_s / self.amount


def _print_floors(encoder: str, needs: dict[str, float], limits: dict[str, float]) -> None:
    """What an image needs, and how many images a second that would allow."""
    floors = (
        _Floor("arithmetic", needs["flops"], limits["flops"]),
        _Floor("device memory", needs["moved_bytes"], limits["memory_bytes_per_s"]),
        _Floor("copies up", needs["up_bytes"], limits["up_bytes_per_s"]),
        _Floor("copies down", needs["down_bytes"], limits["down_bytes_per_s"]),
    )
    for floor in floors:
        unit = "GFLOP" if floor.name == "arithmetic" else "GB"
        print(
            f"  {encoder}, {floor.name + ':':<15} {floor.amount / 1e9:9.3f} {unit} an image, "
            f"at most {floor.images_per_s:9.1f} images/s",
            flush=True,
        )


def _asked(*arguments: str) -> dict[str, float]:
    """Run this file in a process of its own, so that no memory of a device stays taken."""
    told = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=environment(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    answer: dict[str, float] = json.loads(told.stdout)
    return answer


def needs(encoder: str, path: str) -> dict[str, float]:
    """Save a network with random weights, and say what one field takes it.

    ``moved_bytes`` are those of the inputs and outputs of all convolutions in 16 bits: what a
    device moves that fuses everything else with them.
    """
    import torch
    from torch import nn
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    from cellseg_cli.networks.architecture import Architecture, Embedder
    from cellseg_cli.networks.checkpoint import ModelHeader, save_model

    torch.manual_seed(0)
    architecture = Architecture(encoder=encoder)
    model = Embedder(architecture).eval()
    save_model(Path(path), model, ModelHeader(encoder, architecture), half=True)
    moved = 0

    def count(_: nn.Module, given: tuple[object, ...], made: torch.Tensor) -> None:
        nonlocal moved
        moved += 2 * (sum(one.numel() for one in tree_leaves(given)) + made.numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    padded = [-(-side // architecture.stride) * architecture.stride for side in FIELD_SIZE]
    images = torch.rand((1, architecture.in_channels, *padded))
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model(images)
    pixels = padded[0] * padded[1]
    return {
        "flops": counter.get_total_flops(),
        "moved_bytes": moved,
        "up_bytes": 2 * architecture.in_channels * pixels,
        "down_bytes": (2 * len(architecture.channels) + 3) * pixels,
    }


def limits(device: str) -> dict[str, object]:
    """What the device does at best: a product of matrices in bfloat16, and copies of memory."""
    import torch
    from torch.utils.benchmark import Timer

    target = torch.device(device)
    accelerator = target.type == "cuda"
    side, count = (8192, 1 << 30) if accelerator else (1024, 1 << 26)
    a = torch.rand((side, side), device=target).to(torch.bfloat16)
    there = torch.zeros(count, dtype=torch.uint8, device=target)
    other = torch.empty_like(there)
    host = torch.zeros(count, dtype=torch.uint8, pin_memory=accelerator)

    def seconds(statement: str) -> float:
        names = {"a": a, "there": there, "other": other, "host": host}
        timer = Timer(statement, globals=names)
        return float(timer.blocked_autorange(min_run_time=1.0).median)

    return {
        "device": torch.cuda.get_device_name(target) if accelerator else "the CPU, one thread",
        "flops": 2 * side**3 / seconds("a @ a"),
        "memory_bytes_per_s": 2 * count / seconds("other.copy_(there)"),
        "up_bytes_per_s": count / seconds("there.copy_(host)"),
        "down_bytes_per_s": count / seconds("host.copy_(there)"),
    }


if __name__ == "__main__":
    question, *arguments = sys.argv[1:]
    print(json.dumps(limits(*arguments) if question == "limits" else needs(*arguments)))
