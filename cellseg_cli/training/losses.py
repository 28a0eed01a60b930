"""Losses of single pixels and of pairs of them; plain tensors in, one scalar out.

Labels are int64 (B, H, W): −1 = unknown (outside the image), 0 = background,
k > 0 = instance k of that crop.  No function here builds a matrix of all pixel
pairs of a crop, and none loops over instances.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the supervised pixel contrast of one sample of pixels.

    For a pixel i with partners P(i), the other pixels of its own label,
    −mean over p in P(i) of log(exp(z_i·z_p / T) / sum over a ≠ i of
    exp(z_i·z_a / T)); averaged over the pixels that have a partner.  Background
    is a label like any other.  Memory: the (N, N) matrix of the sample only.

    Source: van den Oord et al., arXiv 1807.03748 (InfoNCE); Khosla et al.,
    arXiv 2004.11362, equation 2, for several positives.

    Parameters
    ----------
    vectors
        (N, E) unit vectors.
    labels
        (N,) int64, ≥ 0.
    temperature
        T > 0.
    """
    similarity = vectors @ vectors.T / temperature
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    log_total = similarity.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    partners = (labels.unsqueeze(0) == labels.unsqueeze(1)) & ~itself
    count = partners.sum(1)
    if not bool((count > 0).any()):
        return vectors.sum() * 0
    mean_log = ((similarity - log_total) * partners).sum(1) / count.clamp(min=1)
    return -mean_log[count > 0].mean()


def class_targets(labels: Tensor) -> Tensor:
    """Return background 0, interior 1, border 2 (−1 unknown) of (B, H, W) `labels`.

    Border is every pixel of an instance that has a pixel of another label or
    of background among its eight neighbours; it belongs to the cell, so that
    1 − P(background) is the whole cell with its rim.
    """
    # An unknown neighbour is no neighbour of another label: the image ends there.
    values = functional.pad(labels.unsqueeze(1).float(), (1, 1, 1, 1), mode="replicate")
    highest = functional.max_pool2d(values, 3, stride=1).squeeze(1)
    known = values.masked_fill(values < 0, torch.inf)
    lowest = -functional.max_pool2d(-known, 3, stride=1).squeeze(1)
    border = (highest != labels) | (lowest != labels)
    targets = (labels > 0).long() + ((labels > 0) & border).long()
    return targets.masked_fill(labels < 0, -1)


def classes_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of (B, 3, H, W) `logits` against :func:`class_targets`."""
    targets = class_targets(labels)
    if not bool((targets >= 0).any()):
        return logits.sum() * 0
    return functional.cross_entropy(logits, targets, ignore_index=-1)
