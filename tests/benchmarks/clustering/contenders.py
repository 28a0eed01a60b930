"""The post-processings that are compared, and what each of them starts from.

Ours start from embeddings with noise.  The peers start from their own networks' exact training
targets, which is the best they can be given: a missed cell is the post-processing's.  Peers are
imported by their own process only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from embeddings import classes, contrastive, spatial

from cellseg_cli.clustering import Clustering, cluster

#: StarDist2D's own defaults; 32 rays as in ``Config2D``.
_PROBABILITY, _OVERLAP, _RAYS = 0.5, 0.4, 32

#: Signed weights of bioimage-cpp: attractive below this cosine distance, repulsive above.  Out of
#: 0.05, 0.1, 0.2, 0.3 and 0.45 the best in F1 on the field of 300 discs, for each of the three
#: (mutex: 0.951, against 0.953 at 0.45, which misses more on real shapes).
_GASP_WHOLE, _GASP_MASKED, _MUTEX = 0.2, 0.3, 0.3

#: Neighbours that attract, and far ones that repel, every fourth pixel each way.
_NEAR, _FAR, _STRIDES = [[1, 0], [0, 1]], [[3, 0], [0, 3], [9, 0], [0, 9], [9, 9], [9, -9]], [4, 4]


@dataclass(frozen=True)
class Contender:
    """A post-processing.

    Attributes
    ----------
    package
        Its distribution; the contender is left out where that is not installed.
    prepare
        From a label image (Y, X) int32 to the input; not measured.
    work
        From the input to a label image; measured.
    """

    package: str
    prepare: Callable[[np.ndarray], Any]
    work: Callable[[Any], np.ndarray]


def _ours(method: str, kind: str, with_classes: bool = False) -> Contender:
    embed = spatial if kind == "spatial" else contrastive

    def prepare(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return embed(labels), classes(labels) if with_classes else None

    def work(given: tuple[np.ndarray, np.ndarray | None]) -> np.ndarray:
        return cluster(given[0], kind=kind, settings=Clustering(method), classes=given[1])

    return Contender("cellseg-cli", prepare, work)


def _stardist(grid: int) -> Contender:
    """Non-maximum suppression and painting of polygons; a candidate every ``grid`` px."""

    def prepare(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        from stardist import edt_prob, star_dist

        distances = star_dist(labels, _RAYS, grid=(grid, grid))
        probability = edt_prob(labels)[::grid, ::grid].astype(np.float32)
        return np.maximum(distances, 1e-3), probability, labels.shape

    def work(given: tuple[np.ndarray, np.ndarray, tuple[int, ...]]) -> np.ndarray:
        from stardist import non_maximum_suppression, polygons_to_label

        distances, probability, shape = given
        points, scores, kept = non_maximum_suppression(
            distances,
            probability,
            grid=(grid, grid),
            prob_thresh=_PROBABILITY,
            nms_thresh=_OVERLAP,
        )
        return polygons_to_label(kept, points, shape, prob=scores)

    return Contender("stardist", prepare, work)


def _cellpose() -> Contender:
    """``compute_masks`` with its own defaults on the CPU: 200 steps, flow threshold 0.4."""

    def prepare(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import cv2
        import torch
        from cellpose.dynamics import labels_to_flows

        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        target = labels_to_flows([labels.copy()], device=torch.device("cpu"))[0]
        # the network learns five times the flow, and a logit
        return 5 * target[2:], np.where(target[1] > 0, 6, -6).astype(np.float32)

    def work(given: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        from cellpose.dynamics import compute_masks

        return compute_masks(*given)

    return Contender("cellpose", prepare, work)


def _embedding_and_mask(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return contrastive(labels).astype(np.float32), labels > 0


def _gasp_of_whole(given: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Average linkage on the grid graph of all pixels; the largest cluster is background."""
    from bioimage_cpp import affinities, graph

    embedding, _ = given
    pixels = graph.grid_graph(embedding.shape[1:])
    distances = affinities.compute_embedding_distances(embedding, _NEAR, norm="cosine")
    edges, _ = graph.features.grid_affinity_features(pixels, distances, _NEAR)
    policy = graph.agglomeration.GaspClusterPolicy(linkage="mean")
    cluster_of = policy.optimize(pixels, _GASP_WHOLE - edges).astype(np.int64)
    background = np.argmax(np.bincount(cluster_of))
    labels = np.where(cluster_of == background, 0, cluster_of + 1)
    return labels.reshape(embedding.shape[1:])


def _gasp_of_mask(given: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Average linkage on the grid graph of the true foreground."""
    from bioimage_cpp import affinities, graph

    embedding, mask = given
    distances = affinities.compute_embedding_distances(embedding, _NEAR, norm="cosine")
    rank = np.cumsum(mask.ravel()).reshape(mask.shape) - 1
    down, across = mask[:-1] & mask[1:], mask[:, :-1] & mask[:, 1:]
    pairs = np.concatenate(
        [
            np.stack([rank[:-1][down], rank[1:][down]], axis=1),
            np.stack([rank[:, :-1][across], rank[:, 1:][across]], axis=1),
        ]
    )
    weights = _GASP_MASKED - np.concatenate([distances[0, :-1][down], distances[1, :, :-1][across]])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    count = int(np.count_nonzero(mask))
    pixels = graph.UndirectedGraph.from_unique_edges(count, pairs[order].astype(np.uint64))
    policy = graph.agglomeration.GaspClusterPolicy(linkage="mean")
    labels = np.zeros(mask.shape, np.int64)
    labels[mask] = policy.optimize(pixels, weights[order]).astype(np.int64) + 1
    return labels


def _mutex_of_mask(given: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Mutex watershed in the true foreground, far edges strided."""
    from bioimage_cpp import affinities, segmentation

    embedding, mask = given
    offsets = _NEAR + _FAR
    distances = affinities.compute_embedding_distances(embedding, offsets, norm="cosine")
    weights = np.minimum(distances / (2 * _MUTEX), 1)
    weights[: len(_NEAR)] = 1 - weights[: len(_NEAR)]
    return segmentation.mutex_watershed(weights, offsets, len(_NEAR), strides=_STRIDES, mask=mask)


#: The first is what all others are divided by.
CONTENDERS: dict[str, Contender] = {
    "seeds, spatial": _ours("seeds", "spatial"),
    "grid, spatial": _ours("grid", "spatial"),
    "grid, contrastive": _ours("grid", "contrastive"),
    "grid, contrastive, foreground given": _ours("grid", "contrastive", with_classes=True),
    "linkage, contrastive at 160×128": _ours("linkage", "contrastive"),
    "StarDist NMS, grid 1": _stardist(1),
    "StarDist NMS, grid 2": _stardist(2),
    "Cellpose 3 compute_masks": _cellpose(),
    "bioimage-cpp GASP mean": Contender("bioimage-cpp", _embedding_and_mask, _gasp_of_whole),
    "bioimage-cpp GASP mean, foreground given": Contender(
        "bioimage-cpp", _embedding_and_mask, _gasp_of_mask
    ),
    "bioimage-cpp mutex, foreground given": Contender(
        "bioimage-cpp", _embedding_and_mask, _mutex_of_mask
    ),
}
