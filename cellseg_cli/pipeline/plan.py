"""Which fields a run is to do: pure decisions on rows, plus one look at each image's header.

A field is identified by its id, file size and modification time; content is
not read, so that planning stays a matter of milliseconds a file.  The
fingerprint of a field covers these and every setting that decides the output;
it does not cover batch size, workers, device or part.

Part *i* of *n* takes every n-th field of the sorted list, beginning with the
i-th.  Parts must therefore be started on the same list of images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cellseg_cli.config import parse_part
from cellseg_cli.errors import InputError, LimitError
from cellseg_cli.images.decode import Planes, read_header
from cellseg_cli.images.discover import Field
from cellseg_cli.pipeline.events import Failure
from cellseg_cli.store import FORMAT_VERSION, FieldRow, Stage, Store, refusal

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


def survey(fields: Sequence[Field], planes: Planes) -> tuple[FieldRow, ...]:
    """One row per field, from its header; where that cannot be read, the row holds the reason.

    Raises
    ------
    InputError
        Ids that cannot be groups of a store; all of them are counted, three are named.
    """
    refused = [(field.id, reason) for field in fields if (reason := refusal(field.id))]
    if refused:
        named = "; ".join(f"{field_id} ({reason})" for field_id, reason in refused[:3])
        raise InputError(
            f"{len(refused)} of {len(fields)} fields cannot be kept in a store under their id: "
            f"{named}{'; ...' if len(refused) > 3 else ''}; rename them, or leave them out with "
            "--exclude"
        )
    return tuple(_row(field, planes) for field in fields)


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
    unusable = tuple(Failure(row.id, row.error) for row in rows if row.error)
    wanted = [(row, field_fingerprint(row, settings)) for row in rows if not row.error]
    return _compared(wanted, unusable, store, "embed", redo=redo)


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
    for row in rows:
        embedded = store.done_fingerprint(row.id, "embed")
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
    return _compared(wanted, tuple(unusable), store, "cluster", redo=redo)


def _compared(
    wanted: Sequence[tuple[FieldRow, str]],
    unusable: tuple[Failure, ...],
    store: Store | None,
    stage: Stage,
    *,
    redo: bool,
) -> Plan:
    to_do, stale, skipped = [], [], []
    for row, mark in wanted:
        found = store.done_fingerprint(row.id, stage) if store else None
        if found == mark and not redo:
            skipped.append(row.id)
            continue
        to_do.append((row, mark))
        if found is not None:
            stale.append(row.id)
    return Plan(tuple(to_do), tuple(stale), tuple(skipped), unusable)


def _row(field: Field, planes: Planes) -> FieldRow:
    # Absolute in messages too: the store keeps them, and later stages run from elsewhere.
    path = field.path.absolute()
    source = str(path)
    try:
        header = read_header(path, planes)
    except (InputError, LimitError) as error:
        return FieldRow(field.id, source, error=str(error))
    height, width = header.shape
    return FieldRow(
        id=field.id,
        source=source,
        size_bytes=header.size_bytes,
        mtime_ns=header.mtime_ns,
        height=height,
        width=width,
        channels=header.channels,
        dtype=header.dtype,
    )
