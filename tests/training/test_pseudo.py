"""What of a model's own output is learned from, and what is said of the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import InputError, StoreError
from cellseg_cli.networks.checkpoint import read_header
from cellseg_cli.store import FieldRow, Store
from cellseg_cli.training.data import Examples, Failed, open_split, usable
from cellseg_cli.training.loop import train
from cellseg_cli.training.pseudo import (
    RIM_PX,
    Surety,
    confidences,
    open_pseudo,
    surety,
    target,
)

Field = Callable[..., np.ndarray]
TINY = TrainSettings(
    encoder="resnet10t",
    levels=2,
    decoder_channels=4,
    in_channels=1,
    crop_px=32,
    batch_size=2,
    steps=2,
    grid_points=12,
    validate_every=0,
    device="cpu",
    precision="fp32",
)
MODEL = {"kind": "spatial", "classes": False}


def disc_field(spatial: Field) -> tuple[np.ndarray, np.ndarray]:
    """Four discs of 49 px or so that do not touch, and an embedding that is sure of them."""
    labels = np.zeros((64, 64), np.int32)
    for number, (y, x) in enumerate([(12, 12), (12, 44), (44, 12), (44, 44)], start=1):
        cv2.circle(labels, (x, y), 6, number, -1)
    return labels, spatial(labels)


def test_a_sure_embedding_is_sure_of_every_instance(spatial: Field) -> None:
    labels, values = disc_field(spatial)
    sure = surety(values, None, "spatial")
    # Centres are kept as float16: off by up to 0.02 px, of a bandwidth of 2.4 px.
    np.testing.assert_allclose(confidences(labels, sure)[1:], 1.0, atol=1e-3)
    assert np.array_equal(target(labels, sure, 0.9), labels), "all else is sure background"


def test_confidence_is_mean_seed_times_mean_phi(spatial: Field) -> None:
    """A slow loop over the pixels of each instance, on a noisy embedding."""
    labels, _ = disc_field(spatial)
    values = spatial(labels, noise_px=1.5, seed=3)
    found = confidences(labels, surety(values, None, "spatial"))
    exact = values.astype(np.float64)
    for number in range(1, 5):
        ys, xs = np.nonzero(labels == number)
        centres = [(y + exact[0, y, x], x + exact[1, y, x]) for y, x in zip(ys, xs, strict=True)]
        middle = np.mean(centres, axis=0)
        sigma = np.mean([exact[2, y, x] for y, x in zip(ys, xs, strict=True)])
        phi = [np.exp(-(np.hypot(*(c - middle)) ** 2) / (2 * sigma**2)) for c in centres]
        seed = np.mean([exact[3, y, x] for y, x in zip(ys, xs, strict=True)])
        assert found[number] == pytest.approx(seed * np.mean(phi), abs=1e-4)


def test_doubted_instances_are_unknown_with_a_rim(spatial: Field) -> None:
    labels, values = disc_field(spatial)
    values[3][labels == 2] = 0.6
    found = target(labels, surety(values, None, "spatial"), 0.7)
    for number in (1, 3, 4):
        assert np.array_equal(found == number, labels == number)
    ys, xs = np.nonzero(labels == 2)
    for y, x in np.ndindex(labels.shape):
        nearest = np.hypot(ys - y, xs - x).min()
        if nearest <= RIM_PX - 1:
            assert found[y, x] == -1
        elif nearest > RIM_PX * np.sqrt(2) and labels[y, x] == 0:
            assert found[y, x] == 0
    everything = target(labels, surety(values, None, "spatial"), 0.5)
    assert np.array_equal(everything, labels)


def test_pixels_that_point_at_two_centres_are_doubted(spatial: Field) -> None:
    """Half of disc 1 points 12 px away: its seeds are bright, its phi is low."""
    labels, values = disc_field(spatial)
    half = labels == 1
    half[:, 12:] = False
    values[0][half] += 12
    found = target(labels, surety(values, None, "spatial"), 0.7)
    assert (found[labels == 1] == -1).all()
    assert np.array_equal(found == 4, labels == 4)


def test_a_trusted_neighbour_keeps_its_pixels(spatial: Field) -> None:
    labels = np.zeros((32, 32), np.int32)
    labels[4:20, 4:14], labels[4:20, 14:24] = 1, 2
    values = spatial(labels)
    values[3][labels == 2] = 0.5
    found = target(labels, surety(values, None, "spatial"), 0.7)
    assert np.array_equal(found == 1, labels == 1), "although it touches the doubted one"


def test_background_that_nobody_is_sure_of_is_unknown(spatial: Field) -> None:
    """A seed value of 0.3 makes no instance here, and no sure background either."""
    labels, values = disc_field(spatial)
    values[3, 28:34, 28:34] = 0.3
    found = target(labels, surety(values, None, "spatial"), 0.7)
    assert (found[28:34, 28:34] == -1).all()
    assert (found == 0).sum() == (labels == 0).sum() - 36
    classes = np.zeros((3, 64, 64), np.uint8)
    classes[0] = np.where(labels > 0, 0, 255)
    classes[0, :5] = 200  # below 0.9 of 255
    found = target(labels, surety(disc_field(spatial)[1], classes, "spatial"), 0.7)
    assert (found[:5] == -1).all()
    assert np.array_equal(found[5:], labels[5:])


def test_without_centres_the_class_probability_is_the_measure() -> None:
    labels = np.array([[1, 1, 0, 2]])
    classes = np.array([[[0, 51, 255, 102]], [[255, 204, 0, 153]], [[0, 0, 0, 0]]], np.uint8)
    sure = surety(np.zeros((8, 1, 4), np.float16), classes, "contrastive")
    assert isinstance(sure, Surety)
    # means of 1 - P(background): (1 + 0.8) / 2 and 0.6
    np.testing.assert_allclose(confidences(labels, sure)[1:], [0.81, 0.36], atol=1e-6)


def write_store(
    path: Path,
    images: Path,
    spatial: Field,
    model: dict[str, Any] = MODEL,
    keeps: str = "embeddings",
) -> Store:
    """A store of four images of discs, as `embed` and `cluster` leave it."""
    images.mkdir(exist_ok=True)
    labels, values = disc_field(spatial)
    planes = {"channel": None, "z": None, "t": None}
    store = Store.create(path, {"embed": planes, "model": model, "keeps": keeps})
    rows = []
    for name in ("u0", "u1", "u2", "u3"):
        image = images / f"{name}.png"
        cv2.imwrite(str(image), ((labels > 0) * 150 + 20 + labels).astype(np.uint8))
        about = image.stat()
        rows.append(
            FieldRow(name, str(image), about.st_size, about.st_mtime_ns, 64, 64, 1, "uint8")
        )
        store.write_embedding(name, values)
        store.mark_done(name, "embed", "e")
        store.write_labels(name, labels.astype(np.uint32))
        store.mark_done(name, "cluster", f"c{name}")
    store.write_fields(rows)
    return store


@pytest.fixture
def store(tmp_path: Path, spatial: Field) -> Store:
    return write_store(tmp_path / "emb.zarr", tmp_path / "unlabelled", spatial)


def test_a_store_joins_in(discs: Path, store: Store, tmp_path: Path) -> None:
    settings = TINY
    split = open_split([str(discs)], pseudo=[store.path], settings=settings)
    assert [source.field.id for source in split.train] == [
        *("f0", "f1", "f2", "f3"),
        *("u0", "u1", "u2", "u3"),
    ]
    assert split.train[-1].group == "pseudo0:all"
    examples = Examples(split.train, settings)
    assert np.array_equal(examples[7].labels, store.read_labels("u3"))
    assert examples[7].image.shape == (1, 64, 64)
    result = train(split, tmp_path / "run", settings)
    about = read_header(result.best).label_statistics
    assert (about["fields"], about["pseudo_labelled_fields"]) == (4, 4)
    assert about["instances"] == 4 * 9, "of the truth alone"
    again = open_split([str(discs)], pseudo=[store.path], settings=settings)
    assert train(again, tmp_path / "run", settings).steps == settings.steps


def test_clustered_anew_they_are_other_fields(discs: Path, store: Store) -> None:
    before = open_split([str(discs)], pseudo=[store.path]).train
    store.mark_done("u1", "cluster", "other settings")
    after = open_split([str(discs)], pseudo=[store.path]).train
    differ = [a.field.id for a, b in zip(before, after, strict=True) if a.identity != b.identity]
    assert differ == ["u1"]
    _, failed = usable(before, TINY)
    assert failed == (
        Failed(
            "u1",
            f"u1 in {store.path} was clustered anew since training began; start training again",
        ),
    )


def test_images_that_changed_or_went_fail_with_the_reason(
    discs: Path, store: Store, tmp_path: Path
) -> None:
    images = tmp_path / "unlabelled"
    size = (images / "u0.png").stat().st_size
    with (images / "u0.png").open("ab") as file:
        file.write(b"more")
    os.utime(images / "u1.png", (0, 0))
    (images / "u2.png").unlink()
    examples, failed = usable(open_split([str(discs)], pseudo=[store.path]).train, TINY)
    assert [source.field.id for source in examples.sources] == ["f0", "f1", "f2", "f3", "u3"]
    advice = "or was written since; run cellseg embed and cluster again"
    assert failed == (
        Failed(
            "u0",
            f"{images / 'u0.png'} is not the image that {store.path} was made from: it has "
            f"{size + 4} bytes and had {size}, {advice}",
        ),
        Failed(
            "u1",
            f"{images / 'u1.png'} is not the image that {store.path} was made from: it has "
            f"{size} bytes and had {size}, {advice}",
        ),
        Failed("u2", failed[2].reason),
    )
    assert failed[2].reason.startswith(str(images / "u2.png"))


def test_a_store_whose_images_are_all_gone_is_refused(
    discs: Path, store: Store, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "unlabelled")
    with pytest.raises(InputError) as error:
        open_split([str(discs)], pseudo=[store.path])
    message = str(error.value)
    assert message.startswith(f"not one of the 4 images of {store.path} can be used: ")
    assert all(f"u{number}.png" in message for number in range(3))
    assert message.endswith("; and 1 more")


def test_images_that_have_truth_are_not_pseudo_labelled(
    discs: Path, store: Store, tmp_path: Path
) -> None:
    """Nor those that are held out."""
    labels = tmp_path / "truth"
    labels.mkdir()
    shutil.copy(discs / "labels" / "f0.tif", labels / "u0.tif")
    held = f"{tmp_path / 'unlabelled'}={labels}"
    split = open_split([str(discs)], validation=[held], pseudo=[store.path])
    assert [source.field.id for source in split.train[4:]] == ["u1", "u2", "u3"]
    assert split.notes[-1] == f"1 fields of {store.path} have truth and are not pseudo-labelled"
    for number in (1, 2, 3):
        shutil.copy(discs / "labels" / "f0.tif", labels / f"u{number}.tif")
    with pytest.raises(InputError) as error:
        open_split([held], pseudo=[store.path])
    assert str(error.value) == (
        f"every image of {store.path} has truth: there is nothing to pseudo-label"
    )


def test_stores_that_say_nothing_of_confidence_are_refused(
    discs: Path, tmp_path: Path, spatial: Field
) -> None:
    images = tmp_path / "unlabelled"
    labels_only = write_store(tmp_path / "labels.zarr", images, spatial, keeps="labels")
    with pytest.raises(StoreError) as error:
        open_split([str(discs)], pseudo=[labels_only.path])
    assert str(error.value) == (
        f"{labels_only.path} holds label images alone: how sure the model was is measured on "
        "embeddings; use cellseg embed and cellseg cluster in place of cellseg segment"
    )
    plain = {"kind": "contrastive", "classes": False}
    contrastive = write_store(tmp_path / "plain.zarr", images, spatial, plain)
    with pytest.raises(StoreError) as error:
        open_pseudo(contrastive.path, 0.7)
    assert str(error.value) == (
        f"the model of {contrastive.path} has neither a seed map nor a classes head: it says "
        "nothing of how sure it is"
    )
    bare = write_store(tmp_path / "bare.zarr", images, spatial)
    for row in bare.fields():
        bare.clear(row.id, "cluster")
    with pytest.raises(StoreError) as error:
        open_pseudo(bare.path, 0.7)
    assert str(error.value) == (
        f"none of the 4 fields of {bare.path} is embedded and clustered; run cellseg embed and "
        "cellseg cluster"
    )
