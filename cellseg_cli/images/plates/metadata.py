"""What plate readers write beside their images: the names of channels, and what should be there.

These files come from anywhere: they are read to a bounded size, as a stream, and XML with a
document type (which could name other files or grow without end) is refused.  One that cannot
be read costs the names and nothing else; that is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from cellseg_cli.errors import InputError

#: An index of Harmony takes about 2.5 kB an image: this one is of 400 000 images.
MAX_XML_BYTES = 2**30
MAX_HTD_BYTES = 2**20


@dataclass(frozen=True)
class Metadata:
    """What the files of a plate reader say of one plate.

    Attributes
    ----------
    source
        The file that it is from.
    plate
        Name of the plate, where it is told.
    channels
        Names of channels by the key that file names have (``w1``, ``C01``, ``ch1``).
    files
        Names of all images, where they are listed.
    expected
        How many of each there should be (wells, sites, time points), where that is told.
    errors
        Number of faults that the reader noted while it took the images.
    notes
        What could not be read of it.
    """

    source: Path
    plate: str | None = None
    channels: Mapping[str, str] = field(default_factory=dict)
    files: frozenset[str] | None = None
    expected: Mapping[str, int] = field(default_factory=dict)
    errors: int = 0
    notes: tuple[str, ...] = ()


def read_htd(path: Path) -> Metadata:
    """The .HTD file of MetaXpress: lines of ``"Key", value, ...``.

    Raises
    ------
    InputError
        The file cannot be read, is too large or has no such line.
    """
    values: dict[str, list[str]] = {}
    for line in _bytes(path, MAX_HTD_BYTES).decode("latin-1").splitlines():
        if told := re.match(r'"(\w+)",(.*)$', line):
            values.setdefault(told[1], [part.strip().strip('"') for part in told[2].split(",")])
    if "XWells" not in values and "NWavelengths" not in values:
        raise InputError(f"{path}: is no HTD file of MetaXpress")
    waves = range(1, 1 + _number(values, "NWavelengths", 0, most=99))
    channels = {f"w{n}": values[f"WaveName{n}"][0] for n in waves if f"WaveName{n}" in values}
    wells = [v for key, v in values.items() if key.startswith("WellsSelection")]
    sites = [v for key, v in values.items() if key.startswith("SiteSelection")]
    expected = {
        "wells": sum(row.count("TRUE") for row in wells),
        "fields of each well": sum(row.count("TRUE") for row in sites),
        "channels": len(waves),
        "z planes": _number(values, "ZSteps", 0) if values.get("ZSeries") == ["TRUE"] else 0,
        "time points": _number(values, "TimePoints", 0),
    }
    expected = {what: count for what, count in expected.items() if count}
    return Metadata(path, channels=channels, expected=expected)


def read_measurement(path: Path) -> Metadata:
    """``MeasurementData.mlf`` of a CellVoyager, and the channels of the ``.mes`` beside it.

    Raises
    ------
    InputError
        The file cannot be read, is too large, or is not XML without a document type.  A ``.mes``
        of which this is true costs the names of the channels; that stands in the notes.
    """
    files: list[str] = []
    errors = 0
    kind = ""

    def begins(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal kind, errors
        kind = attributes.get("Type", "") if name == "MeasurementRecord" else ""
        errors += kind == "ERR"

    def ends(name: str, text: str) -> None:
        if name == "MeasurementRecord" and kind == "IMG":
            files.append(text)

    _read_xml(path, begins, ends)
    channels, notes = {}, []
    try:
        channels = _settings_channels(path.parent)
    except InputError as fault:
        notes.append(f"{fault}; its channels have no names")
    return Metadata(path, None, channels, frozenset(files), {}, errors, tuple(notes))


def _settings_channels(folder: Path) -> dict[str, str]:
    """Names of the channels in the only ``.mes`` file of the folder: dye, or else filter."""
    settings = sorted(folder.glob("*.mes"))
    channels: dict[str, str] = {}

    def begins(name: str, attributes: Mapping[str, str]) -> None:
        number = attributes.get("Ch", "")
        if name == "Channel" and number.isdecimal():
            told = attributes.get("Fluorophore") or attributes.get("Acquisition")
            if told:
                channels.setdefault(f"C{int(number):02d}", told)

    if len(settings) == 1:
        _read_xml(settings[0], begins, lambda name, text: None)
    return channels


def read_index(path: Path) -> Metadata:
    """``Index.xml`` (``Index.idx.xml``) of Harmony.

    Channels are named in each ``Image`` (version 5) or in an ``Entry`` of a map (since 6).

    Raises
    ------
    InputError
        The file cannot be read, is too large, or is not XML without a document type.
    """
    files: list[str] = []
    channels: dict[str, str] = {}
    plates: list[str] = []
    within: list[str] = []
    number = name_of_channel = ""

    def begins(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal number, name_of_channel
        within.append(name)
        if name in ("Image", "Entry"):
            number, name_of_channel = attributes.get("ChannelID", ""), ""

    def ends(name: str, text: str) -> None:
        nonlocal number, name_of_channel
        within.pop()
        if name == "ChannelID":
            number = text
        elif name == "ChannelName":
            name_of_channel = text
        elif name == "URL" and text:
            files.append(text.replace("\\", "/").rpartition("/")[2])
        elif name == "Name" and within[-1:] == ["Plate"]:
            plates.append(text)
        elif name in ("Image", "Entry") and number and name_of_channel:
            channels.setdefault(f"ch{number}", name_of_channel)

    _read_xml(path, begins, ends)
    plate = plates[0] if len(plates) == 1 and plates[0] else None
    return Metadata(path, plate, channels, frozenset(files) if files else None)


#: Readers of metadata by format: which files, in lower case, and how; the first that is there.
READERS: Mapping[str, tuple[tuple[str, Callable[[Path], Metadata]], ...]] = {
    "imagexpress": ((".htd", read_htd),),
    "cellvoyager": (("measurementdata.mlf", read_measurement),),
    "harmony": (
        ("index.xml", read_index),
        ("index.idx.xml", read_index),
        ("index.ref.xml", read_index),
    ),
}


def reader_of(format_name: str, file_name: str) -> Callable[[Path], Metadata] | None:
    """The function that reads a file of this name as the metadata of a format, if any does."""
    lower = file_name.lower()
    for ending, reader in READERS.get(format_name, ()):
        if lower == ending or (ending.startswith(".") and lower.endswith(ending)):
            return reader
    return None


def _number(values: Mapping[str, list[str]], key: str, otherwise: int, most: int = 10**6) -> int:
    text = values.get(key, [""])[0]
    return min(int(text), most) if text.isdecimal() and len(text) < 8 else otherwise


def _bytes(path: Path, limit: int) -> bytes:
    try:
        _check_size(path, limit)
        return path.read_bytes()
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror})") from fault


def _check_size(path: Path, limit: int) -> None:
    size = path.stat().st_size
    if size > limit:
        raise InputError(f"{path}: has {size} bytes, more than the {limit} that are read")


def _read_xml(
    path: Path,
    begins: Callable[[str, Mapping[str, str]], None],
    ends: Callable[[str, str], None],
) -> None:
    """Call back for each element: names without prefix, and the text since the last tag."""
    texts: list[str] = []

    def started(name: str, attributes: Mapping[str, str]) -> None:
        texts.clear()
        plain = {key.rpartition(":")[2]: value for key, value in attributes.items()}
        begins(name.rpartition(":")[2], plain)

    def ended(name: str) -> None:
        ends(name.rpartition(":")[2], "".join(texts).strip())
        texts.clear()

    def refused(*declared: object) -> None:
        raise InputError(f"{path}: has a document type, which no plate reader writes")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = started
    parser.EndElementHandler = ended
    parser.CharacterDataHandler = texts.append
    parser.StartDoctypeDeclHandler = refused
    try:
        _check_size(path, MAX_XML_BYTES)
        with path.open("rb") as stream:
            parser.ParseFile(stream)
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror})") from fault
    except expat.ExpatError as fault:
        raise InputError(f"{path}: is not XML ({fault})") from fault
    except InputError:
        raise
    except (ValueError, LookupError) as fault:  # of expat: a multi-byte encoding, or an unknown one
        raise InputError(f"{path}: is XML in an encoding that is not read ({fault})") from fault
