"""Windows over instances: whole, inside the crop, known pixels only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from cellseg_cli.config import TrainSettings
from cellseg_cli.training.windows import MIN_VISIBLE_PX, Points, instance_windows, points_of


def labels_with(*boxes: tuple[int, int, int, int], side: int = 64) -> np.ndarray:
    labels = np.zeros((side, side), np.int64)
    for number, (y0, x0, y1, x1) in enumerate(boxes, start=1):
        labels[y0:y1, x0:x1] = number
    return labels


def points(labels: np.ndarray, settings: TrainSettings, under: np.ndarray | None = None) -> Points:
    return points_of(
        instance_windows(labels, settings, np.random.default_rng(0)),
        torch.from_numpy(labels),
        None if under is None else torch.from_numpy(under),
        settings.grid_points,
    )


def test_windows_hold_their_whole_instance_whatever_its_size() -> None:
    labels = labels_with((2, 2, 6, 6), (20, 1, 24, 250), (40, 40, 200, 200), side=256)[None]
    settings = TrainSettings(grid_points=24)
    windows = points(labels, settings)
    for row, instance in enumerate(windows.instance.tolist()):
        ys, xs = np.nonzero(labels[0] == instance)
        y, x = windows.y[row].numpy(), windows.x[row].numpy()
        spacing = np.unique(y)[1] - np.unique(y)[0]
        assert y.min() <= ys.min() + spacing
        assert y.max() >= ys.max() - spacing
        assert x.min() <= xs.min() + spacing
        assert x.max() >= xs.max() - spacing
        inside = labels[0][y, x] == instance
        assert (inside & windows.valid[row].numpy()).sum() > 8


def test_windows_leave_out_slivers_unknown_pixels_and_surplus() -> None:
    labels = labels_with((0, 0, 1, MIN_VISIBLE_PX - 1), (10, 10, 20, 20), (30, 30, 40, 40))
    labels[:, 45:] = -1
    settings = TrainSettings(instances_per_crop=1)
    windows = points(np.stack([labels, labels]), settings)
    assert windows.crop.tolist() == [0, 1]
    assert set(windows.instance.tolist()) <= {2, 3}
    y, x = windows.y[windows.valid].numpy(), windows.x[windows.valid].numpy()
    assert (labels[y, x] >= 0).all()


def test_no_instances_give_no_windows() -> None:
    windows = points(np.zeros((2, 16, 16), np.int64), TrainSettings())
    assert len(windows.crop) == 0
    assert windows.y.shape == windows.valid.shape == (0, TrainSettings().grid_points ** 2)


def test_a_covered_pixel_is_neither_inside_nor_outside_the_lower_cell() -> None:
    labels = labels_with((10, 10, 20, 20), (15, 15, 25, 25))[None]
    under = np.zeros_like(labels)
    under[0, 15:20, 15:20] = 1
    settings = TrainSettings(grid_points=40)
    plain, apart = (points(labels, settings, one) for one in (None, under))
    lost = plain.valid & ~apart.valid
    assert {*apart.instance[lost.any(1)].tolist()} == {1}
    places = {*zip(apart.y[lost].tolist(), apart.x[lost].tolist(), strict=True)}
    assert places == {(y, x) for y in range(15, 20) for x in range(15, 20)}


@pytest.mark.parametrize("seed", range(6))
def test_every_instance_that_is_seen_has_a_window_around_its_box(seed: int) -> None:
    """Boxes by scipy: a window of points one pixel apart is centred on each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 40, (2, 9, 11)).repeat(4, 1).repeat(3, 2)
    labels[labels == 7] = 0  # an id that is not there
    labels[:, 5:, 30:][labels[:, 5:, 30:] == 8] = -1
    settings = TrainSettings(grid_points=80, instances_per_crop=1000)
    windows = instance_windows(labels.astype(np.int32), settings, rng)
    middles = []
    for crop, there in enumerate(np.maximum(labels, 0)):
        for number, box in enumerate(ndimage.find_objects(there), start=1):
            if box is not None and (there == number).sum() >= MIN_VISIBLE_PX:
                middles.append((crop, number, *((axis.start + axis.stop) // 2 for axis in box)))
    assert windows.spacing.eq(1).all()
    found = torch.column_stack([windows.crop, windows.instance, windows.first + 40])
    assert found.tolist() == [list(one) for one in middles]
