"""Options that several commands share, told once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with tables [train], [embed], [cluster]."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Threads; 0 means one per core.")
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part", metavar="I/N", help="Do the I-th of N parts (1-based); for job arrays, no locks."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace output made with other settings.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be done, read headers only, write nothing."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Verbose = Annotated[
    int, typer.Option("-v", "--verbose", count=True, help="Say more; -vv shows tracebacks.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say only what failed.")]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:I; auto says what it took.")
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="GLOB", help="Only files whose relative path matches."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Leave out files whose relative path matches."),
]


def echo_json(value: Any) -> None:
    """Print `value` on stdout as JSON, keys in their order, NaN as null."""
    typer.echo(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and value != value:
        return None
    return value
