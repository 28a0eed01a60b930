"""Options that several commands share, told once."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cellseg_cli.config import RunSettings
from cellseg_cli.config_file import settings_from

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file with tables [train], [pretrain], [embed], [cluster], [run]."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=0, help="Fields at a time in each process; 0: as many as fill the device."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes on this machine; 0: work in this one."),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="ADDRESS|FILE", help="Work on the workers of a dask scheduler."
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", metavar="slurm|pbs|lsf", help="Start workers as batch jobs."),
]
ClusterConfig = Annotated[
    Path | None,
    typer.Option("--cluster-config", help="TOML file with the options of --cluster."),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Refuse what needs more, such as 8GB."),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Do only the fields that failed before.")
]
LogJson = Annotated[
    Path | None,
    typer.Option(
        "--log-json", metavar="FILE", help="Append one JSON line per event; - for stderr."
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part", metavar="I/N", help="Do the I-th of N parts (1-based); for job arrays, no locks."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Do all anew, and replace what other settings made.")
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


#: Options that say how the work of a stage is carried out, and what they are without.
_RUN_OPTIONS: dict[str, tuple[Any, Any]] = {
    "threads": (Threads, None),
    "workers": (Workers, None),
    "scheduler": (Scheduler, None),
    "cluster": (Cluster, None),
    "cluster_config": (ClusterConfig, None),
    "memory": (Memory, None),
    "part": (Part, None),
    "retry_failed": (RetryFailed, False),
    "overwrite": (Overwrite, False),
    "dry_run": (DryRun, False),
}


def with_run_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command these options in place of its parameter ``run``, a RunSettings.

    What they leave open is taken from the table [run] of the file that ``config`` names.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.name != "run"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _RUN_OPTIONS.items()
    ]

    @functools.wraps(command)
    def with_options(**given: Any) -> int:
        flags = {name: given.pop(name) for name in _RUN_OPTIONS}
        # A switch that is not there says nothing against the file.
        told = {name: value for name, value in flags.items() if value is not False}
        run = settings_from(RunSettings, file=given["config"], section="run", flags=told)
        return command(run=run, **given)

    parameters = [*own, *added]
    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


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
