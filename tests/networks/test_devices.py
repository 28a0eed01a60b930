"""Each worker process gets an accelerator of its own while there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from cellseg_cli.errors import ConfigError, DeviceError
from cellseg_cli.networks import devices
from cellseg_cli.networks.devices import claim_device

#: Claims one of two devices, says which, and holds it until its input ends.
CLAIM = """
import sys
import torch
torch.cuda.is_available = lambda: True
from cellseg_cli.networks import devices
devices._cuda_devices = lambda: ["GPU-a", "GPU-b"]
print(devices.claim_device(sys.argv[1]), devices.claim_device(sys.argv[1]), flush=True)
sys.stdin.read()
"""


def claiming(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"TMPDIR": str(folder)}
    command = [sys.executable, "-c", CLAIM, "auto"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def claimed(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_processes_share_devices_only_when_all_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_cuda_devices", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with claiming(tmp_path) as first, claiming(tmp_path) as second:
        names = claimed(first), claimed(second)
        assert sorted(names) == [["cuda:0", "cuda:0"], ["cuda:1", "cuda:1"]]
        assert claim_device("auto") == f"cuda:{os.getpid() % 2}"
        second.kill()
        second.wait()
        assert claim_device("auto") == names[1][0]  # a claim ends with its process
        os.close(devices._claimed.pop(names[1][0]))
        first.kill()


def test_a_device_that_was_named_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert claim_device("cuda:1") == "cuda:1"
    assert claim_device("cpu") == "cpu"
    assert devices._claimed == {}


def test_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert claim_device("auto") == "cpu"
    with pytest.raises(DeviceError):
        claim_device("cuda")
    with pytest.raises(ConfigError):
        claim_device("gpu")


@pytest.mark.gpu
def test_a_real_device_is_claimed() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert claim_device("auto") == "cuda:0"
