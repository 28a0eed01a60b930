"""A user's own pattern: a regular expression with named groups."""

from __future__ import annotations

import re

from cellseg_cli.errors import ConfigError
from cellseg_cli.images.listing import without_suffix
from cellseg_cli.images.plates.formats import Format, Parsed, Plane, row_name

#: Groups that a pattern may have.
GROUPS = ("plate", "well", "row", "column", "field", "channel", "z", "t")
#: Longer ones are no pattern of file names; the time that matching may take grows with both.
MAX_PATTERN = 500
MAX_PATH = 1024
#: Escapes and sets of characters, in which signs have no meaning.
_OPAQUE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_SIGNS = re.compile(r"\(|\)(?:[*+]|\{\d*,\})?|[*+]|\{\d*,\}")
_WELL = re.compile(r"([A-Za-z]{1,2})[-_ ]?(\d{1,2})$")
_ROW = re.compile(r"[A-Za-z]{1,2}$|\d{1,2}$")


def custom_format(pattern: str) -> Format:
    """The format of a pattern.

    It is searched for in the path relative to the source, without suffix, and then with it.

    Raises
    ------
    ConfigError
        The pattern cannot be understood, may take too long, or has other groups than
        :data:`GROUPS`.
    """
    compiled = _compiled(pattern)
    names = compiled.groupindex

    def parse(folder: str, name: str) -> Parsed:
        path = f"{folder}/{name}" if folder else name
        if len(path) > MAX_PATH:
            return None
        told = compiled.search(without_suffix(path)) or compiled.search(path)
        if told is None:
            return None
        values = {name: told[name] or "" for name in names}
        row, column = _well(values, path)
        return Plane(
            values.get("plate", ""),
            row,
            column,
            values.get("field") or "1",
            values.get("channel", ""),
            _natural(values["z"], path) if values.get("z") else None,
            values.get("t", ""),
        )

    def plate_folder(folder: str) -> str:
        # Files of one plate may lie in many folders where the pattern tells plates apart.
        return "" if "plate" in names else folder

    return Format("pattern", parse, plate_folder, whole_names=True)


def _compiled(pattern: str) -> re.Pattern[str]:
    known = f"the groups it may have are {', '.join(GROUPS)}, such as (?P<well>[A-H]\\d\\d)"
    if len(pattern) > MAX_PATTERN:
        raise ConfigError(
            f"--pattern has {len(pattern)} characters, more than the {MAX_PATTERN} it may have"
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as fault:
        raise ConfigError(
            f"--pattern '{pattern}' is no regular expression ({fault}), nor one of "
            f"imagexpress, harmony, cellvoyager, incucyte, none; {known}"
        ) from fault
    if _repeats_repetition(pattern):
        raise ConfigError(
            f"--pattern '{pattern}' repeats a group that has a repetition in it, which may take "
            "for ever; leave one of the two repetitions out"
        )
    strange = [name for name in compiled.groupindex if name not in GROUPS]
    if strange:
        raise ConfigError(f"--pattern has the unknown group {strange[0]}; {known}")
    if not compiled.groupindex:
        raise ConfigError(
            f"--pattern {pattern} is none of imagexpress, harmony, cellvoyager, incucyte, none, "
            f"and as a regular expression it has no group; {known}"
        )
    if not {"well", "field", "row"} & set(compiled.groupindex):
        raise ConfigError(f"--pattern has neither the group well nor field; {known}")
    if ("row" in compiled.groupindex) != ("column" in compiled.groupindex):
        raise ConfigError("--pattern needs both of the groups row and column, or well instead")
    return compiled


def _repeats_repetition(pattern: str) -> bool:
    r"""Whether a group with an unbounded repetition in it is repeated without bound.

    Matching such a pattern, like ``(a+)+``, may take exponential time.

    >>> [_repeats_repetition(p) for p in (r"(\w+_?)+", r"([ab+]\+)+", r"(a+){2,}", r"(a+)b+")]
    [True, False, True, False]
    """
    bare = _OPAQUE.sub("x", pattern)  # no bracket or sign of it means anything else now
    open_groups = [False]
    for sign in _SIGNS.finditer(bare):
        if sign[0].startswith("("):
            open_groups.append(False)
        elif sign[0].startswith(")"):
            inner = open_groups.pop() if len(open_groups) > 1 else False
            repeated = len(sign[0]) > 1
            if inner and repeated:
                return True
            open_groups[-1] |= inner or repeated
        else:
            open_groups[-1] = True
    return False


def _well(values: dict[str, str], path: str) -> tuple[str, str]:
    """Row and column as OME-Zarr names them; empty without a group for them."""
    if "row" in values:
        row, column = values["row"], values["column"]
        if _ROW.match(row) and column.isdecimal() and int(column) < 100:
            return row_name(int(row)) if row.isdecimal() else row.upper(), f"{int(column):02d}"
        raise ConfigError(f"--pattern finds the row '{row}' and column '{column}' in {path}")
    if "well" not in values:
        return "", ""
    told = _WELL.match(values["well"])
    if told is None:
        raise ConfigError(
            f"--pattern finds the well '{values['well']}' in {path}; "
            "a well is letters and a number, such as B02"
        )
    return told[1].upper(), f"{int(told[2]):02d}"


def _natural(text: str, path: str) -> int:
    if text.isdecimal():
        return int(text)
    raise ConfigError(f"--pattern finds the z '{text}' in {path}, which is no number")
