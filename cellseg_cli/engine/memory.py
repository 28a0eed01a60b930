"""How much memory a run may take: what the user says, and what this machine grants.

A batch system grants a job less than the machine has; a process that takes more is killed
without a word.  Sizes are read as :mod:`cellseg_cli.sizes` says and written with decimal units
(1 GB is 10⁹ bytes).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cellseg_cli.sizes import parse_size

_CGROUP = Path("/sys/fs/cgroup")
#: cgroup v1 writes this or more where there is no limit (the largest page-aligned int64).
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Granted:
    """The memory that all processes of a run may take here, and who says so."""

    bytes: int
    by: str


def parse_memory(text: str) -> int:
    """Return the bytes that ``--memory`` says.

    Raises
    ------
    ConfigError
        No size, or one below 1 MB.

    Examples
    --------
    >>> parse_memory("8GB"), parse_memory("1.5 GiB")
    (8000000000, 1610612736)
    """
    return parse_size(text, "--memory")


def shown(size: float) -> str:
    """A size for people, rounded up, so that what is shown is enough.

    >>> shown(5.01e9), shown(7.4e8)
    ('5.1 GB', '740 MB')
    """
    if size >= 1e9:
        return f"{-(-size // 1e8) / 10:g} GB"
    return f"{-(-size // 1e6):.0f} MB"


def granted_memory(
    environment: Mapping[str, str] = os.environ, cgroup: Path = _CGROUP
) -> Granted | None:
    """Return the least of what the machine, its containers and its batch system grant.

    None where none of them can be asked.
    """
    limits = [*_machine(), *_cgroups(cgroup), *_slurm(environment)]
    return min(limits, key=lambda limit: limit.bytes, default=None)


def _machine() -> Iterator[Granted]:
    if sys.platform == "win32":
        import psutil  # comes with dask.distributed

        yield Granted(int(psutil.virtual_memory().total), "this machine")
    else:
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        yield Granted(pages * page, "this machine")


def _cgroups(root: Path) -> Iterator[Granted]:
    """Limits of the control groups that this process is in, innermost first (cgroups 2 and 1)."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        group = top / inside.lstrip("/")
        # inside a container the path may be that of the host: then only the top is there
        folders = [group, *group.parents] if group.is_dir() else [top]
        for folder in folders:
            if not folder.is_relative_to(top):
                break
            for text in _lines(folder / name)[:1]:
                if text.isdecimal() and int(text) < _NO_LIMIT:
                    yield Granted(int(text), f"the control group of this process ({folder / name})")


def _slurm(environment: Mapping[str, str]) -> Iterator[Granted]:
    """What SLURM has granted to the job on this node; it counts in MiB."""
    whole, each = environment.get("SLURM_MEM_PER_NODE"), environment.get("SLURM_MEM_PER_CPU")
    if whole and whole.isdecimal() and int(whole):
        yield Granted(int(whole) << 20, "SLURM (SLURM_MEM_PER_NODE)")
    cores = environment.get("SLURM_CPUS_ON_NODE", "")
    if each and each.isdecimal() and int(each) and cores.isdecimal():
        granted = int(each) * int(cores) << 20
        yield Granted(granted, "SLURM (SLURM_MEM_PER_CPU × SLURM_CPUS_ON_NODE)")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
