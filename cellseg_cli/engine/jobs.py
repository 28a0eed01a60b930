"""Jobs of a batch system that run dask workers: their options, and how they are asked for.

dask-jobqueue writes the job scripts and submits them; the package is optional.  Options that
are left out come from the site's ``jobqueue.yaml`` of dask, where there is one.

The scheduler listens on the network of the cluster, where others are at work who must not be
able to use it: certificates are made for each run, and only who can read them may connect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg_cli.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from distributed.deploy.spec import SpecCluster
    from distributed.security import Security

#: A configuration is a page; a file that is larger is something else.
LIMIT_BYTES = 1 << 20

#: What a worker does at parts of its memory limit.  A field takes memory while its task runs,
#: and its result is a few numbers: there is nothing to spill, and a worker that pauses above a
#: limit, because of what its libraries keep, would pause for ever.  Above the last one it is
#: replaced, before the system does it, which might choose another process.
WORKER_MEMORY: dict[str, float] = {
    "target": False,
    "spill": False,
    "pause": False,
    "terminate": 0.95,
}

#: Variables of workers, which must stand before the process starts.
WORKER_VARIABLES = {
    # Memory of large arrays goes back to the system instead of adding up.
    "MALLOC_TRIM_THRESHOLD_": "65536",
    # One heap for all threads, see cellseg_cli.networks.allocator.
    "MALLOC_ARENA_MAX": "1",
    # Each thread works on a field of its own; libraries must not start more of them.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}

#: The class of dask-jobqueue, and the program that submits, of each batch system.
SYSTEMS = {
    "slurm": ("SLURMCluster", "sbatch"),
    "pbs": ("PBSCluster", "qsub"),
    "lsf": ("LSFCluster", "bsub"),
}


@dataclass(frozen=True)
class JobSettings:
    """What each job asks for, and how many there are.

    Attributes
    ----------
    jobs
        Jobs in the queue at the same time.  A run begins with the first that starts and takes
        in the others as they come; jobs that end, such as at their time limit, are submitted
        again.
    cores, memory, walltime
        Of one job, such as ``8``, ``"32GB"``, ``"04:00:00"``.
    processes
        Processes per job, which share its cores and memory: one per accelerator.
    queue
        Queue, or partition.
    account
        Account or project that is charged.
    interface, scheduler_interface
        Network interface of the workers, such as ``ib0``; and of this process, if another.
    job_name, log_directory
        As the batch system shows it; where the output of jobs goes.
    local_directory
        Folder on each node for the lock files of workers.
    job_extra_directives, job_directives_skip
        Lines to add to the head of the job script, and those with these words to leave out.
    job_script_prologue
        Shell lines before the worker starts, such as ``module load`` or ``source .../activate``.
    worker_extra_args
        Further arguments of ``dask worker``.
    python
        The interpreter on the nodes; that of this process if not given.
    resource_spec
        Of PBS: the line after ``-l``.
    encrypt
        TLS with certificates for this run.
    shared_directory
        Where all nodes can read them; the working directory if not given.
    start_timeout_s
        How long to wait in the queue for the first job.
    """

    jobs: int = 1
    cores: int | None = None
    memory: str | None = None
    processes: int = 1
    walltime: str | None = None
    queue: str | None = None
    account: str | None = None
    interface: str | None = None
    scheduler_interface: str | None = None
    job_name: str = "cellseg"
    log_directory: str | None = None
    local_directory: str | None = None
    job_extra_directives: tuple[str, ...] = ()
    job_directives_skip: tuple[str, ...] = ()
    job_script_prologue: tuple[str, ...] = ()
    worker_extra_args: tuple[str, ...] = ()
    python: str | None = None
    resource_spec: str | None = None
    encrypt: bool = True
    shared_directory: str | None = None
    start_timeout_s: float = 3600.0

    @property
    def logs(self) -> str:
        """Where the output of the jobs is."""
        return self.log_directory or "where the batch system puts them; set log_directory"


def read_jobs(file: Path | None) -> JobSettings:
    """Return the options in a TOML file; the defaults without one.

    Raises
    ------
    ConfigError
        All unknown keys, or all bad values, in one message; a file that cannot be read.
    """
    if file is None:
        return JobSettings()
    try:
        with file.open("rb") as stream:
            content = stream.read(LIMIT_BYTES + 1)
        values = tomllib.loads(content[:LIMIT_BYTES].decode())
    except OSError as error:
        raise ConfigError(f"--cluster-config {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"--cluster-config {file} is not valid TOML: {error}") from error
    if len(content) > LIMIT_BYTES:
        raise ConfigError(f"--cluster-config {file} is larger than {LIMIT_BYTES} bytes")
    return _validated(values, file)


def _validated(values: dict[str, Any], file: Path) -> JobSettings:
    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in dataclasses.fields(JobSettings)]
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(
            f"--cluster-config {file} has unknown keys {', '.join(unknown)}; "
            f"known: {', '.join(sorted(known))}"
        )
    try:
        settings = TypeAdapter(JobSettings).validate_python(values)
    except ValidationError as error:
        faults = [
            f"{fault['loc'][0]} = {fault['input']!r}: {fault['msg']}" for fault in error.errors()
        ]
        raise ConfigError(f"--cluster-config {file}: {'; '.join(faults)}") from error
    numbers = {name: getattr(settings, name) for name in ("jobs", "cores", "processes")}
    if low := [
        f"{name} = {value}" for name, value in numbers.items() if value is not None and value < 1
    ]:
        raise ConfigError(f"--cluster-config {file}: {', '.join(low)}: must be 1 at least")
    if settings.cores and settings.cores < settings.processes:
        raise ConfigError(
            f"--cluster-config {file}: {settings.processes} processes share {settings.cores} "
            "cores; every process needs one"
        )
    return settings


@contextlib.contextmanager
def certificates_in(settings: JobSettings) -> Iterator[Path | None]:
    """A folder for the certificates of this run that only its user can read; None without.

    Raises
    ------
    ConfigError
        It cannot be made where the options say.
    """
    if not settings.encrypt:
        yield None
        return
    parent = Path(settings.shared_directory or ".").absolute()
    try:
        folder = tempfile.mkdtemp(prefix=".cellseg-tls-", dir=parent)
    except OSError as error:
        raise ConfigError(
            f"no certificates can be kept in {parent}: {error.strerror}; name a folder that the "
            "nodes can read too by shared_directory in --cluster-config"
        ) from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def submitted(system: str, settings: JobSettings, certificates: Path | None) -> SpecCluster:
    """Return the cluster of a batch system, with a scheduler in this process and no job yet.

    Parameters
    ----------
    certificates
        A folder that the nodes can read; None speaks without TLS.

    Raises
    ------
    ConfigError
        Options that this system does not have or that are missing; packages that are missing.
    ClusterError
        This machine cannot submit to it.
    """
    name, program = SYSTEMS[system]
    _check_packages(system, settings)
    if system != "pbs" and settings.resource_spec:
        raise ConfigError(f"resource_spec is an option of pbs, not of {system}")
    if shutil.which(program) is None:
        raise ClusterError(
            f"--cluster {system}: there is no {program} here; start cellseg where jobs are "
            "submitted, or see --scheduler"
        )
    import dask
    import dask_jobqueue

    for option in ("cores", "memory"):
        if not (getattr(settings, option) or dask.config.get(f"jobqueue.{system}.{option}")):
            raise ConfigError(
                f"--cluster {system} needs the {option} of a job: put {option} into "
                "--cluster-config"
            )
    cluster: SpecCluster = getattr(dask_jobqueue, name)(**keywords(system, settings, certificates))
    return cluster


def _check_packages(system: str, settings: JobSettings) -> None:
    install = "install it with: pip install 'cellseg-cli[hpc]'"
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise ConfigError(f"--cluster {system} needs dask-jobqueue, which is missing; {install}")
    if settings.encrypt and importlib.util.find_spec("cryptography") is None:
        raise ConfigError(f"encrypt = true needs cryptography, which is missing; {install}")


def keywords(system: str, settings: JobSettings, certificates: Path | None) -> dict[str, Any]:
    """Arguments of the cluster class; what is not given is left to the configuration of dask."""
    import dask

    given: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(settings).items()
        if value not in (None, ()) and name not in _NOT_PASSED
    }
    if settings.account:
        given["project" if system == "lsf" else "account"] = settings.account
    if certificates:
        given["security"] = _security(certificates)
    memory = {
        f"DASK_DISTRIBUTED__WORKER__MEMORY__{name.upper()}": str(value)
        for name, value in WORKER_MEMORY.items()
    }
    given["job_script_prologue"] = [
        *(f"export {name}={value}" for name, value in (WORKER_VARIABLES | memory).items()),
        *settings.job_script_prologue,
    ]
    scheduler: dict[str, Any] = dask.config.get(f"jobqueue.{system}.scheduler-options", None) or {}
    scheduler = {"dashboard_address": ":0", **scheduler}  # :8787 may be another run's
    if interface := settings.scheduler_interface or settings.interface:
        scheduler["interface"] = interface
    return {**given, "scheduler_options": scheduler}


def _security(folder: Path) -> Security:
    """One certificate for all sides of this run, in files that only its user can read."""
    from distributed.security import Security

    made = Security.temporary()
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    for file, text in ((certificate, made.tls_ca_file), (key, made.tls_worker_key)):
        file.touch(mode=0o600)
        file.write_text(text)
    sides: dict[str, str] = {}
    for side in ("client", "scheduler", "worker"):
        sides |= {f"tls_{side}_cert": str(certificate), f"tls_{side}_key": str(key)}
    return Security(require_encryption=True, tls_ca_file=str(certificate), **sides)


#: Options that have no argument of the same name.
_NOT_PASSED = {
    "jobs",
    "account",
    "encrypt",
    "shared_directory",
    "scheduler_interface",
    "start_timeout_s",
}
