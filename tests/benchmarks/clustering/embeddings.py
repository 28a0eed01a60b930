"""What our networks would give for known cells, with noise: the input of our own methods."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_CODE_SIZE, _CODE_NOISE = 8, 0.2

#: As the bundled model gives on 177 held-out nuclei of DSB 2018 (medians): bandwidth over the
#: radius of the largest circle inside 0.63, predicted centres 0.54 px from their median, which is
#: white noise of 0.46 px each way.
_BANDWIDTH, _OFFSET_NOISE_PX = 0.6, 0.5


def spatial(labels: np.ndarray) -> np.ndarray:
    """Offset to the centre, bandwidth and seed value: (4, Y, X) float16.

    White noise on the offsets; the bandwidth follows the radius of the largest circle inside the
    cell, but is at least 1 px; the seed value is the foreground, blurred.
    """
    rng = np.random.default_rng(1)
    flat = labels.ravel()
    area = np.maximum(np.bincount(flat), 1)
    inside = labels > 0
    values = np.zeros((4, *labels.shape))
    for channel, place in enumerate(np.indices(labels.shape)):
        centre = np.bincount(flat, place.ravel()) / area
        noise = _OFFSET_NOISE_PX * rng.standard_normal(labels.shape)
        values[channel] = (centre[labels] - place) * inside + noise
    values[2] = np.maximum(_BANDWIDTH * _inner_radius(labels), 1)[labels]
    values[3] = np.clip(ndimage.gaussian_filter(inside.astype(float), 1), 0, 1)
    return values.astype(np.float16)


def _inner_radius(labels: np.ndarray) -> np.ndarray:
    """Radius in px of the largest circle inside each cell, index 0 included: (n + 1,)."""
    alike = ndimage.minimum_filter(labels, 3) == ndimage.maximum_filter(labels, 3)
    depth = ndimage.distance_transform_edt(np.pad(alike, 1))[1:-1, 1:-1] + 0.5
    return np.asarray(ndimage.maximum(depth, labels, np.arange(labels.max() + 1)))


def contrastive(labels: np.ndarray) -> np.ndarray:
    """Unit vectors, one random code per cell and one for the background: (8, Y, X) float16.

    Codes blend over borders (Gaussian of 1 px), and smooth noise lies over all.
    """
    rng = np.random.default_rng(2)
    codes = rng.standard_normal((labels.max() + 1, _CODE_SIZE))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    values = ndimage.gaussian_filter(codes[labels], (1, 1, 0)).transpose(2, 0, 1)
    noise = rng.standard_normal(values.shape)
    values += _CODE_NOISE * ndimage.gaussian_filter(noise, (0, 1, 1))
    return (values / np.linalg.norm(values, axis=0)).astype(np.float16)


def classes(labels: np.ndarray) -> np.ndarray:
    """Background and interior probability times 255, without borders: (3, Y, X) uint8."""
    inside = np.where(labels > 0, 255, 0).astype(np.uint8)
    return np.stack([255 - inside, inside, np.zeros_like(inside)])
