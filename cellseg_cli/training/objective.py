"""What is minimised: the losses of a recipe, weighted, over one batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.config import TrainSettings
from cellseg_cli.networks.architecture import Output
from cellseg_cli.training.losses import classes_loss, contrastive_loss
from cellseg_cli.training.samplers import SAMPLERS
from cellseg_cli.training.spatial import spatial_terms
from cellseg_cli.training.windows import instance_windows

#: Weights of bandwidth smoothness and seed beside the overlap term: Neven et
#: al., arXiv 1906.11109, section 3.4 and their code, scaled to means over pixels.
SMOOTHNESS_WEIGHT = 1.0
SEED_WEIGHT = 5.0

#: The classes head is an auxiliary: enough to learn a foreground, too little to
#: bend the features to it.
CLASSES_WEIGHT = 0.5

Terms = dict[str, Tensor]
Objective = Callable[[Output, NDArray[np.int64], TrainSettings, np.random.Generator], Terms]


def spatial(
    output: Output, labels: NDArray[np.int64], settings: TrainSettings, rng: np.random.Generator
) -> Terms:
    """Return the weighted terms of the `spatial` recipe."""
    device = output.embedding.device
    windows = instance_windows(labels, settings, rng)
    windows = type(windows)(*(tensor.to(device, non_blocking=True) for tensor in windows))
    on_device = torch.from_numpy(labels).to(device, non_blocking=True)
    parts = spatial_terms(output.embedding, on_device, windows)
    terms = {
        "overlap": parts.overlap,
        "smoothness": SMOOTHNESS_WEIGHT * parts.smoothness,
        "seed": SEED_WEIGHT * parts.seed,
    }
    return terms | _classes(output, on_device)


def contrastive(
    output: Output, labels: NDArray[np.int64], settings: TrainSettings, rng: np.random.Generator
) -> Terms:
    """Return the weighted terms of the `contrastive` recipe."""
    device = output.embedding.device
    on_device = torch.from_numpy(labels).to(device, non_blocking=True)
    contrasts = []
    for crop, crop_labels in zip(output.embedding, labels, strict=True):
        pixels = torch.from_numpy(SAMPLERS[settings.sampler](crop_labels, settings, rng))
        pixels = pixels.to(device)
        vectors = crop.flatten(1)[:, pixels].T  # (E, H·W) → (N, E)
        there = torch.from_numpy(crop_labels.ravel()).to(device)[pixels]
        contrasts.append(contrastive_loss(vectors, there, settings.temperature))
    return {"contrast": torch.stack(contrasts).mean()} | _classes(output, on_device)


#: Objectives by recipe.
OBJECTIVES: dict[str, Objective] = {"spatial": spatial, "contrastive": contrastive}


def _classes(output: Output, labels: Tensor) -> Terms:
    if output.classes is None:
        return {}
    return {"classes": CLASSES_WEIGHT * classes_loss(output.classes, labels)}
