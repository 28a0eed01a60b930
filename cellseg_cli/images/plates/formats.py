"""What the file names and folders of plate readers mean.

Each format is a function from a folder and a file name without suffix to a :class:`Plane`, to
the reason why such a file is left out by rule (a plural noun), or to None for a name that is
not of the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias


class Plane(NamedTuple):
    """What a name says of its file.

    ``plate`` is empty where only the folder names it.  ``t`` counts from 0 where it is a
    number; texts are ranked within the plate.  ``z`` is None for the one image of a channel
    beside which z planes may lie: their projection, or all there is.  ``row`` and ``column``
    are as OME-Zarr names them, and empty where the well is not known.
    """

    plate: str
    row: str
    column: str
    field: str
    channel: str
    z: int | None = None
    t: int | str = 0


Parsed: TypeAlias = Plane | str | None


@dataclass(frozen=True)
class Format:
    """How one kind of export is recognised.

    Attributes
    ----------
    name
        As ``--pattern`` names it.
    parse
        From folder and name without suffix; see the module.
    plate_folder
        The folder of the whole plate, from the folder of one of its files.
    telling
        Whether a name is enough, as no other program would give it; None where all are.
    keeps_ids
        Whether fields of one file each keep the id of that file.
    whole_names
        Whether ``parse`` is given names with their suffix.
    """

    name: str
    parse: Callable[[str, str], Parsed]
    plate_folder: Callable[[str], str]
    telling: Callable[[str, str], bool] | None = None
    keeps_ids: bool = False
    whole_names: bool = False


def row_name(number: int) -> str:
    """The letters of a row of wells, from 1.

    >>> [row_name(n) for n in (1, 26, 27, 32)]
    ['A', 'Z', 'AA', 'AF']
    """
    letters = ""
    while number > 0:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


@lru_cache(maxsize=4096)
def field_name(text: str) -> str:
    """The name of a field of view as the last part of an id: letters and digits only.

    >>> field_name("7"), field_name("0012"), field_name("left-top")
    ('f007', 'f012', 'lefttop')
    """
    if text.isdecimal():
        return f"f{int(text):03d}"
    return "".join(character for character in text if character.isalnum() and character.isascii())


def _parts(folder: str) -> list[str]:
    return folder.split("/") if folder else []


# -- ImageXpress (MetaXpress): PLATE_B02_s1_w1.TIF, a GUID behind where it comes from the database

_GUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$")
_IMAGEXPRESS = re.compile(
    r"(?:(?P<plate>.*)_)?(?P<row>[A-Za-z]{1,2})(?P<column>\d{2})(?:_s(?P<site>\d{1,4}))?"
    r"(?:_w(?P<wave>\d{1,2}))?(?:_z(?P<z>\d{1,4}))?(?:_t(?P<t>\d{1,5}))?(?P<thumb>_thumb)?$"
)
_TIME_POINT = re.compile(r"TimePoint_(\d{1,6})$")
_Z_STEP = re.compile(r"ZStep_(\d{1,6})$")


def _imagexpress(folder: str, stem: str) -> Parsed:
    """``ZStep_0`` of an export and what lies beside the ``ZStep`` folders are projections."""
    told = _IMAGEXPRESS.match(_GUID.sub("", stem))
    if told is None:
        return None
    if told["thumb"]:
        return "thumbnails"
    t, z = int(told["t"] or 1), int(told["z"] or 0)
    for part in _parts(folder)[-2:]:
        if time := _TIME_POINT.match(part):
            t = int(time[1])
        elif step := _Z_STEP.match(part):
            z = int(step[1])
    return Plane(
        told["plate"] or "",
        told["row"].upper(),
        told["column"],
        told["site"] or "1",
        f"w{int(told['wave'] or 1)}",
        z or None,
        max(t - 1, 0),
    )


def _imagexpress_folder(folder: str) -> str:
    parts = _parts(folder)
    if parts and _Z_STEP.match(parts[-1]):
        parts.pop()
    if parts and _TIME_POINT.match(parts[-1]):
        parts.pop()
    return "/".join(parts)


def _imagexpress_tells(folder: str, stem: str) -> bool:
    """Other programs name wells too; a wavelength, a GUID or such a folder is MetaXpress's."""
    told = _IMAGEXPRESS.match(stem)
    return told is None or told["wave"] is not None or _imagexpress_folder(folder) != folder


# -- CellVoyager CV7000 and CV8000: PLATE_B02_T0001F001L01A01Z01C01.tif

_CELLVOYAGER = re.compile(
    r"(?P<plate>.*)_(?P<row>[A-Z]{1,2})(?P<column>\d{2})_T(?P<t>\d{4,6})F(?P<field>\d{3,4})"
    r"L(?P<line>\d{2})A(?P<action>\d{2})Z(?P<z>\d{2,4})C(?P<channel>\d{2})$"
)


def _cellvoyager(folder: str, stem: str) -> Parsed:
    """The second timeline and action of a plate show in its time points and channels."""
    told = _CELLVOYAGER.match(stem)
    if told is None:
        return "correction images" if stem.startswith(("DC_", "SC_")) else None
    t = int(told["t"]) - 1
    return Plane(
        told["plate"],
        told["row"],
        told["column"],
        told["field"],
        f"C{told['channel']}A{told['action']}",
        int(told["z"]),
        t if told["line"] == "01" else f"L{told['line']}T{told['t']}",
    )


# -- Harmony (Operetta, Opera Phenix): PLATE/Images/r02c03f01p01-ch1sk1fk1fl1.tiff

_HARMONY = re.compile(
    r"r(?P<row>\d{2})c(?P<column>\d{2})f(?P<field>\d{2,4})(?:p(?P<z>\d{2,4}))?"
    r"-ch(?P<channel>\d{1,2})(?:sk(?P<t>\d{1,6}))?(?P<state>(?:fk\d+)?(?:fl\d+)?)$"
)


def _harmony(folder: str, stem: str) -> Parsed:
    told = _HARMONY.match(stem)
    if told is None:
        return None
    state = "" if told["state"] in ("", "fk1", "fl1", "fk1fl1") else told["state"]
    return Plane(
        "",
        row_name(int(told["row"])),
        told["column"],
        told["field"],
        f"ch{told['channel']}{state}",
        int(told["z"]) if told["z"] else None,
        max(int(told["t"] or 1) - 1, 0),
    )


def _harmony_folder(folder: str) -> str:
    parts = _parts(folder)
    return "/".join(parts[:-1] if parts and parts[-1] == "Images" else parts)


# -- IncuCyte: PREFIX_Phase_A7_1_00d04h00m.tif; LIVECell puts the quarter of the image behind

_INCUCYTE = re.compile(
    r"(?:(?P<plate>.*?)_{1,2})?(?P<row>[A-P])(?P<column>\d{1,2})_(?P<image>\d{1,4})_"
    r"(?P<t>\d{1,3}d\d{2}h\d{2}m|\d{4}y\d{2}m\d{2}d_\d{2}h\d{2}m)(?:_(?P<crop>\d{1,3}))?$"
)
_INCUCYTE_CHANNELS = frozenset(
    {"phase", "green", "red", "nir", "orange", "brightfield", "phaseoriginal", "ph", "c1", "c2"}
)


def _incucyte(folder: str, stem: str) -> Parsed:
    told = _INCUCYTE.match(stem)
    if told is None:
        return None
    plate, _, last = (told["plate"] or "").rpartition("_")
    channel = last
    if last.lower() not in _INCUCYTE_CHANNELS:
        plate, channel = told["plate"] or "", (_parts(folder) or [""])[-1]
        channel = channel if channel.lower() in _INCUCYTE_CHANNELS else "image"
    crop = f"c{int(told['crop'])}" if told["crop"] else ""
    days = told["t"].partition("d")[0]
    t = told["t"] if "y" in told["t"] else f"{int(days):03d}{told['t'][len(days) :]}"
    image = f"f{int(told['image']):03d}{crop}"
    return Plane(plate, told["row"], f"{int(told['column']):02d}", image, channel, None, t)


def _incucyte_folder(folder: str) -> str:
    parts = _parts(folder)
    return "/".join(parts[:-1] if parts and parts[-1].lower() in _INCUCYTE_CHANNELS else parts)


def _same(folder: str) -> str:
    return folder


#: By what is asked first: no name is of two of these formats but for the last, whose names say
#: least.
FORMATS = (
    Format("harmony", _harmony, _harmony_folder),
    Format("cellvoyager", _cellvoyager, _same),
    Format("incucyte", _incucyte, _incucyte_folder, keeps_ids=True),
    Format("imagexpress", _imagexpress, _imagexpress_folder, _imagexpress_tells),
)
