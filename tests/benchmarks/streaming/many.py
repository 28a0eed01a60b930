"""Many small fields: does memory grow with their number, and what does all but the network cost."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import median

import bare
import pictures
from command import MIB, Ran, cellseg, check_room

from cellseg_cli.images.synthetic import FIELD_SIZE

MEMORY_LIMIT, RATE_LIMIT = 1.1, 0.85
#: Runs on few fields, of which the median peak counts: it varies by some 5 % with how often passes
#: of two threads happen to be at their highest together, which many fields even out.
RUNS_ON_FEW = 3
FILE_BYTES, OUTPUT_BYTES = 740e3, 4.2e6  # of a field: an uncompressed TIFF, an embedding


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Print both ratios for both commands."""
    few, many = folder / "few", folder / "many"
    check_room(folder, (given.fields + given.few) * FILE_BYTES + given.fields * OUTPUT_BYTES)
    pictures.write_fields(few, given.few)
    pictures.write_fields(many, given.fields)
    _warm_up(given, folder)
    passes = bare.Passes(FIELD_SIZE, given.cores)
    rates = [_bare(given, passes)]
    for stage in ("segment", "embed"):
        small = [_ran(given, stage, few) for _ in range(RUNS_ON_FEW)]
        rates.append(_bare(given, passes))
        large = _ran(given, stage, many)
        rates.append(_bare(given, passes))
        _print_memory(stage, small, large)
        _print_rate(stage, large, rates[-2:], given.cores)


def _warm_up(given: argparse.Namespace, folder: Path) -> None:
    """Kernels of the clustering are compiled once on a machine, and kept."""
    pictures.write_fields(folder / "warm", 2)
    for stage in ("segment", "embed"):
        _ran(given, stage, folder / "warm", told=False)


def _bare(given: argparse.Namespace, passes: bare.Passes) -> bare.Rate:
    rate = bare.measured(given.model, passes, given.bare_s)
    print(
        f"  {'bare network':<24} {rate.megapixels_per_s:7.3f} MP/s "
        f"{rate.cpu_s_per_megapixel:6.3f} CPU s/MP",
        flush=True,
    )
    return rate


def _ran(given: argparse.Namespace, stage: str, source: Path, *, told: bool = True) -> Ran:
    out = source.with_name(f"{source.name}_{stage}{'.zarr' * (stage == 'embed')}")
    ran = cellseg(stage, source, "--out", out, "--model", given.model, "--device", "cpu", out=out)
    shutil.rmtree(out)
    if told:
        name = f"{stage}, {ran.record['counts']['done']} fields"
        print(
            f"  {name:<24} {ran.megapixels / ran.wall_s:7.3f} MP/s "
            f"{ran.cpu_s / ran.megapixels:6.3f} CPU s/MP, peak {ran.peak_bytes / MIB:.0f} MiB",
            flush=True,
        )
    return ran


def _print_memory(stage: str, small: list[Ran], large: Ran) -> None:
    ratios = sorted(large.peak_bytes / one.peak_bytes for one in small)
    counts = [ran.record["counts"]["done"] for ran in (large, small[0])]
    print(
        f"{stage}: peak memory of {counts[0]} fields over that of {counts[1]}: "
        f"{median(ratios):.3f}, the median of {ratios[0]:.3f} to {ratios[-1]:.3f} "
        f"(limit {MEMORY_LIMIT})"
    )


def _print_rate(stage: str, ran: Ran, around: list[bare.Rate], cores: int) -> None:
    """The rate of a run over the mean of those of the bare network before and after it."""
    rate = sum(one.megapixels_per_s for one in around) / len(around)
    cpu_s = sum(one.cpu_s_per_megapixel for one in around) / len(around)
    inside_s = float(ran.record["seconds"])
    whole, inside = (ran.megapixels / seconds / rate for seconds in (ran.wall_s, inside_s))
    print(
        f"{stage}: rate over that of the bare network: {whole:.3f} from start to end, "
        f"{inside:.3f} without the {ran.wall_s - inside_s:.1f} s of start and end "
        f"(limit {RATE_LIMIT}); CPU seconds of the bare network over its own: "
        f"{cpu_s / (ran.cpu_s / ran.megapixels):.3f}; network busy {ran.record['device_busy']:.2f}"
    )
    print(f"  {'part':<12} {'thread s/MP':>11}  of the bare network")
    for part, seconds in ran.record["seconds_by_part"].items():
        each = seconds / ran.megapixels
        print(f"  {part:<12} {each:11.4f}  {each * rate / cores:.3f} ×", flush=True)
