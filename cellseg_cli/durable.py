"""Small files that are either whole or not there, whatever happens to the process.

The order is always: write a temporary file on the target's file system, bring
it to the disk, give it its name in one step.  Only files are brought to the
disk, not folders: a name that is lost with the power is a file that is not
there, which readers notice.  One such call took 4 ms on an ordinary virtual
disk, so that each counts where fields take 20 ms.  Also says when a disk
cannot be written at all.  Knows nothing of what a store holds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cellseg_cli.errors import StoreWriteError

# What says "this disk or folder cannot be written", whatever the file.
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)

#: A temporary file is written within minutes, and its time moves on as it grows.
_DAY_S = 86_400


@contextlib.contextmanager
def temporary_path(folder: Path) -> Iterator[Path]:
    """A path in ``folder`` that no other process uses; what is still there at the end goes."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes have left: those that are a day old.

    Which process wrote one cannot be asked, it may have run on another machine.  What cannot be
    removed stays.
    """
    with contextlib.suppress(OSError):  # no folder, another user's, or removed by another run
        for path in folder.iterdir():
            kept = path.suffix == ".lock" or not path.is_file()  # of scratch folders
            if not kept and time.time() - path.stat().st_mtime > _DAY_S:
                path.unlink(missing_ok=True)


def replace(temporary: Path, target: Path, *, synced: bool = True) -> None:
    """Give a finished file its name in one step, over any file of that name.

    With ``synced`` false the disk may get it later, and after a power cut hold less of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if synced:
        sync(temporary)
    temporary.replace(target)


def replace_folder(temporary: Path, target: Path, aside: Path) -> None:
    """Give a finished folder its name, over any folder of that name, which goes to ``aside``.

    Two processes that place the same one at once end with one of the two, whole.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            temporary.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        with contextlib.suppress(FileNotFoundError):  # another process took it away
            target.rename(aside / uuid.uuid4().hex)


def place_if_absent(temporary: Path, target: Path) -> None:
    """Give a finished file its name unless the name is taken, in one step for all processes.

    Where the file system knows no hard links, a look before the rename must do.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sync(temporary)
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError:
        if not target.exists():
            temporary.replace(target)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write strict JSON: NaN and infinity are a ValueError."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")


def sync_tree(folder: Path) -> None:
    """Bring every file below ``folder`` to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))


def sync(path: Path) -> None:
    """Bring one file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn "the disk cannot be written" into one error that ends the run; ``path`` is a store."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise StoreWriteError(
            f"{path} cannot be written: {os.strerror(error.errno)}; make room or fix the "
            "permissions, then run the same command again: finished fields are kept"
        ) from error
