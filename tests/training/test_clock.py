"""Laps add up to the time that passed, whatever they were spent on."""

from __future__ import annotations

import time

import pytest
import torch

from cellseg_cli.training.clock import Clock, Spent


def test_laps_of_a_part_add_up_and_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 11.0, 13.0, 17.0, 25.0, 41.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"))  # at 10
    for part in ("waiting", "forward", "waiting"):  # at 11, 13, 17
        clock.lap(part)
    assert clock.read() == {"waiting": 1 + 4, "forward": 2}
    assert clock.read() == {}
    clock.lap("backward")  # at 25: the time of reading is counted too
    assert clock.read() == {"backward": 8}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_laps_of_a_device_say_when_it_got_there() -> None:
    """The host launches a product in far less time than the device needs for it."""
    device = torch.device("cuda")
    values = torch.randn(4096, 4096, device=device)
    torch.mm(values, values)
    torch.cuda.synchronize()
    clock = Clock(device)
    for _ in range(20):
        values = torch.mm(values, values).clamp(-1, 1)
    clock.lap("forward")
    host = time.perf_counter()
    torch.cuda.synchronize()
    waited = time.perf_counter() - host
    clock.lap("writing")
    seconds = clock.read()
    assert seconds["forward"] > waited
    assert seconds["forward"] > seconds["writing"]


def test_what_was_spent_survives_a_file_and_counts_on() -> None:
    spent = Spent.from_json(Spent({"forward": 3.0, "writing": 1.0}, crops=6).as_json())
    spent.add(Spent({"forward": 1.0, "validation": 5.0}, crops=2))
    assert spent == Spent({"forward": 4.0, "writing": 1.0, "validation": 5.0}, crops=8)
    assert spent.crops_per_s() == 2.0  # in the four seconds of the steps
    assert spent.shares() == {"forward": 0.4, "validation": 0.5, "writing": 0.1}


def test_nothing_spent_has_no_rate_and_no_shares() -> None:
    assert Spent.from_json({}).crops_per_s() == 0.0
    assert Spent().shares() == {}
    with pytest.raises(ValueError, match="does not say what time was spent on"):
        Spent.from_json({"seconds": 3})
