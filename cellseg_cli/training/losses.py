"""Losses of single pixels and of pairs of them; plain tensors in, one scalar out.

Labels are int64 (B, H, W): −1 = unknown (outside the image), 0 = background,
k > 0 = instance k of that crop.  No function here loops over instances or
crops, none builds a matrix of all pixel pairs of a crop, and none waits for
the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

#: Pairs of pixels whose similarities exist at the same time, all samples of a batch
#: together.  On the CPU 1 MiB of float32, which stays in a core's cache; on an accelerator
#: 64 MiB, which keep it busy.
PAIRS_AT_ONCE_CPU = 1 << 18
PAIRS_AT_ONCE_DEVICE = 1 << 24


def contrastive_loss(
    vectors: Tensor, labels: Tensor, temperature: float, *, with_itself: bool = False
) -> Tensor:
    """Return the supervised contrast of some samples of pixels, averaged over the samples.

    For a pixel i with partners P(i), the other pixels of its own label in its
    sample, −mean over p in P(i) of log(exp(z_i·z_p / T) / sum over a ≠ i of
    exp(z_i·z_a / T)); averaged over the pixels of a sample that have a partner,
    then over the samples that have such a pixel.  Background is a label like
    any other.  Without any pair the loss is 0 and so is its gradient.

    Source: van den Oord et al., arXiv 1807.03748 (InfoNCE); Khosla et al.,
    arXiv 2004.11362, equation 2, for several positives.

    Parameters
    ----------
    vectors
        (S, N, E) unit vectors of S samples, or (N, E) of one.
    labels
        (S, N) or (N,) int64, ≥ 0; −1 for places that are no pixels, which fill
        up smaller samples.  On the CPU, where their largest is known without
        waiting for the device; they are copied to it.
    temperature
        T > 0.
    with_itself
        Count a pixel as a partner of itself, as the project's origin does.

    Notes
    -----
    Memory: a few (S, N, E) and (S, N) arrays, and at any time the similarities
    of :data:`PAIRS_AT_ONCE_CPU` or :data:`PAIRS_AT_ONCE_DEVICE` pairs (or of one
    pixel of each sample, if these are more), never more than the samples' own
    pair matrices.  The sum over partners needs no pairs, for it is linear: z_i ·
    (sum of the vectors of the label).  That over all others is computed in
    blocks of rows, and again in the backward pass.  It can be differentiated
    once.
    """
    if vectors.dim() == 2:
        vectors, labels = vectors.unsqueeze(0), labels.unsqueeze(0)
    samples, pixels, components = vectors.shape
    slots = int(labels.max()) + 1 if labels.numel() else 1
    labels = labels.to(vectors.device, non_blocking=True)
    valid = labels >= 0
    first = torch.arange(samples, device=vectors.device).unsqueeze(1) * max(slots, 1)
    groups = (labels.clamp(min=0) + first).flatten()  # label l of sample s is group s·slots + l
    weights = valid.to(vectors.dtype)
    sizes = weights.new_zeros(samples * max(slots, 1)).index_add(0, groups, weights.flatten())
    sums = vectors.new_zeros(len(sizes), components).index_add(
        0, groups, (vectors * weights.unsqueeze(2)).flatten(0, 1)
    )
    partners = sizes[groups].view(samples, pixels) - (0 if with_itself else 1)
    others = sums[groups].view_as(vectors) - (0 if with_itself else vectors)
    mean_similarity = (vectors * others).sum(2) / (temperature * partners.clamp(min=1))
    counted = valid & (partners > 0)
    log_total = _LogTotal.apply(vectors, valid, temperature, with_itself)
    losses = torch.where(counted, log_total - mean_similarity, torch.zeros_like(log_total))
    per_sample = losses.sum(1) / counted.sum(1).clamp(min=1)
    return per_sample.sum() / counted.any(1).sum().clamp(min=1)


class _LogTotal(torch.autograd.Function):
    """log of the sum over a of exp(z_i·z_a / T) for each pixel i of each sample."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, valid: Tensor, temperature: float, with_itself: bool
    ) -> Tensor:
        total = vectors.new_empty(vectors.shape[:2])
        lowest = torch.finfo(vectors.dtype).min
        for rows, similarity in _blocks(vectors, valid, temperature, with_itself):
            # A row without any other pixel is −inf throughout; its total is −inf too, not NaN.
            highest = similarity.amax(2, keepdim=True).clamp_(min=lowest)
            summed = similarity.sub_(highest).exp_().sum(2)
            total[:, rows] = summed.log_().add_(highest.squeeze(2))
        ctx.save_for_backward(vectors, valid, total)
        ctx.temperature, ctx.with_itself = temperature, with_itself
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        vectors, valid, total = ctx.saved_tensors
        finite = total.masked_fill(total == -torch.inf, 0).unsqueeze(2)
        scaled = (gradient / ctx.temperature).unsqueeze(2)
        result = torch.zeros_like(vectors)
        for rows, similarity in _blocks(vectors, valid, ctx.temperature, ctx.with_itself):
            share = similarity.sub_(finite[:, rows]).exp_().mul_(scaled[:, rows])
            result[:, rows] += share @ vectors
            result += share.transpose(1, 2) @ vectors[:, rows]
        return result, None, None, None


def _blocks(
    vectors: Tensor, valid: Tensor, temperature: float, with_itself: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of the pair matrices, and their similarities over T, (S, rows, N).

    Those to what is no pixel, and to itself where that does not count, are
    −inf.  The memory of a block is used again for the next one.
    """
    samples, pixels, _ = vectors.shape
    limit = PAIRS_AT_ONCE_CPU if vectors.device.type == "cpu" else PAIRS_AT_ONCE_DEVICE
    most = min(max(1, limit // max(samples * pixels, 1)), pixels)
    missing = torch.zeros_like(valid, dtype=vectors.dtype).masked_fill_(~valid, -torch.inf)
    turned = vectors.transpose(1, 2)
    memory = vectors.new_empty(samples, most, pixels)
    for start in range(0, pixels, max(most, 1)):
        rows = slice(start, min(start + most, pixels))
        block = memory[:, : rows.stop - start]
        torch.baddbmm(
            missing.unsqueeze(1), vectors[:, rows], turned, alpha=1 / temperature, out=block
        )
        if not with_itself:
            block.diagonal(start, dim1=1, dim2=2).fill_(-torch.inf)
        yield rows, block


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
    """Return the cross-entropy of (B, 3, H, W) `logits` against :func:`class_targets`.

    Averaged over the known pixels; 0 where there is none.
    """
    targets = class_targets(labels)
    summed = functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    return summed / (targets >= 0).sum().clamp(min=1)
