"""Which device computes, and in which precision."""

from __future__ import annotations

import torch

from cellseg_cli.errors import ConfigError, DeviceError


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


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 natively, so that it is the faster choice."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current device
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions oneDNN emulates bf16 and is slower than float32.
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capabilities and bool(torch.cpu._is_avx512_bf16_supported())
