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
from cellseg_cli.training.windows import Windows, instance_windows, points_of

#: Weights of bandwidth smoothness and seed beside the overlap term: Neven et
#: al., arXiv 1906.11109, section 3.4 and their code, scaled to means over pixels.
SMOOTHNESS_WEIGHT = 1.0
SEED_WEIGHT = 5.0

#: The classes head is an auxiliary: enough to learn a foreground, too little to
#: bend the features to it.
CLASSES_WEIGHT = 0.5

Terms = dict[str, Tensor]


class Target(NamedTuple):
    """What a batch should give, and where the losses look; on the host.

    Attributes
    ----------
    labels
        (B, H, W) int32, as of a batch of crops.
    under
        (B, H, W) int32, likewise, or None where no pixel belongs to two.  Only the spatial loss
        looks under a cell; to the others a pixel is one of the upper cell.
    drawn
        Where the losses look.
    instances
        No label is higher.
    """

    labels: Tensor
    under: Tensor | None
    drawn: Windows | Samples
    instances: int

    def pinned(self) -> Target:
        """The same in memory that an accelerator reads by itself."""
        return self._replace(
            labels=self.labels.pin_memory(),
            under=None if self.under is None else self.under.pin_memory(),
            drawn=type(self.drawn)(*(tensor.pin_memory() for tensor in self.drawn)),
        )


Objective = Callable[[Output, Target, TrainSettings], Terms]


def target_of(
    labels: NDArray[np.integer],
    settings: TrainSettings,
    rng: np.random.Generator,
    under: NDArray[np.integer] | None = None,
) -> Target:
    """Return the target of (B, H, W) `labels` and `under`; what is random comes from `rng`.

    The host's share of the losses: it may run on any thread, ahead of its step.  Ids are dense, as
    those of crops are: each costs memory up to the highest.
    """
    covered = None if under is None or not under.any() else _as_int32(under)
    drawn = _drawn(labels, settings, rng)
    return Target(_as_int32(labels), covered, drawn, max(int(labels.max()), 0))


def _drawn(
    labels: NDArray[np.integer], settings: TrainSettings, rng: np.random.Generator
) -> Windows | Samples:
    if settings.recipe == "spatial":
        return instance_windows(labels, settings, rng)
    samples = draw_samples(labels, settings, rng)
    if settings.recipe == "binary":  # the contrast knows cells and background only
        return samples._replace(labels=samples.labels.clamp(max=1))
    return samples


def spatial(output: Output, target: Target, settings: TrainSettings) -> Terms:
    """Return the weighted terms of the `spatial` recipe."""
    device = output.embedding.device
    assert isinstance(target.drawn, Windows)
    windows = Windows(*(tensor.to(device, non_blocking=True) for tensor in target.drawn))
    labels = _labels(output, target)
    under = None if target.under is None else target.under.to(device, non_blocking=True)
    points = points_of(windows, labels, under, settings.grid_points)
    parts = spatial_terms(output.embedding, labels, points, target.instances)
    terms = {
        "overlap": parts.overlap,
        "smoothness": SMOOTHNESS_WEIGHT * parts.smoothness,
        "seed": SEED_WEIGHT * parts.seed,
    }
    return terms | _classes(output, labels)


def contrastive(output: Output, target: Target, settings: TrainSettings) -> Terms:
    """Return the weighted terms of the `contrastive` recipe."""
    assert isinstance(target.drawn, Samples)
    contrast = _contrast(output, target.drawn, settings)
    return {"contrast": contrast} | _classes(output, _labels(output, target))


def binary(output: Output, target: Target, settings: TrainSettings) -> Terms:
    """Return the weighted terms of the `binary` recipe.

    The contrast knows cells and background only.  The instances come from the
    classes, which therefore weigh as much as it.
    """
    assert output.classes is not None
    assert isinstance(target.drawn, Samples)
    return {
        "contrast": _contrast(output, target.drawn, settings),
        "classes": classes_loss(output.classes, _labels(output, target)),
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


def _as_int32(ids: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int32))


def _labels(output: Output, target: Target) -> Tensor:
    """Return the labels, (B, H, W) int64, where the output is."""
    return target.labels.to(output.embedding.device, non_blocking=True).long()


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
