"""What the stages `embed` and `cluster` share on the command line: their result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg_cli.cli.common import echo_json

if TYPE_CHECKING:
    from cellseg_cli.pipeline.events import Summary

#: What the JSON of a dry run says of it, by its names in StagePlanned.
_FORECAST = (
    *("plates", "wells", "tiles", "bytes_to_write", "free_bytes"),
    *("bytes_per_worker", "bytes_total", "memory_bytes", "seconds_estimated"),
)


def report(
    summary: Summary,
    store: Path,
    *,
    dry_run: bool,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print the result of a stage as JSON, if asked, with `more`, and return the exit code."""
    if as_json:
        failed = [{"field": one.field_id, "reason": one.reason} for one in summary.failed]
        counts = {"done": summary.done, "skipped": summary.skipped, "failed": failed}
        planned = {"to_do": summary.planned, **_forecast(summary)} if dry_run else {}
        echo_json(
            {
                "stage": summary.stage,
                "store": str(store),
                "dry_run": dry_run,
                **planned,
                **counts,
                "seconds": round(summary.seconds, 3),
                **(more or {}),
            }
        )
    return int(summary.exit_code)


def _forecast(summary: Summary) -> dict[str, Any]:
    """What a run would write, need and take; what is not known is left out."""
    if (told := summary.forecast) is None:
        return {}
    values = {name: getattr(told, name) for name in _FORECAST}
    return {name: value for name, value in values.items() if value is not None}
