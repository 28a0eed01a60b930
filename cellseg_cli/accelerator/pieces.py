"""Connected pieces of a batch of label images, and the rules that finish instances.

The rules are those of :mod:`cellseg_cli.clustering.pieces`, to the pixel.  Label images are
(B, Y, X) int64, 0 = background; the labels of a field are higher than those of all fields before
it, so the batch is one graph in which nothing reaches over two fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .graphs import components, firsts, least, summed


@dataclass(frozen=True, eq=False)
class Pieces:
    """The 4-connected pieces of equal non-zero label.

    Attributes
    ----------
    image : (B, Y, X) int64
        Numbered from 1 through the batch in row-major order; 0 where the label is 0.
    label_of, area_of : (n + 1,) int64
        The label and the pixels of each piece; entry 0 is 0.
    """

    image: Tensor
    label_of: Tensor
    area_of: Tensor


def connected_pieces(labels: Tensor) -> Pieces:
    """The pieces of label images (B, Y, X) of integers.

    The nodes of the graph are the runs of equal pixels in a row, numbered from 1 in row-major
    order; node 0 stands for the background.
    """
    here = labels != 0
    as_left, as_right = torch.zeros_like(here), torch.zeros_like(here)
    as_left[..., 1:] = (labels[..., 1:] == labels[..., :-1]) & here[..., 1:]
    as_right[..., :-1] = as_left[..., 1:]
    begins, ends = (here & ~as_left).view(-1), (here & ~as_right).view(-1)
    first, last = begins.nonzero()[:, 0], ends.nonzero()[:, 0]
    run = begins.cumsum(0).view_as(labels)
    root = components(len(first) + 1, *_touching_runs(labels, here, as_left, run))
    lowest = root == torch.arange(len(root), device=labels.device)
    number = (lowest.cumsum(0) - 1)[root]
    label_of = torch.cat([root.new_zeros(1), labels.view(-1)[first[lowest[1:]]].long()])
    area_of = summed(number[1:], len(label_of), last - first + 1)
    return Pieces(torch.where(here, number[run], 0), label_of, area_of)


def _touching_runs(
    labels: Tensor, here: Tensor, as_left: Tensor, run: Tensor
) -> tuple[Tensor, Tensor]:
    """The pairs of runs of equal label in consecutive rows, mostly each pair once."""
    as_up = (labels[:, 1:] == labels[:, :-1]) & here[:, 1:]
    joins = as_up.clone()
    joins[..., 1:] &= ~(as_up[..., :-1] & as_left[:, 1:, 1:])  # told by the pixel to the left
    return run[:, :-1][joins], run[:, 1:][joins]


def size_ranks(area_of: Tensor) -> Tensor:
    """The place of each label in the order of falling area (equal ones: the lower).

    Parameters
    ----------
    area_of : (n + 1,) int64

    Returns
    -------
    (n + 1,) int64
    """
    rank = torch.empty_like(area_of)
    order = (-area_of).sort(stable=True).indices
    rank[order] = torch.arange(len(rank), device=rank.device)
    return rank


def finished(labels: Tensor, min_area_px: int) -> Tensor:
    """The label images with instances in one piece, without holes, numbered densely.

    See :func:`cellseg_cli.clustering.pieces.finished` for the rules.

    Parameters
    ----------
    labels : (B, Y, X) int64
    min_area_px : int

    Returns
    -------
    (B, Y, X) int32
        For each field labels 1 to n in the order of the labels given, 0 = background.
    """
    pieces = connected_pieces(labels)
    home = _homes(pieces, min_area_px)
    owner = _owners(pieces, home, *_contacts(pieces.image, home))
    settled = torch.where(owner > 0, pieces.label_of[owner], 0)
    area = summed(settled, int(pieces.label_of.max()) + 1, pieces.area_of)
    return _dense(_filled(settled[pieces.image], area))


def _homes(pieces: Pieces, min_area_px: int) -> Tensor:
    """For each piece: itself if it is the main piece of its label and large enough, else 0."""
    number = torch.arange(len(pieces.label_of), device=pieces.label_of.device)
    main = firsts(pieces.label_of, int(pieces.label_of.max()) + 1, -pieces.area_of, number)
    home = torch.zeros_like(number)
    home[main] = torch.where(pieces.area_of[main] >= min_area_px, number[main], 0)
    return home


def _contacts(image: Tensor, home: Tensor) -> tuple[Tensor, Tensor]:
    """Each homeless piece and a neighbour of it, once per shared pixel edge."""
    ends = []
    for one, two in ((image[..., :-1], image[..., 1:]), (image[:, :-1], image[:, 1:])):
        apart = (one != two) & (one > 0) & (two > 0)
        one, two = one[apart], two[apart]
        ends += [torch.stack([one, two]), torch.stack([two, one])]
    this, that = torch.cat(ends, 1)
    homeless = home[this] == 0
    return this[homeless], that[homeless]


def _owners(pieces: Pieces, home: Tensor, this: Tensor, that: Tensor) -> Tensor:
    """The home piece that each piece ends in, 0 = none; homeless ones settle layer by layer."""
    owner, count = home.clone(), len(home)
    while True:
        reached = (owner[that] > 0).nonzero()[:, 0]
        if reached.numel() == 0:
            return owner
        borders = this[reached] * count + owner[that[reached]]
        borders, votes = torch.unique(borders, return_counts=True)
        piece, candidate = borders // count, borders % count
        chosen = firsts(piece, count, -votes, -pieces.area_of[candidate], candidate)
        owner[piece[chosen]] = candidate[chosen]
        left = owner[this] == 0
        this, that = this[left], that[left]


def _filled(labels: Tensor, area: Tensor) -> Tensor:
    """The label images with enclosed background given to the instance around it.

    ``area`` are the pixels of each label.
    """
    gaps = connected_pieces(labels == 0)
    count = len(gaps.area_of)
    gap, around = (torch.cat(parts) for parts in zip(*_rims(gaps.image, labels), strict=True))
    low, high = least(gap, count, around), -least(gap, count, -around)
    enclosed = low == high
    for side in (gaps.image[:, 0], gaps.image[:, -1], gaps.image[..., 0], gaps.image[..., -1]):
        enclosed[side.reshape(-1)] = False
    label = torch.where(enclosed, low, 0)
    label = torch.where(gaps.area_of < area[label], label, 0)
    return labels + label[gaps.image]  # labels are 0 in gaps, and gap 0 has label 0


def _rims(gaps: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each gap and the label of a pixel next to it, once per shared pixel edge."""
    found = []
    for first, second in (
        ((slice(None), slice(None), slice(1, None)), (slice(None), slice(None), slice(-1))),
        ((slice(None), slice(1, None)), (slice(None), slice(-1))),
    ):
        for here, there in ((first, second), (second, first)):
            rim = (gaps[here] > 0) & (labels[there] > 0)
            found.append((gaps[here][rim], labels[there][rim]))
    return found


def _dense(labels: Tensor) -> Tensor:
    """Each field's labels renumbered 1 to n without gaps, as int32."""
    top = labels.flatten(1).amax(1).cummax(0).values
    present = torch.zeros(int(top[-1]) + 1, dtype=torch.int32, device=labels.device)
    present[labels.view(-1)] = 1
    present[0] = 0
    number = present.cumsum(0, dtype=torch.int32)
    before = torch.cat([number[:1], number[top[:-1]]])
    return torch.where(labels > 0, number[labels] - before[:, None, None], 0)
