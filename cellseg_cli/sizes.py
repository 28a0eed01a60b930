"""Amounts of memory as people write them: ``8GB``, ``512MiB``.

Units are decimal (1 GB is 10⁹ bytes) unless they say GiB.
"""

from __future__ import annotations

import re

from cellseg_cli.errors import ConfigError

#: Less is a number that was given without its unit.
LEAST_BYTES = 10**6

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b)?\s*", re.IGNORECASE)


def parse_size(text: str, option: str) -> int:
    """Return the bytes that the value of an option says.

    Raises
    ------
    ConfigError
        No size, or one below 1 MB.

    Examples
    --------
    >>> parse_size("8GB", "--memory"), parse_size("1.5 GiB", "--memory")
    (8000000000, 1610612736)
    """
    found = _SIZE.fullmatch(text)
    if found is None or len(text) > 40:
        raise ConfigError(f"{option} {text[:40]!r} is no size such as 8GB, 512MiB or 16GiB")
    number, prefix, binary = found.group(1), (found.group(2) or "").lower(), found.group(3)
    if binary and not prefix:
        raise ConfigError(f"{option} {text[:40]!r} is no size such as 8GB, 512MiB or 16GiB")
    size = int(float(number) * (1024 if binary else 1000) ** _POWERS[prefix])
    if size < LEAST_BYTES:
        raise ConfigError(f"{option} {text} is {size} bytes: give its unit, such as {number}GB")
    return size
