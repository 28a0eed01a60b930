"""The `cellseg` program: its commands, and what becomes of an error."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import typer

from cellseg_cli import __version__
from cellseg_cli.cli.cluster import cluster
from cellseg_cli.cli.demo import demo
from cellseg_cli.cli.embed import embed
from cellseg_cli.cli.evaluate import evaluate
from cellseg_cli.cli.export import export
from cellseg_cli.cli.models import models
from cellseg_cli.cli.pretrain import pretrain
from cellseg_cli.cli.segment import segment
from cellseg_cli.cli.train import train
from cellseg_cli.errors import CellsegError, ExitCode

Command = Callable[..., int | None]

HELP = """Batch instance segmentation of cells in microscopy folders.

\b
    cellseg embed ./plates --out emb.zarr
    cellseg cluster emb.zarr
    cellseg export emb.zarr --format coco --out cells.json

A second run does only what the first did not finish. Exit codes: 0 all done,
1 finished but some fields failed, 2 wrong usage or settings, 3 nothing could
be done, 130 interrupted (the same command resumes).
"""


def guarded(command: Command) -> Command:
    """Return `command` with its errors turned into one line and an exit code."""

    @functools.wraps(command)
    def run_command(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except CellsegError as error:
            typer.echo(f"cellseg: {error}", err=True)
            raise typer.Exit(int(error.exit_code)) from error
        except OSError as error:
            # A full disk, a name too long, no permission: the file says more than a traceback.
            if error.filename is None:
                raise
            typer.echo(f"cellseg: {error.filename}: {error.strerror}", err=True)
            raise typer.Exit(int(ExitCode.NOTHING_DONE)) from error
        except KeyboardInterrupt as error:
            typer.echo("cellseg: interrupted; the same command resumes", err=True)
            raise typer.Exit(int(ExitCode.INTERRUPTED)) from error
        raise typer.Exit(int(code or ExitCode.DONE))

    return run_command


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cellseg {__version__}")
        raise typer.Exit()


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    del version  # handled by its callback before any command runs


def build_app() -> typer.Typer:
    """Return the Typer application with every command."""
    app = typer.Typer(
        name="cellseg",
        help=HELP,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in (demo, train, pretrain, embed, cluster, segment, evaluate, export, models):
        app.command(command.__name__)(guarded(command))
    return app


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        build_app()(args=list(argv), prog_name="cellseg")
    except SystemExit as stop:
        return int(stop.code) if isinstance(stop.code, int) else int(ExitCode.USAGE)
    return int(ExitCode.DONE)


def _stop_like_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: SIGTERM, which batch systems send before they kill, stops like Ctrl-C."""
    signal.signal(signal.SIGTERM, _stop_like_interrupt)
    sys.exit(run(sys.argv[1:]))
