"""How many cores there are to use."""

from __future__ import annotations

import os


def granted_cores() -> int:
    """Return how many cores this process may use: on Linux what a batch system has granted."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
