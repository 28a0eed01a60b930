"""What a figure depends on besides the code: the machine, its load, the versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import cellseg_cli

PACKAGES = (
    "cellseg-cli", "numpy", "numba", "torch", "scikit-learn", "scipy", "fastcluster", "stardist",
    "cellpose", "bioimage-cpp",
)  # fmt: skip


def installed(package: str) -> str | None:
    """Version of a package, None where it is not installed; ours may also be on the path only."""
    if package == "cellseg-cli":
        return cellseg_cli.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def load() -> str:
    """One line: how busy the machine is."""
    averages = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    return f"load over 1, 5 and 15 minutes: {averages}"


def described() -> str:
    """A few lines: processor, cores that may be used, load, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = (f"{package} {installed(package) or 'missing'}" for package in PACKAGES)
    machine = f"{_processor()}, {cores} of {os.cpu_count()} cores"
    python = f"Python {platform.python_version()}"
    return "\n".join([machine, load(), "; ".join([python, *versions])])


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
