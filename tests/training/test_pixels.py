"""What images lose when each value is kept in a byte: nothing of 8-bit sources, else little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.errors import InputError
from cellseg_cli.images.normalise import CEILING, Normalisation, apply, fit_channels, measure
from cellseg_cli.training.pixels import in_levels, values_of


def restored(raw: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    image, levels = in_levels(raw, normalisation)
    assert image.dtype == np.uint8
    assert levels.shape == (len(image), 256)
    planes = [values_of(plane, level) for plane, level in zip(image, levels, strict=True)]
    return np.stack(planes)


def noise(dtype: str, channels: int = 1, highest: int = 255) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, highest + 1, (channels, 40, 30)).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_images_are_kept_to_the_last_bit(channels: int) -> None:
    raw = noise("uint8", channels)
    scale = measure(raw)
    np.testing.assert_array_equal(restored(raw, scale), apply(raw, scale))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 65535), st.integers(1, 65535))
def test_other_images_are_off_by_less_the_darker_they_are(low: int, span: int) -> None:
    """Half a step of the root on either side: |v - w| <= step * sqrt(v) + step^2 / 4."""
    raw = np.linspace(0, 65535, 3000).astype(np.uint16).reshape(1, 50, 60)
    scale = Normalisation((float(low),), (float(low + span),))
    exact = apply(raw, scale).astype(np.float64)
    step = np.sqrt(CEILING) / 255
    bound = step * np.sqrt(exact) + step**2 / 4 + 1e-6
    assert (np.abs(restored(raw, scale) - exact) <= bound).all()


def test_the_errors_that_the_module_states() -> None:
    values = np.linspace(0, CEILING, 200_001, dtype=np.float32).reshape(1, -1, 3)
    error = np.abs(restored(values, Normalisation((0.0,), (1.0,))) - values)
    for below, most in ((2e-5, 2e-5), (0.1, 0.0016), (1.0, 0.005), (CEILING, 0.006)):
        assert error[values <= below].max() <= most


def test_a_channel_that_is_repeated_is_kept_once() -> None:
    for dtype in ("uint8", "uint16", "float32"):
        grey = fit_channels(noise(dtype), 3)
        image, levels = in_levels(grey, measure(grey))
        assert (image.shape, levels.shape) == ((1, 40, 30), (1, 256))
        assert image.flags.owndata, "no view keeps more than itself in memory"
        same = np.concatenate([noise(dtype)] * 3)
        assert in_levels(same, measure(same))[0].shape == (1, 40, 30)
        assert in_levels(noise(dtype, 3), measure(noise(dtype, 3)))[0].shape == (3, 40, 30)


def test_channels_of_equal_numbers_and_other_meaning_are_kept_apart() -> None:
    raw = np.concatenate([noise("uint8")] * 2)
    image, levels = in_levels(raw, Normalisation((0.0, 100.0), (255.0, 200.0)))
    assert image.shape == (2, 40, 30)
    assert not np.array_equal(levels[0], levels[1])


def test_an_image_that_cannot_be_scaled_is_refused() -> None:
    """The contrast is the smallest number that there is: one over it is infinite."""
    raw = np.zeros((1, 16, 16))
    raw[0, :8] = 5e-324
    with pytest.raises(InputError) as error:
        in_levels(raw, Normalisation((0.0,), (5e-324,)))
    assert str(error.value) == ("the image has too little contrast to be scaled: 0 to 4.94066e-324")
