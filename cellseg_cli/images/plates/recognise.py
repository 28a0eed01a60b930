"""Which folders of a listing are plates, and of which format.

A folder is a plate if every image in it has a name of one format, or if the reader's own
metadata lies there; anything else stays what it is, one field a file.  Where most names are of
a format and some are not, that is told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellseg_cli.errors import InputError
from cellseg_cli.images.listing import Listing, without_suffix
from cellseg_cli.images.plates.custom import custom_format
from cellseg_cli.images.plates.formats import FORMATS, Format, Plane
from cellseg_cli.images.plates.grouping import Grouped, Plate, group_plate, planes_by_plate
from cellseg_cli.images.plates.metadata import Metadata, reader_of
from cellseg_cli.images.source import Field

#: Plates that get a line each; those after them are summed up.
TOLD_PLATES = 20


@dataclass(frozen=True)
class Recognised:
    """The fields of plates, the images that belong to none, and what is to be told."""

    fields: tuple[Field, ...]
    rest: list[str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Folder:
    """The images of what may be the folder of a plate, as one format sees them."""

    format: Format
    path: str
    planes: list[tuple[Plane, str]]
    left_out: list[tuple[str, str]]
    strange: list[str]

    @property
    def telling(self) -> bool:
        """Whether every name tells by itself of which format it is."""
        tells = self.format.telling
        return tells is None or all(tells(*_split(path)) for _, path in self.planes)


def recognise(
    listing: Listing, pattern: str | None, channels: Sequence[int] | None = None
) -> Recognised:
    """Return the fields of all plates of a listing.

    Parameters
    ----------
    listing
        Where the images lie.
    pattern
        None: plates of any format are recognised.  The name of a format: every folder that
        has names of it is a plate.  ``none``: no folder is.  Else a regular expression.
    channels
        The channels that have to be there in every field, from 0; None for all.

    Raises
    ------
    ConfigError
        The pattern cannot be understood.
    InputError
        The pattern is not that of any image.
    """
    if pattern == "none" or (pattern is None and len(listing.images) < 2):
        return Recognised((), listing.images, ())
    plates, rest, notes = _all_plates(listing, pattern)
    grouped = [group_plate(plate, listing.root, channels) for plate in plates]
    if pattern is not None and not plates and listing.images:
        raise InputError(
            f"{listing.root}: none of {len(listing.images)} images has a name of the pattern "
            f"{pattern}; the first is {min(listing.images)}"
        )
    lines = [group.told for group in grouped if group.told is not None]
    if len(lines) > TOLD_PLATES:
        lines[TOLD_PLATES:] = [f"and {len(lines) - TOLD_PLATES} more plates"]
    fields = tuple(field for group in grouped for field in group.fields)
    return Recognised(fields, rest, (*lines, *_ungrouped(plates, grouped), *notes))


def _all_plates(listing: Listing, pattern: str | None) -> tuple[list[Plate], list[str], list[str]]:
    """The plates, the images that belong to none, and notes."""
    notes: list[str] = []
    rest = listing.images
    stems = {path: without_suffix(path.rpartition("/")[2]) for path in rest}
    plates: list[Plate] = []
    for one in FORMATS if pattern is None else (_format(pattern),):
        metadata = _metadata_files(listing, one)
        remaining: list[str] = []
        for folder in _folders(one, rest, stems):
            known = metadata.get(folder.path)
            certain = pattern is not None or known or (folder.telling and not folder.strange)
            if folder.planes and certain:
                plates += _plates(folder, listing, known, notes)
                remaining += folder.strange
            else:
                remaining += _untouched(folder, notes)
        rest = remaining
    return plates, rest, notes


def _ungrouped(plates: Sequence[Plate], grouped: Sequence[Grouped]) -> list[str]:
    """One line for all plates of which each file is a field under its own id."""
    names = {plate.name for plate, group in zip(plates, grouped, strict=True) if not group.told}
    fields = sum(len(group.fields) for group in grouped if not group.told)
    if not fields:
        return []
    wells = f"{fields} file names tell their well and time point (incucyte, "
    return [f"{wells}{len(names)} plate{'s' * (len(names) != 1)}); each file is a field"]


def _format(pattern: str) -> Format:
    named = {one.name: one for one in FORMATS}
    return named.get(pattern) or custom_format(pattern)


def _folders(one: Format, images: Iterable[str], stems: Mapping[str, str]) -> list[_Folder]:
    """What the format makes of each folder of these images, sorted."""
    found: dict[str, _Folder] = {}
    folder_of: dict[str, _Folder] = {}
    whole = one.whole_names
    for path in images:
        folder, _, name = path.rpartition("/")
        seen = folder_of.get(folder)
        if seen is None:
            above = one.plate_folder(folder)
            new = _Folder(one, above, [], [], [])
            seen = folder_of[folder] = found.setdefault(above, new)
        parsed = one.parse(folder, name if whole else stems[path])
        if isinstance(parsed, Plane):
            seen.planes.append((parsed, path))
        elif parsed is None:
            seen.strange.append(path)
        else:
            seen.left_out.append((parsed, path))
    return [found[path] for path in sorted(found)]


def _split(path: str) -> tuple[str, str]:
    """Folder, and name without suffix."""
    folder, _, name = path.rpartition("/")
    return folder, without_suffix(name)


def _metadata_files(listing: Listing, one: Format) -> dict[str, list[str]]:
    """The files with the name of the format's metadata, by folder of a plate; deepest last."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in listing.metadata:
        folder, _, name = path.rpartition("/")
        if reader_of(one.name, name) is not None:
            found[one.plate_folder(folder)].append(path)
    return {
        folder: sorted(paths, key=lambda p: (p.count("/"), p)) for folder, paths in found.items()
    }


def _plates(
    folder: _Folder, listing: Listing, known: list[str] | None, notes: list[str]
) -> list[Plate]:
    """The plates of one folder; files of other names stay fields of their own, which is told."""
    if folder.strange:
        count = len(folder.strange)
        who = f"{count} images" if count > 1 else "1 image"
        stay = "stay fields of their own" if count > 1 else "stays a field of its own"
        notes.append(
            f"{folder.path or '.'}: {who} without a name of the pattern {folder.format.name} "
            f"{stay}, such as {min(folder.strange)}"
        )
    by_name = planes_by_plate(folder.planes)
    plates = []
    for number, (name, files) in enumerate(sorted(by_name.items())):
        metadata = _metadata(listing.root, folder.format, known or [], name, len(by_name), notes)
        left_out = Counter(reason for reason, _ in folder.left_out) if number == 0 else Counter()
        plates.append(
            Plate(folder.format, folder.path, name, files, left_out, metadata, listing.whole)
        )
    return plates


def _metadata(
    root: Path, one: Format, known: list[str], plate: str, plates: int, notes: list[str]
) -> Metadata | None:
    """What the first readable file says that is of this plate: by its name, or as the only one."""
    for path in known:
        name = path.rpartition("/")[2]
        reader = reader_of(one.name, name)
        of_plate = plates == 1 or not name.lower().endswith(".htd") or name[:-4] == plate
        if reader is None or not of_plate:
            continue
        try:
            metadata = reader(root / path)
        except InputError as fault:
            notes.append(f"{fault}; the plate is read by the names of its files")
        else:
            notes += metadata.notes
            return metadata
    return None


def _untouched(folder: _Folder, notes: list[str]) -> list[str]:
    """The images of a folder that is no plate of this format."""
    paths = [path for _, path in folder.planes]
    total = len(paths) + len(folder.strange)
    if folder.strange and len(paths) > total / 2 and folder.telling:
        notes.append(
            f"{folder.path or '.'}: {len(paths)} of {total} images have names of the pattern "
            f"{folder.format.name}, but not {min(folder.strange)}: each file is a field of its "
            f"own; --pattern {folder.format.name} groups them"
        )
    return paths + folder.strange + [path for _, path in folder.left_out]
