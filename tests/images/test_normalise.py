"""Scales that are measured, applied, refused; channels that are fitted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellseg_cli.errors import ConfigError, InputError
from cellseg_cli.images import normalise
from cellseg_cli.images.normalise import (
    Normalisation,
    apply,
    check_usable,
    fit_channels,
    measure,
    survey_regions,
)
from cellseg_cli.images.regions import OpenImage


def ramp(*channels: int) -> np.ndarray:
    """Channels of 10 × 10 px with the values offset, offset + 1, … offset + 99."""
    return np.stack([np.arange(100).reshape(10, 10) + offset for offset in channels]).astype("u2")


def refusal(image: np.ndarray) -> str:
    with pytest.raises(InputError) as caught:
        check_usable(image)
    return str(caught.value)


def test_percentiles_of_a_ramp_are_read_off_it() -> None:
    # 100 values with ranks 0 to 99: the p-th percentile lies at rank 0.99 p.
    measured = measure(ramp(0, 500), low_percentile=0, high_percentile=100)
    assert measured == Normalisation((0.0, 500.0), (99.0, 599.0))
    measured = measure(ramp(0, 500), low_percentile=1, high_percentile=50)
    assert measured.low == pytest.approx((0.99, 500.99))
    assert measured.high == pytest.approx((49.5, 549.5))


@pytest.mark.parametrize(("low", "high"), [(-1, 50), (50, 50), (60, 50), (1, 101)])
def test_percentiles_out_of_order_are_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError) as caught:
        measure(ramp(0), low, high)
    assert str(caught.value) == (
        f"percentiles must satisfy 0 <= low < high <= 100, got {low} and {high}"
    )


def test_a_large_field_is_sampled_on_a_regular_grid() -> None:
    image = np.random.default_rng(1).integers(0, 60000, (2, 90, 130)).astype("u2")
    # 90 × 130 = 11 700 px; every 2nd row and column gives 45 × 65 = 2925, every 3rd 30 × 44 = 1320.
    assert measure(image, max_sample=1320) == measure(image[:, ::3, ::3], max_sample=1 << 22)
    assert measure(image, max_sample=2925) == measure(image[:, ::2, ::2], max_sample=1 << 22)
    assert measure(image, max_sample=11700) == measure(image)
    assert measure(image, max_sample=1320) == measure(image, max_sample=1320)


def test_apply_puts_low_at_0_and_high_at_1_and_clips() -> None:
    image = np.array([[[0, 10, 20, 60, 70, 200]]], np.uint8)
    result = apply(image, Normalisation((10.0,), (60.0,)))
    assert result.dtype == np.float32
    # (20 - 10) / 50 = 0.2, (70 - 10) / 50 = 1.2, (200 - 10) / 50 = 3.8 → 1.5
    np.testing.assert_allclose(result, [[[0, 0, 0.2, 1, 1.2, 1.5]]], rtol=1e-6)


def test_each_channel_has_its_own_scale() -> None:
    image = np.array([[[0, 4]], [[100, 300]]], np.uint16)
    result = apply(image, Normalisation((0.0, 100.0), (4.0, 500.0)))
    np.testing.assert_allclose(result, [[[0, 1]], [[0, 0.5]]])


def test_bright_spots_on_a_flat_ground_survive() -> None:
    image = np.full((1, 40, 40), 7, np.uint8)
    image[0, 3, 3] = 107
    measured = measure(image, high_percentile=99.0)
    assert measured == Normalisation((7.0,), (107.0,))
    result = apply(image, measured)
    assert result[0, 3, 3] == 1.0
    assert np.count_nonzero(result) == 1


def test_a_constant_channel_becomes_zero() -> None:
    image = np.full((1, 9, 9), 7, np.uint8)
    assert not apply(image, measure(image)).any()


def test_contrast_on_a_large_offset_is_kept() -> None:
    # float32 has steps of 256 at 4e9: the ramp 0 … 99 would vanish.
    image = ramp(0).astype(np.uint32) + np.uint32(4_000_000_000)
    result = apply(image, measure(image, 0, 100))
    np.testing.assert_allclose(result[0].ravel(), np.arange(100) / 99, atol=1e-6)


def test_apply_needs_the_channels_it_was_measured_on() -> None:
    with pytest.raises(InputError) as caught:
        apply(ramp(0), Normalisation((0.0, 0.0), (1.0, 1.0)))
    assert str(caught.value) == ("got an image of 1 channels, the normalisation was measured on 2")


@settings(deadline=None, max_examples=50)
@given(
    image=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.uint32, np.float32]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=12),
        elements=st.integers(0, 100),
    ),
    factor=st.sampled_from([1, 2, 16]),
)
def test_normalised_values_are_bounded_finite_and_free_of_gain(
    image: np.ndarray, factor: int
) -> None:
    result = apply(image, measure(image))
    assert result.shape == image.shape
    assert ((result >= 0) & (result <= 1.5)).all()
    brighter = image.astype(np.uint32) * np.uint32(factor)
    np.testing.assert_allclose(apply(brighter, measure(brighter)), result, atol=1e-5)


def test_images_that_cannot_be_used() -> None:
    assert refusal(ramp(0)[:, :1, :1]) == "the image is 1×1 px, a side needs at least 8 px"
    assert refusal(np.zeros((1, 1, 5000))) == "the image is 1×5000 px, a side needs at least 8 px"
    assert refusal(ramp(0)[:, :, :7]) == "the image is 10×7 px, a side needs at least 8 px"
    assert refusal(np.full((1, 8, 8), 255, np.uint8)) == (
        "the image is constant: every pixel is 255"
    )
    red = np.stack([np.full((8, 8), value, np.uint8) for value in (255, 0, 3)])
    assert refusal(red) == "the image is constant: every pixel is 255, 0, 3"
    spoilt = ramp(0).astype(np.float32)
    spoilt[0, 0, :3] = np.nan
    spoilt[0, 5, 5] = -np.inf
    assert refusal(spoilt) == (
        "the image has 3 NaN and 1 infinite values of 100; replace them by numbers"
    )


def test_images_that_can_be_used() -> None:
    check_usable(ramp(0)[:, :8, :8])
    check_usable(ramp(0).astype(np.float64))
    check_usable(np.concatenate([ramp(0), np.zeros_like(ramp(0))]))


def test_channels_that_fit_stay_as_they_are() -> None:
    image = ramp(0, 1)
    assert fit_channels(image, 2) is image


def test_one_channel_is_repeated() -> None:
    np.testing.assert_array_equal(fit_channels(ramp(5), 3), ramp(5, 5, 5))


def test_a_repeated_channel_is_measured_scaled_and_held_once() -> None:
    repeated, copies = fit_channels(ramp(5), 3), ramp(5, 5, 5)
    norm = measure(copies)
    assert measure(repeated) == norm
    result = apply(repeated, norm)
    np.testing.assert_array_equal(result, apply(copies, norm))
    assert result.strides[0] == 0


def test_a_repeated_channel_can_have_several_scales() -> None:
    norm = Normalisation((0.0, 10.0), (50.0, 60.0))
    np.testing.assert_array_equal(apply(fit_channels(ramp(5), 2), norm), apply(ramp(5, 5), norm))


@pytest.mark.parametrize("alpha", [False, True])
def test_colour_becomes_luminance(alpha: bool) -> None:
    colours = [[255, 0, 0, 255, 100], [0, 255, 0, 255, 50], [0, 0, 255, 255, 200]]
    image = np.array([*colours, [9] * 5] if alpha else colours, np.uint8)[:, np.newaxis, :]
    # 0.299 · 255 = 76.2; 0.587 · 255 = 149.7; 0.114 · 255 = 29.1; 29.9 + 29.35 + 22.8 = 82.05
    expected = np.array([[[76, 150, 29, 255, 82]]], np.uint8)
    result = fit_channels(image, 1, colour=True)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("there", "wanted"), [(2, 1), (3, 1), (4, 1), (3, 2), (4, 3), (2, 3), (5, 1)]
)
def test_other_numbers_of_channels_need_a_choice(there: int, wanted: int) -> None:
    with pytest.raises(InputError) as caught:
        fit_channels(np.zeros((there, 8, 8)), wanted)
    advice = {
        (2, 1): "choose them, e.g. --channel 0",
        (3, 1): "choose them, e.g. --channel 0",  # three stains are no colours
        (4, 1): "choose them, e.g. --channel 0",
        (3, 2): "choose them, e.g. --channel 0,1",
        (4, 3): "choose them, e.g. --channel 0,1,2",
        (2, 3): "choose one, which is repeated, e.g. --channel 0",
        (5, 1): "choose them, e.g. --channel 0",
    }[there, wanted]
    assert str(caught.value) == (
        f"the image has {there} channels, the model takes {wanted}; {advice}"
    )


def test_three_stains_are_colours_only_if_one_says_so() -> None:
    image = ramp(0, 1, 2)
    assert fit_channels(image, 3, colour=True, stains=False) is image
    for refused in (
        lambda: fit_channels(image, 3, stains=False),
        lambda: survey_regions(opened(image), 3, stains=False),
    ):
        with pytest.raises(InputError) as caught:
            refused()
        assert str(caught.value) == (
            "the image has 3 channels that are no colours, the model takes red, green and blue; "
            "choose one, which is repeated, e.g. --channel 0, or all with --channel 0,1,2"
        )


# -- fields that are larger than memory -------------------------------------------------------


def opened(image: np.ndarray, *, colour: bool = False) -> OpenImage:
    """An image of which regions are read."""
    channels, height, width = image.shape
    return OpenImage(
        (channels, height, width),
        image.dtype,
        by_region=True,
        read=lambda rows, columns: image[:, rows, columns],
        colour=colour,
    )


def outcome(measured: Callable[[], Normalisation]) -> Normalisation | str:
    try:
        return measured()
    except InputError as fault:
        return str(fault)


@settings(deadline=None, max_examples=50)
@given(
    image=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]),
        st.tuples(st.sampled_from([1, 3, 4]), st.integers(6, 40), st.integers(6, 40)),
        elements=st.integers(0, 100),
    ),
    wanted=st.sampled_from([1, 3]),
    colour=st.booleans(),
    spoilt=st.sampled_from([None, np.nan, np.inf]),
    max_sample=st.sampled_from([1 << 22, 200, 30]),
    region_bytes=st.sampled_from([1, 97, 1000, 1 << 20]),
    columns=st.sampled_from([7, 1 << 15]),
)
def test_a_survey_by_regions_gives_what_the_whole_gives(
    image: np.ndarray,
    wanted: int,
    colour: bool,
    spoilt: float | None,
    max_sample: int,
    region_bytes: int,
    columns: int,
) -> None:
    if spoilt is not None and image.dtype.kind == "f":
        image[0, -1, -1] = spoilt

    def whole() -> Normalisation:
        check_usable(image)
        return measure(fit_channels(image, wanted, colour=colour), 2, 98, max_sample)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalise, "_SURVEY_BYTES", region_bytes)
        patch.setattr(normalise, "_SURVEY_COLUMNS", columns)
        field = opened(image, colour=colour)
        surveyed = outcome(lambda: survey_regions(field, wanted, 2, 98, max_sample))
    there = len(image)
    fits = there in (1, wanted) or (wanted == 1 and colour)
    if not fits and min(image.shape[1:]) >= 8:  # told before anything is read
        chosen = "0,1,2" if wanted == 3 else "0"
        assert surveyed == (
            f"the image has {there} channels, the model takes {wanted}; "
            f"choose them, e.g. --channel {chosen}"
        )
    else:
        assert surveyed == outcome(whole)


def test_a_survey_reads_every_pixel_once_in_regions_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(normalise, "_SURVEY_BYTES", 1 << 16)
    monkeypatch.setattr(normalise, "_SURVEY_COLUMNS", 100)
    seen = np.zeros((2, 1300, 250), np.uint16)

    def read(rows: slice, columns: slice) -> np.ndarray:
        seen[:, rows, columns] += 1
        ramp_in_x = np.arange(columns.stop - columns.start, dtype=np.uint16)
        found: np.ndarray = seen[:, rows, columns] + ramp_in_x
        assert found.nbytes <= 1 << 16
        return found

    survey_regions(OpenImage(seen.shape, seen.dtype, True, read), 2)
    assert (seen == 1).all()


def test_a_region_is_scaled_as_the_whole_is() -> None:
    image = np.full((1, 40, 40), 7, np.uint8)
    image[0, 3, 3], image[0, 30, 30] = 57, 107
    norm = survey_regions(opened(image), 1, high_percentile=99.0)
    assert norm == Normalisation((7.0,), (107.0,))
    region = apply(image[:, :20, :20], norm)
    np.testing.assert_array_equal(region, apply(image, norm)[:, :20, :20])
    assert region.max() == 0.5


def test_percentiles_out_of_order_are_refused_before_reading() -> None:
    with pytest.raises(ConfigError):
        survey_regions(opened(ramp(0)), 1, 50, 50)
