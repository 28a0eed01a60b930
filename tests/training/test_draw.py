"""How often each field is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError
from cellseg_cli.training.data import Source
from cellseg_cli.training.draw import Draw


def of_groups(*groups: str) -> list[Source]:
    return [Source(None, None, group) for group in groups]  # type: ignore[arg-type]


def shares(groups: tuple[str, ...], drawn: Draw) -> dict[str, float]:
    """The share of each group."""
    total: dict[str, float] = {}
    for group, share in zip(groups, drawn.probabilities.tolist(), strict=True):
        total[group] = total.get(group, 0.0) + share
    return {group: round(share, 6) for group, share in total.items()}


def test_balance_lies_between_even_and_as_they_come() -> None:
    groups = ("0:all",) * 4 + ("1:all",)
    lone = {b: Draw.balanced(of_groups(*groups), b).probabilities[-1] for b in (0.0, 0.5, 1.0)}
    assert lone[0.0] == pytest.approx(1 / 2)
    assert lone[0.5] == pytest.approx(1 / (1 + 2))
    assert lone[1.0] == pytest.approx(1 / 5)
    with pytest.raises(ConfigError, match=r"balance=2 is not in \[0, 1\]"):
        Draw.balanced(of_groups(*groups), 2)


def test_a_data_set_has_its_weight_and_balance_holds_inside() -> None:
    """Weights 3 to 1; in the first, sixteen fields of a and one of b are drawn 4 to 1."""
    groups = ("0:a",) * 16 + ("0:b",) + ("1:all",) * 100
    drawn = Draw.of(of_groups(*groups), TrainSettings(weights=(3, 1), balance=0.5))
    assert shares(groups, drawn) == {"0:a": 0.6, "0:b": 0.15, "1:all": 0.25}


def test_without_weights_all_is_as_balance_says() -> None:
    sources = of_groups("0:a", "0:a", "0:b", "1:all")
    drawn = Draw.of(sources, TrainSettings(balance=0.5))
    expected = Draw.balanced(sources, 0.5)
    np.testing.assert_allclose(drawn.probabilities, expected.probabilities)


def test_the_weight_of_a_data_set_without_fields_goes_to_the_others() -> None:
    groups = ("0:all", "2:all")
    drawn = Draw.of(of_groups(*groups), TrainSettings(weights=(1, 5, 3)))
    assert shares(groups, drawn) == {"0:all": 0.25, "2:all": 0.75}


def test_pseudo_labelled_fields_have_their_weight_beside_all_annotated_ones() -> None:
    """One pseudo-labelled crop for two annotated; two stores of one size share it."""
    groups = ("0:a",) * 5 + ("1:a",) * 5 + ("pseudo0:all",) * 9 + ("pseudo1:all",) * 9
    drawn = Draw.of(of_groups(*groups), TrainSettings(pseudo_weight=0.5, weights=(1, 3)))
    assert shares(groups, drawn) == {
        "0:a": round(2 / 3 / 4, 6),
        "1:a": 0.5,
        "pseudo0:all": round(1 / 6, 6),
        "pseudo1:all": round(1 / 6, 6),
    }


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(["0:a", "0:b", "1:a", "pseudo0:all"]), min_size=1, max_size=30),
    st.floats(0, 1),
    st.sampled_from([(), (1.0, 1.0), (5.0, 0.1)]),
)
def test_every_field_can_be_drawn(
    groups: list[str], balance: float, weights: tuple[float, ...]
) -> None:
    drawn = Draw.of(of_groups(*groups), TrainSettings(balance=balance, weights=weights))
    assert drawn.probabilities.sum() == pytest.approx(1)
    assert (drawn.probabilities > 0).all()
