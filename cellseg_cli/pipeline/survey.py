"""One row per field of a run: what its header says, or why it cannot be read.

A field whose files are those of a row that is known already (same paths, size and
modification time) is not opened again.  Which way the others are read is measured on a
few of them and changes no row: one after another where that is soonest done, with many
threads where reading waits (network file systems), and in several processes where there is so
much to compute that starting them pays: reading a header is Python, which threads only hold up.

Knows nothing of marks and settings; loads neither torch nor zarr, since every process would
pay for them.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from cellseg_cli.engine.calls import each, timed, together
from cellseg_cli.engine.tasks import reason
from cellseg_cli.errors import CellsegError, InputError
from cellseg_cli.images.decode import ImageHeader, read_header
from cellseg_cli.images.planes import Planes
from cellseg_cli.images.source import Field, Source
from cellseg_cli.rows import FieldRow
from cellseg_cli.store import refusal

#: Fields that are opened first, spread over all of them, to learn what one costs.
SAMPLE = 128
#: Work is shared out to processes where that spares more than this.  One needs 0.4 s of CPU
#: time to start, for its imports, and 0.02 ms for each field to send and be sent.
WORTH_PROCESSES_S = 3.0
#: Fields that a process is given at a time: a tenth of a second of work.
CHUNK = 256


def survey(
    fields: Sequence[Field],
    planes: Planes,
    known: Mapping[str, FieldRow] = MappingProxyType({}),
    *,
    threads: int = 1,
) -> tuple[FieldRow, ...]:
    """Return one row per field, in their order; the same rows however they are read.

    Parameters
    ----------
    fields
        What was found.
    planes
        The choice from stacks.
    known
        By id: rows of an earlier survey with the same ``planes``.  Those that hold an error
        are tried again.
    threads
        Cores that may be used.

    Raises
    ------
    InputError
        Ids that cannot be groups of a store; all of them are counted, three are named.

    Notes
    -----
    An interrupt ends it within a chunk of fields; nothing is written.  Measured by
    ``tests/benchmarks/planning.py`` on two cores that others used too, 100 000 small files:
    11 s in two processes, 2 s where all are known; the whole plan 15 s and 7 s.
    """
    _check_ids(fields)
    rows = each(partial(_remembered, known), fields)
    unknown = [index for index, row in enumerate(rows) if row is None]
    read = _read_all([fields[index] for index in unknown], planes, threads)
    for index, row in zip(unknown, read, strict=True):
        rows[index] = row
    return tuple(row for row in rows if row is not None)


def _check_ids(fields: Sequence[Field]) -> None:
    refused = [(field.id, reason) for field in fields if (reason := refusal(field.id))]
    if refused:
        named = "; ".join(f"{field_id} ({reason})" for field_id, reason in refused[:3])
        raise InputError(
            f"{len(refused)} of {len(fields)} fields cannot be kept in a store under their id: "
            f"{named}{'; ...' if len(refused) > 3 else ''}; rename them, or leave them out with "
            "--exclude"
        )


def _remembered(known: Mapping[str, FieldRow], field: Field) -> FieldRow | None:
    """The row of a field that has not changed since it was known; else None.

    The folder of an OME-Zarr image is never known: its own time says nothing of what is in it.
    """
    earlier = known.get(field.id)
    if earlier is None or earlier.error or field.fault:
        return None
    source = _absolute(field.source)
    if (str(source.path), source.files) != (earlier.source, earlier.files):
        return None
    try:
        found = [Path(one.path).stat() for one in source.files] or [source.path.stat()]
    except OSError:
        return None
    size, changed = sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)
    if (size, changed) != (earlier.size_bytes, earlier.mtime_ns):
        return None
    header = ImageHeader(
        (earlier.height or 0, earlier.width or 0),
        earlier.channels or 0,
        earlier.dtype or "",
        size,
        changed,
        planes="",
        channel_names=earlier.channel_names,
    )
    return _row(field, source, header)


def _read(planes: Planes, field: Field) -> FieldRow:
    """The row of a field, from its header."""
    source = _absolute(field.source)
    if field.fault:
        return _row(field, source, error=field.fault)
    try:
        return _row(field, source, read_header(source, planes))
    except Exception as error:  # noqa: BLE001 - no header may end a plan of many fields
        told = reason(error)
        if not isinstance(error, CellsegError):
            told = f"{source.path}: {told}"
        size, time_ns = _of_file(source)
        return replace(_row(field, source, error=told), size_bytes=size, mtime_ns=time_ns)


def _of_file(source: Source) -> tuple[int | None, int | None]:
    """Size and time of a field that is one file: they tell whether it is another one now."""
    try:
        status = source.path.stat()
    except OSError:
        return None, None
    if source.files or not stat.S_ISREG(status.st_mode):
        return None, None
    return status.st_size, status.st_mtime_ns


def _absolute(source: Source) -> Source:
    """The same files from wherever later stages run: the store keeps the paths."""
    files = tuple(replace(one, path=str(Path(one.path).absolute())) for one in source.files)
    return Source(source.path.absolute(), files, source.channel_names)


def _row(
    field: Field, source: Source, header: ImageHeader | None = None, error: str | None = None
) -> FieldRow:
    place = field.place
    return FieldRow(
        id=field.id,
        source=str(source.path),
        size_bytes=header.size_bytes if header else None,
        mtime_ns=header.mtime_ns if header else None,
        height=header.shape[0] if header else None,
        width=header.shape[1] if header else None,
        channels=header.channels if header else None,
        dtype=header.dtype if header else None,
        error=error,
        files=source.files,
        plate=place.plate if place else None,
        well=place.well if place else None,
        field=place.field if place else None,
        t=place.t if place else None,
        channel_names=source.channel_names or (header.channel_names if header else ()),
    )


def _read_all(fields: Sequence[Field], planes: Planes, threads: int) -> list[FieldRow]:
    """The rows of fields that are to be opened, in this process or in several."""
    read = partial(_read, planes)
    step = max(1, len(fields) // SAMPLE)
    sample, cost = timed(read, fields[::step])
    rest = [field for index, field in enumerate(fields) if index % step]
    apart = None
    if cost.computing * len(rest) * (1 - 1 / threads) > WORTH_PROCESSES_S:
        apart = _in_processes(rest, planes, threads, cost.threads)
    rows = iter(apart or together(read, rest, cost.threads))
    first = iter(sample)
    return [next(first if index % step == 0 else rows) for index in range(len(fields))]


def _in_processes(
    fields: Sequence[Field], planes: Planes, processes: int, threads: int
) -> list[FieldRow] | None:
    """The rows of ``fields`` in order; None where processes cannot be started or kept."""
    if multiprocessing.current_process().daemon:  # these may not have processes of their own
        return None
    chunks = [fields[start : start + CHUNK] for start in range(0, len(fields), CHUNK)]
    work = partial(_read_chunk, planes, threads)
    # spawn: a fork copies locks that other threads hold
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, context, _begin) as pool:
            return list(chain.from_iterable(_cancelling(pool, work, chunks)))
    except (OSError, BrokenProcessPool):
        return None


def _cancelling(
    pool: ProcessPoolExecutor,
    work: Callable[[Sequence[Field]], list[FieldRow]],
    chunks: Sequence[Sequence[Field]],
) -> Iterator[list[FieldRow]]:
    """The results in order; what has not begun is given up when the caller ends early."""
    try:
        yield from pool.map(work, chunks)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_chunk(planes: Planes, threads: int, fields: Sequence[Field]) -> list[FieldRow]:
    return together(partial(_read, planes), fields, threads)


def _begin() -> None:
    """In a process of the pool: leave interrupts to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
