"""From the planes of one plate to its fields of view, and what is to be said of them.

Rules.  Channels, z and time points of a plate are numbered by rank among all of its files.
The one image of a channel that lies beside its z planes is their projection and left out; where
there are no z planes it is the channel's only plane.  Every time point is a field of its own.
A field that lacks a plane which the reader has listed, or which other fields of the plate have
where nothing is listed, is found with a fault, and so is one with two files for one plane;
planes of channels that were not asked for do not count.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cellseg_cli.images.listing import without_suffix
from cellseg_cli.images.plates.formats import Format, Plane, field_name
from cellseg_cli.images.plates.metadata import Metadata
from cellseg_cli.images.source import Field, Place, Source
from cellseg_cli.rows import PlaneFile

#: Row, column, field and time point (its rank or number).
Key = tuple[str, str, str, int]
#: Files by channel and z; the projection of a channel has z None.
Planes = dict[tuple[str, int | None], list[str]]


@dataclass(frozen=True)
class Plate:
    """The files of one plate as they were found.

    Attributes
    ----------
    format
        Whose names they have.
    folder
        Of the plate, relative to the root.
    name
        Of the plate, as its files have it; may be empty.
    files
        What each name says, and the path relative to the root.
    left_out
        Number of files that are left out by rule, by reason.
    metadata
        What the reader wrote beside them.
    whole
        Whether nothing was left out by a filter: then what is missing is missing.
    """

    format: Format
    folder: str
    name: str
    files: list[tuple[Plane, str]]
    left_out: Counter[str] = field(default_factory=Counter)
    metadata: Metadata | None = None
    whole: bool = False


@dataclass(frozen=True)
class Grouped:
    """The fields of one plate, and one line that says what it is; None if nothing was grouped."""

    fields: tuple[Field, ...]
    told: str | None


@dataclass(frozen=True)
class _Axes:
    """The numbers of channels, z and time points of a plate."""

    channels: Mapping[str, int]
    names: tuple[str, ...]
    z: Mapping[int, int]
    times: Mapping[int | str, int]


def group_plate(plate: Plate, root: Path, channels: Sequence[int] | None) -> Grouped:
    """Return the fields of a plate.

    Parameters
    ----------
    plate
        Its files.
    root
        What their paths are relative to.
    channels
        The channels whose planes have to be there; None for all.
    """
    axes = _axes(plate)
    fields, projections = _fields(plate, axes)
    wanted = set(axes.channels)
    if channels is not None:
        wanted = {name for name, number in axes.channels.items() if number in channels}
    faults = _faults(plate, axes, fields, wanted)
    builder = _Builder(plate, axes, root, _keeps_ids(plate, fields))
    built = tuple(builder.build(key, planes, faults.get(key)) for key, planes in fields.items())
    absent = tuple(builder.absent(key, names) for key, names in _absent(plate, axes, fields))
    left_out = plate.left_out + Counter({"projections beside their z planes": projections})
    told = _told(plate, axes, fields, left_out, len(absent), builder.path)
    return Grouped(built + absent, None if builder.keeps_ids else told)


def _axes(plate: Plate) -> _Axes:
    keys = sorted({plane.channel for plane, _ in plate.files}, key=_natural)
    told = plate.metadata.channels if plate.metadata else {}
    z = sorted({plane.z for plane, _ in plate.files if plane.z is not None})
    found = {plane.t for plane, _ in plate.files}
    numbers = {t for t in found if isinstance(t, int)}
    times: dict[int | str, int] = {t: t for t in numbers}
    if len(numbers) < len(found):
        ordered = sorted(found, key=lambda t: (isinstance(t, str), _natural(str(t))))
        times = {t: rank for rank, t in enumerate(ordered)}
    return _Axes(
        {key: number for number, key in enumerate(keys)},
        _channel_names(keys, told),
        {step: rank for rank, step in enumerate(z)},
        times,
    )


def _channel_names(keys: Sequence[str], told: Mapping[str, str]) -> tuple[str, ...]:
    """A name for each channel: what is told of it, else its key; empty if it has none."""
    if keys == [""]:
        return ()
    plain = [re.sub(r"^(C\d\d)A\d\d$|^(ch\d+)fk.*$", r"\1\2", key) for key in keys]
    names = [told.get(key, key) for key in plain]
    counts = Counter(names)
    return tuple(
        name if counts[name] == 1 else f"{name} {key}"
        for name, key in zip(names, keys, strict=True)
    )


def _natural(text: str) -> list[tuple[int, str]]:
    """The order in which w2 comes before w10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    ]


def _fields(plate: Plate, axes: _Axes) -> tuple[dict[Key, Planes], int]:
    """The planes of each field, and how many projections were left out."""
    fields: dict[Key, Planes] = {}
    for plane, path in plate.files:
        key = (plane.row, plane.column, plane.field, axes.times[plane.t])
        fields.setdefault(key, {}).setdefault((plane.channel, plane.z), []).append(path)
    left_out = 0
    if axes.z:
        for planes in fields.values():
            stacks = {channel for channel, z in planes if z is not None}
            for channel in stacks:
                left_out += len(planes.pop((channel, None), ()))
    return fields, left_out


def _keeps_ids(plate: Plate, fields: Mapping[Key, Planes]) -> bool:
    return plate.format.keeps_ids and all(
        sum(len(paths) for paths in planes.values()) == 1 for planes in fields.values()
    )


# -- faults ---------------------------------------------------------------------------------


def _faults(
    plate: Plate, axes: _Axes, fields: Mapping[Key, Planes], wanted: set[str]
) -> dict[Key, str]:
    faults = {}
    every: set[tuple[str, int | None]] = set()
    for planes in fields.values():
        every |= planes.keys()
    listed = _listed(plate, axes)
    for key, planes in fields.items():
        expected = every if listed is None else listed.get(key, {}).keys()
        single = all(len(paths) == 1 for paths in planes.values())
        if single and planes.keys() >= expected:
            continue
        missing = _missing(planes, [one for one in expected if one[0] in wanted], every)
        twice = [paths for one, paths in planes.items() if len(paths) > 1 and one[0] in wanted]
        if twice:
            first, second = sorted(twice[0])[:2]
            faults[key] = f"two files are the same plane of it: {first} and {second}"
        elif missing:
            source = "its plate" if listed is None else _file_of(plate)
            faults[key] = f"is incomplete: {_named(missing, axes)}, which {source} has"
    return faults


def _missing(
    planes: Planes, expected: Iterable[tuple[str, int | None]], every: set[tuple[str, int | None]]
) -> list[tuple[str, int | None]]:
    """Expected planes that the field lacks; a projection stands in for nothing but itself.

    A channel that no field has was left out of the whole copy, which is told of the plate.
    """
    there = {channel for channel, _ in every}
    stacks = {channel for channel, z in planes if z is not None}
    return sorted(
        (
            (channel, z)
            for channel, z in expected
            if channel in there
            and (channel, z) not in planes
            and not (z is None and channel in stacks)
        ),
        key=lambda one: (_natural(one[0]), -1 if one[1] is None else one[1]),
    )


def _named(missing: Sequence[tuple[str, int | None]], axes: _Axes) -> str:
    def name(channel: str, z: int | None) -> str:
        named = axes.names[axes.channels[channel]] if axes.names else channel
        plane = f"z {axes.z[z]}" if z is not None and len(axes.z) > 1 else ""
        return " ".join(part for part in (f"channel {named}" if named else "", plane) if part)

    first = ", ".join(name(channel, z) or "its plane" for channel, z in missing[:3])
    more = f" and {len(missing) - 3} more planes" if len(missing) > 3 else ""
    return f"without {first}{more}"


def _file_of(plate: Plate) -> str:
    return plate.metadata.source.name if plate.metadata else "its plate"


def _listed(plate: Plate, axes: _Axes) -> dict[Key, Planes] | None:
    """The planes of each field that the reader lists; None where it lists none."""
    if plate.metadata is None or plate.metadata.files is None or not plate.whole:
        return None
    fields: dict[Key, Planes] = {}
    for name in sorted(plate.metadata.files):
        plane = plate.format.parse(plate.folder, name.rpartition(".")[0])
        if isinstance(plane, Plane) and plane.plate == plate.name and plane.t in axes.times:
            key = (plane.row, plane.column, plane.field, axes.times[plane.t])
            fields.setdefault(key, {}).setdefault((plane.channel, plane.z), []).append(name)
    return fields


def _absent(plate: Plate, axes: _Axes, fields: Mapping[Key, Planes]) -> list[tuple[Key, list[str]]]:
    """Listed fields without any file, in wells of which other fields are there."""
    listed = _listed(plate, axes) or {}
    wells = {key[:2] for key in fields}
    return [
        (key, sorted(name for names in planes.values() for name in names))
        for key, planes in listed.items()
        if key not in fields and key[:2] in wells
    ]


# -- fields ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Builder:
    """Makes the fields of one plate."""

    plate: Plate
    axes: _Axes
    root: Path
    keeps_ids: bool

    @cached_property
    def _prefix(self) -> str:
        """What the path of a file is put behind; pathlib would take half of the time."""
        return str(self.root / "x")[:-1]

    @cached_property
    def name(self) -> str:
        """Of the plate; the folder's where nothing else tells it."""
        told = self.plate.metadata.plate if self.plate.metadata else None
        return told or self.plate.name or _folder_name(self.plate, self.root)

    @cached_property
    def path(self) -> str:
        """Of the plate in ids."""
        name, folder = self.plate.name, self.plate.folder
        if self.plate.format.name == "pattern" and name:
            return name
        if not folder:
            return name or _folder_name(self.plate, self.root)
        return folder if not name or folder.rpartition("/")[2] == name else f"{folder}/{name}"

    def build(self, key: Key, planes: Planes, fault: str | None) -> Field:
        """The field of these planes."""
        files = tuple(
            PlaneFile(
                self._prefix + min(paths),
                self.axes.channels[channel],
                0 if z is None else self.axes.z[z],
            )
            for (channel, z), paths in sorted(planes.items(), key=self._position)
        )
        path = min(paths[0] for paths in planes.values()) if self.keeps_ids else None
        source = Source(Path(files[0].path), files, self.axes.names)
        return Field(self._id(key, path), source, self._place(key), fault)

    def absent(self, key: Key, names: Sequence[str]) -> Field:
        """A field of which nothing is there."""
        many = f"none of its {len(names)} files is" if len(names) > 1 else "its file is not"
        fault = f"{many} there: {_file_of(self.plate)} lists {names[0]}"
        source = Source(self.root / self.plate.folder / names[0], (), self.axes.names)
        return Field(self._id(key, None), source, self._place(key), fault)

    def _position(self, plane: tuple[tuple[str, int | None], list[str]]) -> tuple[int, int]:
        (channel, z), _ = plane
        return self.axes.channels[channel], -1 if z is None else z

    def _id(self, key: Key, path: str | None) -> str:
        if path is not None:
            return without_suffix(path)
        row, column, view, t = key
        time = f"t{t:03d}" if len(self.axes.times) > 1 else ""
        well = (row, column) if row else ()
        return "/".join((self.path, *well, field_name(view) + time))

    def _place(self, key: Key) -> Place | None:
        row, column, view, t = key
        if not row:
            return None
        # Names that tell the time since the start do so where there is only one, too.
        time = t if len(self.axes.times) > 1 or self.keeps_ids else None
        return Place(self.name, row, column, field_name(view), time)


def _folder_name(plate: Plate, root: Path) -> str:
    """The name of the plate's own folder, also where that is the root or above it."""
    if plate.folder:
        return plate.folder.rpartition("/")[2]
    absolute = root.absolute()
    above = plate.format.plate_folder(absolute.as_posix()) if plate.format.name != "pattern" else ""
    return Path(above or absolute).name or "plate"


# -- what is told ---------------------------------------------------------------------------


def _told(
    plate: Plate,
    axes: _Axes,
    fields: Mapping[Key, Planes],
    left_out: Counter[str],
    absent: int,
    label: str,
) -> str:
    """One line: what the plate has, what was left out of it, and where its reader disagrees."""
    views = Counter(key[:2] for key in {key[:3] for key in fields})
    found = {
        "wells": len(views),
        "fields of each well": max(views.values()),
        "channels": len(axes.channels),
        "z planes": max(len(axes.z), 1),
        "time points": len(axes.times),
    }
    parts = [_counted(len(fields), "field"), _counted(found["wells"], "well")]
    names = f" ({', '.join(axes.names)})" if axes.names else ""
    parts.append(_counted(found["channels"], "channel") + names)
    if found["z planes"] > 1:
        parts.append(_counted(found["z planes"], "z plane"))
    if found["time points"] > 1:
        parts.append(_counted(found["time points"], "time point"))
    said = [f"{label}: {_article(plate.format.name)} plate of {', '.join(parts)}"]
    rules = [f"{count} {reason}" for reason, count in sorted(left_out.items()) if count]
    if rules:
        said.append(f"left out by rule: {', '.join(rules)}")
    return "; ".join(said + _disagreements(plate, axes, found, absent))


def _disagreements(plate: Plate, axes: _Axes, found: Mapping[str, int], absent: int) -> list[str]:
    metadata = plate.metadata
    if metadata is None:
        return []
    said = []
    if plate.whole:
        less = [
            f"{count} {what}, {found[what]} here"
            for what, count in metadata.expected.items()
            if found[what] != count
        ]
        less += _unlisted(plate, axes)
        if less:
            said.append(f"{metadata.source.name} tells of {' and '.join(less)}")
    if absent:
        said.append(f"{_counted(absent, 'field')} that it lists without any file")
    if metadata.errors:
        said.append(f"{_counted(metadata.errors, 'fault')} noted while the images were taken")
    return said


def _unlisted(plate: Plate, axes: _Axes) -> list[str]:
    """Listed wells and channels of which no file is there."""
    if plate.metadata is None or plate.metadata.files is None:
        return []
    planes = [
        plane
        for name in plate.metadata.files
        if isinstance(plane := plate.format.parse(plate.folder, name.rpartition(".")[0]), Plane)
        and plane.plate == plate.name
    ]
    here = {(plane.row, plane.column) for plane, _ in plate.files}
    wells = {(plane.row, plane.column) for plane in planes} - here
    channels = {plane.channel for plane in planes} - axes.channels.keys()
    times = {plane.t for plane in planes} - axes.times.keys()
    counts = {"well": len(wells), "channel": len(channels), "time point": len(times)}
    return [f"{_counted(n, what)} more than is here" for what, n in counts.items() if n]


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def planes_by_plate(files: Iterable[tuple[Plane, str]]) -> dict[str, list[tuple[Plane, str]]]:
    """The planes of each plate of one folder, by the name of the plate."""
    plates: dict[str, list[tuple[Plane, str]]] = defaultdict(list)
    for plane, path in files:
        plates[plane.plate].append((plane, path))
    return plates
