"""How long it takes until the first field is done, and which imports take it."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median

import pictures
from command import STATE, cellseg, environment

LIMIT_S = 3.0
SHOWN = 12  # packages
FIELD = "field000000"


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Print the seconds, and the imports with theirs."""
    source = folder / "images"
    pictures.write_fields(source, 1)
    for stage in ("embed", "segment"):
        out = folder / f"out{'.zarr' * (stage == 'embed')}"
        command = (stage, source, "--out", out, "--model", given.model, "--device", "cpu")
        mark = out / FIELD / "embed.done.json"
        if stage == "segment":
            mark = out / STATE / FIELD / "cluster.done.json"
        seconds, computed = [], []
        for number in range(given.repeat + 1):
            ran = cellseg(*command)
            if number:  # the first reads files from the disk and compiles kernels
                seconds.append(mark.stat().st_ctime - ran.began)
                computed.append(ran.cpu_s)
            shutil.rmtree(out)
        print(
            f"{stage}: {median(seconds):.2f} s from start to the first done-mark "
            f"({min(seconds):.2f} to {max(seconds):.2f}; {median(computed):.2f} CPU s in all), "
            f"{median(seconds) / LIMIT_S:.2f} of the limit of {LIMIT_S} s",
            flush=True,
        )
        _print_imports([str(one) for one in command])
        shutil.rmtree(out)


def _print_imports(command: list[str]) -> None:
    """Import seconds by package: of its own modules, and with what it was the first to import."""
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cellseg_cli", *command],
        env=environment(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    own: Counter[str] = Counter()
    whole: dict[str, float] = {}
    for line in told.stderr.splitlines():
        # "import time:      self [us] | cumulative | <two blanks a level>module"
        if not line.startswith("import time:") or "[us]" in line:
            continue
        self_us, all_us, name = line.removeprefix("import time:").split("|")
        package = name.strip().partition(".")[0]
        own[package] += int(self_us)
        if name.strip() == package:
            whole[package] = int(all_us) / 1e6
    print(f"  imports: {own.total() / 1e6:.2f} s of {len(own)} packages (traced, which is slower)")
    print(f"  {'package':<20} {'own s':>7} {'with its own imports':>21}")
    for package, own_us in own.most_common(SHOWN):
        print(f"  {package:<20} {own_us / 1e6:7.3f} {whole.get(package, float('nan')):21.3f}")
