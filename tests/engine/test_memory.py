"""Sizes as people write them, and what machines, containers and batch systems grant."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellseg_cli.engine import memory
from cellseg_cli.engine.memory import Granted, granted_memory, parse_memory, shown
from cellseg_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        (" 1.5 gb ", 15 * 10**8),
        ("512MiB", 2**29),
        ("1TB", 10**12),
        ("2000000", 2_000_000),
        ("2000000B", 2_000_000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "8G", "8 iB", "-8GB", "8GB4", "1e9", "8" * 41 + "GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_memory(text)
    assert str(caught.value) == (f"--memory {text[:40]!r} is no size such as 8GB, 512MiB or 16GiB")


def test_a_number_without_its_unit_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_memory("8")
    assert str(caught.value) == "--memory 8 is 8 bytes: give its unit, such as 8GB"


def test_sizes_are_shown_rounded_up() -> None:
    assert [shown(size) for size in (4e9, 4_000_000_001, 999_000_001, 1)] == [
        "4 GB",
        "4.1 GB",
        "1000 MB",
        "1 MB",
    ]


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups, where this process is in ``/jobs/7`` of both versions."""
    machine = [Granted(64 * 10**9, "this machine")]
    monkeypatch.setattr(memory, "_machine", lambda: iter(machine))
    real = memory._lines

    def lines(path: Path) -> list[str]:
        if path == Path("/proc/self/cgroup"):
            return ["5:cpu:/jobs/7", "4:memory:/jobs/7", "0::/jobs/7"]
        return real(path)

    monkeypatch.setattr(memory, "_lines", lines)
    (tmp_path / "jobs/7").mkdir(parents=True)
    (tmp_path / "memory/jobs/7").mkdir(parents=True)
    return tmp_path


def test_a_machine_without_limits_grants_what_it_has(group: Path) -> None:
    (group / "jobs/7/memory.max").write_text("max\n")
    (group / "memory/jobs/7/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert granted_memory({}, group) == Granted(64 * 10**9, "this machine")


@pytest.mark.parametrize(
    "name",
    ["jobs/7/memory.max", "jobs/memory.max", "memory/jobs/7/memory.limit_in_bytes"],
)
def test_control_groups_grant_less(group: Path, name: str) -> None:
    (group / name).write_text("3000000000\n")
    by = f"the control group of this process ({group / name})"
    assert granted_memory({}, group) == Granted(3_000_000_000, by)


def test_inside_a_container_the_top_counts(group: Path) -> None:
    (group / "jobs/7").rmdir()
    (group / "memory.max").write_text("2000000000\n")
    granted = granted_memory({}, group)
    assert granted is not None
    assert granted.bytes == 2_000_000_000


def test_slurm_grants_less(group: Path) -> None:
    whole = granted_memory({"SLURM_MEM_PER_NODE": "4096"}, group)
    assert whole == Granted(4 << 30, "SLURM (SLURM_MEM_PER_NODE)")
    each = granted_memory({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "4"}, group)
    assert each == Granted(8 << 30, "SLURM (SLURM_MEM_PER_CPU × SLURM_CPUS_ON_NODE)")
    # 0 is all of the node
    unlimited = granted_memory({"SLURM_MEM_PER_NODE": "0"}, group)
    assert unlimited == Granted(64 * 10**9, "this machine")


def test_this_machine_can_be_asked() -> None:
    granted = granted_memory()
    assert granted is not None
    assert granted.bytes > 10**8
