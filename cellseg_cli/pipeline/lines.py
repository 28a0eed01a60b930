"""Files of one JSON object a line, appended while a run goes on.

A line is whole or not there: where the disk takes only half of one, the half is
taken away again, so that a reader can trust every line of what a full disk or a
kill has left.  (A kill between the two steps, or one of the machine, can leave
half a line at the end; :func:`read_lines` leaves it out.)  Lines are handed to the
operating system one by one, so that they outlive the process, and not brought to
the disk one by one: that takes 4 ms, and fields can take 20.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class LineFile:
    """A file of JSON lines that is open for appending; made with its folder if need be.

    Raises
    ------
    OSError
        The file cannot be opened or made.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._owed = b"" if _ends_a_line(path) else b"\n"

    def append(self, values: Mapping[str, Any]) -> None:
        """Write one line.

        Raises
        ------
        OSError
            It could not be written, and nothing of it is there.
        """
        data = self._owed + line(values).encode("ascii")
        written = self._file.write(data) or 0
        if written != len(data):
            self._take_back(written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._owed = b""

    def _take_back(self, written: int) -> None:
        """Cut what was written last, unless it is not the end of the file any more."""
        end = self._file.tell()
        with contextlib.suppress(OSError):  # not every file system cuts files
            if os.fstat(self._file.fileno()).st_size == end:
                os.ftruncate(self._file.fileno(), end - written)

    def close(self) -> None:
        """Close the file; what was appended is there."""
        self._file.close()


def _ends_a_line(path: Path) -> bool:
    """Whether the next line may follow at once: a process that was killed may have left half."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def line(values: Mapping[str, Any]) -> str:
    r"""Strict JSON in ASCII, on one line with its end.

    >>> line({"field": "A/é", "seconds": 0.5})
    '{"field": "A/\\u00e9", "seconds": 0.5}\n'
    """
    return json.dumps(values, allow_nan=False) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, without a last line that is not whole."""
    with path.open(encoding="ascii") as file:
        for text in file:
            if text.endswith("\n"):
                yield json.loads(text)
