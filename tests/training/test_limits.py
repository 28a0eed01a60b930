"""Settings that nothing can be done with are refused before any image is read."""

from __future__ import annotations

from typing import Any

import pytest

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError
from cellseg_cli.training.limits import check_settings


def test_the_defaults_are_within_the_limits() -> None:
    check_settings(TrainSettings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate=nan is not in 0..1000"),
        ({"scale_min": 0.0}, "scale_min=0.0 is not in 0.01..100"),
        ({"scale_max": 0.1}, "scale_min=0.65 is not below scale_max=0.1"),
        ({"low_percentile": 99.8}, "low_percentile=99.8 is not below high_percentile=99.8"),
        ({"scales": ()}, "scales is empty"),
        ({"scales": (1.0, 1.3)}, "scale=1.3 is not a multiple of 0.25 in 0.25..4"),
        (
            {"scales": (1.5, 1.25), "levels": 6},
            "none of scales=[1.5, 1.25] fits levels=6; add 1",
        ),
        ({"exact_share": 1.5}, "exact_share=1.5 is not in 0..1"),
        ({"crop_px": 16}, "crop_px=16 is not in 32..inf for levels=4"),
        (
            {"crop_px": 100},
            "crop_px=100 is no multiple of 16 (levels=4); choose 96 or 112",
        ),
        ({"steps": 0, "seed": -1}, "steps=0 is not in 1..inf; seed=-1 is not in 0..9.22337e+18"),
    ],
)
def test_what_is_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(TrainSettings(**changes))
    assert str(caught.value) == message


def test_a_scale_that_does_not_fit_is_left_out_of_the_choice() -> None:
    check_settings(TrainSettings(levels=6))  # of the default scales only 1 fits
