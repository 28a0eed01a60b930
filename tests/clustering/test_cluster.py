from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg_cli.clustering import Clustering, cluster
from cellseg_cli.clustering.inputs import checked_embedding
from cellseg_cli.errors import InputError

WAYS = [
    ("seeds", "spatial"),
    ("grid", "spatial"),
    ("grid", "contrastive"),
    ("linkage", "contrastive"),
    ("watershed", "spatial"),
]


def random_field(seed: int, kind: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((4, *shape))
    if kind == "spatial":
        embedding[2:] = np.abs(embedding[2:])
    return embedding.astype(np.float16), rng.integers(0, 256, (3, *shape), dtype=np.uint8)


@pytest.mark.parametrize(("method", "kind"), WAYS)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 20), width=st.integers(1, 20))
@settings(deadline=None, max_examples=15)
def test_labels_are_dense_and_large_enough_at_any_size(
    method: str, kind: str, seed: int, height: int, width: int
) -> None:
    embedding, classes = random_field(seed, kind, (height, width))
    result = cluster(
        embedding, kind=kind, settings=Clustering(method, min_area_px=2), classes=classes
    )
    assert result.dtype == np.uint32
    assert result.shape == (height, width)
    assert (np.unique(result[result > 0]) == np.arange(1, result.max() + 1)).all()
    assert (np.bincount(result.ravel())[1:] >= 2).all()


@pytest.mark.parametrize(("method", "kind"), WAYS)
def test_a_field_without_foreground_is_all_zero(method: str, kind: str) -> None:
    embedding = np.zeros((4, 30, 40), np.float16)
    embedding[2] = 1 if kind == "spatial" else 0
    classes = np.zeros((3, 30, 40), np.uint8)
    classes[0] = 255
    assert not cluster(embedding, kind=kind, settings=Clustering(method), classes=classes).any()


@pytest.mark.parametrize(("method", "kind"), WAYS)
@pytest.mark.parametrize("shape", [(4, 4), (23, 31), (150, 170)])
def test_one_cell_may_fill_the_field(method: str, kind: str, shape: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    embedding = np.ones((4, *shape), np.float32)
    if kind == "spatial":
        embedding[0], embedding[1], embedding[2] = shape[0] / 2 - rows, shape[1] / 2 - columns, 5
    classes = np.zeros((3, *shape), np.uint8)
    classes[1] = 255
    assert (cluster(embedding, kind=kind, settings=Clustering(method), classes=classes) == 1).all()


@pytest.mark.parametrize(("method", "kind"), WAYS)
def test_threads_give_the_same_labels(method: str, kind: str) -> None:
    fields = [random_field(seed, kind, (60, 70)) for seed in range(4)]

    def run(field: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return cluster(field[0], kind=kind, settings=Clustering(method), classes=field[1])

    alone = [run(field) for field in fields]
    with ThreadPoolExecutor(4) as pool:
        assert all((a == b).all() for a, b in zip(alone, pool.map(run, fields), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e, c: (np.where(np.arange(e.size).reshape(e.shape) < 3, np.nan, e), c),
            "3 of 480 values of the embedding are not finite (NaN or infinite)",
        ),
        (
            lambda e, c: (e[:3], c),
            "a spatial embedding has the channels offset_y_px, offset_x_px, bandwidth_px, seed; "
            "got 3 channels",
        ),
        (lambda e, c: (-e, c), "bandwidths are lengths in px: 120 of 120 are negative"),
        (
            lambda e, c: (e.astype(int), c),
            "an embedding is a floating array (E, Y, X) with at least one pixel; "
            "got int64 of shape (4, 10, 12)",
        ),
        (
            lambda e, c: (e[:, :0], c),
            "an embedding is a floating array (E, Y, X) with at least one pixel; "
            "got float16 of shape (4, 0, 12)",
        ),
        (
            lambda e, c: (e, c[:, 1:]),
            "class probabilities are uint8 of shape (3, 10, 12); got uint8 of shape (3, 9, 12)",
        ),
    ],
)
def test_unusable_input_is_refused(
    change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    embedding, classes = change(np.ones((4, 10, 12), np.float16), np.zeros((3, 10, 12), np.uint8))
    with pytest.raises(InputError) as caught:
        cluster(embedding, kind="spatial", classes=classes)
    assert str(caught.value) == message


def test_every_finite_half_is_widened_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(1, 1, -1)
    assert checked_embedding(halves, "contrastive").tobytes() == halves.astype("f4").tobytes()
