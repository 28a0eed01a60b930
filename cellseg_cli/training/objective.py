"""What is minimised: the losses of a recipe, weighted, over one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellseg_cli.config import TrainSettings
from cellseg_cli.networks.architecture import Output
from cellseg_cli.training.losses import classes_loss, contrastive_loss
from cellseg_cli.training.samplers import Samples, draw_samples
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


class Target(NamedTuple):
    """What a batch should give: `labels` and `under`, as of a batch of crops.

    Only the spatial loss looks under a cell; to the others a pixel is one of the upper cell.
    """

    labels: NDArray[np.int64]
    under: NDArray[np.int64] | None = None


Objective = Callable[[Output, Target, TrainSettings, np.random.Generator], Terms]


def spatial(
    output: Output, target: Target, settings: TrainSettings, rng: np.random.Generator
) -> Terms:
    """Return the weighted terms of the `spatial` recipe."""
    device = output.embedding.device
    windows = instance_windows(target.labels, settings, rng, target.under)
    windows = type(windows)(*(tensor.to(device, non_blocking=True) for tensor in windows))
    on_device = torch.from_numpy(target.labels).to(device, non_blocking=True)
    parts = spatial_terms(output.embedding, on_device, windows)
    terms = {
        "overlap": parts.overlap,
        "smoothness": SMOOTHNESS_WEIGHT * parts.smoothness,
        "seed": SEED_WEIGHT * parts.seed,
    }
    return terms | _classes(output, on_device)


def contrastive(
    output: Output, target: Target, settings: TrainSettings, rng: np.random.Generator
) -> Terms:
    """Return the weighted terms of the `contrastive` recipe."""
    samples = draw_samples(target.labels, settings, rng)
    on_device = torch.from_numpy(target.labels).to(output.embedding.device, non_blocking=True)
    return {"contrast": _contrast(output, samples, settings)} | _classes(output, on_device)


def binary(
    output: Output, target: Target, settings: TrainSettings, rng: np.random.Generator
) -> Terms:
    """Return the weighted terms of the `binary` recipe.

    The contrast knows cells and background only.  The instances come from the
    classes, which therefore weigh as much as it.
    """
    assert output.classes is not None
    samples = draw_samples(target.labels, settings, rng)
    samples = samples._replace(labels=samples.labels.clamp(max=1))
    on_device = torch.from_numpy(target.labels).to(output.embedding.device, non_blocking=True)
    return {
        "contrast": _contrast(output, samples, settings),
        "classes": classes_loss(output.classes, on_device),
    }


#: Objectives by recipe.
OBJECTIVES: dict[str, Objective] = {
    "spatial": spatial,
    "contrastive": contrastive,
    "binary": binary,
}


#: Clustering settings of recipes whose instances do not come by the usual method of their kind of
#: embedding; they stand in the model's header, where every later command finds them.
CLUSTERING: dict[str, dict[str, str]] = {"binary": {"method": "watershed"}}


def _contrast(output: Output, samples: Samples, settings: TrainSettings) -> Tensor:
    count, pixels = samples.pixels.shape
    # (B, E, H, W) → (B·H·W, E): no copy of a channels-last tensor, and rows that lie together
    vectors = output.embedding.permute(0, 2, 3, 1).flatten(0, 2)
    chosen = samples.pixels.flatten().to(vectors.device, non_blocking=True)
    return contrastive_loss(
        vectors.index_select(0, chosen).view(count, pixels, vectors.shape[1]),
        samples.labels,
        settings.temperature,
        with_itself=settings.self_pairs,
    )


def _classes(output: Output, labels: Tensor) -> Terms:
    if output.classes is None:
        return {}
    return {"classes": CLASSES_WEIGHT * classes_loss(output.classes, labels)}
