"""What a stage tells while it runs, and what it returns: plain values.

Stages hand these to the ``emit`` function they are given, always from the
thread that called the stage; one module of the command layer draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cellseg_cli.engine.tasks import Failure
from cellseg_cli.errors import ExitCode


@dataclass(frozen=True)
class Summary:
    """What came of one stage, over the fields of this run (of this part, if it is one).

    ``planned`` counts the fields that a dry run would do, and ``forecast`` says what it would
    need; 0 and None after a real run.
    """

    stage: str
    done: int
    skipped: int
    failed: tuple[Failure, ...]
    seconds: float
    planned: int = 0
    forecast: StagePlanned | None = None

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
    ``free_bytes`` is what the disk of the store has left.  ``tiles`` go through the network.

    ``bytes_per_worker`` is the memory that a process takes at most, ``bytes_total`` that of all
    processes on this machine, ``memory_bytes`` what they may take; ``memory_by`` says who
    grants it.  ``seconds_estimated`` is known of dry runs only.  ``plates`` and ``wells`` are
    counted where plates were recognised.
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
    tiles: int = 0
    bytes_per_worker: int | None = None
    bytes_total: int | None = None
    memory_bytes: int | None = None
    memory_by: str | None = None
    seconds_estimated: float | None = None
    plates: int = 0
    wells: int = 0


@dataclass(frozen=True)
class StageStarted:
    """Work begins on ``total`` fields; ``device`` is None for a stage without a network.

    ``unusable`` of them, told as failures before the first field, come on top of ``total``.
    ``carried`` says in words by whom the work is done, such as ``2 processes of 4 threads``;
    without it ``workers`` is the number of threads.
    """

    stage: str
    total: int
    skipped: int
    workers: int
    device: str | None = None
    unusable: int = 0
    carried: str | None = None


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
class Beat:
    """How busy the run is, told about once a second while fields are in flight.

    ``in_flight`` of at most ``capacity`` fields are begun and not yet reported.
    ``device_busy`` is the fraction of the time since the last beat, in [0, 1], that the
    device was at work (the mean over several); None for a stage without a network.
    """

    stage: str
    in_flight: int
    capacity: int
    device_busy: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """Where a browser shows what the workers do: the address of dask's dashboard."""

    stage: str
    address: str


@dataclass(frozen=True)
class StageFinished:
    """The end of a stage that was not interrupted.

    ``record`` is the path of the run record, None for a stage that keeps none.
    ``pixels`` counts those of the fields that were done, 0 where nobody counted;
    ``device_busy`` is the fraction of the stage's seconds that its devices were at work.
    """

    summary: Summary
    record: str | None = None
    pixels: int = 0
    device_busy: float | None = None


Event: TypeAlias = (
    StagePlanned | StageStarted | Noted | Dashboard | Beat | FieldDone | FieldFailed | StageFinished
)
Emit: TypeAlias = Callable[[Event], None]
