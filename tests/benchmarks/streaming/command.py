"""Run ``cellseg`` in a process of its own, and what it took."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20

#: Seconds between two looks at the memory of processes.
LOOK_EVERY_S = 0.1

#: What ``segment`` keeps beside its label files.
STATE = ".cellseg/segment.zarr"

#: A user has none of these: they would give each network the wrong number of threads.
_NOT_PASSED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Ran:
    """What a command took.

    Attributes
    ----------
    wall_s, cpu_s
        From the start of its process to its end; CPU time of all its processes.
    peak_bytes
        Sum over its processes of the most resident memory that each ever had.
    processes
        How many there were.
    began
        Seconds since 1970.
    record
        The run record that it left, empty where it leaves none.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    processes: int
    began: float
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def megapixels(self) -> float:
        """Of the fields that were done."""
        return float(self.record["pixels"]) / 1e6


def cellseg(*arguments: str | Path, out: Path | None = None) -> Ran:
    """Run one command to its end; ``out`` is where it leaves a run record.

    Raises
    ------
    SystemExit
        It did not end with exit code 0.
    """
    ran = watched([sys.executable, "-m", "cellseg_cli", *map(str, arguments), "--quiet"])
    return ran if out is None else Ran(**{**vars(ran), "record": last_record(out)})


def watched(command: Sequence[str]) -> Ran:
    """Run a program to its end, and watch the memory of all its processes."""
    began, clock = time.time(), time.perf_counter()
    child = subprocess.Popen(command, env=environment())
    peaks: dict[int, int] = {}
    while True:
        ended, status, used = os.wait4(child.pid, os.WNOHANG)
        if ended:
            break
        for process in _with_children(child.pid):
            peaks[process] = max(_peak_bytes(process), peaks.get(process, 0))
        time.sleep(LOOK_EVERY_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"exit code {child.returncode} of {' '.join(command)}")
    wall_s = time.perf_counter() - clock
    return Ran(wall_s, used.ru_utime + used.ru_stime, sum(peaks.values()), len(peaks), began)


def environment() -> dict[str, str]:
    """The variables that children get."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}


def last_record(out: Path) -> dict[str, Any]:
    """The newest run record below a store or a folder of label files."""
    store = out / STATE if (out / STATE).is_dir() else out
    record: dict[str, Any] = json.loads(
        max((store / ".cellseg/runs").glob("*Z-*.json")).read_text()
    )
    return record


def check_room(folder: Path, needed: float) -> None:
    """End the program where the disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < 1.1 * needed:
        sys.exit(f"{folder} has {free / 1e9:.1f} GB free, this needs {1.1 * needed / 1e9:.1f}")


def _with_children(process: int) -> list[int]:
    """A process and those that it has started, as far as they live."""
    found = [process]
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += _with_children(int(child))
    except OSError:  # it has ended
        pass
    return found


def _peak_bytes(process: int) -> int:
    """VmHWM: unlike ``ru_maxrss`` it forgets the program that has started this one."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
