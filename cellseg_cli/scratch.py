"""Arrays that a run puts aside and reads again, in a folder that nobody else touches.

The folder goes when its run is through with it, also after an error.  What a killed run has left
is removed by the next one: a folder belongs to a living process as long as that holds the lock
beside it.  Locks cannot be trusted between machines (some network file systems keep them to one),
so the folders of another machine must be a day old as well.  Where there are no locks, age alone
decides.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cellseg_cli import durable

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".scratch"
_LOCK = ".lock"
_DAY_S = 86_400  # far longer than any tile takes; a live run writes into its folder tile by tile


class Scratch:
    """Arrays kept under names in a folder on the disk."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._folder = folder

    def keep(self, name: str, values: np.ndarray) -> None:
        """Put an array aside, in place of any earlier one of this name.

        Raises
        ------
        StoreWriteError
            The disk cannot be written.
        """
        with durable.writing(self._root):
            whole = np.ascontiguousarray(values)
            header = np.lib.format.header_data_from_array_1_0(whole)
            with (self._folder / f"{name}.npy").open("wb") as file:
                np.lib.format.write_array_header_2_0(file, header)
                file.write(whole.data)  # np.save would not say why a disk takes no more

    def kept(self, name: str) -> np.ndarray:
        """The array of this name, as it was put aside."""
        values: np.ndarray = np.load(self._folder / f"{name}.npy", allow_pickle=False)
        return values


@contextlib.contextmanager
def scratch(root: Path, parent: Path) -> Iterator[Scratch]:
    """Room for arrays in :func:`own_folder`; what dead processes have left there goes."""
    remove_stale(parent)
    with own_folder(root, parent) as folder:
        yield Scratch(root, folder)


@contextlib.contextmanager
def own_folder(root: Path, parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, a folder of the store ``root``, while the statement lasts."""
    with durable.writing(root):
        parent.mkdir(parents=True, exist_ok=True)
        folder = parent / f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex}{_SUFFIX}"
        lock = _locked(folder)  # before the folder is made: it never stands unlocked
        folder.mkdir()
    try:
        yield folder
    finally:
        _remove(folder, lock)


def remove_stale(parent: Path) -> None:
    """Remove the folders in ``parent`` whose process is dead; what cannot be removed stays."""
    for folder in parent.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # held by its process, another user's, or gone
            lock = _locked(folder)
            here = lock is not None and folder.name.startswith(f"{platform.node()}-")
            if here or _is_old(folder):
                _remove(folder, lock)
            elif lock is not None:
                os.close(lock)


def _is_old(folder: Path) -> bool:
    """Whether nobody has written to a folder for a day, or it is gone meanwhile."""
    try:
        return time.time() - folder.stat().st_mtime > _DAY_S
    except OSError:
        return True


def _locked(folder: Path) -> int | None:
    """The descriptor that holds the lock of a folder; None where there are no locks.

    Raises
    ------
    BlockingIOError
        Another process holds it.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder.with_suffix(_LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _remove(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)
    with contextlib.suppress(OSError):
        folder.with_suffix(_LOCK).unlink()
