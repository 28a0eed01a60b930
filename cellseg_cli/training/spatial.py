"""The loss of spatial embeddings: the overlap of each instance's soft mask with its truth.

Labels are int64 (B, H, W): −1 = unknown (outside the image), 0 = background,
k > 0 = instance k of that crop.  Nothing here loops over instances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cellseg_cli.training.windows import Points


def lovasz_hinge(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the Lovász hinge of each row: a convex bound on 1 − IoU.

    Source: Berman, Rannen Triki, Blaschko, arXiv 1705.08790, algorithm 1.

    Parameters
    ----------
    logits
        (K, P) float; positive says inside.
    truth
        (K, P) bool.
    valid
        (K, P) bool; points that are not valid count for nothing.

    Returns
    -------
    Tensor
        (K,) float.
    """
    inside = truth & valid
    signs = inside.to(logits.dtype) * 2 - 1
    # An invalid point gets an error below every real one: it is sorted last, and relu drops it.
    errors = (1 - logits * signs).masked_fill(~valid, -torch.inf)
    errors, order = torch.sort(errors, dim=1, descending=True)
    hits = torch.gather(inside, 1, order).to(logits.dtype)
    total = hits.sum(1, keepdim=True)
    seen_inside = hits.cumsum(1)
    seen_outside = (1 - hits).cumsum(1)
    jaccard = 1 - (total - seen_inside) / (total + seen_outside).clamp(min=1)
    steps = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    return (functional.relu(errors) * steps).sum(1)


class SpatialTerms(NamedTuple):
    """The parts of the spatial loss, each a scalar."""

    overlap: Tensor
    smoothness: Tensor
    seed: Tensor


def spatial_terms(
    embedding: Tensor, labels: Tensor, points: Points, instances: int
) -> SpatialTerms:
    """Return the terms of the spatial loss of a batch.

    Each pixel predicts a centre, its own position plus its offset.  Of an
    instance, c is the mean predicted centre and sigma the geometric mean of
    the bandwidths over its visible pixels; the soft mask of the instance is
    phi = exp(−|centre − c|² / 2 sigma²).  ``overlap`` is the Lovász hinge of
    2 phi − 1 in the windows (its mean over the instances of a crop, then over
    crops), ``smoothness`` the variance of log bandwidth inside an instance,
    ``seed`` the squared error of the seed map against phi
    of the pixel's own instance (0 on background).

    Source: Neven et al., arXiv 1906.11109, equations 5 to 11.

    Parameters
    ----------
    embedding
        (B, 4, H, W) float32: offset y, offset x, bandwidth (pixels), seed.
    labels
        (B, H, W) int64.
    points
        Points over the instances that enter ``overlap``.
    instances
        No label is higher: told, so that the device is not waited for.
    """
    crops, _, height, width = embedding.shape
    rows = torch.arange(height, device=embedding.device, dtype=embedding.dtype).view(1, -1, 1)
    columns = torch.arange(width, device=embedding.device, dtype=embedding.dtype).view(1, 1, -1)
    centre_y, centre_x = embedding[:, 0] + rows, embedding[:, 1] + columns
    log_bandwidth, seed = embedding[:, 2].log(), embedding[:, 3]

    slots = instances + 1
    flat = labels.clamp(min=0) + torch.arange(crops, device=labels.device).view(-1, 1, 1) * slots
    flat = flat.flatten()
    inside = (labels > 0).flatten()
    mean_y, mean_x, mean_log = (
        _means(value.flatten(), flat, inside, crops * slots)
        for value in (centre_y, centre_x, log_bandwidth)
    )

    own = _phi(centre_y.flatten(), centre_x.flatten(), mean_y[flat], mean_x[flat], mean_log[flat])
    target = torch.where(inside, own.detach(), torch.zeros_like(own))
    known = (labels >= 0).flatten()
    seed_term = _mean_of((seed.flatten() - target).square(), known)
    smoothness = _mean_of((log_bandwidth.flatten() - mean_log[flat]).square(), inside)

    chosen = points.crop * slots + points.instance
    crop = points.crop.unsqueeze(1)
    phi = _phi(
        centre_y[crop, points.y, points.x],
        centre_x[crop, points.y, points.x],
        mean_y[chosen].unsqueeze(1),
        mean_x[chosen].unsqueeze(1),
        mean_log[chosen].unsqueeze(1),
    )
    truth = labels[crop, points.y, points.x] == points.instance.unsqueeze(1)
    hinge = lovasz_hinge(2 * phi - 1, truth, points.valid)
    # Every crop weighs the same, as every image does in the scores: a mean over all instances
    # would be the mean of the crowded crops.
    alike = hinge.new_zeros(crops).index_add(0, points.crop, torch.ones_like(hinge))
    share = 1 / alike[points.crop]
    overlap = (hinge * share).sum() / share.sum() if len(hinge) else embedding.sum() * 0
    return SpatialTerms(overlap, smoothness, seed_term)


def _phi(y: Tensor, x: Tensor, mean_y: Tensor, mean_x: Tensor, mean_log: Tensor) -> Tensor:
    squared = (y - mean_y).square() + (x - mean_x).square()
    return torch.exp(-0.5 * squared * torch.exp(-2 * mean_log))


def _means(values: Tensor, groups: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Return the mean of the chosen `values` of each group, (count,); 0 for an empty one."""
    weights = chosen.to(values.dtype)
    sums = values.new_zeros(count).index_add(0, groups, values * weights)
    sizes = values.new_zeros(count).index_add(0, groups, weights)
    return sums / sizes.clamp(min=1)


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    weights = chosen.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)
