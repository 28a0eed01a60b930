"""What must agree between this process and dask workers, which exchange objects of Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellseg_cli.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client


def check_versions(client: Client) -> None:
    """Raise ClusterError if a worker runs another Python, dask or cellseg than this process."""
    here = _versions()
    faults = []
    for address, there in client.run(_versions, on_error="return").items():
        if isinstance(there, BaseException):
            faults.append(f"{address} has no cellseg ({first_line(there)})")
            continue
        faults += [
            f"{address} has {name} {there.get(name)}, this process {version}"
            for name, version in here.items()
            if there.get(name) != version
        ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ClusterError(
            f"workers run other versions: {'; '.join(faults[:3])}{more}; install the same "
            "environment for both"
        )


def _versions() -> dict[str, str]:
    """Of what must agree between this process and the workers: they exchange its objects."""
    import platform

    import dask
    import distributed

    from cellseg_cli import __version__

    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "cellseg": __version__,
        "dask": dask.__version__,
        "distributed": distributed.__version__,
    }


def first_line(error: BaseException) -> str:
    """What an error says, or is."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
