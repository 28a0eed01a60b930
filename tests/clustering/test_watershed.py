from __future__ import annotations

import numpy as np
import pytest
from skimage.segmentation import watershed as skimage_watershed

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.clustering.watershed import flooded
from cellseg_cli.errors import ConfigError

WATERSHED = Clustering("watershed", min_area_px=3)


def classes_of(interior: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    border = foreground & ~interior
    return 255 * np.stack([~foreground, interior, border]).astype(np.uint8)


def embedding_of(shape: tuple[int, int]) -> np.ndarray:
    return np.zeros((4, *shape), np.float16)


def test_interiors_grow_into_the_border_between_them() -> None:
    foreground, interior = np.zeros((2, 12, 21), bool)
    foreground[2:10, 2:18] = True
    interior[3:9, 3:9], interior[3:9, 11:17] = True, True
    result = cluster(
        embedding_of((12, 21)), kind="spatial", settings=WATERSHED,
        classes=classes_of(interior, foreground),
    )  # fmt: skip
    assert ((result > 0) == foreground).all()
    assert (result[2:10, 2:10] == 1).all()
    assert (result[2:10, 10:18] == 2).all()


def test_foreground_without_interior_is_a_cell() -> None:
    foreground, interior = np.zeros((2, 9, 9), bool)
    foreground[1:3, 1:3], foreground[5:8, 5:8], interior[6, 6] = True, True, True
    result = cluster(
        embedding_of((9, 9)), kind="contrastive", settings=WATERSHED,
        classes=classes_of(interior, foreground),
    )  # fmt: skip
    assert result.max() == 2
    assert ((result > 0) == foreground).all()


def test_flooding_is_that_of_skimage_where_levels_differ() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        level = rng.permutation(256).reshape(16, 16).astype(np.uint8)
        markers = np.zeros((16, 16), np.int32)
        markers.ravel()[rng.choice(256, 5, replace=False)] = np.arange(1, 6)
        mask = (rng.random((16, 16)) < 0.9) | (markers > 0)
        expected = skimage_watershed(level, markers, mask=mask)
        result = flooded(markers, mask, 255 - level)
        result[result > 5] = 0  # pieces that no marker reaches
        assert (result == expected).mean() > 0.97


def test_a_pixel_between_two_markers_goes_to_the_larger() -> None:
    markers = np.array([[1, 0, 2, 2], [0, 0, 0, 0]], np.int32)
    expected = [[1, 2, 2, 2], [1, 2, 2, 2]]  # (1, 1) is two steps from both
    everywhere = np.ones((2, 4), bool)
    assert flooded(markers, everywhere, np.zeros((2, 4), np.uint8)).tolist() == expected


def test_it_says_that_it_needs_classes() -> None:
    with pytest.raises(ConfigError) as caught:
        cluster(embedding_of((5, 5)), kind="spatial", settings=WATERSHED)
    assert str(caught.value) == (
        "watershed needs class probabilities (background, interior, border) and this model has "
        "no classes head; choose another method or a model with that head"
    )
