"""Exact average linkage of the same points by four libraries: time, memory, equal partitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hardware
import measure
import numpy as np
from embeddings import contrastive
from fields import discs

from cellseg_cli.clustering import Clustering, linkage_partition, resolve
from cellseg_cli.clustering.resizing import resized_bilinear, working_shape

_WARM_UP = 512


def points(count: int, image: Path | None, model: str) -> np.ndarray:
    """Embeddings of evenly spaced pixels: (n, E) float64.

    The field is resized to 160×128 as ``linkage`` does, unless more points are wanted than that
    has.  The embedding is a model's of an image, or synthetic.
    """
    embedding = contrastive(discs(300, (520, 704))) if image is None else _embedded(image, model)
    values = embedding.astype(np.float32)
    small = working_shape(values.shape[1:], "160x128")
    if count <= small[0] * small[1]:
        values = resized_bilinear(values, small)
    flat = values.reshape(len(values), -1).T.astype(np.float64)
    return flat[np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int)]


def _embedded(path: Path, model: str) -> np.ndarray:
    """The embedding (E, Y, X) float16 of an image file."""
    from cellseg_cli.images.decode import read_image
    from cellseg_cli.images.normalise import apply, fit_channels
    from cellseg_cli.images.normalise import measure as measure_image
    from cellseg_cli.networks.checkpoint import find_model, load_model
    from cellseg_cli.networks.predict import Predictor

    header = load_model(find_model(model))[1]
    image = fit_channels(read_image(path), header.in_channels)
    image = apply(image, measure_image(image, header.low_percentile, header.high_percentile))
    return Predictor.load(model, device="cpu").embed(image).values


def _scikit_learn(given: np.ndarray, distance: float) -> np.ndarray:
    from sklearn.cluster import AgglomerativeClustering

    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=distance
    )
    return model.fit(given).labels_


def _scipy(given: np.ndarray, distance: float) -> np.ndarray:
    from scipy.cluster.hierarchy import fcluster, linkage

    return fcluster(linkage(given, "average", metric="cosine"), distance, "distance")


def _fastcluster(given: np.ndarray, distance: float) -> np.ndarray:
    import fastcluster
    from scipy.cluster.hierarchy import fcluster

    return fcluster(fastcluster.linkage(given, "average", metric="cosine"), distance, "distance")


LIBRARIES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "cellseg-cli": linkage_partition,
    "scikit-learn": _scikit_learn,
    "scipy": _scipy,
    "fastcluster": _fastcluster,
}


def outcome(name: str, given: np.ndarray, distance: float) -> tuple[measure.Cost, np.ndarray]:
    """Cost and clusters of a library, in the process that calls; warmed up on few points."""
    work = LIBRARIES[name]
    return measure.cost(
        lambda: work(given, distance), lambda: work(given[:: len(given) // _WARM_UP + 1], distance)
    )


def compare(given: np.ndarray) -> None:
    """Print time, memory and partition of each library."""
    distance = resolve(Clustering("linkage"), "contrastive").merge_distance
    assert distance is not None
    found = {}
    for name in LIBRARIES:
        if hardware.installed(name):
            with measure.process() as process:
                found[name] = process.submit(outcome, name, given, distance).result()
    ours, clusters = found["cellseg-cli"]
    print(
        f"\naverage linkage of {len(given)} points of {given.shape[1]} numbers, cut at {distance}: "
        f"{clusters.max() + 1} clusters\n{'':<14} CPU s   of ours  peak MB  partition"
    )
    for name, (cost, theirs) in found.items():
        print(
            f"{name:<12} {cost.cpu_s:7.3f} {cost.cpu_s / ours.cpu_s:8.1f}×"
            f" {cost.extra_bytes / 1e6:8.1f}  {_compared(theirs, clusters)}"
        )


def _compared(one: np.ndarray, two: np.ndarray) -> str:
    """Whether two partitions are equal; the adjusted Rand index where not."""
    if np.array_equal(_by_first_point(one), _by_first_point(two)):
        return "equal"
    from sklearn.metrics import adjusted_rand_score

    return f"differs, adjusted Rand index {adjusted_rand_score(one, two):.4f}"


def _by_first_point(clusters: np.ndarray) -> np.ndarray:
    """Clusters numbered in the order of their first points."""
    _, first, index = np.unique(clusters, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[index]
