"""What files of truth have in common: names, sizes, and how faults are told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from cellseg_cli.errors import InputError, LimitError
from cellseg_cli.images.discover import SUFFIXES

# One CSV or JSON file is read as a whole; JSON takes about ten times its size in
# memory.  The largest public set of cells (LIVECell, train) is below 1 GiB.
MAX_FILE_BYTES = 2 << 30
# An area of 2^31 pixels is what a decoded image may have.
MAX_PIXELS = 2**31


def field_id_of(name: str) -> str:
    """Return the field id of a file name as annotations give it: POSIX, without suffix.

    Raises
    ------
    InputError
        For an empty or absolute name and one that climbs with ``..``.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    absolute = path.is_absolute() or PureWindowsPath(name).is_absolute()
    if not path.parts or absolute or ".." in path.parts:
        raise InputError(
            f"{name!r} is not the name of an image: "
            "give a path relative to the folder of the images, without '..'"
        )
    text = path.as_posix()
    suffix = next((s for s in SUFFIXES if text.lower().endswith(s)), "")
    return text[: len(text) - len(suffix)] if path.name.lower() != suffix else text


def check_size(path: Path) -> None:
    """Refuse a file above :data:`MAX_FILE_BYTES` before any of it is read."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise LimitError(
            f"{path} has {size} bytes; annotations are read up to {MAX_FILE_BYTES} "
            "(MAX_FILE_BYTES): split the file by images"
        )


def shape_of(height: object, width: object) -> tuple[int, int] | None:
    """Return (Y, X) in px, or None where the two are not the sides of an image."""
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    if isinstance(height, bool) or isinstance(width, bool):  # JSON's true is an int in Python
        return None
    within = height >= 1 and width >= 1 and height * width <= MAX_PIXELS
    return (height, width) if within else None


def raise_faults(source: Path, faults: Sequence[str], shown: int = 3) -> None:
    """Raise one InputError that names the first of all faults found in a file."""
    if not faults:
        return
    rest = f"; and {len(faults) - shown} more" if len(faults) > shown else ""
    raise InputError(f"{source}: {'; '.join(faults[:shown])}{rest}")
