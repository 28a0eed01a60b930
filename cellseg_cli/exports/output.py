"""Where exports go: nothing is replaced unasked, nothing is written outside of the output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from cellseg_cli import durable
from cellseg_cli.errors import CellsegError, ConfigError, InputError, OutputExistsError


def check_output_file(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder, a device, and a file that is there unless it may be replaced."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; this format is one file, give its name")
    if out.exists() and not out.is_file():
        # The file would take the place of the device itself, /dev/null for everybody.
        raise ConfigError(f"{out} is a device or pipe, not a file; give the name of a file")
    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} exists; choose another output, or --overwrite")


def check_output_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse a file, and a folder with anything in it unless files in it may be replaced."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; this format is a folder of files, give its name")
    if out.is_dir() and not overwrite and next(out.iterdir(), None) is not None:
        raise OutputExistsError(
            f"{out} exists and is not empty; choose another output, "
            "or --overwrite, which replaces files of the same name"
        )


@contextlib.contextmanager
def complete_file(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`, which takes its name when the block succeeds."""
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"{target} cannot be written: {above} is a file")
    try:
        with durable.temporary_path(target.parent) as temporary:
            yield temporary
            durable.replace(temporary, target)
    except CellsegError:  # some are OSErrors too, and say already what is wrong
        raise
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}") from error


def path_below(folder: Path, field_id: str, suffix: str) -> Path:
    """Return the file of a field below `folder`.

    Raises
    ------
    InputError
        For an id that is absolute, climbs with ``..``, or has an empty part.
    """
    parts = field_id.split("/")
    target = folder.joinpath(*parts[:-1], parts[-1] + suffix)
    foreign = "\\" in field_id or "\0" in field_id or PureWindowsPath(field_id).is_absolute()
    # Where ids may begin with a drive (Windows), joining one leaves the folder.
    outside = not target.is_relative_to(folder)
    if foreign or outside or any(part in {"", ".", ".."} for part in parts):
        raise InputError(f"the field id {field_id!r} is no path inside of {folder}")
    return target
