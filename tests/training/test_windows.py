"""Windows over instances: whole, inside the crop, known pixels only."""

from __future__ import annotations

import numpy as np

from cellseg_cli.config import TrainSettings
from cellseg_cli.training.windows import MIN_VISIBLE_PX, instance_windows


def labels_with(*boxes: tuple[int, int, int, int], side: int = 64) -> np.ndarray:
    labels = np.zeros((side, side), np.int64)
    for number, (y0, x0, y1, x1) in enumerate(boxes, start=1):
        labels[y0:y1, x0:x1] = number
    return labels


def test_windows_hold_their_whole_instance_whatever_its_size() -> None:
    labels = labels_with((2, 2, 6, 6), (20, 1, 24, 250), (40, 40, 200, 200), side=256)[None]
    settings = TrainSettings(grid_points=24)
    windows = instance_windows(labels, settings, np.random.default_rng(0))
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
    windows = instance_windows(np.stack([labels, labels]), settings, np.random.default_rng(0))
    assert windows.crop.tolist() == [0, 1]
    assert set(windows.instance.tolist()) <= {2, 3}
    y, x = windows.y[windows.valid].numpy(), windows.x[windows.valid].numpy()
    assert (labels[y, x] >= 0).all()


def test_no_instances_give_no_windows() -> None:
    windows = instance_windows(
        np.zeros((2, 16, 16), np.int64), TrainSettings(), np.random.default_rng(0)
    )
    assert len(windows.crop) == 0


def test_a_covered_pixel_is_neither_inside_nor_outside_the_lower_cell() -> None:
    labels = labels_with((10, 10, 20, 20), (15, 15, 25, 25))[None]
    under = np.zeros_like(labels)
    under[0, 15:20, 15:20] = 1
    settings = TrainSettings(grid_points=40)
    plain, apart = (
        instance_windows(labels, settings, np.random.default_rng(0), one) for one in (None, under)
    )
    lost = plain.valid & ~apart.valid
    assert {*apart.instance[lost.any(1)].tolist()} == {1}
    places = {*zip(apart.y[lost].tolist(), apart.x[lost].tolist(), strict=True)}
    assert places == {(y, x) for y in range(15, 20) for x in range(15, 20)}
