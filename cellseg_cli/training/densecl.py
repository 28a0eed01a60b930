"""DenseCL: what an encoder learns from two views of the same place, without annotations.

A query network (encoder and projection heads) sees one view, its slowly following average, the
key network, the other.  Of each view as a whole, and of each place of the coarsest stage, the
query must find its key among the keys of earlier batches, which two queues keep.  Which place
of one view belongs to which of the other is read from the features themselves, so that no
geometry is passed on.

Batch norm: where query and key are normalised by statistics of the same images, a network can
tell the pair by them.  MoCo shuffles the keys over several devices, each with statistics of its
own.  Here, on one device, groups take the place of devices: a batch goes through the query
network in groups, through the key network in other, shuffled groups.

Source: Wang et al., arXiv 2011.09157, equations 1 to 4, and their code for what the paper leaves
open; He et al., MoCo, arXiv 1911.05722, for queue and momentum.  Knows no file and no setting.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Length of a projected vector: arXiv 2011.09157, section 3.1.
PROJECTED = 128
#: Groups that a batch is normalised in.  MoCo's authors take 8 of 32 views; here batches are
#: smaller, and statistics of less than a few views are noise.
GROUPS = 4


class Projected(NamedTuple):
    """What a network says of a batch of views; all vectors have length one.

    Attributes
    ----------
    features
        (B, D, S) float32: the encoder's coarsest stage, S places in rows.
    whole
        (B, 128) float32: of each view.
    dense
        (B, 128, S) float32: of each place.
    pooled
        (B, 128) float32: mean of the dense projections of a view, brought to length one.
    """

    features: Tensor
    whole: Tensor
    dense: Tensor
    pooled: Tensor


class ProjectedEncoder(nn.Module):
    """An encoder with the two projection heads that pretraining needs and training drops.

    Parameters
    ----------
    encoder
        Gives features of each stage, finest first.
    width
        Channels of its coarsest stage, and of the hidden layer of both heads: linear (global) or
        1×1 convolutions (dense), two each with a ReLU between, without batch norm (section 3.2).
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.global_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, PROJECTED)
        )
        self.dense_head = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, PROJECTED, kernel_size=1),
        )

    def forward(self, images: Tensor) -> Projected:
        """Return the projections of images (B, C, H, W)."""
        features = self.encoder(images)[-1]  # (B, D, h, w)
        whole = self.global_head(features.mean((2, 3)))
        dense = self.dense_head(features)
        return Projected(
            _unit(features.flatten(2)),
            _unit(whole),
            _unit(dense.flatten(2)),
            _unit(dense.mean((2, 3))),
        )


def project(network: nn.Module, images: Tensor, order: Tensor | None = None) -> Projected:
    """Return the projections of images (B, C, H, W), normalised in :data:`GROUPS` groups.

    Parameters
    ----------
    network
        A :class:`ProjectedEncoder` in training mode.
    images
        One view of each place.
    order
        A permutation (B,) int64 in which they are grouped; the result has the order of `images`.
    """
    if order is None:
        parts = [network(group) for group in images.chunk(GROUPS)]
        return Projected(*map(torch.cat, zip(*parts, strict=True)))
    shuffled = project(network, images[order])
    back = order.argsort()
    return Projected(*(vectors[back] for vectors in shuffled))


class Queue(nn.Module):
    """The keys of the last batches, first in, first out.

    Parameters
    ----------
    length
        Keys that are kept.  At first they are random directions, as in MoCo's code: no batch
        has to do without negatives.
    generator
        Draws these.
    """

    vectors: Tensor
    position: Tensor

    def __init__(self, length: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("vectors", _unit(torch.randn(length, PROJECTED, generator=generator)))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put all of `keys` (B, 128), B ≤ length, in the place of the oldest B."""
        length = len(self.vectors)
        assert len(keys) <= length
        places = (self.position + torch.arange(len(keys), device=keys.device)) % length
        self.vectors[places] = keys.to(self.vectors.dtype)
        self.position.add_(len(keys)).remainder_(length)


class DenseCL(nn.Module):
    """The query network and the queues: what is learned and what is remembered.

    Attributes
    ----------
    network
        The query network; its ``encoder`` is what pretraining is for.
    global_queue, dense_queue
        Keys of whole views, and pooled dense keys, one per view each.
    """

    def __init__(self, network: ProjectedEncoder, queue_length: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.network = network
        self.global_queue = Queue(queue_length, generator)
        self.dense_queue = Queue(queue_length, generator)

    def losses(self, query: Projected, key: Projected, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the global and the dense loss of one batch, neither weighted.

        Memory: B·S·(queue length + 1) float32 values, and B·S² for the correspondence.
        """
        whole = contrast(query.whole, key.whole, self.global_queue.vectors, temperature)
        matched = match(query.features, key.features)
        partners = key.dense.gather(2, matched.unsqueeze(1).expand_as(query.dense))
        dense = contrast(
            query.dense.transpose(1, 2).flatten(0, 1),  # (B, 128, S) → (B·S, 128)
            partners.transpose(1, 2).flatten(0, 1),
            self.dense_queue.vectors,
            temperature,
        )
        return whole, dense

    def remember(self, key: Projected) -> None:
        """Put the keys of a batch into the queues; after its losses, or it would meet itself."""
        self.global_queue.push(key.whole)
        self.dense_queue.push(key.pooled)


@torch.no_grad()
def follow(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """Move the weights of the key network: ``momentum`` of their own, the rest of the query's.

    Means and variances of batch norm are not moved: both networks normalise by groups.
    Source: arXiv 1911.05722, equation 2.
    """
    for own, other in zip(key.parameters(), query.parameters(), strict=True):
        own.lerp_(other, 1 - momentum)


def contrast(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return −log(exp(q·k/T) / (exp(q·k/T) + sum over negatives n of exp(q·n/T))), averaged.

    Source: arXiv 2011.09157, equations 1 (views) and 2 (places).

    Parameters
    ----------
    queries, keys
        (N, E) unit vectors; row i of one belongs to row i of the other.
    negatives
        (K, E) unit vectors.
    temperature
        T > 0.
    """
    own = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat([own, queries @ negatives.T], dim=1) / temperature
    first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return functional.cross_entropy(logits, first)


@torch.no_grad()
def match(queries: Tensor, keys: Tensor) -> Tensor:
    """Return for each place of the query view the most similar place of the key view.

    Source: arXiv 2011.09157, equation 4.  Undefined: which of equally similar places.

    Parameters
    ----------
    queries, keys
        (B, D, S) unit vectors.

    Returns
    -------
    Tensor
        (B, S) int64, places of `keys`.

    Examples
    --------
    Four places along a line and the same seen from the right:

    >>> line = torch.eye(4).unsqueeze(0)
    >>> match(line, line.flip(2)).tolist()
    [[3, 2, 1, 0]]
    """
    return (queries.transpose(1, 2) @ keys).argmax(2)


def _unit(vectors: Tensor) -> Tensor:
    """Return (B, E) or (B, E, S) at length one, in float32 whatever the network computes in."""
    return functional.normalize(vectors.float(), dim=1)
