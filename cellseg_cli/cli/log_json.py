"""The log for machines: one JSON object a line for every event.

    {"time": "2026-03-01T09:30:00.250Z", "event": "field_done", "stage": "embed", ...}

The time is UTC.  The other keys are those of the event in :mod:`cellseg_cli.pipeline.events`,
except that a failure stands in the event itself (``field_id``, ``reason``, ``traceback``), and
so does a summary, where ``failed`` is a number: the events before have named the fields.  The
file is appended to, so that a run that goes on continues its log; lines of several parts can
share one on a local disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from cellseg_cli.errors import ConfigError

if TYPE_CHECKING:
    from cellseg_cli.pipeline.events import Emit, Event

#: In place of a file: the log goes to stderr, and nothing else does.
STDERR = Path("-")


class _Target(Protocol):
    """Where lines go."""

    def append(self, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


@contextmanager
def json_log(
    path: Path,
    say: Callable[[str], None] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Emit]:
    """Yield the function that logs events.

    Parameters
    ----------
    path
        The file, made with its folder if need be; ``-`` for stderr.
    say
        Told in one line when the log ends early; stderr if it is None.
    now
        Gives the time in UTC.

    Raises
    ------
    ConfigError
        The file cannot be opened.  Nothing is raised later: a log that cannot be written any
        more ends, and the run goes on.
    """
    log = _Log(path, say or _to_stderr, now)
    try:
        yield log.emit
    finally:
        log.close()


class _Log:
    """Writes events until that fails."""

    def __init__(self, path: Path, say: Callable[[str], None], now: Callable[[], datetime]) -> None:
        self._path, self._say, self._now = path, say, now
        self._target: _Target | None = _opened(path)

    def emit(self, event: Event) -> None:
        """Write one event."""
        if self._target is None:
            return
        try:
            self._target.append(_document(event, self._now()))
        except (OSError, ValueError) as error:  # ValueError: a stream that was closed
            self.close()
            if self._path != STDERR:
                why = error.strerror if isinstance(error, OSError) else str(error)
                self._say(f"cellseg: {self._path}: {why}; nothing more is logged there")

    def close(self) -> None:
        """End the log."""
        if self._target is not None:
            self._target.close()
            self._target = None


class _Stderr:
    """The other target."""

    def append(self, values: Mapping[str, Any]) -> None:
        from cellseg_cli.pipeline.lines import line

        sys.stderr.write(line(values))
        sys.stderr.flush()

    def close(self) -> None:
        """Nothing of ours."""


def _opened(path: Path) -> _Target:
    from cellseg_cli.pipeline.lines import LineFile

    if path == STDERR:
        return _Stderr()
    try:
        return LineFile(path)
    except OSError as error:
        raise ConfigError(
            f"the log {path} cannot be written: {error.strerror}; choose another --log-json"
        ) from error


def _document(event: Event, now: datetime) -> dict[str, Any]:
    values = asdict(event)
    values |= values.pop("failure", {})
    if summary := values.pop("summary", None):
        del summary["forecast"]  # an event of its own has told it
        values = {**summary, "failed": len(summary["failed"]), **values}
    time = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": time, "event": _snake(type(event).__name__), **values}


def _snake(name: str) -> str:
    """Return the name of an event as the log writes it.

    >>> _snake("FieldDone")
    'field_done'
    """
    return "".join(f"_{one.lower()}" if one.isupper() else one for one in name).lstrip("_")


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)
