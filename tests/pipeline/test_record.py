"""The run record: sums worked out by hand, lines while the run goes on, and flat memory."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cellseg_cli.config import RunSettings
from cellseg_cli.engine.tasks import Outcome, Produced, worker_name
from cellseg_cli.pipeline.events import Beat, Failure
from cellseg_cli.pipeline.lines import read_lines
from cellseg_cli.pipeline.plan import Plan
from cellseg_cli.pipeline.record import Record, plain
from cellseg_cli.pipeline.tally import Tally
from cellseg_cli.store import FieldRow, Store

UNUSABLE = Failure("zz", "z.tif: is empty (0 bytes)")
BAD = Outcome("c", 0.125, failure=Failure("c", "ValueError: odd", "Traceback\n  a\n  b"))


RUN = RunSettings(cluster="slurm", cluster_config=Path("a/b"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "emb.zarr", {})


def plan(fields: int = 0) -> Plan:
    to_do = tuple((FieldRow(f"f{number}", f"f{number}.tif"), "mark") for number in range(fields))
    return Plan(to_do, (), ("before",), (UNUSABLE,))


def record(**more: Any) -> Record:
    return Record("embed", "1/2", {"tile_px": 64, "run": plain(RUN)}, plan(3), **more)


def good(field_id: str, seconds: float, **more: Any) -> Outcome:
    made = Produced(
        pixels=1000,
        instances=7,
        counts={"tiles": 2},
        seconds={"read": seconds / 4, "network": seconds / 2},
        bytes_read=500,
        bytes_written=3000,
    )
    return Outcome(field_id, seconds, made, device_busy_s=seconds / 2, **more)


def written(store: Store, one: Record) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both files of a record that has ended."""
    path = one.write(store, "finished")
    document: dict[str, Any] = json.loads(path.read_text())
    return document, list(read_lines(path.parent / document["fields"]))


# ------------------------------------------------------------------------ content


def test_the_sums(store: Store) -> None:
    one = record(device="cuda", devices=2, batch_size=8, carried="2 processes of 1 thread")
    one.begin(store)
    one.add(good("a", 2.0, worker="node1:5", peak_rss_bytes=100))
    one.add(good("b", 4.0, worker="node1:5", peak_rss_bytes=300))
    one.add(good("d", 8.0, worker="node2:9", peak_rss_bytes=200))
    one.add(BAD)
    one.beat(Beat("embed", 1, 4))
    one.beat(Beat("embed", 3, 4))
    one.beat(Beat("embed", 0, 0))  # says nothing about a queue
    one.clock -= 10  # as if it had begun ten seconds ago
    told, _ = written(store, one)
    assert told["counts"] == {"planned": 5, "done": 3, "skipped": 1, "failed": 2}
    assert told["failed"] == {"c": "ValueError: odd", "zz": "z.tif: is empty (0 bytes)"}
    assert told["seconds_by_part"] == {"read": 3.5, "network": 7.0}
    assert (told["pixels"], told["instances"]) == (3000, 21)
    assert (told["bytes_read"], told["bytes_written"]) == (1500, 9000)
    assert told["queue_fill"] == 0.5
    assert told["peak_rss_bytes_by_worker"] == {"node1:5": 300, "node2:9": 200}
    assert told["peak_rss_bytes"] > 10**7
    assert (told["batch_size"], told["carried"]) == (8, "2 processes of 1 thread")
    assert told["settings"]["tile_px"] == 64
    carried = told["settings"]["run"]
    assert (carried["cluster"], carried["cluster_config"]) == ("slurm", str(Path("a/b")))
    # 3 fields, 0.003 MP, and 7 busy seconds on each of two devices, in ten seconds and a little
    assert told["fields_per_s"] == pytest.approx(0.3, rel=0.1)
    assert told["megapixels_per_s"] == pytest.approx(0.0003, rel=0.4)  # four digits are kept
    assert told["device_busy"] == pytest.approx(7 / 2 / 10, rel=0.1)


def test_the_lines(store: Store) -> None:
    one = record()
    one.begin(store)
    one.add(good("a", 2.0, worker=worker_name(), peak_rss_bytes=100))
    one.add(Outcome("b", 0.25, Produced(9), worker="node1:5"))
    one.add(BAD)
    told, lines = written(store, one)
    assert lines == [
        {
            "field": "zz",
            "outcome": "failed",
            "reason": "z.tif: is empty (0 bytes)",
        },
        {
            "field": "a",
            "outcome": "done",
            "seconds": 2.0,
            "pixels": 1000,
            "instances": 7,
            "tiles": 2,
            "seconds_by_part": {"read": 0.5, "network": 1.0},
            "bytes_read": 500,
            "bytes_written": 3000,
        },
        {
            "field": "b",
            "outcome": "done",
            "seconds": 0.25,
            "pixels": 9,
            "bytes_read": 0,
            "bytes_written": 0,
            "worker": "node1:5",
        },
        {
            "field": "c",
            "outcome": "failed",
            "reason": "ValueError: odd",
            "traceback": "Traceback\n  a\n  b",
            "seconds": 0.125,
        },
    ]
    assert told["peak_rss_bytes_by_worker"] == {}  # this process has a number of its own
    assert told["fields_ended"] is None


def test_without_a_network_no_device_was_busy() -> None:
    one = record()
    one.add(good("a", 1.0))
    told = one.document("finished")
    assert (told["device"], told["device_busy"], told["queue_fill"]) == (None, None, None)


def test_the_last_event_agrees_with_the_record(store: Store) -> None:
    one = record(device="cpu")
    one.add(good("a", 4.0))
    path = one.write(store, "finished")
    told, end = json.loads(path.read_text()), one.finished(path)
    assert told["seconds"] == round(end.summary.seconds, 3)
    assert told["device_busy"] == round(end.device_busy or 0, 4)


def test_the_end_as_an_event() -> None:
    one = record(device="cpu")
    one.add(good("a", 4.0))
    one.clock -= 8
    end = one.finished(Path("r.json"))
    assert (end.record, end.pixels) == ("r.json", 1000)
    assert end.device_busy == pytest.approx(0.25, rel=0.1)
    assert (end.summary.done, end.summary.skipped) == (1, 1)
    assert end.summary.failed == (UNUSABLE,)


# ----------------------------------------------------------------- while it goes on


def test_a_run_that_is_killed_leaves_what_it_did(store: Store) -> None:
    """Nothing but the start and two fields; the files are read as they lie."""
    one = record()
    one.begin(store)
    one.add(good("a", 1.0))
    one.add(BAD)
    runs = store.path / ".cellseg/runs"
    assert sorted(path.name for path in runs.iterdir()) == [
        f"{one.name}.fields.jsonl",
        f"{one.name}.json",
    ]
    assert one.name.endswith(f"-embed-part1of2-{os.getpid()}")
    told = json.loads((runs / f"{one.name}.json").read_text())
    assert (told["ended"], told["counts"]["planned"]) == (None, 5)
    lines = read_lines(runs / f"{one.name}.fields.jsonl")
    assert [line["field"] for line in lines] == ["zz", "a", "c"]
    one.write(store, "finished")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_lines_alone(store: Store) -> None:
    one = record()
    lines = store.record_path(f"{one.name}.fields.jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.symlink_to("/dev/full")
    one.begin(store)
    one.add(good("a", 1.0))
    one.add(BAD)
    told = json.loads(one.write(store, "finished").read_text())
    assert told["fields_ended"] == "No space left on device"
    assert told["counts"] == {"planned": 5, "done": 1, "skipped": 1, "failed": 2}


# ------------------------------------------------------------------------ memory


def outcomes(count: int) -> Iterator[Outcome]:
    for number in range(count):
        yield good(f"plate 1/B02/site {number}", 0.5, worker=f"node:{number % 8}", peak_rss_bytes=9)


def grown(tally: Tally, count: int) -> int:
    """Bytes that are held after so many more fields, above those held before."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for outcome in outcomes(count):
        tally.add(outcome)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after - before


def test_a_field_that_is_done_costs_no_memory() -> None:
    """10 000 fields more hold less than one byte each; the first ones fill the caches."""
    tally = Tally()
    grown(tally, 100)
    assert grown(tally, 10_000) < 10_000
    assert tally.done == 10_100


def test_a_failure_costs_its_id_and_reason() -> None:
    """A traceback of 2 000 characters is not kept."""
    tally = Tally()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(1000):
        failure = Failure(f"field {number}", f"{number}.tif: is empty (0 bytes)", "x" * number * 4)
        tally.add(Outcome(failure.field_id, 0.1, failure=failure))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / 1000 < 500
