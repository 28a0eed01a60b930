"""The address of a dask scheduler, as given or from the file that it has written.

Such a file is not ours: it is read up to a size, and nothing of it is used but the address.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cellseg_cli.errors import ConfigError

#: A scheduler writes a few kilobytes; a file that is larger is something else.
LIMIT_BYTES = 1 << 20

#: What we can speak; ``inproc`` and ``ucx`` lead nowhere for a program of its own.
_ADDRESS = re.compile(r"(?:tcp|tls)://(?:\[[\w:.%]{2,64}\]|[\w.-]{1,253}):\d{1,5}")


def scheduler_address(wanted: str) -> tuple[str, str]:
    """Return the address of a scheduler and how `dask worker` is told to join it.

    Parameters
    ----------
    wanted
        ``tcp://host:port``, ``tls://host:port`` or the path of a scheduler file.

    Raises
    ------
    ConfigError
        It is neither, or the file names no address.

    >>> scheduler_address("tcp://node1:8786")
    ('tcp://node1:8786', 'tcp://node1:8786')
    """
    if "://" in wanted:
        if not _is_address(wanted):
            raise ConfigError(
                f"--scheduler {wanted!r} is no address tcp://host:port or tls://host:port"
            )
        return wanted, wanted
    return _address_in(Path(wanted)), f"--scheduler-file {wanted}"


def _is_address(text: str) -> bool:
    return bool(_ADDRESS.fullmatch(text)) and 0 < int(text.rpartition(":")[2]) < 1 << 16


def _address_in(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"--scheduler {file}: {error.strerror}; give tcp://host:port, or the file that "
            f"`dask scheduler --scheduler-file {file}` writes"
        ) from error
    if len(content) > LIMIT_BYTES:
        raise ConfigError(f"{file} is larger than {LIMIT_BYTES} bytes: no scheduler file of dask")
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is no scheduler file of dask: not valid JSON") from error
    address = read.get("address") if isinstance(read, dict) else None
    if not isinstance(address, str) or not _is_address(address):
        raise ConfigError(
            f"{file} is no scheduler file of dask: it names no address tcp://host:port or "
            "tls://host:port"
        )
    return address
