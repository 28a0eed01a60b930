"""Find the fields of a run: which images there are, and the id of each.

Invariant: equal folders give equal tuples, sorted by id, whatever order the file system
lists them in, and no two fields share an id.  No image is opened here, so a file that is no
image is found like any other and fails when it is read.  A folder that may not be listed is
an error and not a gap; ``exclude`` takes it out.  What is left out by rule is told in the notes.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from cellseg_cli.errors import InputError
from cellseg_cli.images.listing import (
    SEGMENTED,
    SUFFIXES,
    Filter,
    Listing,
    list_source,
    without_suffix,
)
from cellseg_cli.images.planes import Planes
from cellseg_cli.images.plates.recognise import recognise
from cellseg_cli.images.source import Field, Source

__all__ = ["SUFFIXES", "Field", "Found", "discover", "find_fields"]

_SHOWN = ".png .jpg .jpeg .bmp .tif .tiff"


@dataclass(frozen=True)
class Found:
    """The fields of a source, sorted by id, and what the user should know, one line each."""

    fields: tuple[Field, ...]
    notes: tuple[str, ...] = ()


def find_fields(
    source: str | Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pattern: str | None = None,
    planes: Planes | None = None,
) -> tuple[Field, ...]:
    """Return the fields that :func:`discover` finds, without what is to be told of them."""
    found = discover(source, include=include, exclude=exclude, pattern=pattern, planes=planes)
    return found.fields


def discover(
    source: str | Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pattern: str | None = None,
    planes: Planes | None = None,
) -> Found:
    """Return the fields of a file, folder, glob or list file.

    A folder is searched recursively, through symbolic links, each loop once.  Files and
    folders whose name starts with a dot are left out.  A glob gives the files that match it;
    its root is the part before the first ``*``, ``?`` or ``[``.  A list file (``.txt``,
    ``.lst``) has one path a line, relative to its own folder, with ``#`` before comments; its
    root is that folder, or the deepest folder common to all files if one lies outside.  A zarr
    group gives the images in it, of an OME-Zarr plate every field.

    The files of a plate that was exported with a file per plane are grouped: channels and z
    planes of one field and time point become one field
    (:mod:`cellseg_cli.images.plates.recognise`).

    Parameters
    ----------
    source
        What the user gave.
    include, exclude
        Globs on the POSIX path relative to the root: ``*`` stays within one folder, ``**``
        crosses them; a pattern without ``/`` is matched with the bare name at any depth.  A
        file stays if it matches one of ``include`` (or there is none) and none of ``exclude``;
        a folder that matches ``exclude`` is not entered.
    pattern
        How the files of plates are named: ``imagexpress``, ``harmony``, ``cellvoyager``,
        ``incucyte``, ``none``, or a regular expression with named groups; None finds out.
    planes
        What the user chose: ``t`` leaves the fields of other time points of plates out, and
        planes of a channel that is not among ``channel`` may be missing.

    Raises
    ------
    InputError
        Nothing found, a path that is not there, a folder that may not be listed, a name that
        is not UTF-8, or two files with one id.
    ConfigError
        A pattern that cannot be understood.

    Notes
    -----
    ``os.scandir`` tells files from folders without a further call for each.  Measured on a busy
    machine: 100 000 files in 100 folders, 1.3 s of CPU time; 100 000 files of a plate that make
    25 000 fields, 1.6 s; 100 000 names of IncuCyte, a field each, 2 to 3 s.
    """
    chosen = Filter(tuple(include), tuple(exclude))
    with _no_collection():
        return _discover(source, chosen, pattern, planes or Planes())


def _discover(source: str | Path, chosen: Filter, pattern: str | None, planes: Planes) -> Found:
    listing = list_source(source, chosen)
    unwritable = [relative for relative in listing.images if not _is_utf8(relative)]
    if unwritable:
        raise InputError(
            f"{listing.root}: the file name {min(unwritable)!a} is not UTF-8; rename it"
        )
    if not listing.images and not listing.zarrs:
        raise InputError(_nothing(str(source), listing))
    plates = recognise(listing, pattern, planes.channel)
    plain = [
        Field(without_suffix(relative), Source(listing.root / relative)) for relative in plates.rest
    ]
    zarr, zarr_notes = _zarr_fields(listing)
    every = sorted([*plates.fields, *plain, *zarr], key=attrgetter("id"))
    fields, t_notes = _of_time(every, planes.t)
    _check_distinct(listing.root, fields)
    return Found(tuple(fields), (*plates.notes, *zarr_notes, *t_notes))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector up: hundreds of thousands of small values and no cycle.

    It would go through all of them again and again: half of the time for 100 000 files.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _of_time(fields: list[Field], t: int | None) -> tuple[list[Field], tuple[str, ...]]:
    """The fields without those of other time points of plates, and what to say of it."""
    timed = {field.place.t for field in fields if field.place and field.place.t is not None}
    if t is None or not timed:
        return fields, ()
    kept = [f for f in fields if f.place is None or f.place.t is None or f.place.t == t]
    if t not in timed:
        raise InputError(
            f"--t {t} is no time point of the plates: they have {len(timed)}, "
            f"{min(timed)} to {max(timed)}"
        )
    return kept, (f"{len(kept)} of {len(fields)} fields are chosen by --t {t}",)


def _zarr_fields(listing: Listing) -> tuple[list[Field], tuple[str, ...]]:
    """The images of all zarr groups; stores of this program are no source of images."""
    if not listing.zarrs:
        return [], ()
    fields: list[Field] = []
    stores = []
    for relative in listing.zarrs:
        # The root may be what a user takes for images: then it is an error and no note.
        if relative != "." and (listing.root / relative / ".cellseg").is_dir():
            stores.append(relative)
        else:
            fields += _zarr_images(listing.root, relative)
    if not fields and not listing.images:
        folder = listing.root / stores[0]
        raise InputError(f"{folder} is {_made(folder)}, no source of images")
    return fields, tuple(f"{one} is {_made(listing.root / one)} and left out" for one in stores)


def _made(folder: Path) -> str:
    labels = (folder / SEGMENTED).is_dir()
    return "a folder of label images of cellseg" if labels else "a store of cellseg"


def _zarr_images(root: Path, relative: str) -> list[Field]:
    """The images of one zarr group; one that holds none is a field with that fault."""
    from cellseg_cli.images.ome_zarr import images_in

    folder = root / relative
    name = _zarr_stem(folder.absolute().name if relative == "." else relative)
    try:
        images = images_in(folder)
    except InputError as fault:
        if relative == ".":
            raise
        return [Field(name, Source(folder), None, str(fault))]
    fields = []
    for image in images:
        inner = "" if image.relative == "." else image.relative
        field_id = "/".join(part for part in (name, inner) if part)
        fields.append(Field(field_id, Source(folder / inner), image.place, image.fault))
    return fields


def _zarr_stem(name: str) -> str:
    for suffix in (".ome.zarr", ".zarr"):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _check_distinct(root: Path, fields: Sequence[Field]) -> None:
    """Refuse ids that are shared, of fields sorted by id: a store could keep one of two only."""
    again = [i for i in range(1, len(fields)) if fields[i].id == fields[i - 1].id]
    if not again:
        return
    field_id = fields[again[0]].id
    paths = sorted(field.path for field in fields if field.id == field_id)
    first, second = (path.relative_to(root).as_posix() for path in paths[:2])
    more = f" (and {len(again) - 1} more such files)" if len(again) > 1 else ""
    raise InputError(
        f"{root}: {first} and {second} would both be the field '{field_id}'{more}; "
        f"rename one, or leave one out with --exclude"
    )


def _nothing(source: str, found: Listing) -> str:
    """Say what was looked for and what was there instead."""
    there = []
    if found.others:
        common = sorted(found.others.items(), key=lambda item: (-item[1], item[0]))[:5]
        types = ", ".join(f"{suffix} ({count})" for suffix, count in common)
        there.append(f"{_counted(sum(found.others.values()), 'other file')}: {types}")
    if found.left_out:
        there.append(f"{_counted(found.left_out, 'image')} left out by --include and --exclude")
    instead = "; ".join(there) or "no file at all"
    return f"{source}: no image found ({_SHOWN}); there: {instead}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
