"""Which device computes, for which process, and in which precision."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import torch

from cellseg_cli.errors import ConfigError, DeviceError

#: Lock files that this process holds until it ends, by device.
_claimed: dict[str, int] = {}
_claiming = threading.Lock()


def resolve_device(wanted: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:I``.

    Only ``auto`` may choose; asking for a device that is not there is an error.

    Raises
    ------
    DeviceError
        CUDA was asked for and is not there.
    ConfigError
        The name is none of the above.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise ConfigError(f"--device {wanted!r} is none of auto, cpu, cuda, cuda:I")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise DeviceError(
            f"--device {wanted}: PyTorch sees {count} CUDA devices; use --device cpu or auto"
        )
    return torch.device(wanted)


def claim_device(wanted: str) -> str:
    """Return a device for this process that, where possible, no other process works on.

    For worker processes, of which each shall have an accelerator of its own.  ``cuda``, and
    ``auto`` where there is one, become the first CUDA device that no other process of this user
    on this machine has claimed; when all are claimed, the process's number decides.  A claim is
    a lock on a small file and ends with the process, however that ends.  Asking again gives
    the same device.  Every other name is returned as it is.

    Raises
    ------
    DeviceError
        CUDA was asked for and is not there.
    ConfigError
        The name is no device.
    """
    target = resolve_device(wanted)
    if str(target) != "cuda":
        return str(target)
    with _claiming:
        if _claimed:
            return next(iter(_claimed))
        devices = _cuda_devices()
        for index, hardware in enumerate(devices):
            if (held := _locked(_lock_folder() / f"{hardware}.lock")) is not None:
                _claimed[f"cuda:{index}"] = held
                return f"cuda:{index}"
    return f"cuda:{os.getpid() % len(devices)}"


def _cuda_devices() -> list[str]:
    """What tells each visible device from all others, in CUDA's order.

    Indices do not: every process may see other devices (``CUDA_VISIBLE_DEVICES``).
    """
    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [str(device.uuid) for device in found]


def _lock_folder() -> Path:
    """A folder that only this user can write to."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"cellseg-devices-{user}"


def _locked(path: Path) -> int | None:
    """Lock a file; its descriptor, or None where another process holds it or it cannot be had."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 natively, so that it is the faster choice."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current device
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions oneDNN emulates bf16 and is slower than float32.
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capabilities and bool(torch.cpu._is_avx512_bf16_supported())
