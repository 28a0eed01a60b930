"""Data that training must live with or refuse in whole sentences."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from cellseg_cli.cli.app import run
from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import ConfigError, InputError, TrainingError
from cellseg_cli.networks.architecture import Embedder
from cellseg_cli.networks.checkpoint import read_header
from cellseg_cli.training import loop
from cellseg_cli.training.data import Examples, Failed, Noted, open_split
from cellseg_cli.training.limits import check_settings
from cellseg_cli.training.loop import Report, architecture_of, train
from cellseg_cli.training.objective import OBJECTIVES, target_of

TINY = TrainSettings(
    encoder="resnet10t",
    levels=2,
    decoder_channels=4,
    in_channels=1,
    crop_px=32,
    batch_size=2,
    steps=3,
    grid_points=12,
    sampled_pixels=100,
    window_px=12,
    validate_every=0,
    device="cpu",
    precision="fp32",
)
AS_TOLD = [
    *("--steps", "2", "--batch-size", "1", "--encoder", "resnet10t", "--device", "cpu"),
    *("--set", "levels=2", "--set", "decoder_channels=4", "--set", "crop_px=32"),
    *("--set", "grid_points=12", "--set", "precision=fp32"),
]


def write(root: Path, name: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Write one field and its label image as TIFF."""
    for folder, array in (("images", image), ("labels", labels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        rgb = array.ndim == 3
        tifffile.imwrite(
            root / folder / f"{name}.tif", array, photometric="rgb" if rgb else "minisblack"
        )


def grey(labels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(20, 3, labels.shape)
    return (noise + 150 * (labels > 0)).clip(0, 255).astype(np.uint8)


def discs_of(side: int = 64, radius: int = 6) -> np.ndarray:
    labels = np.zeros((side, side), np.uint16)
    for number, (y, x) in enumerate(np.ndindex(2, 2), start=1):
        centre = (side // 4 + side // 2 * x, side // 4 + side // 2 * y)
        cv2.circle(labels, centre, radius, number, -1)
    return labels


def losses_of(root: Path, out: Path, settings: TrainSettings) -> dict[str, float]:
    """Train and return the last report's losses."""
    reports: list[Report] = []

    def keep(report: object) -> None:
        if isinstance(report, Report):
            reports.append(report)

    train(open_split([str(root)]), out, settings, emit=keep)
    return dict(reports[-1].losses)


@pytest.mark.parametrize("recipe", ["spatial", "contrastive"])
def test_a_cell_larger_than_the_crop_trains(recipe: str, tmp_path: Path) -> None:
    labels = np.zeros((128, 128), np.uint16)
    labels[4:124, 4:124] = 1
    write(tmp_path / "large", "f", grey(labels), labels)
    settings = dataclasses.replace(TINY, recipe=recipe)
    losses = losses_of(tmp_path / "large", tmp_path / "run", settings)
    assert losses
    assert np.isfinite(list(losses.values())).all()


@pytest.mark.parametrize("recipe", sorted(OBJECTIVES))
@pytest.mark.parametrize("value", [-1, 0, 1])
def test_a_batch_of_one_value_has_a_finite_loss_and_gradient(recipe: str, value: int) -> None:
    """All unknown, all background, one cell: whatever a crop of bad data may hold."""
    settings = dataclasses.replace(TINY, recipe=recipe)
    torch.manual_seed(0)
    model = Embedder(architecture_of(settings))
    output = model(torch.rand(2, 1, 32, 32))
    labels = np.full((2, 32, 32), value, np.int64)
    target = target_of(labels, settings, np.random.default_rng(0))
    terms = OBJECTIVES[recipe](output, target, settings)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_specks_hollow_masks_and_copies(tmp_path: Path) -> None:
    """Specks and rings stay what they are, copies go; the run is finite and counts them."""
    labels = discs_of()
    ring = np.zeros((64, 64), np.uint8)
    cv2.circle(ring, (32, 32), 5, 1, 1)
    masks = [(labels == 1), (labels == 1), ring > 0]
    for number in range(5):
        speck = np.zeros((64, 64), bool)
        speck[60, 3 + 2 * number] = True
        masks.append(speck)
    root = tmp_path / "noisy"
    (root / "masks" / "f" / "masks").mkdir(parents=True)
    (root / "images").mkdir()
    cv2.imwrite(str(root / "images" / "f.png"), grey(labels))
    for number, mask in enumerate(masks):
        path = root / "masks" / "f" / "masks" / f"{number}.png"
        cv2.imwrite(str(path), mask.astype(np.uint8) * 255)
    example = Examples(open_split([str(root)]).train, TINY)[0]
    assert example.labels[32, 32] == 0, "what a hollow mask encloses is background"
    assert example.under is None, "a copy is no second cell"
    losses = losses_of(root, tmp_path / "run", TINY)
    assert np.isfinite(list(losses.values())).all()
    about = read_header(tmp_path / "run" / "best.safetensors").label_statistics
    assert (about["instances"], about["smallest_area_px"]) == (7, 1)


def test_one_cell_type_only_is_drawn_evenly(discs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    index.write_text("id,cell_type\n" + "".join(f"f{n},astro\n" for n in range(4)))
    split = open_split([str(discs)], index=index, validation=[str(discs)])
    result = train(split, tmp_path / "run", TINY)
    assert read_header(result.best).label_statistics["fields_per_type"] == {"astro": 4}


def test_an_image_without_instances_is_learned_from(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    write(root, "cells", grey(discs_of()), discs_of())
    nothing = np.zeros((64, 64), np.uint16)
    write(root, "nothing", grey(nothing), nothing)
    losses = losses_of(root, tmp_path / "run", TINY)
    assert np.isfinite(list(losses.values())).all()
    about = read_header(tmp_path / "run" / "best.safetensors").label_statistics
    assert (about["fields"], about["instances"]) == (2, 4)


def test_a_label_image_of_another_size_is_left_out(discs: Path, tmp_path: Path) -> None:
    tifffile.imwrite(discs / "labels" / "f2.tif", np.ones((64, 63), np.uint8))
    result = train(open_split([str(discs)]), tmp_path / "run", TINY)
    assert result.failed == (
        Failed(
            "f2",
            f"the truth of f2 in {discs / 'labels'} is 64×63 px, but its image is 64×64 px",
        ),
    )


def test_held_out_fields_of_which_none_can_be_read_stop_the_run(
    discs: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    shutil.copytree(discs, held)
    for path in (held / "images").glob("*.png"):
        path.write_bytes(b"")
    told: list[object] = []
    with pytest.raises(InputError) as error:
        train(open_split([str(discs)], validation=[str(held)]), tmp_path, TINY, emit=told.append)
    reasons = [one.reason for one in told if isinstance(one, Failed)]
    assert len(reasons) == 4
    assert str(error.value) == (
        "not one of 4 held-out fields can be read: there is nothing to choose the best model by; "
        f"the first: {reasons[0]}"
    )
    assert not (tmp_path / "state.safetensors").exists()


def test_an_index_without_held_out_fields_trains_without_a_score(
    discs: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index.csv"
    index.write_text("id,split\n" + "".join(f"f{n},train\n" for n in range(4)))
    result = train(open_split([str(discs)], index=index), tmp_path / "run", TINY)
    assert result.score == {"step": TINY.steps}
    assert result.tuned == {}


def test_a_loss_that_is_no_number_stops_with_the_images_of_the_batch(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One field is drawn whose values a network cannot add up: infinite after augmentation."""
    lone = tmp_path / "lone"
    for folder, suffix in (("images", "png"), ("labels", "tif")):
        (lone / folder).mkdir(parents=True)
        shutil.copy(discs / folder / f"f2.{suffix}", lone / folder)
    real = loop.draw_batch

    def broken(*given: object, **named: int) -> object:
        batch = real(*given, **named)  # type: ignore[arg-type]
        return dataclasses.replace(batch, images=batch.images * torch.inf)

    monkeypatch.setattr(loop, "draw_batch", broken)
    with pytest.raises(TrainingError) as error:
        train(open_split([str(lone)]), tmp_path / "run", TINY)
    message = str(error.value)
    assert message.startswith("the loss is not finite at step 0: {'overlap': nan")
    assert message.endswith(
        "fields of the batch: f2, f2; look at them, or lower learning_rate (0.0015)"
    )


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((64, 64), np.nan, np.float32), "the image has 4096 NaN and 0 infinite values of"),
        (np.full((64, 64), 7, np.uint8), "the image is constant: every pixel is 7"),
        (
            np.where(np.arange(4096).reshape(64, 64) % 2, 5e-324, 0.0),
            "the image has too little contrast to be scaled: 0 to 4.94066e-324",
        ),
    ],
)
def test_images_that_would_make_the_loss_no_number_are_left_out(
    image: np.ndarray, reason: str, discs: Path, tmp_path: Path
) -> None:
    write(discs, "bad", image, discs_of())
    result = train(open_split([str(discs)]), tmp_path / "run", dataclasses.replace(TINY, steps=1))
    assert [one.field_id for one in result.failed] == ["bad"]
    assert reason in result.failed[0].reason


def test_a_note_tells_what_memory_has_no_room_for(discs: Path, tmp_path: Path) -> None:
    wide = np.zeros((720, 720), np.uint16)
    wide[100:120, 100:120] = 1
    for name in ("w0", "w1"):
        write(discs, name, grey(wide), wide)
    settings = dataclasses.replace(TINY, steps=1, cache="2MB")
    told: list[object] = []
    train(open_split([str(discs)]), tmp_path / "run", settings, emit=told.append)
    notes = [one.text for one in told if isinstance(one, Noted)]
    assert notes == [
        "5 of 6 fields are kept in memory (1 MB of cache=2MB); the others are decoded again "
        "whenever they are drawn"
    ]


def test_weights_levels_and_memory_out_of_range_are_told_together() -> None:
    settings = TrainSettings(weights=(1, 0), pseudo_level=1.5, pseudo_weight=0, cache="4")
    with pytest.raises(ConfigError) as error:
        check_settings(settings)
    assert str(error.value) == (
        "pseudo_weight=0 is not in 1e-06..1e+06; pseudo_level=1.5 is not in 0..1; "
        "weights=0 is not above 0; cache 4 is 4 bytes: give its unit, such as 4GB"
    )


def sixteen_bit(root: Path) -> None:
    labels = discs_of()
    image = np.random.default_rng(0).integers(900, 1100, (64, 64)) + 20_000 * (labels > 0)
    write(root, "f", image.astype(np.uint16), labels)


def rgb(root: Path) -> None:
    labels = discs_of()
    shades = [255 - (labels > 0) * np.uint8(factor) for factor in (60, 120, 30)]
    write(root, "f", np.stack(shades, axis=-1).astype(np.uint8), labels)


def plate(root: Path) -> None:
    """One field, a file for each of three wavelengths; its truth lies as the plate is laid out."""
    labels = discs_of()
    for wave in (1, 2, 3):
        write(root, f"P_C03_s1_w{wave}", (grey(labels) // np.uint8(wave)), labels)
    shutil.rmtree(root / "labels")
    (root / "labels" / "P" / "C" / "03").mkdir(parents=True)
    tifffile.imwrite(root / "labels" / "P" / "C" / "03" / "f001.tif", labels)


@pytest.mark.parametrize("kind", [sixteen_bit, rgb, plate])
def test_one_command_trains_on_every_kind_of_image(
    kind: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind(tmp_path / "data")
    arguments = ["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *AS_TOLD]
    assert run([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["failed"]) == (2, [])
    header = read_header(Path(result["best"]))
    assert header.label_statistics["instances"] == 4
    assert header.training["stains"] == (kind is plate)
    images = tmp_path / "data" / "images"
    command = ["segment", str(images), "--model", str(tmp_path / "run"), "--device", "cpu"]
    assert run([*command, "--out", str(tmp_path / "cells"), "--quiet"]) == 0


def test_a_model_of_colours_takes_no_stains_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb(tmp_path / "data")
    train = ["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *AS_TOLD, "--quiet"]
    assert run(train) == 0
    plate(tmp_path / "stains")
    command = ["segment", str(tmp_path / "stains/images"), "--model", str(tmp_path / "run")]
    command += ["--device", "cpu", "--quiet", "--out"]
    capsys.readouterr()
    assert run([*command, str(tmp_path / "a")]) == 3
    assert "3 channels that are no colours" in capsys.readouterr().err
    assert run([*command, str(tmp_path / "b"), "--channel", "0,1,2"]) == 0
    assert run([*command, str(tmp_path / "c"), "--channel", "1"]) == 0


def test_channels_and_weights_are_told_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plate(tmp_path / "a")
    sixteen_bit(tmp_path / "b")
    out = str(tmp_path / "run")
    data = [str(tmp_path / "a"), str(tmp_path / "b")]
    chosen = ["--channel", "0", "--weight", "3", "--weight", "1", "--out", out]
    assert run(["train", *data, *chosen, *AS_TOLD, "--json"]) == 0
    header = read_header(Path(json.loads(capsys.readouterr().out)["best"]))
    assert header.training["settings"]["weights"] == [3, 1]
    assert header.training["settings"]["channel"] == [0]
    assert run(["train", *data, "--weight", "3", "--out", out, *AS_TOLD]) == 2
    assert "--weight is given 1 times for 2 data sets" in capsys.readouterr().err
