"""The errors that a user can cause or cure, and the exit code of each.

Every message says what happened, the values, and what to do.  The command
layer turns any :class:`CellsegError` into one line on stderr and its
``exit_code``; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a shell script can rely on."""

    DONE = 0  #: everything that was asked for is there
    SOME_FAILED = 1  #: finished; some fields failed and are listed
    USAGE = 2  #: wrong flag, setting, model, store or output path
    NOTHING_DONE = 3  #: the input gave nothing to work on, or every field failed
    INTERRUPTED = 130  #: stopped by a signal; the same command resumes


class CellsegError(Exception):
    """Base of every error that is the user's to cure."""

    exit_code = ExitCode.NOTHING_DONE


class InputError(CellsegError, ValueError):
    """An image, folder, list or annotation that cannot be used as it is."""


class ConfigError(CellsegError, ValueError):
    """A flag or setting that is unknown, out of range or in conflict with another."""

    exit_code = ExitCode.USAGE


class OutputExistsError(CellsegError, FileExistsError):
    """The output is there already and was not made by the same settings."""

    exit_code = ExitCode.USAGE


class StoreError(CellsegError, ValueError):
    """A store that is missing, of another version, damaged, or made with other settings."""

    exit_code = ExitCode.USAGE


class StoreWriteError(StoreError):
    """The store cannot be written any more: disk full, no permission, device error."""


class CheckpointError(CellsegError, ValueError):
    """A model file that is not one of ours, damaged, or of another version."""

    exit_code = ExitCode.USAGE


class DeviceError(CellsegError, RuntimeError):
    """A device that was asked for and is not there."""

    exit_code = ExitCode.USAGE


class ClusterError(CellsegError, RuntimeError):
    """A dask scheduler or batch system that cannot be used, or has no workers."""


class ClusterLostError(ClusterError):
    """The scheduler or all workers went away in the middle of a run."""

    exit_code = ExitCode.INTERRUPTED


class LimitError(CellsegError, MemoryError):
    """Something larger than a stated limit; the message names the limit to raise."""


class TrainingError(CellsegError, RuntimeError):
    """Training that cannot go on, such as a loss that is not finite."""
