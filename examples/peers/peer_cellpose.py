"""Cellpose 3 (Stringer & Pachitariu 2025), from scratch, by its own `train_seg`.

Its own: residual U-Net with style (32 … 256 filters), every image rescaled so that its median
diameter is `diam_mean` (30 px), crops of 224 × 224 in batches of 8, turned, flipped and scaled
by 0.75 … 1.25, images with fewer than 5 cells left out, percentiles 1 and 99, AdamW at 5e-3 with
weight decay 1e-5 (the defaults of `train_seg`; `--sgd` for those of its command line: 0.2),
a rise over 10 epochs, and the rate halved ten times in the last 50 or 100.

An epoch is so many batches that `train_seg` has its whole schedule within the steps that can
be done in the time: these are counted from six steps of a network that is thrown away.  The
flows of the training images are computed before the clock starts.

`diameter` is tuned too: `mean` is what a network trained like this does by itself (the mean
diameter of its training images for all); `image` is Cellpose's second pass: the median diameter
of what was found at first, for each image.  Its own network for sizes does as much.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cellpose import dynamics, models, transforms, utils
from cellpose import train as cellpose_train
from peer_data import CLOCKS, Budget, Field
from peer_scores import Thresholds

BATCH = 8
CROP_PX = 224
CHANNELS = (0, 0)  # grey, and no second channel

#: Steps to count by, after two that warm up.
COUNTED = 4

#: More epochs than these are made of several batches: the schedule asks for over 300.
EPOCHS = 400

#: What may go wrong in the count; the clock would cut the end of the schedule off.
RESERVE = 0.97


class TimeIsUpError(RuntimeError):
    """The training's time is over before its schedule."""


class Watch:
    """Counts the steps of a network in training, and ends it when the time is over."""

    def __init__(self, net: torch.nn.Module, budget: Budget) -> None:
        self.times: list[float] = []
        self.budget = budget
        self.hook = net.register_forward_pre_hook(self._step)

    def _step(self, net: torch.nn.Module, _: Any) -> None:
        if not net.training:
            return
        self.budget.start()
        if self.budget.fraction >= 1:
            raise TimeIsUpError
        self.times.append(CLOCKS[self.budget.clock]())


@dataclass(frozen=True)
class Cellpose:
    """A trained Cellpose network with its dynamics."""

    model: models.CellposeModel
    default: Thresholds
    search: Mapping[str, Sequence[Any]]
    of_network: Sequence[str] = ("diameter",)

    def network(self, field: Field, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray, float]:
        """Flows (2, Y, X), cell probability (Y, X) and the scale at which they were made."""
        scale = self.model.diam_mean / self.model.diam_labels
        first = self._flows(field, scale)
        if thresholds["diameter"] == "mean":
            return first
        found = self.instances(field, first, self.default)
        if not found.any():
            return first
        diameter, _ = utils.diameters(found)
        return self._flows(field, self.model.diam_mean / max(float(diameter), 5.0))

    def _flows(self, field: Field, scale: float) -> tuple[np.ndarray, np.ndarray, float]:
        image = transforms.convert_image(field.image, list(CHANNELS), nchan=self.model.nchan)
        image = transforms.normalize_img(image[np.newaxis], normalize=True)
        flows, probability, _ = self.model._run_net(image, rescale=scale)
        return flows[:, 0], probability[0], scale

    def instances(
        self,
        field: Field,
        raw: tuple[np.ndarray, np.ndarray, float],
        thresholds: Thresholds,
    ) -> np.ndarray:
        """Pixels that flow to one place, where the flow agrees with the mask."""
        flows, probability, scale = raw
        return np.asarray(
            dynamics.resize_and_compute_masks(
                flows,
                probability,
                niter=200 / scale,
                cellprob_threshold=thresholds["cellprob"],
                flow_threshold=thresholds["flow"],
                min_size=15,
                device=self.model.device,
            )
        )


def train(
    training: Sequence[Field],
    validation: Sequence[Field],
    budget: Budget,
    options: Mapping[str, Any],
) -> tuple[Cellpose, dict[str, Any]]:
    """Train for the time given; the segmenter, and a record of the training."""
    images = [field.image for field in training]
    began = time.monotonic()
    flows = dynamics.labels_to_flows(
        [field.truth.copy() for field in training], device=torch.device("cpu")
    )
    flows_s = time.monotonic() - began
    step_s = _step_seconds(images, flows, budget.clock, options)
    steps = max(1, int(RESERVE * budget.seconds / step_s))
    per_epoch = max(1, steps // EPOCHS)
    epochs = max(1, steps // per_epoch)
    model = _model(options)
    watch = Watch(model.net, budget)
    whole = _train_seg(model, images, flows, (epochs, per_epoch), options)
    watch.hook.remove()
    model.diam_labels = float(model.net.diam_labels.item())
    model.net.eval()
    record = {
        "settings": {
            **_rates(options),
            "diam_mean": model.diam_mean,
            "diam_labels": model.diam_labels,
            "batch": BATCH,
            "crop_px": CROP_PX,
            "epochs": epochs,
            "batches_per_epoch": per_epoch,
            "min_train_masks": options["min_train_masks"],
        },
        "steps": len(watch.times),
        "crops": len(watch.times) * BATCH,
        "step_s_counted": round(step_s, 3),
        "flows_before_the_clock_s": round(flows_s, 1),
        "schedule_finished": whole,
        "parameters": sum(part.numel() for part in model.net.parameters()),
    }
    default = {"diameter": "mean", "cellprob": 0.0, "flow": 0.4}
    search = {
        "cellprob": [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0],
        "flow": [0.4, 0.6, 0.8, 1.2, 0.0],  # 0: not asked for
        "diameter": ["mean", "image"],  # last: the network runs anew for it
    }
    return Cellpose(model, default, search), record


def _model(options: Mapping[str, Any]) -> models.CellposeModel:
    """A network with random weights; no name of a model, so that none is downloaded."""
    torch.manual_seed(options["seed"])
    return models.CellposeModel(
        gpu=False,
        pretrained_model=False,
        model_type=None,
        diam_mean=options["diam_mean"],
        device=torch.device("cpu"),
        mkldnn=False,
    )


def _step_seconds(
    images: Sequence[np.ndarray],
    flows: Sequence[np.ndarray],
    clock: str,
    options: Mapping[str, Any],
) -> float:
    """The median time of a step, of a network that is thrown away."""
    model = _model(options)
    watch = Watch(model.net, Budget(float("inf"), clock))
    some = min(len(images), 8 * BATCH)
    _train_seg(model, images[:some], flows[:some], (1, COUNTED + 3), options)
    return float(np.median(np.diff(watch.times)[2:]))


def _train_seg(
    model: models.CellposeModel,
    images: Sequence[np.ndarray],
    flows: Sequence[np.ndarray],
    epochs: tuple[int, int],
    options: Mapping[str, Any],
) -> bool:
    """Cellpose's own training, of so many (epochs, batches in each); whether it came to its end."""
    work = Path(options["work"])
    work.mkdir(parents=True, exist_ok=True)
    try:
        cellpose_train.train_seg(
            model.net,
            train_data=list(images),
            train_labels=list(flows),
            channels=list(CHANNELS),
            batch_size=BATCH,
            n_epochs=epochs[0],
            nimg_per_epoch=epochs[1] * BATCH,
            min_train_masks=options["min_train_masks"],
            save_path=work,
            model_name="cellpose",
            **_rates(options),
        )
    except TimeIsUpError:
        return False
    return True


def _rates(options: Mapping[str, Any]) -> dict[str, Any]:
    rate = options["learning_rate"]
    if options["sgd"]:
        return {"SGD": True, "learning_rate": rate or 0.2, "weight_decay": 1e-5}
    return {"SGD": False, "learning_rate": rate or 0.005, "weight_decay": 1e-5}
