"""What a run needs: arithmetic by hand, advice that holds, and the peak of real runs below it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.config import EmbedSettings
from cellseg_cli.engine.memory import Granted
from cellseg_cli.errors import ConfigError
from cellseg_cli.networks.checkpoint import find_model, read_header
from cellseg_cli.pipeline import forecast as forecasting
from cellseg_cli.pipeline.budget import (
    ACCELERATOR_BYTES,
    CLUSTER_PROCESS_BYTES,
    NETWORK_PROCESS_BYTES,
    PARENT_BYTES,
    AtOnce,
    Budget,
    Carrying,
    NetworkNeeds,
    clustering_budget,
    embedding_budget,
    segmenting_budget,
)
from cellseg_cli.pipeline.calibrate import network_needs
from cellseg_cli.pipeline.events import Event, Failure, Noted, StagePlanned
from cellseg_cli.pipeline.forecast import Forecast, planned
from cellseg_cli.pipeline.plan import Plan
from cellseg_cli.rows import FieldRow

NEEDS = NetworkNeeds(14_000_000, 334.0, in_channels=3, components=4, classes=3)
DEFAULT = EmbedSettings(tile_px=1024, halo_px=64, batch_size=8)


def rows(count: int, height: int, width: int, **of: object) -> list[FieldRow]:
    named = {"channels": 1, "dtype": "uint16", **of}
    return [
        FieldRow(f"f{n}", f"/images/f{n}.tif", 1, 1, height, width, **named)  # type: ignore[arg-type]
        for n in range(count)
    ]


def by_seeds(row: FieldRow) -> AtOnce:
    return AtOnce("seeds", min(row.pixels, 4096**2))


# -- how much -------------------------------------------------------------------------------


def test_a_spare_thread_holds_a_field_but_no_window_of_the_network() -> None:
    usual = embedding_budget(rows(9, 520, 704), NEEDS, DEFAULT, Carrying(2, passes=2))
    spare = embedding_budget(rows(9, 520, 704), NEEDS, DEFAULT, Carrying(3, passes=2))
    assert (
        usual.bytes_total
        == embedding_budget(rows(9, 520, 704), NEEDS, DEFAULT, Carrying(2)).bytes_total
    )
    assert spare.bytes_total - usual.bytes_total == spare.thread_bytes
    assert (Carrying(3, passes=2).at_once, Carrying(3).at_once, Carrying(1, passes=2).at_once) == (
        2,
        3,
        1,
    )


def test_processes_and_threads_add_up() -> None:
    budget = Budget("embed", Carrying(4, 2, apart=True), 1000, 30, 0, window_bytes=70)
    assert budget.bytes_per_thread == 100
    assert budget.bytes_per_worker == 1000 + 4 * 100
    assert budget.bytes_total == PARENT_BYTES + 2 * 1400
    alone = replace(budget, carrying=Carrying(4))
    assert alone.bytes_total == 1400


def test_a_thread_holds_at_least_the_arrays_of_its_field() -> None:
    budget = embedding_budget(rows(9, 2048, 2048), NEEDS, DEFAULT, Carrying(2))
    px = 2048 * 2048
    scaled, result = px * 3 * 4, px * (2 * 4 + 3)
    assert budget.thread_bytes > scaled + result
    # a window of 1024² with its activations
    assert budget.window_bytes > 1024 * 1024 * 334
    assert budget.process_bytes == NETWORK_PROCESS_BYTES + 14_000_000
    assert budget.bytes_to_write == 9 * px * 11


def test_memory_grows_with_neither_the_number_nor_the_size_of_large_fields() -> None:
    few = embedding_budget(rows(8, 520, 704), NEEDS, DEFAULT, Carrying(2))
    many = embedding_budget(rows(4000, 520, 704), NEEDS, DEFAULT, Carrying(2))
    assert many.bytes_total == few.bytes_total
    large = embedding_budget(rows(1, 8192, 8192), NEEDS, DEFAULT, Carrying(2))
    larger = embedding_budget(rows(1, 65536, 65536), NEEDS, DEFAULT, Carrying(2))
    assert larger.bytes_total == large.bytes_total


def test_the_largest_field_counts_wherever_it_is() -> None:
    mixed = [*rows(5, 520, 704), *rows(1, 2048, 1024), *rows(5, 520, 704)]
    alone = embedding_budget(rows(2, 2048, 1024), NEEDS, DEFAULT, Carrying(2))
    together = embedding_budget(mixed, NEEDS, DEFAULT, Carrying(2))
    assert together.bytes_total == alone.bytes_total


def test_a_large_field_of_a_format_without_regions_is_held_whole() -> None:
    tiff = embedding_budget(rows(1, 9000, 9000), NEEDS, DEFAULT, Carrying(1))
    png = [replace(row, source="/images/f0.PNG") for row in rows(1, 9000, 9000)]
    held = embedding_budget(png, NEEDS, DEFAULT, Carrying(1)).bytes_total - tiff.bytes_total
    assert held >= 9000 * 9000 * 2


def test_threads_without_work_take_nothing() -> None:
    one = embedding_budget(rows(1, 520, 704), NEEDS, DEFAULT, Carrying(1))
    idle = embedding_budget(rows(1, 520, 704), NEEDS, DEFAULT, Carrying(16))
    assert idle.bytes_total == one.bytes_total
    # a field of 5000 × 9000 px has 2 × 3 slabs
    slabs = embedding_budget(rows(1, 5000, 9000), NEEDS, DEFAULT, Carrying(16))
    assert slabs.carrying.threads == 6
    # of whose tiles 16 are in the network at a time
    assert slabs.helpers == 16 - 6
    assert slabs.bytes_per_worker == (
        slabs.process_bytes + 6 * slabs.thread_bytes + 16 * slabs.window_bytes
    )
    # but is clustered on one thread
    assert (
        clustering_budget(rows(1, 5000, 9000), NEEDS, Carrying(16), by_seeds).carrying.threads == 1
    )


def test_tiles_are_counted_with_their_halos() -> None:
    budget = embedding_budget(rows(3, 520, 704), NEEDS, DEFAULT, Carrying(1))
    assert (budget.tiles, budget.network_px) == (3, 3 * 520 * 704)
    # 20 px by tiles of 16 with a halo of 2: windows of 16 and 8 px, see tiling.tiles
    small = EmbedSettings(tile_px=16, halo_px=2)
    budget = embedding_budget(rows(2, 8, 20), NEEDS, small, Carrying(1))
    assert (budget.tiles, budget.network_px) == (4, 2 * 8 * (16 + 8))


def test_nothing_to_do_needs_no_threads() -> None:
    budget = embedding_budget([], NEEDS, DEFAULT, Carrying(2))
    assert (budget.bytes_to_write, budget.tiles, budget.carrying.threads) == (0, 0, 1)


def test_an_accelerator_takes_passes_in_each_process() -> None:
    carrying = Carrying(8, accelerator=True)
    budget = embedding_budget(rows(50, 1024, 1024), NEEDS, DEFAULT, carrying)
    assert budget.window_bytes == 0
    assert budget.process_bytes == NETWORK_PROCESS_BYTES + 14_000_000 + ACCELERATOR_BYTES
    # images of 8 tiles and what comes back, at least in one pass
    assert budget.pass_bytes > 8 * 1024 * 1024 * (3 * 4 + 11)


def test_clustering_needs_no_network_and_segmenting_both() -> None:
    fields = rows(6, 1024, 1024)
    cluster = clustering_budget(fields, NEEDS, Carrying(2), by_seeds)
    assert cluster.process_bytes == CLUSTER_PROCESS_BYTES
    assert cluster.bytes_to_write == 6 * 1024 * 1024 * 4
    embed = embedding_budget(fields, NEEDS, DEFAULT, Carrying(2))
    both = segmenting_budget(fields, NEEDS, DEFAULT, Carrying(2), by_seeds)
    assert both.bytes_total > max(embed.bytes_total, cluster.bytes_total)
    assert both.bytes_to_write == cluster.bytes_to_write
    grid = clustering_budget(fields, NEEDS, Carrying(2), lambda row: AtOnce("grid", row.pixels))
    assert grid.bytes_total > cluster.bytes_total


def test_segmenting_large_fields_keeps_an_embedding_on_the_disk() -> None:
    both = segmenting_budget(rows(2, 5000, 5000), NEEDS, DEFAULT, Carrying(2), by_seeds)
    assert both.bytes_to_write == 2 * 5000 * 5000 * 4 + 5000 * 5000 * 11


# -- what to change -------------------------------------------------------------------------


def refused(budget: Budget, memory_bytes: int) -> str:
    with pytest.raises(ConfigError) as caught:
        budget.check(memory_bytes)
    return str(caught.value)


#: 1.1 GB a process, 1 GB a thread, of which 0.8 GB are the window.
ROUND = Budget(
    "embed",
    Carrying(4),
    process_bytes=1_100_000_000,
    thread_bytes=200_000_000,
    window_bytes=800_000_000,
    window_px=1024 * 1024,
    bytes_to_write=0,
    tile_px=1024,
    halo_px=64,
)


def test_what_fits_is_not_refused() -> None:
    ROUND.check(5_100_000_000)


def test_fewer_threads() -> None:
    assert refused(ROUND, 4_200_000_000) == (
        "embed needs 5.1 GB with 4 threads (1.1 GB and 1 GB per thread); "
        "--memory 4.2 GB allows 3 threads: set --threads 3"
    )
    assert refused(ROUND, 2_100_000_000).endswith("allows 1 thread: set --threads 1")


def test_smaller_tiles_where_one_thread_is_too_much() -> None:
    # 1.75 GB leave 0.45 GB for a window, of which 0.8 GB have 1024²: 768² is the next smaller one
    assert refused(ROUND, 1_750_000_000) == (
        "embed needs 5.1 GB with 4 threads (1.1 GB and 1 GB per thread); --memory 1.8 GB does not "
        "hold one: set --threads 1 --tile 768 (other tiles, other embeddings), or --threads 1 "
        "--memory 2.1GB"
    )


def test_more_memory_where_nothing_else_helps() -> None:
    assert refused(ROUND, 1_000_000_000) == (
        "embed needs 5.1 GB with 4 threads (1.1 GB and 1 GB per thread); --memory 1 GB does not "
        "hold one: set --threads 1 --memory 2.1GB"
    )


def test_fewer_threads_in_each_process_then_fewer_processes() -> None:
    several = replace(ROUND, carrying=Carrying(4, 3, apart=True))
    total = PARENT_BYTES + 3 * 5_100_000_000
    message = refused(several, PARENT_BYTES + 10_000_000_000)
    assert message.startswith(
        f"embed needs {-(-total // 10**8) / 10:g} GB with 4 threads in each of 3 processes (1.1 GB "
        "and 1 GB per thread); --memory "
    )
    assert message.endswith("allows 2 threads: set --threads 2")
    fewer = refused(several, PARENT_BYTES + 4_300_000_000)
    assert fewer.endswith("allows 1 thread: set --workers 2 --threads 1")
    least = refused(several, PARENT_BYTES + 1_000_000_000)
    assert f"set --workers 1 --threads 1 --memory {(PARENT_BYTES + 2.1e9) / 1e9:.2g}GB" in least


def test_shorter_passes_on_an_accelerator() -> None:
    device = replace(ROUND, window_bytes=0, window_px=0, pass_bytes=1_600_000_000, batch_size=8)
    # 2.1 GB leave 0.8 GB for passes of 0.2 GB a tile
    assert refused(device, 2_100_000_000) == (
        "embed needs 3.5 GB with 4 threads (2.7 GB and 200 MB per thread); --memory 2.1 GB does "
        "not hold the passes of the device: set --threads 1 --batch-size 4"
    )


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(1, 40),
    side=st.integers(64, 6000),
    threads=st.integers(1, 16),
    processes=st.integers(1, 3),
    memory=st.integers(1_000_000_000, 20_000_000_000),
)
def test_the_advice_holds(count: int, side: int, threads: int, processes: int, memory: int) -> None:
    fields = rows(count, side, side)
    carrying = Carrying(threads, processes, apart=processes > 1)
    budget = embedding_budget(fields, NEEDS, DEFAULT, carrying)
    if budget.bytes_total <= memory:
        return
    advice = budget.refusal(memory, "--memory").rpartition("set ")[2]
    if "or --" in budget.refusal(memory, "--memory"):  # smaller tiles come first
        advice = budget.refusal(memory, "--memory").partition("set ")[2].partition(" (")[0]
    flags = dict(re.findall(r"--(\w+) ([\d.]+(?: GB)?)", advice))
    followed = replace(
        carrying,
        threads=int(flags["threads"]),
        processes=int(flags.get("workers", carrying.processes)),
    )
    if "memory" in flags:
        memory = int(float(flags["memory"].removesuffix(" GB")) * 1e9 + 0.5)
    tiles = replace(DEFAULT, tile_px=int(flags.get("tile", DEFAULT.tile_px)))
    embedding_budget(fields, NEEDS, tiles, followed).check(memory)


# -- what is told ---------------------------------------------------------------------------


def plan_of(fields: Sequence[FieldRow]) -> Plan:
    return Plan(
        to_do=tuple((row, "mark") for row in fields),
        stale=(),
        skipped=("done",),
        unusable=(Failure("bad", "truncated"),),
    )


def told(fields: Sequence[FieldRow], forecast: Forecast, out: Path) -> list[Event]:
    events: list[Event] = []
    planned(plan_of(fields), "embed", out, forecast, events.append, dry_run=True)
    return events


def test_a_plan_is_told_with_what_it_needs(tmp_path: Path) -> None:
    fields = [
        *rows(2, 520, 704, plate="p", well="B02"),
        *rows(1, 520, 704, plate="p", well="B03"),
        *rows(1, 520, 704, plate="q", well="B02"),
    ]
    budget = embedding_budget(fields, NEEDS, DEFAULT, Carrying(1))
    out = tmp_path / "not/yet/there.zarr"
    (event,) = told(fields, Forecast(budget, memory="500GB", seconds_per_megapixel=2.0), out)
    assert isinstance(event, StagePlanned)
    assert (event.fields, event.to_do, event.skipped) == (6, 4, 1)
    assert (event.tiles, event.bytes_to_write) == (4, 4 * 520 * 704 * 11)
    assert (event.bytes_per_worker, event.bytes_total) == (budget.bytes_total,) * 2
    assert (event.memory_bytes, event.memory_by) == (500 * 10**9, "--memory")
    assert (event.plates, event.wells) == (2, 3)
    assert event.seconds_estimated is not None
    # 1.46 megapixels at 2 s each, and something for what is beside the network
    assert 2.9 < event.seconds_estimated < 4.4
    assert event.free_bytes > 0


def test_what_cannot_fit_is_told_and_refused(tmp_path: Path) -> None:
    forecast = Forecast(ROUND, memory="4.2GB")
    events: list[Event] = []
    with pytest.raises(ConfigError, match="set --threads 3"):
        planned(plan_of(rows(4, 9, 9)), "embed", tmp_path, forecast, events.append, dry_run=True)
    assert [type(event) for event in events] == [StagePlanned]


def test_more_than_the_machine_has_is_only_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = Granted(4_200_000_000, "SLURM (SLURM_MEM_PER_NODE)")
    monkeypatch.setattr(forecasting, "granted_memory", lambda: granted)
    _, note = told(rows(4, 9, 9), Forecast(ROUND), tmp_path)
    assert note == Noted(
        "embed",
        "embed needs 5.1 GB with 4 threads (1.1 GB and 1 GB per thread); SLURM "
        "(SLURM_MEM_PER_NODE) grants 4.2 GB, which allows 3 threads: set --threads 3",
    )


def test_memory_of_other_machines_is_not_this_ones(tmp_path: Path) -> None:
    (event,) = told(rows(4, 9, 9), Forecast(ROUND, local=False, memory="1GB"), tmp_path)
    assert isinstance(event, StagePlanned)
    assert (event.bytes_total, event.memory_bytes) == (None, None)
    assert event.bytes_per_worker == 5_100_000_000


# -- real runs ------------------------------------------------------------------------------


#: Runs a command and prints the peak of its processes.  A process of its own, and a small one:
#: until it has begun another program, a child counts what its parent takes.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_of(*arguments: str) -> int:
    """Peak resident memory of a run of cellseg, bytes."""
    run = [sys.executable, "-m", "cellseg_cli", *arguments, "--quiet"]
    made = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *run],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return int(made.stdout) * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(scope="module")
def here() -> NetworkNeeds:
    """What the bundled model takes on this CPU: twice as much where it computes in float32."""
    return network_needs(read_header(find_model("nuclei")).architecture, torch.device("cpu"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small and large fields of bright dots: ``small``, ``large``."""
    root = tmp_path_factory.mktemp("images")
    for name, count, side in (("small", 4, 512), ("large", 2, 1300)):
        y, x = np.mgrid[:side, :side]
        dots = (np.sin(y / 9) * np.sin(x / 9) > 0.6) * 20_000 + (y * 7 + x * 13) % 3000
        (root / name).mkdir()
        for number in range(count):
            tifffile.imwrite(root / name / f"{number}.tif", dots.astype(np.uint16))
    return root


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a child is asked of POSIX")
@pytest.mark.parametrize(
    ("name", "count", "side", "threads"), [("small", 4, 512, 2), ("large", 2, 1300, 1)]
)
def test_a_run_takes_no_more_than_was_projected(
    images: Path, here: NetworkNeeds, tmp_path: Path, name: str, count: int, side: int, threads: int
) -> None:
    fields, carrying = rows(count, side, side), Carrying(threads)
    out, many = str(tmp_path / "emb.zarr"), ("--threads", str(threads))
    measured = peak_of("embed", str(images / name), "--out", out, "--device", "cpu", *many)
    projected = embedding_budget(fields, here, DEFAULT, carrying).bytes_total
    assert measured <= projected <= 2 * measured
    measured = peak_of("cluster", out, *many)
    projected = clustering_budget(fields, here, carrying, by_seeds).bytes_total
    assert measured <= projected <= 2 * measured


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a child is asked of POSIX")
def test_segmenting_takes_no_more_than_was_projected(
    images: Path, here: NetworkNeeds, tmp_path: Path
) -> None:
    out = str(tmp_path / "labels")
    source = str(images / "small")
    measured = peak_of("segment", source, "--out", out, "--device", "cpu", "--threads", "2")
    fields = rows(4, 512, 512)
    projected = segmenting_budget(fields, here, DEFAULT, Carrying(2), by_seeds).bytes_total
    assert measured <= projected <= 2 * measured
