"""Which fields a run is to do: pure decisions on rows and on the marks of a store.

A field is identified by its id, file size and modification time; content is
not read, so that planning stays a matter of a fraction of a millisecond a file.  The
fingerprint of a field covers these and every setting that decides the output;
it does not cover batch size, workers, device or part.

Part *i* of *n* takes every n-th field of the sorted list, beginning with the
i-th.  Parts must therefore be started on the same list of images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cellseg_cli.config import parse_part
from cellseg_cli.engine.calls import each
from cellseg_cli.pipeline.events import Failure
from cellseg_cli.store import FORMAT_VERSION, FieldRow, Stage, Store

Item = TypeVar("Item")


@dataclass(frozen=True)
class Plan:
    """The fields of one run (of one part of it).

    ``to_do`` with the fingerprint that each will be marked with; ``stale``:
    ids that are marked with another one; ``unusable``: fields that cannot be
    done, and why.
    """

    to_do: tuple[tuple[FieldRow, str], ...]
    stale: tuple[str, ...]
    skipped: tuple[str, ...]
    unusable: tuple[Failure, ...]

    @property
    def fields(self) -> int:
        """The number of fields of this run, of whatever fate."""
        return len(self.to_do) + len(self.skipped) + len(self.unusable)


def fingerprint(values: Mapping[str, Any]) -> str:
    """The SHA-256 of values that JSON can carry; equal values, equal fingerprint.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **values}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def field_fingerprint(row: FieldRow, settings: Mapping[str, Any]) -> str:
    """The fingerprint of one field: which image, and how it is embedded."""
    return fingerprint({**row.identity, "settings": settings})


def of_part(items: Sequence[Item], part: str | None) -> tuple[Item, ...]:
    """The items of part ``"i/n"``: every n-th, beginning with the i-th; all without a part.

    >>> of_part("abcde", "2/2")
    ('b', 'd')
    """
    index, count = parse_part(part) if part else (1, 1)
    return tuple(items[index - 1 :: count])


def plan_embedding(
    rows: Sequence[FieldRow], settings: Mapping[str, Any], store: Store | None, *, redo: bool
) -> Plan:
    """What is to be embedded; with ``redo`` everything, else what has no equal mark."""

    def mark(row: FieldRow) -> str:
        return field_fingerprint(row, settings)

    return _of_images(rows, mark, store, "embed", redo=lambda _: redo)


def plan_clustering(
    rows: Sequence[FieldRow],
    settings: Callable[[FieldRow], Mapping[str, Any]],
    store: Store,
    *,
    redo: bool,
) -> Plan:
    """What is to be clustered: every embedded field without a mark of its settings.

    An embedding of another model or of an earlier image, which a part that was not run
    yet has left, is none.
    """
    wanted, unusable = [], []
    identity = store.attributes.get("embed", {})
    marks = _marks(store, rows, "embed")
    for row, embedded in zip(rows, marks, strict=True):
        if embedded is None:
            known = row.error or store.failure(row.id, "embed")
            reason = f"not embedded: {known}" if known else "not embedded"
            unusable.append(Failure(row.id, reason))
        elif embedded != field_fingerprint(row, identity):
            reason = "its embedding is of another model or image: run cellseg embed (every part)"
            unusable.append(Failure(row.id, reason))
        else:
            mark = fingerprint({"embedding": embedded, "settings": settings(row)})
            wanted.append((row, mark))
    return _compared(wanted, tuple(unusable), store, "cluster", redo=lambda _: redo)


def plan_segmenting(
    rows: Sequence[FieldRow],
    identity: Mapping[str, Any],
    settings: Callable[[FieldRow], Mapping[str, Any]],
    store: Store | None,
    *,
    redo: Callable[[str], bool],
) -> Plan:
    """What is to be segmented: as if it were embedded and then clustered; the same marks.

    ``redo`` says of the id of a finished field whether it is to be done again.
    """

    def mark(row: FieldRow) -> str:
        embedded = field_fingerprint(row, identity)
        return fingerprint({"embedding": embedded, "settings": settings(row)})

    return _of_images(rows, mark, store, "cluster", redo=redo)


def is_replaced(row: FieldRow, earlier: FieldRow) -> bool:
    """Whether a file that was read once is now another one, which cannot be read.

    A file that cannot be looked at, or that is as it was, may be readable again tomorrow.
    """
    return bool(row.error) and row.size_bytes is not None and row.identity != earlier.identity


def retrying(plan: Plan, store: Store | None, stage: Stage) -> Plan:
    """Of the fields of a plan that are to be done, those that failed when they were last tried.

    What is made of the others stays, be it of other settings: nobody asked to make it anew.
    """
    failed = store.failed_ids(stage) if store else frozenset()
    left = {row.id for row, _ in plan.to_do if row.id not in failed}
    to_do = tuple(job for job in plan.to_do if job[0].id not in left)
    return replace(plan, to_do=to_do, stale=tuple(one for one in plan.stale if one not in left))


def _of_images(
    rows: Sequence[FieldRow],
    mark: Callable[[FieldRow], str],
    store: Store | None,
    stage: Stage,
    *,
    redo: Callable[[str], bool],
) -> Plan:
    """What is to be made of images; of those that cannot be read, what was made may be stale.

    It is if its mark is of another file or other settings.  A file that cannot be looked at
    keeps it.
    """
    bad = [row for row in rows if row.error]
    stale = [
        row.id
        for row, found in zip(bad, _marks(store, bad, stage), strict=True)
        if found is not None
        and (redo(row.id) or (row.size_bytes is not None and found != mark(row)))
    ]
    unusable = tuple(Failure(row.id, str(row.error)) for row in bad)
    wanted = [(row, mark(row)) for row in rows if not row.error]
    plan = _compared(wanted, unusable, store, stage, redo=redo)
    return replace(plan, stale=(*plan.stale, *stale))


def _compared(
    wanted: Sequence[tuple[FieldRow, str]],
    unusable: tuple[Failure, ...],
    store: Store | None,
    stage: Stage,
    *,
    redo: Callable[[str], bool],
) -> Plan:
    to_do, stale, skipped = [], [], []
    marks = _marks(store, [row for row, _ in wanted], stage)
    for (row, mark), found in zip(wanted, marks, strict=True):
        if found == mark and not redo(row.id):
            skipped.append(row.id)
            continue
        to_do.append((row, mark))
        if found is not None:
            stale.append(row.id)
    return Plan(tuple(to_do), tuple(stale), tuple(skipped), unusable)


def _marks(store: Store | None, rows: Sequence[FieldRow], stage: Stage) -> list[str | None]:
    """The fingerprint that the stage of each field was finished with, or None."""
    if store is None:
        return [None] * len(rows)
    return each(lambda row: store.done_fingerprint(row.id, stage), rows)
