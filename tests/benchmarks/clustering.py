"""Time of the clustering methods, and of ``linkage`` against scikit-learn in the same process.

    python tests/benchmarks/clustering.py [POINTS]

POINTS (default 5120) is the size of the scikit-learn run, whose memory grows with its square:
20480 points, the size the project's origin clusters at, take 3.3 GB and half a minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from sklearn.cluster import AgglomerativeClustering

from cellseg_cli.clustering import Clustering, cluster, linkage_partition

SHAPE = (520, 704)


def cpu_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU seconds of a call, after one that compiles."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def discs(cells: int, seed: int = 0) -> np.ndarray:
    """A label image of discs of radius 6 to 12 px, later ones under earlier ones."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    labels = np.zeros(SHAPE, np.int32)
    for number in range(1, cells + 1):
        y, x, radius = rng.uniform(0, SHAPE[0]), rng.uniform(0, SHAPE[1]), rng.uniform(6, 12)
        labels[(np.hypot(rows - y, columns - x) < radius) & (labels == 0)] = number
    return labels


def spatial_embedding(labels: np.ndarray, noise_px: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    area = np.maximum(np.bincount(labels.ravel()), 1)
    inside = labels > 0
    values = np.zeros((4, *SHAPE))
    for channel, place in enumerate((rows, columns)):
        centre = np.bincount(labels.ravel(), place.ravel()) / area
        values[channel] = (centre[labels] - place) * inside + noise_px * rng.standard_normal(SHAPE)
    values[2] = 0.4 * np.sqrt(area / np.pi)[labels]
    values[3] = np.clip(ndimage.gaussian_filter(inside.astype(float), 1), 0, 1)
    return values.astype(np.float16)


def contrastive_embedding(labels: np.ndarray, noise: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(2)
    codes = rng.standard_normal((labels.max() + 1, 8))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    values = ndimage.gaussian_filter(codes[labels], (1, 1, 0)).transpose(2, 0, 1)
    values += noise * ndimage.gaussian_filter(rng.standard_normal(values.shape), (0, 1, 1))
    return (values / np.linalg.norm(values, axis=0)).astype(np.float16)


def main(points: int) -> None:
    labels = discs(300)
    megapixels = labels.size / 1e6
    for method, kind, embedding in (
        ("seeds", "spatial", spatial_embedding(labels)),
        ("grid", "spatial", spatial_embedding(labels)),
        ("grid", "contrastive", contrastive_embedding(labels)),
        ("linkage", "contrastive", contrastive_embedding(labels)),
    ):
        chosen = Clustering(method)
        seconds = cpu_s(lambda e=embedding, k=kind, c=chosen: cluster(e, kind=k, settings=c))
        print(f"{method:8} {kind:12} {seconds:7.4f} CPU s, {seconds / megapixels:.3f} s/MP")
    pixels = contrastive_embedding(labels).reshape(8, -1).T.astype(np.float64)
    sample = pixels[np.linspace(0, len(pixels) - 1, points).astype(int)]
    ours = cpu_s(lambda: linkage_partition(sample, 0.3))
    start = time.process_time()
    AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=0.3
    ).fit(sample)
    theirs = time.process_time() - start
    print(f"linkage of {points} points: {ours:.4f} CPU s; scikit-learn {theirs:.2f} CPU s; "
          f"ratio {theirs / ours:.0f}")  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5120)
