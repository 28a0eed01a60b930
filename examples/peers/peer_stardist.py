"""StarDist 2D (Schmidt et al. 2018), from scratch, by its own `train`.

Its own: U-Net of depth 3 with 32 filters, 32 rays, patches of 256 × 256, batches of 4, Adam
at 3e-4, loss (cross-entropy + 0.2 × mean absolute error), 90 % of the patches with foreground,
percentiles 1 and 99.8, augmentation of its example notebook (flips, quarter turns, intensity
× 0.6 … 2 and − 0.2 … + 0.2, noise), the weights of the best validation loss (16 patches, after
every 100 steps).  Ours: its rule that halves the learning rate after 40 epochs without
progress never fires in so short a run; the rate falls along a cosine instead, to 1 %.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peer_data import Budget, Field, cosine
from peer_scores import Thresholds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from csbdeep.utils import normalize
from stardist.models import Config2D, StarDist2D

#: Below this probability no candidate is kept; the smallest that is tried.
LOWEST_PROB = 0.1

RATE = 3e-4
STEPS_PER_EPOCH = 100
BATCH = 4
PATCH_PX = 256


class Timed(keras.callbacks.Callback):
    """Learning rate by the time spent, and the end of the training when it is over."""

    def __init__(self, budget: Budget, rate: float) -> None:
        super().__init__()
        self.budget = budget
        self.rate = rate
        self.steps = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Start the clock at the first step; set the rate."""
        self.budget.start()
        self.model.optimizer.learning_rate = self.rate * cosine(self.budget.fraction, 0.01)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop when the time is over."""
        self.steps += 1
        if self.budget.fraction >= 1:
            self.model.stop_training = True


@dataclass(frozen=True)
class StarDist:
    """A trained StarDist with its non-maximum suppression."""

    model: StarDist2D
    default: Thresholds
    search: Mapping[str, Sequence[Any]]
    of_network: Sequence[str] = ()

    def network(self, field: Field, thresholds: Thresholds) -> tuple[np.ndarray, ...]:
        """Probability (N,), distances (N, rays) and positions (N, 2) of the candidates."""
        image = _normalised(field.image)
        prob, dist, points = self.model.predict_sparse(
            image, prob_thresh=LOWEST_PROB, show_tile_progress=False
        )
        return prob, dist, points

    def instances(
        self, field: Field, raw: tuple[np.ndarray, ...], thresholds: Thresholds
    ) -> np.ndarray:
        """Polygons that survive, drawn."""
        prob, dist, points = (part[raw[0] > thresholds["prob"]] for part in raw)
        labels, _ = self.model._instances_from_prediction(
            field.image.shape, prob, dist, points=points, nms_thresh=thresholds["nms"]
        )
        return labels


def train(
    training: Sequence[Field],
    validation: Sequence[Field],
    budget: Budget,
    options: Mapping[str, Any],
) -> tuple[StarDist, dict[str, Any]]:
    """Train for the time given; the segmenter, and a record of the training."""
    tf.config.threading.set_intra_op_parallelism_threads(options["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(options["seed"])
    rate = options["learning_rate"] or RATE
    config = Config2D(
        n_rays=32,
        grid=(options["grid"],) * 2,
        n_channel_in=1,
        unet_n_depth=3,
        train_patch_size=(PATCH_PX, PATCH_PX),
        train_batch_size=BATCH,
        train_learning_rate=rate,
        train_reduce_lr=None,
        train_tensorboard=False,
        train_n_val_patches=min(16, len(validation)),
    )
    folder = Path(options["work"])
    with contextlib.redirect_stdout(sys.stderr):
        model = StarDist2D(config, name="stardist", basedir=str(folder))
        model.prepare_for_training()
        timed = Timed(budget, rate)
        model.callbacks.append(timed)
        history = model.train(
            [_normalised(field.image) for field in training],
            [field.truth for field in training],
            ([_normalised(f.image) for f in validation], [f.truth for f in validation]),
            augmenter=_augment,
            epochs=100_000,
            steps_per_epoch=STEPS_PER_EPOCH,
        )
    record = {
        "settings": {**_plain(vars(config)), "learning_rate": f"{rate}, cosine to 1 %"},
        "steps": timed.steps,
        "crops": timed.steps * BATCH,
        "loss": [round(float(value), 4) for value in history.history["loss"]],
        "val_loss": [round(float(value), 4) for value in history.history["val_loss"]],
        "parameters": int(model.keras_model.count_params()),
    }
    default = {"prob": 0.5, "nms": 0.4}
    search = {
        "prob": [round(0.05 * k, 2) for k in range(2, 17)],
        "nms": [0.2, 0.3, 0.4, 0.5, 0.6],
    }
    return StarDist(model, default, search), record


def _normalised(image: np.ndarray) -> np.ndarray:
    return normalize(image, 1, 99.8, axis=(0, 1))


def _augment(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As in StarDist's example notebook of training in 2-D."""
    turns, flip = np.random.randint(4), np.random.rand() < 0.5  # noqa: NPY002
    image, truth = np.rot90(image, turns), np.rot90(truth, turns)
    if flip:
        image, truth = image[:, ::-1], truth[:, ::-1]
    image = image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)  # noqa: NPY002
    sigma = 0.02 * np.random.uniform(0, 1)  # noqa: NPY002
    return image + sigma * np.random.normal(0, 1, image.shape), truth  # noqa: NPY002


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings JSON can hold."""
    kept = (bool, int, float, str, tuple, dict, type(None))
    return {name: value for name, value in settings.items() if isinstance(value, kept)}
