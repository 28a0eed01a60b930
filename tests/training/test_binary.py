"""The `binary` recipe: two classes in the contrast, instances from the classes head."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from cellseg_cli.cli.app import run
from cellseg_cli.config import ClusterSettings, TrainSettings
from cellseg_cli.config_file import settings_from
from cellseg_cli.errors import ConfigError
from cellseg_cli.networks.architecture import Embedder, Output
from cellseg_cli.networks.checkpoint import read_header
from cellseg_cli.store import Store
from cellseg_cli.training.data import open_split
from cellseg_cli.training.limits import check_settings
from cellseg_cli.training.loop import architecture_of, train
from cellseg_cli.training.losses import classes_loss, contrastive_loss
from cellseg_cli.training.objective import OBJECTIVES, target_of

SETTINGS = TrainSettings(
    recipe="binary",
    encoder="resnet10t",
    levels=3,
    decoder_channels=8,
    in_channels=1,
    crop_px=48,
    batch_size=2,
    window_px=24,
    learning_rate=8e-3,
    ema_decay=0.9,
    steps=120,
    validate_every=0,
    device="cpu",
    precision="fp32",
)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Three fields of bright discs of one brightness, four pairs that touch in each."""
    root = tmp_path / "pairs"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for field in range(3):
        rng = np.random.default_rng(field)
        labels = np.zeros((72, 72), np.uint8)
        for pair, (row, column) in enumerate(np.ndindex(2, 2)):
            middle, turn = np.array([18 + 36 * column, 18 + 36 * row]), rng.uniform(0, np.pi)
            step = 7 * np.array([np.cos(turn), np.sin(turn)])
            for side in (0, 1):
                y, x = np.rint(middle + step * (2 * side - 1)).astype(int)
                disc = cv2.circle(np.zeros_like(labels), (int(x), int(y)), 7, 1, -1)
                labels[(disc > 0) & (labels == 0)] = 2 * pair + side + 1
        image = np.where(labels > 0, 170, 20) + rng.normal(0, 5, labels.shape)
        cv2.imwrite(str(root / "images" / f"f{field}.png"), image.clip(0, 255).astype(np.uint8))
        tifffile.imwrite(root / "labels" / f"f{field}.tif", labels)
    return root


def test_the_contrast_knows_two_classes_and_the_head_three() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 4, (2, 12, 12))
    labels[:, :3, :3] = 0
    embedding = torch.nn.functional.normalize(torch.randn(2, 8, 12, 12), dim=1)
    classes = torch.randn(2, 3, 12, 12)
    settings = dataclasses.replace(SETTINGS, sampler="uniform", sampled_pixels=1000)
    target = target_of(labels, settings, rng)
    terms = OBJECTIVES["binary"](Output(embedding, classes), target, settings)
    assert set(terms) == {"contrast", "classes"}
    alone = []
    for crop in range(2):  # all known pixels are sampled: their order does not matter
        known = labels[crop] >= 0
        vectors = embedding[crop][:, torch.tensor(known)].T
        alone.append(contrastive_loss(vectors, torch.tensor((labels[crop][known] > 0) + 0), 0.2))
    torch.testing.assert_close(terms["contrast"], torch.stack(alone).mean())
    torch.testing.assert_close(terms["classes"], classes_loss(classes, torch.tensor(labels)))


def test_the_classes_are_read_from_the_embedding() -> None:
    torch.manual_seed(0)
    model = Embedder(architecture_of(SETTINGS)).eval()
    assert model.architecture.kind == "contrastive"
    image = torch.rand(1, 1, 32, 32)
    output = model(image)
    assert output.classes is not None
    torch.testing.assert_close(model.classes_head(output.embedding), output.classes)
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(1, 32, 32))


def test_from_training_to_an_export_by_the_command_line(pairs: Path, tmp_path: Path) -> None:
    """120 steps, no clustering setting given: touching discs of one brightness are parted."""
    usual = TrainSettings()
    changed = {
        name: value
        for name, value in dataclasses.asdict(SETTINGS).items()
        if value != getattr(usual, name) and name != "recipe"
    }
    sets = [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]
    data = [str(pairs), "--val", str(pairs)]
    assert run(["train", *data, "--recipe", "binary", "--out", str(tmp_path / "run"), *sets]) == 0
    header = read_header(tmp_path / "run" / "best.safetensors")
    assert (header.kind, header.cluster["method"]) == ("contrastive", "watershed")
    assert header.architecture.classes_from == "embedding"
    assert header.training["tuned_mean_ap"] > 0.9

    images, truth, store = str(pairs / "images"), str(pairs / "labels"), str(tmp_path / "emb.zarr")
    model = ["--model", str(tmp_path / "run"), "--device", "cpu"]
    assert run(["embed", images, *model, "--out", store]) == 0
    assert run(["cluster", store]) == 0
    assert run(["export", store, "--format", "label-tiff", "--out", str(tmp_path / "tiff")]) == 0
    for field in range(3):
        found = tifffile.imread(tmp_path / "tiff" / f"f{field}.tif")
        true = tifffile.imread(pairs / "labels" / f"f{field}.tif")
        assert found.max() == true.max() == 8
        for number in range(1, 9):  # each disc is most of one instance
            own = found[true == number]
            assert np.bincount(own)[1:].max() > 0.8 * own.size
    assert run(["cluster", store, "--tune", truth, "--overwrite"]) == 0
    assert (
        settings_from(
            ClusterSettings, file=Store.open(Path(store)).tuned_path, section="cluster"
        ).method
        == "watershed"
    )


@pytest.mark.parametrize("sampler", ["uniform", "box", "contour"])
def test_the_other_samplers_train_it_too(sampler: str, pairs: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, sampler=sampler, steps=2)
    result = train(open_split([str(pairs)]), tmp_path / "run", settings)
    assert read_header(result.best).cluster == {"method": "watershed"}


def test_what_the_recipe_cannot_do_without_is_said() -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(dataclasses.replace(SETTINGS, classes_head=False, sampler="foreground"))
    assert str(caught.value) == (
        "recipe=binary finds its instances by the classes head; leave classes_head=true; "
        "sampler=foreground takes no background, of which recipe=binary tells cells apart; "
        "use window, uniform, box or contour"
    )
