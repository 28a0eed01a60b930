"""Pictures: what they must show, whatever the colours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cellseg_cli.errors import ConfigError, OutputExistsError
from cellseg_cli.report.pictures import (
    CENTRE_PERIOD_PX,
    embedding_rgb,
    image_rgb,
    label_rgb,
    outlines,
    overlay,
    palette,
    panel,
    stack,
    write_png,
)

LAWS = settings(deadline=None, max_examples=50)
LABELS = arrays.arrays(
    np.uint32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 9)
)


def spatial(centres: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """The embedding (4, Y, X) of pixels that point at the centres (2, Y, X) exactly."""
    offsets = centres - np.mgrid[: seed.shape[0], : seed.shape[1]]
    return np.stack([*offsets, np.full(seed.shape, 6.0), seed]).astype(np.float32)


# --- images ---


def test_one_channel_is_grey_and_stretched() -> None:
    plane = np.arange(1000, dtype=np.uint16).reshape(20, 50) * 7 + 300
    grey = image_rgb(plane)
    assert grey.shape == (20, 50, 3) and grey.dtype == np.uint8
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    # The 1st percentile of 0 … 999 is 9.99, the 99.8th 997.002: 500 is at (500 − 9.99) / 987.012.
    assert grey[10, 0, 0] == round(255 * (500 - 9.99) / (997.002 - 9.99)) == 127
    assert grey[0, 0, 0] == 0 and grey[-1, -1, 0] == 255
    np.testing.assert_array_equal(image_rgb(plane[None]), grey)


def test_channels_become_colours_and_a_constant_one_is_black() -> None:
    ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    flat = np.full((20, 20), 0.5, dtype=np.float32)
    two = image_rgb(np.stack([ramp, flat]))
    assert two[-1, -1].tolist() == [255, 0, 0]
    four = image_rgb(np.stack([flat, ramp, flat, ramp]))
    assert four[-1, -1].tolist() == [0, 255, 0]


# --- embeddings ---


def test_pixels_that_point_at_one_centre_have_one_colour() -> None:
    left = np.arange(32) < 16
    centres = np.broadcast_to(
        np.stack([np.full((24, 32), 12.0), np.where(left, 8.0, 24.0) + np.zeros((24, 32))]),
        (2, 24, 32),
    )
    colours = embedding_rgb(spatial(centres, np.ones((24, 32))), "spatial").astype(int)
    assert np.ptp(colours[:, :16].reshape(-1, 3), axis=0).max() <= 1
    assert np.ptp(colours[:, 16:].reshape(-1, 3), axis=0).max() <= 1
    assert np.abs(colours[0, 0] - colours[0, -1]).max() > 60  # touching nuclei, 16 px apart
    np.testing.assert_array_less(40, colours.min())  # foreground is never black


def test_a_spatial_embedding_is_dimmed_by_its_seed_map_or_the_foreground() -> None:
    seed = np.array([[0.0, 0.25, 1.0]])
    embedding = spatial(np.zeros((2, 1, 3)), seed)
    by_seed = embedding_rgb(embedding, "spatial")[0].astype(int)
    assert by_seed[0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(by_seed[1], by_seed[2] / 2, atol=1)  # √0.25
    given_one = embedding_rgb(embedding, "spatial", foreground=np.array([[1.0, 0.5, 0.0]]))[0]
    np.testing.assert_array_equal(given_one[0], by_seed[2])
    assert given_one[2].tolist() == [0, 0, 0]


def test_colours_of_centres_repeat_after_the_period() -> None:
    centres = np.zeros((2, 1, 3))
    centres[1, 0] = [10, 10 + CENTRE_PERIOD_PX / 2, 10 + 2 * CENTRE_PERIOD_PX]
    colours = embedding_rgb(spatial(centres, np.ones((1, 3))), "spatial")[0].astype(int)
    assert np.abs(colours[0] - colours[2]).max() <= 1
    assert np.abs(colours[0] - colours[1]).max() > 60


def test_contrastive_colours_follow_the_vectors() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(4, 8))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    which = rng.integers(0, 4, size=(30, 40))
    colours = embedding_rgb(np.moveaxis(codes[which], -1, 0).astype(np.float16), "contrastive")
    shown = [np.unique(colours[which == code], axis=0) for code in range(4)]
    assert [len(one) for one in shown] == [1, 1, 1, 1]
    assert len(np.unique(np.concatenate(shown), axis=0)) == 4


def test_contrastive_colours_do_not_depend_on_a_rotation_of_the_embedding() -> None:
    """Principal components are the same in any basis, up to their signs."""
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(8, 20, 25)) * np.arange(8, 0, -1)[:, None, None]
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    turned = np.tensordot(rotation, embedding, axes=1)
    one = embedding_rgb(embedding.astype(np.float32), "contrastive").astype(int)
    other = embedding_rgb(turned.astype(np.float32), "contrastive").astype(int)
    for channel in range(3):
        same = np.abs(one[..., channel] - other[..., channel]).max()
        flipped = np.abs(one[..., channel] + other[..., channel] - 255).max()
        assert min(same, flipped) <= 1


def test_principal_axes_come_from_at_most_so_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 15 pixels 8 may be looked at: every other, which vary in the first component only."""
    monkeypatch.setattr("cellseg_cli.report.pictures.PCA_SAMPLE", 8)
    embedding = np.zeros((3, 1, 15), np.float32)
    embedding[0, 0, ::2] = np.arange(8)
    embedding[1, 0, 1::2] = 10 * np.arange(7)
    red = embedding_rgb(embedding, "contrastive")[0, :, 0]
    assert len(set(red[1::2].tolist())) == 1 and len(set(red[::2].tolist())) == 8


def test_an_embedding_of_two_components_and_one_that_is_constant() -> None:
    flat = embedding_rgb(np.ones((2, 4, 5), dtype=np.float16), "contrastive")
    assert flat.shape == (4, 5, 3)
    assert not flat.any()


# --- label images ---


@LAWS
@given(LABELS)
def test_touching_instances_never_share_a_colour(labels: np.ndarray) -> None:
    colours = label_rgb(labels)
    height, width = labels.shape
    for (y, x), one in np.ndenumerate(labels):
        assert (colours[y, x] == 0).all() == (one == 0)
        for v, u in ((y, x + 1), (y + 1, x - 1), (y + 1, x), (y + 1, x + 1)):
            if 0 <= v < height and 0 <= u < width and one and labels[v, u]:
                same = (colours[y, x] == colours[v, u]).all()
                assert same or one != labels[v, u]
                assert not same or one == labels[v, u]


@LAWS
@given(LABELS)
def test_ids_do_not_matter_only_their_order(labels: np.ndarray) -> None:
    spread = labels.astype(np.uint64) * 400_000_007
    np.testing.assert_array_equal(label_rgb(labels), label_rgb(spread))


def test_one_instance_with_many_neighbours_differs_from_all() -> None:
    labels = np.full((3, 81), 200, dtype=np.uint16)
    labels[0] = np.arange(1, 82)
    labels[2] = np.arange(101, 182)
    colours = label_rgb(labels)
    assert not (colours[[0, 2]] == colours[1]).all(axis=-1).any()


def test_palette_is_black_and_then_distinct_bright_colours() -> None:
    colours = palette(60)
    assert colours[0].tolist() == [0, 0, 0]
    assert len(np.unique(colours, axis=0)) == 61
    assert (colours[1:].max(axis=1) == 255).all()


def test_outlines_by_eye() -> None:
    labels = np.array(
        [
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 2, 2],
            [1, 1, 1, 2, 2],
        ]
    )
    expected = [
        ". . . # .",
        ". . . # .",
        ". . # # #",
        ". . # # .",
    ]
    shown = [" ".join("#" if edge else "." for edge in row) for row in outlines(labels)]
    assert shown == expected


def test_overlay_draws_outlines_tints_inside_and_leaves_the_ground() -> None:
    image = np.tile(np.arange(9, dtype=np.uint16), (9, 1))
    labels = np.zeros((9, 9), dtype=np.uint32)
    labels[2:7, 2:7] = 8
    plain, colours, drawn = image_rgb(image), label_rgb(labels), overlay(image, labels, fill=0.25)
    edge = outlines(labels)
    np.testing.assert_array_equal(drawn[edge], colours[edge])
    np.testing.assert_array_equal(drawn[labels == 0], plain[labels == 0])
    expected = np.rint(plain[4, 4] * 0.75 + colours[4, 4] * 0.25)
    np.testing.assert_allclose(drawn[4, 4], expected, atol=1)


# --- panels and files ---


def test_a_panel_holds_its_pictures_side_by_side_under_titles() -> None:
    red = np.full((64, 40, 3), (255, 0, 0), dtype=np.uint8)
    blue = np.full((64, 30, 3), (0, 0, 255), dtype=np.uint8)
    drawn = panel([("image", red), ("a title much too long for its picture", blue)])
    is_red = (drawn == (255, 0, 0)).all(axis=-1)
    is_blue = (drawn == (0, 0, 255)).all(axis=-1)
    assert is_red.sum() == 64 * 40 and is_blue.sum() == 64 * 30
    assert np.flatnonzero(is_red.any(axis=0)).max() < np.flatnonzero(is_blue.any(axis=0)).min()
    np.testing.assert_array_equal(is_red.any(axis=1), is_blue.any(axis=1))
    above = drawn[: np.flatnonzero(is_red.any(axis=1)).min()]
    inked = np.flatnonzero((above > 120).all(axis=-1).any(axis=0))
    assert inked.size  # the titles, each over its own picture
    both = is_red.any(axis=0) | is_blue.any(axis=0)
    assert both[inked].all()


def test_panels_are_stacked_without_loss() -> None:
    one = np.full((5, 8, 3), 200, dtype=np.uint8)
    other = np.full((3, 12, 3), 100, dtype=np.uint8)
    both = stack([one, other])
    assert both.shape == (8, 12, 3)
    np.testing.assert_array_equal(both[:5, :8], one)
    np.testing.assert_array_equal(both[5:], other)


def test_png_gives_the_colours_back(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, size=(7, 9, 3), dtype=np.uint8)
    write_png(tmp_path / "new" / "p.png", picture)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "new" / "p.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.png"]


def test_png_replaces_only_when_it_may(tmp_path: Path) -> None:
    target = tmp_path / "p.png"
    target.write_bytes(b"mine")
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    with pytest.raises(OutputExistsError) as caught:
        write_png(target, picture)
    assert str(caught.value) == f"{target} exists; choose another output, or --overwrite"
    assert target.read_bytes() == b"mine"
    write_png(target, picture, overwrite=True)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_png_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError) as caught:
        write_png(tmp_path / "file" / "p.png", np.zeros((2, 2, 3), dtype=np.uint8))
    assert str(caught.value) == f"{tmp_path / 'file' / 'p.png'} cannot be written: File exists"
