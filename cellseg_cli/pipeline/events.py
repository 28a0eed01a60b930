"""What a stage tells while it runs, and what it returns: plain values.

Stages hand these to the ``emit`` function they are given, always from the
thread that called the stage; one module of the command layer draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cellseg_cli.errors import ExitCode


@dataclass(frozen=True)
class Failure:
    """One field that could not be done: why, for people; the traceback, for the run record."""

    field_id: str
    reason: str
    traceback: str | None = None


@dataclass(frozen=True)
class Summary:
    """What came of one stage, over the fields of this run (of this part, if it is one).

    ``planned`` counts the fields that a dry run would do; 0 after a real run.
    """

    stage: str
    done: int
    skipped: int
    failed: tuple[Failure, ...]
    seconds: float
    planned: int = 0

    @property
    def exit_code(self) -> ExitCode:
        """DONE; SOME_FAILED; NOTHING_DONE if fields failed and none is there.

        >>> Summary("embed", 0, 2, (Failure("a", "truncated"),), 1.0).exit_code.name
        'SOME_FAILED'
        """
        if not self.failed:
            return ExitCode.DONE
        there = self.done + self.skipped + self.planned
        return ExitCode.SOME_FAILED if there else ExitCode.NOTHING_DONE


@dataclass(frozen=True)
class StagePlanned:
    """What the run is about to do; with ``dry_run`` the only event, and nothing was written.

    ``bytes_to_write`` is the size before compression, an upper bound;
    ``free_bytes`` is what the disk of the store has left.
    """

    stage: str
    store: str
    fields: int
    to_do: int
    skipped: int
    unusable: tuple[Failure, ...]
    bytes_to_write: int
    free_bytes: int
    dry_run: bool


@dataclass(frozen=True)
class StageStarted:
    """Work begins on ``total`` fields; ``device`` is None for a stage without a network."""

    stage: str
    total: int
    skipped: int
    workers: int
    device: str | None = None


@dataclass(frozen=True)
class Noted:
    """Something that the user should know once, in one line."""

    stage: str
    text: str


@dataclass(frozen=True)
class FieldDone:
    """One field is written and marked; ``instances`` only where the stage makes labels."""

    stage: str
    field_id: str
    seconds: float
    pixels: int
    instances: int | None = None


@dataclass(frozen=True)
class FieldFailed:
    """One field could not be done; the others go on."""

    stage: str
    failure: Failure


@dataclass(frozen=True)
class StageFinished:
    """The end of a stage that was not interrupted.

    ``record`` is the path of the run record, None for a stage that keeps none.
    """

    summary: Summary
    record: str | None = None


Event: TypeAlias = StagePlanned | StageStarted | Noted | FieldDone | FieldFailed | StageFinished
Emit: TypeAlias = Callable[[Event], None]
