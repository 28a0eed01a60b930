"""How what is wrong with a file is told: its path first, then the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellseg_cli.errors import CellsegError, InputError


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the path in front of an error inside the block; an OSError becomes an InputError."""
    try:
        yield
    except CellsegError as fault:
        raise type(fault)(f"{path}: {fault}") from fault
    except OSError as fault:
        raise InputError(f"{path}: {_reason(fault)}") from fault


def _reason(fault: OSError) -> str:
    if isinstance(fault, FileNotFoundError):
        return "there is no such file"
    if isinstance(fault, PermissionError):
        return "cannot be read (permission denied); mend its permissions"
    return f"cannot be read ({fault.strerror or fault})"
