"""Agglomeration of touching pixels, for a batch of embeddings of either kind.

The rules and the label images are those of :mod:`cellseg_cli.clustering.grid`, to the pixel.
The background code of a contrastive embedding without classes is found by the reference itself,
from the 1024 pixels of its sample.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cellseg_cli.clustering.grid import background_code, sample_places
from cellseg_cli.clustering.merging import CENTRE_STEPS, LADDER, VECTOR_STEPS
from cellseg_cli.clustering.resizing import working_shape
from cellseg_cli.clustering.seeds import WIDEST_PX
from cellseg_cli.clustering.settings import Clustering

from .cores import separated
from .graphs import least
from .merging import merged
from .pieces import finished
from .resizing import enlarged_nearest, resized_bilinear
from .watershed import flooded, foreground, inside


def grid(
    values: Tensor, usable: Tensor, *, kind: str, settings: Clustering, classes: Tensor | None
) -> Tensor:
    """The label images of embeddings.

    Parameters
    ----------
    values : (B, E, Y, X) float32, C-contiguous
        Finite in the fields that are usable.
    usable : (B,) bool
        The fields to cluster; the others come out as background.
    kind : str
    settings : Clustering
        Resolved; uses ``merge_distance``, ``foreground``, ``min_area_px``, ``size`` and, for
        contrastive embeddings, ``erosion`` and (with classes) ``seed_level``.
    classes : (B, 3, Y, X) uint8 or None

    Returns
    -------
    (B, Y, X) int32
    """
    assert settings.merge_distance is not None and settings.size is not None
    assert settings.seed_level is not None and settings.min_area_px is not None
    assert settings.erosion is not None
    spatial, field = kind == "spatial", (values.shape[2], values.shape[3])
    shape = working_shape(field, settings.size)
    mask = _foreground(values, usable, kind, settings, classes) & usable[:, None, None]
    inner, interior = mask, None
    if classes is not None and not spatial:
        interior = classes[:, 1]
        inner = mask & inside(classes, settings.seed_level)
    inner = resized_bilinear(inner[:, None].float(), shape)[:, 0] >= 0.5
    features = resized_bilinear(_centres(values) if spatial else values, shape)
    labels = _clusters(features, inner, spatial, settings.merge_distance)
    if not spatial:
        labels = separated(labels, settings.erosion)
    labels = torch.where(mask, enlarged_nearest(labels, field), 0)
    if interior is not None:
        labels = flooded(labels, mask, interior)
    return finished(labels, settings.min_area_px)


def _centres(values: Tensor) -> Tensor:
    """Predicted centre y, x in px of the field, and bandwidth: (B, 3, Y, X) float64."""
    centres = values[:, :3].double().clamp_(-WIDEST_PX, WIDEST_PX)
    height, width = values.shape[2:]
    centres[:, 0] += torch.arange(height, device=values.device)[:, None]
    centres[:, 1] += torch.arange(width, device=values.device)
    return centres


def _foreground(
    values: Tensor, usable: Tensor, kind: str, settings: Clustering, classes: Tensor | None
) -> Tensor:
    """The foreground at the size of the fields: (B, Y, X) bool."""
    assert settings.foreground is not None
    if classes is not None:
        return foreground(classes, settings.foreground)
    if kind == "spatial":
        return values[:, 3] > float(np.float32(settings.foreground))
    code = _background_codes(values, usable)
    cosine, square = (torch.zeros_like(values[:, 0], dtype=torch.float64) for _ in range(2))
    for k in range(values.shape[1]):
        component = values[:, k].double()
        cosine = cosine + code[:, k, None, None] * component
        square = square + component * component
    length = square.sqrt_()
    return 1 - cosine / torch.where(length > 0, length, 1) > settings.foreground


def _background_codes(values: Tensor, usable: Tensor) -> Tensor:
    """The background code of each field that is usable, 0 for the others: (B, E) float64."""
    _, _, height, width = values.shape
    rows, columns = (
        torch.from_numpy(places).to(values.device) for places in sample_places((height, width))
    )
    samples = values[:, :, rows[:, None], columns].cpu().numpy()
    codes = np.zeros(samples.shape[:2])
    for field in usable.nonzero()[:, 0].tolist():
        codes[field] = background_code(samples[field])
    return torch.from_numpy(codes).to(values.device)


def _clusters(features: Tensor, mask: Tensor, spatial: bool, merge_distance: float) -> Tensor:
    """The clusters of the pixels of a mask, numbered in the order of their first pixels.

    Returns
    -------
    (B, y, x) int64
        From 1 through the batch; 0 outside the mask.
    """
    sums = features.transpose(0, 1)[:, mask].double()
    if not spatial:
        square = torch.zeros_like(sums[0])
        for component in sums:
            square = square + component * component
        length = square.sqrt()
        sums /= torch.where(length > 0, length, 1)
    steps = CENTRE_STEPS if spatial else VECTOR_STEPS
    sums = sums.mul_(steps).round_().div_(steps)
    node = mask.view(-1).cumsum(0).view_as(mask) - 1
    before = node[:, 0, 0] + 1 - mask[:, 0, 0].long()  # nodes in the fields before
    name = (node - before[:, None, None])[mask]
    levels = [*(distance for distance in LADDER if distance < merge_distance), merge_distance]
    root = merged(sums, _touching(node, mask), name, spatial, levels)
    index = torch.arange(len(root), device=root.device)
    first = least(root, len(root), index)[root]
    labels = torch.zeros_like(node)
    labels[mask] = (first == index).cumsum(0)[first]
    return labels


def _touching(node: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of 4-neighbours in a mask: (m,) and (m,) int64."""
    across, down = mask[..., :-1] & mask[..., 1:], mask[:, :-1] & mask[:, 1:]
    return (
        torch.cat([node[..., :-1][across], node[:, :-1][down]]),
        torch.cat([node[..., 1:][across], node[:, 1:][down]]),
    )
