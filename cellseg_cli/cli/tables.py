"""Tables on stdout: ruled on a terminal, aligned text for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

#: Characters a line may have where no terminal limits it: more than any table needs.
_PIPE_WIDTH = 10_000


def show_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of cells, the header first; all columns but the first are set to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    header, *body = rows
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
    # Never cut a number: a pipe has no width, a narrow terminal wraps the lines.
    console = Console(highlight=False, markup=False, width=_PIPE_WIDTH)
    if terminal:
        console.width = max(Console().width, console.measure(table).maximum)
    console.print(table)
