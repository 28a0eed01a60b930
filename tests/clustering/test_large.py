"""Large fields in tiles: the untiled result, ids, long cells, and tiles that disagree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellseg_cli.clustering import Clustering, cluster, large
from cellseg_cli.clustering.grid import background_code, sample_places
from cellseg_cli.clustering.large import LargeLabels, Tiling, cluster_in_tiles, wider
from cellseg_cli.clustering.seams import Grid, Region
from cellseg_cli.errors import ConfigError, LimitError
from cellseg_cli.labels import areas
from cellseg_cli.tiling import tiles

Field = Callable[..., np.ndarray]
Compare = Callable[[np.ndarray, np.ndarray], bool]
Look = Callable[[Region], np.ndarray]

#: Method, kind, size, and whether there are classes.
WAYS = [
    ("seeds", "spatial", "full", False),
    ("grid", "spatial", "full", False),
    ("grid", "spatial", "half", False),
    ("grid", "contrastive", "full", False),
    ("grid", "contrastive", "half", False),
    ("grid", "contrastive", "full", True),
    ("watershed", "spatial", "full", True),
]


class Shelf(dict[str, np.ndarray]):
    """Keeps arrays in memory."""

    def keep(self, name: str, values: np.ndarray) -> None:
        self[name] = values.copy()

    def kept(self, name: str) -> np.ndarray:
        return self[name]


def whole(result: LargeLabels, shape: tuple[int, int]) -> np.ndarray:
    return result.region((slice(0, shape[0]), slice(0, shape[1])))


def in_tiles(
    look: Look, shape: tuple[int, int], tiling: Tiling, min_area_px: int = 1
) -> tuple[np.ndarray, LargeLabels]:
    result = cluster_in_tiles(shape, look, tiling, Shelf(), min_area_px=min_area_px)
    return whole(result, shape), result


def coded(labels: np.ndarray, seed: int, noise: float) -> np.ndarray:
    """A contrastive embedding: a random unit code for each label, blurred by noise."""
    rng = np.random.default_rng(seed)
    codes = rng.standard_normal((labels.max() + 1, 8))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    values = codes[labels].transpose(2, 0, 1) + noise * rng.standard_normal((8, *labels.shape))
    return (values / np.linalg.norm(values, axis=0)).astype(np.float16)


def classes_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """Blurred and noisy probabilities of background, interior and border."""
    inside = labels > 0
    inner = ndimage.minimum_filter(labels, 3) == ndimage.maximum_filter(labels, 3)
    parts = np.stack([~inside, inside & inner, inside & ~inner]).astype(float)
    parts = ndimage.gaussian_filter(parts, (0, 0.7, 0.7))
    parts += 0.1 * np.random.default_rng(seed).random(parts.shape)
    return (255 * parts / parts.sum(0)).astype(np.uint8)


def looking(
    embedding: np.ndarray, kind: str, how: Clustering, classes: np.ndarray | None = None
) -> Look:
    """A look at windows of an embedding, with what a field decides as a whole."""
    background = None
    if kind == "contrastive" and classes is None:
        rows, columns = sample_places(embedding.shape[1:])
        background = background_code(embedding[:, rows[:, None], columns].astype(np.float32))

    def look(window: Region) -> np.ndarray:
        part = (slice(None), *window)
        return cluster(
            embedding[part],
            kind=kind,
            settings=how,
            classes=None if classes is None else classes[part],
            background=background,
        )

    return look


def assert_sound(labels: np.ndarray, result: LargeLabels, min_area_px: int) -> None:
    """Ids 1 to n, every instance one 4-connected piece that is large enough."""
    assert labels.dtype == np.uint32
    assert np.unique(labels[labels > 0]).tolist() == list(range(1, result.instances + 1))
    for number, box in enumerate(ndimage.find_objects(labels.astype(np.int64)), 1):
        assert ndimage.label(labels[box] == number)[1] == 1
    assert (areas(labels) >= min_area_px).all()


# ---------------------------------------------------------------- the untiled result


@pytest.mark.parametrize(("method", "kind", "size", "with_classes"), WAYS)
@given(
    seed=st.integers(0, 2**32 - 1),
    sides=st.tuples(st.integers(60, 100), st.integers(60, 120)),
    noise=st.sampled_from([0.0, 0.5, 1.0]),
    tiling=st.sampled_from([(64, 24), (64, 16), (96, 16)]),
)
@settings(deadline=None, max_examples=8, derandomize=True)
def test_equals_the_untiled_result(
    method: str,
    kind: str,
    size: str,
    with_classes: bool,
    seed: int,
    sides: tuple[int, int],
    noise: float,
    tiling: tuple[int, int],
    ellipses: Field,
    spatial: Field,
    same_partition: Compare,
) -> None:
    """Windows that agree are no proof: on noise that hides the cells some pixels differ."""
    shape = (2 * sides[0], 2 * sides[1])  # half of an odd side is no whole number of pairs
    truth = ellipses(seed, shape, shape[0] * shape[1] // 250)
    values = spatial(truth, noise, seed) if kind == "spatial" else coded(truth, seed, noise / 5)
    classes = classes_of(truth, seed) if with_classes else None
    look = looking(values, kind, Clustering(method, size=size), classes)
    labels, result = in_tiles(look, shape, Tiling(*tiling, largest_px=4096), 16)
    assert_sound(labels, result, 16)
    assert result.disputed == 0
    assert same_partition(labels, look((slice(0, shape[0]), slice(0, shape[1]))))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 500), (500, 1), (65, 64), (66, 131), (64, 64), (2, 1000)]
)
def test_odd_shapes(shape: tuple[int, int], same_partition: Compare) -> None:
    rng = np.random.default_rng(5)
    classes = np.zeros((3, *shape), np.uint8)
    classes[0] = 255 * (ndimage.gaussian_filter(rng.random(shape), 1) > 0.5)
    classes[1] = 255 - classes[0]
    values = np.zeros((4, *shape), np.float16)
    look = looking(values, "spatial", Clustering("watershed", min_area_px=1), classes)
    labels, result = in_tiles(look, shape, Tiling(64, 16, largest_px=4096))
    assert_sound(labels, result, 1)
    assert same_partition(labels, look((slice(0, shape[0]), slice(0, shape[1]))))
    assert result.tiles == len(tiles(shape, tile_px=64, halo_px=16))


def test_a_field_without_instances() -> None:
    labels, result = in_tiles(
        lambda window: np.zeros([s.stop - s.start for s in window], np.uint32),
        (100, 100),
        Tiling(64, 16, 64),
    )
    assert not labels.any()
    assert (result.instances, result.redone, result.disputed) == (0, 0, 0)


# ------------------------------------------------------------------------- ids


def dots(window: Region, pitch: int = 8) -> np.ndarray:
    """Squares of 3 px, one every ``pitch`` px from the corner of the field."""
    rows, columns = np.ogrid[window]
    inside = (rows % pitch < 3) & (columns % pitch < 3)
    return np.asarray(ndimage.label(inside)[0], np.uint32)


def test_ids_go_by_tiles_and_in_each_by_its_own_labels() -> None:
    labels, result = in_tiles(dots, (112, 112), Tiling(64, 8, largest_px=64))
    # cores begin at 0 and 56, which is the beginning of a square: 7 × 7 squares in each
    assert (result.tiles, result.instances) == (4, 14 * 14)
    corners = labels[::8, ::8]
    assert corners[0, :7].tolist() == list(range(1, 8))
    assert corners[1, 0] == 8
    assert corners[0, 7] == 50
    assert corners[7, 0] == 99
    assert corners[13, 13] == 196


def test_the_order_of_tiles_does_not_matter(ellipses: Field, spatial: Field) -> None:
    truth = ellipses(3, (150, 170), 100)
    look = looking(spatial(truth, 1.0, 3), "spatial", Clustering())
    grid = Grid.of(truth.shape, 64, 16)
    shelves = []
    for order in (range(len(grid.tiles)), np.random.default_rng(0).permutation(len(grid.tiles))):
        shelves.append(Shelf())
        work = large._Work(grid, Tiling(64, 16, 4096), look, shelves[-1])
        for tile in order:
            work.solve(int(tile), lambda: None)
    assert len(shelves[0]) == 2 * len(grid.tiles) == shelves[1].keys().__len__()
    for name, values in shelves[0].items():
        np.testing.assert_array_equal(values, shelves[1][name])


def test_numbers_that_a_window_gives_do_not_matter(
    ellipses: Field, same_partition: Compare
) -> None:
    truth = ellipses(1, (150, 170), 100)
    rng = np.random.default_rng(0)

    def look(window: Region) -> np.ndarray:
        found = np.unique(truth[window], return_inverse=True)[1].reshape(truth[window].shape)
        order = np.concatenate([[0], 1 + rng.permutation(found.max())])
        return order[found].astype(np.uint32)

    labels, result = in_tiles(look, truth.shape, Tiling(64, 24, 4096))
    assert same_partition(labels, truth)
    assert (result.instances, result.disputed) == (truth.max(), 0)


def test_regions_are_parts_of_the_whole(ellipses: Field, spatial: Field) -> None:
    truth = ellipses(2, (130, 140), 80)
    look = looking(spatial(truth), "spatial", Clustering())
    result = cluster_in_tiles((130, 140), look, Tiling(64, 16, 4096), Shelf(), min_area_px=1)
    labels = whole(result, (130, 140))
    for region in ((slice(0, 1), slice(0, 140)), (slice(30, 99), slice(47, 140))):
        np.testing.assert_array_equal(result.region(region), labels[region])


def test_more_instances_than_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MAX_INSTANCES", 100)
    with pytest.raises(LimitError) as caught:
        in_tiles(dots, (112, 112), Tiling(64, 8, largest_px=64))
    assert str(caught.value) == (
        "the field has 196 instances, a label image holds at most 100; raise min_area_px"
    )


# ------------------------------------------------------------------ long instances


def bar(length: int) -> Look:
    """One instance: rows 20 to 22, columns 50 to 50 + length."""

    def look(window: Region) -> np.ndarray:
        rows, columns = np.ogrid[window]
        inside = (rows >= 20) & (rows < 23) & (columns >= 50) & (columns < 50 + length)
        return inside.astype(np.uint32)

    return look


def test_an_instance_longer_than_the_overlap_is_whole() -> None:
    labels, result = in_tiles(bar(300), (60, 500), Tiling(96, 24, largest_px=1000))
    assert (labels[20:23, 50:350] == 1).all() and labels.sum() == 900
    assert (result.instances, result.disputed) == (1, 0)
    assert result.redone > 0


def test_a_real_method_on_a_long_cell(spatial: Field, same_partition: Compare) -> None:
    truth = np.zeros((60, 400), np.int32)
    truth[20:26, 30:330], truth[26:32, 40:300], truth[40:50, 200:212] = 1, 2, 3
    look = looking(spatial(truth), "spatial", Clustering())
    labels, _ = in_tiles(look, truth.shape, Tiling(96, 24, largest_px=4096))
    assert same_partition(labels, look((slice(0, 60), slice(0, 400))))


def test_an_instance_longer_than_windows_may_grow_is_refused() -> None:
    with pytest.raises(LimitError) as caught:
        in_tiles(bar(400), (60, 500), Tiling(96, 24, largest_px=192))
    # the first tile has the columns up to 72 for its core and sees those up to 192
    assert str(caught.value) == (
        "the instance in rows 20 to 22 and columns 50 to 191 goes on beyond that, and windows "
        "grow to 192 px; raise tile_px to 192 or more"
    )


@given(
    side=st.integers(97, 700),
    ends=st.tuples(st.booleans(), st.booleans()),
    largest=st.integers(48, 300).map(lambda half: 2 * half),
)
def test_windows_grow_to_the_limit_and_not_beyond(
    side: int, ends: tuple[bool, bool], largest: int
) -> None:
    for tile in Grid.of((1, side), 96, 24).tiles:
        core, span = tile.core[1], tile.window[1]
        while (grown := wider(span, core, side, ends, largest)) != span:
            assert grown.start <= span.start <= span.stop <= grown.stop
            span = grown
        assert span.stop - span.start <= max(largest, 96)
        assert span.start % 2 == 0 and (span.stop % 2 == 0 or span.stop == side)
        open_ends = ends[0] and span.start > 0, ends[1] and span.stop < side
        assert not any(open_ends) or span.stop - span.start >= largest - 3
        assert ends[0] or span.start == tile.window[1].start
        assert ends[1] or span.stop == tile.window[1].stop


@pytest.mark.parametrize(
    ("tile_px", "overlap_px", "message"),
    [
        (63, 0, "tile_px must be an even number of at least 2; got 63; "
                "overlap_px must be an even number of at least 2; got 0"),
        (64, 32, "tile_px must be more than twice overlap_px; got 64 and 32"),
    ],
)  # fmt: skip
def test_sides_that_do_not_go_together(tile_px: int, overlap_px: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Tiling(tile_px, overlap_px, 4096)
    assert str(caught.value) == message


# ------------------------------------------------------------- tiles that disagree

#: Two tiles over 24 columns: cores 0 to 11 and 12 to 23, windows 0 to 15 and 8 to 23.
TWO = Tiling(tile_px=16, overlap_px=4, largest_px=16)
SHAPE = (8, 24)


def seeing(left: np.ndarray, right: np.ndarray) -> Look:
    """What the left and the right tile see, each drawn over the whole field."""

    def look(window: Region) -> np.ndarray:
        drawn = (left if window[1].start == 0 else right)[window]
        return np.unique(drawn, return_inverse=True)[1].reshape(drawn.shape).astype(np.uint32)

    return look


def drawn(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """An instance for each box of rows and columns."""
    labels = np.zeros(SHAPE, np.int32)
    for number, (top, bottom, left, right) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = number
    return labels


def test_two_tiles_cover_the_field_as_these_tests_assume() -> None:
    columns = [(tile.window[1], tile.core[1]) for tile in Grid.of(SHAPE, 16, 4).tiles]
    assert columns == [(slice(0, 16), slice(0, 12)), (slice(8, 24), slice(12, 24))]


def test_slightly_different_views_are_one_instance() -> None:
    # the left one sees columns 9 to 13, the right one 10 to 14: 4 of 6 columns in common
    look = seeing(drawn((2, 6, 9, 14)), drawn((2, 6, 10, 15)))
    labels, result = in_tiles(look, SHAPE, TWO)
    np.testing.assert_array_equal(labels, drawn((2, 6, 9, 15)))
    assert (result.instances, result.disputed, result.redone) == (1, 1, 0)


def test_different_views_stay_apart_and_nothing_is_doubled() -> None:
    # one cell of 8 columns against one of 2: neither is the other's better half
    look = seeing(drawn((2, 6, 6, 14)), drawn((2, 6, 12, 14)))
    labels, result = in_tiles(look, SHAPE, TWO)
    np.testing.assert_array_equal(labels, drawn((2, 6, 6, 12), (2, 6, 12, 14)))
    assert (result.instances, result.disputed) == (2, 1)  # the right cell is nobody's dispute


def test_what_only_one_tile_sees_is_cut_to_its_core() -> None:
    look = seeing(drawn((2, 6, 9, 14)), drawn())
    labels, result = in_tiles(look, SHAPE, TWO)
    np.testing.assert_array_equal(labels, drawn((2, 6, 9, 12)))
    assert (result.instances, result.disputed) == (1, 1)
    labels, result = in_tiles(look, SHAPE, TWO, min_area_px=13)  # 12 px are left
    assert (labels.any(), result.instances, result.disputed) == (False, 0, 1)


def test_an_instance_of_another_tile_that_this_one_does_not_see() -> None:
    look = seeing(drawn((0, 2, 0, 3)), drawn((2, 6, 10, 15), (0, 2, 20, 23)))
    labels, result = in_tiles(look, SHAPE, TWO)
    # ids: those of the left tile, those of the right one, those that have no owner
    np.testing.assert_array_equal(labels, drawn((0, 2, 0, 3), (0, 2, 20, 23), (2, 6, 12, 15)))
    assert (result.instances, result.disputed) == (3, 1)


def test_pieces_of_a_cut_instance_are_instances_or_background() -> None:
    hook = drawn((0, 3, 5, 14), (6, 8, 8, 14))
    hook[0:8, 12:14] = 1  # joins both arms, but in the other core
    hook[hook == 2] = 1
    labels, result = in_tiles(seeing(hook, drawn()), SHAPE, TWO)
    np.testing.assert_array_equal(labels, drawn((0, 3, 5, 12), (6, 8, 8, 12)))
    assert (result.instances, result.disputed) == (2, 1)
    labels, result = in_tiles(seeing(hook, drawn()), SHAPE, TWO, min_area_px=9)
    np.testing.assert_array_equal(labels, drawn((0, 3, 5, 12)))
    assert result.instances == 1


def test_growing_windows_settle_what_can_be_settled() -> None:
    """The right tile sees nothing of the instance until its window reaches column 2."""
    truth = drawn((2, 6, 2, 14))

    def look(window: Region) -> np.ndarray:
        part = truth[window] if window[1].start <= 2 else np.zeros_like(truth[window])
        return part.astype(np.uint32)

    labels, result = in_tiles(look, SHAPE, Tiling(16, 4, largest_px=24))
    np.testing.assert_array_equal(labels, truth)
    assert (result.instances, result.disputed) == (1, 0)
    assert result.redone == 4  # both tiles with overlaps of 8 and 16


@given(st.integers(0, 2**32 - 1), st.sampled_from(["seeds", "grid", "watershed"]))
@settings(deadline=None, max_examples=20)
def test_noise_gives_sound_labels_although_tiles_disagree(seed: int, method: str) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(70, 130)), int(rng.integers(70, 130)))
    values = ndimage.gaussian_filter(rng.standard_normal((4, *shape)), (0, 1.5, 1.5)) * 5
    values[:2] *= 2
    values[2] = 2 + np.abs(values[2])
    values[3] = 1 / (1 + np.exp(-values[3]))
    classes = classes_of((values[3] > 0.6).astype(np.int32), seed) if method != "seeds" else None
    how = Clustering(method, foreground=0.6, seed_level=0.6, min_area_px=6)
    look = looking(values.astype(np.float16), "spatial", how, classes)
    try:
        labels, result = in_tiles(look, shape, Tiling(48, 8, largest_px=64), 6)
    except LimitError:
        return  # refused with a reason is sound, too
    assert_sound(labels, result, 6)
    grid = Grid.of(shape, 48, 8)
    assert result.tiles == len(grid.tiles)
