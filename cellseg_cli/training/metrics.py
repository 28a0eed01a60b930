"""The curves of a run: ``metrics.csv`` always, TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any


class Metrics:
    """Rows ``step,name,value``, appended as they come.

    Parameters
    ----------
    path
        The CSV; rows of a stopped sitting beyond `after_step` are dropped,
        since those steps are done again.
    after_step
        Steps that count as done.
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        self._path = path
        rows = [row for row in _rows(path) if int(row[0]) <= after_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("step", "name", "value"), *rows])
        temporary.replace(path)
        self._board = _board(path.parent, after_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append `values` of `step`."""
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((step, name, f"{v:.6g}") for name, v in values.items())
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Bring what TensorBoard's writer still holds to its file."""
        if self._board is not None:
            self._board.close()


def _rows(path: Path) -> list[tuple[str, str, str]]:
    """Return the whole rows of a CSV that a kill may have cut."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3 and row[0].isdecimal()]


def _board(folder: Path, after_step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after_step + 1)
