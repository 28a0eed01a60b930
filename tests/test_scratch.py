"""Arrays put aside: read as kept, gone at the end, and what killed runs left is removed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cellseg_cli.errors import StoreWriteError
from cellseg_cli.scratch import remove_stale, scratch

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="needs file locks")


def test_arrays_are_read_as_kept(tmp_path: Path) -> None:
    with scratch(tmp_path, tmp_path / "tmp") as room:
        room.keep("a", np.arange(6, dtype=np.uint32).reshape(2, 3))
        room.keep("b", np.zeros((2, 0), np.int64))
        room.keep("a", np.arange(4, dtype=np.uint32))
        assert room.kept("a").tolist() == [0, 1, 2, 3]
        assert room.kept("b").shape == (2, 0)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path, tmp_path / "tmp") as room:
        room.keep("a", np.zeros(3))
        raise KeyboardInterrupt
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    """Of a small array that is noticed when the file is closed, of a large one before."""
    with scratch(tmp_path, tmp_path / "tmp") as room:
        (folder,) = (tmp_path / "tmp").glob("*.scratch")
        (folder / "a.npy").symlink_to("/dev/full")
        with pytest.raises(StoreWriteError) as caught:
            room.keep("a", np.zeros(size))
    assert str(caught.value) == (
        f"{tmp_path} cannot be written: No space left on device; make room or fix the "
        "permissions, then run the same command again: finished fields are kept"
    )


LEAVE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from cellseg_cli.scratch import scratch
with scratch(Path(sys.argv[1]), Path(sys.argv[1])) as room:
    room.keep("a", np.zeros(3))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_locks
def test_what_a_killed_run_left_is_removed_and_living_ones_stay(tmp_path: Path) -> None:
    with scratch(tmp_path, tmp_path) as living:
        living.keep("a", np.arange(3))
        subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path)], check=False)
        assert len(list(tmp_path.glob("*.scratch"))) == 2
        with scratch(tmp_path, tmp_path):  # any other run
            assert len(list(tmp_path.glob("*.scratch"))) == 2  # the living one and this
        assert living.kept("a").tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


@needs_locks
def test_folders_of_other_machines_must_be_old(tmp_path: Path) -> None:
    """A lock that nobody holds here may be held there."""
    young, old = tmp_path / "elsewhere-1-a.scratch", tmp_path / "elsewhere-1-b.scratch"
    for folder in (young, old):
        folder.mkdir()
    two_days_ago = old.stat().st_mtime - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    remove_stale(tmp_path)
    assert (young.exists(), old.exists()) == (True, False)


@needs_locks
def test_what_cannot_be_removed_stays_and_says_nothing(tmp_path: Path) -> None:
    folder = tmp_path / f"{platform.node()}-1-a.scratch"
    folder.mkdir()
    folder.with_suffix(".lock").mkdir()  # cannot be opened for writing, as another user's
    remove_stale(tmp_path)
    assert folder.exists()


def test_a_folder_of_another_machine_that_goes_meanwhile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed, and gone when its lock is looked for: that makes the file of the lock anew."""
    gone = tmp_path / "elsewhere-1-2.scratch"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([gone]))
    closed: list[int] = []
    real = os.close
    monkeypatch.setattr(os, "close", lambda number: closed.append(number) or real(number))
    remove_stale(tmp_path)
    assert len(closed) == 1
    assert list(tmp_path.iterdir()) == []
