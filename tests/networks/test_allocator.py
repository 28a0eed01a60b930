"""One heap for all threads, from the start of a run on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg_cli.images.synthetic import render_field
from cellseg_cli.networks import allocator

HEAPS = """
import ctypes, sys
from cellseg_cli.cli.app import run

code = run(sys.argv[2:])
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
sys.exit(code)
"""


def _is_glibc() -> bool:
    return allocator._function("malloc_info") is not None


@pytest.mark.skipif(not _is_glibc(), reason="the C library is not glibc")
def test_the_threads_of_a_run_share_one_heap(tmp_path: Path) -> None:
    import tifffile

    for number in range(6):
        tifffile.imwrite(
            tmp_path / f"{number}.tif", render_field("A01", number + 1, size=(128, 128))[0]
        )
    told, out = tmp_path / "heaps.xml", tmp_path / "a.zarr"
    given = [told, "embed", tmp_path, "--out", out, "--device", "cpu", "-q"]
    subprocess.run([sys.executable, "-c", HEAPS, *map(str, given)], check=True, timeout=300)
    heaps = re.findall(r"<heap nr=", told.read_text())
    assert len(heaps) == 1


def test_what_is_free_goes_back_every_so_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(allocator, "_TRIM_PX", 100)
    monkeypatch.setattr(allocator, "_function", lambda name: lambda room: trims.append(room.value))
    litter = allocator.Litter()
    for px in (60, 39, 1, 99, 250):
        litter.after_pass(px)
    assert trims == [0, 0]
