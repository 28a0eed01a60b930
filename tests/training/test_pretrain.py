"""Pretraining: views, bad images, resuming to the same weights, and what `train` takes over."""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file, save_file

from cellseg_cli.config import PretrainSettings, TrainSettings
from cellseg_cli.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    OutputExistsError,
    TrainingError,
)
from cellseg_cli.images.source import Field
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, save_model
from cellseg_cli.networks.initial import (
    EncoderHeader,
    find_initial,
    initial_fingerprint,
    load_initial,
    read_encoder_header,
    save_encoder,
)
from cellseg_cli.training import pretrain as loop
from cellseg_cli.training.ahead import prepared
from cellseg_cli.training.data import Source, open_split, share_of
from cellseg_cli.training.limits import check_pretrain_settings
from cellseg_cli.training.loop import train
from cellseg_cli.training.pictures import find_pictures, usable_pictures
from cellseg_cli.training.pretrain import Report, Started, learning_rate, pretrain
from cellseg_cli.training.views import View, cut_view, draw_pairs, draw_views

TINY = PretrainSettings(
    encoder="resnet10t",
    levels=3,
    in_channels=1,
    crop_px=32,
    batch_size=4,
    steps=4,
    queue_length=16,
    device="cpu",
    precision="fp32",
)

TINY_TRAIN = TrainSettings(
    encoder="resnet10t",
    levels=3,
    decoder_channels=4,
    in_channels=1,
    crop_px=48,
    batch_size=2,
    steps=2,
    grid_points=16,
    validate_every=0,
    device="cpu",
    precision="fp32",
)


@pytest.fixture
def images(discs: Path) -> Path:
    """The images of `discs`, whose truth is not looked at."""
    return discs / "images"


def learn(images: Path, out: Path, settings: PretrainSettings = TINY, **more: object) -> object:
    return pretrain(find_pictures([images], settings).fields, out, settings, **more)


def test_a_run_leaves_an_encoder_that_says_what_it_is(images: Path, tmp_path: Path) -> None:
    told: list[object] = []
    out = tmp_path / "run"
    result = pretrain(
        find_pictures([images], TINY).fields,
        out,
        TINY,
        notes=loop.Notes("CC0-1.0", "rendered discs"),
        emit=told.append,
    )
    assert result.encoder == out / "encoder.safetensors"
    assert (result.fields, result.steps, result.failed) == (4, 4, ())
    header = read_encoder_header(result.encoder)
    assert (header.encoder, header.levels, header.in_channels) == ("resnet10t", 3, 1)
    assert (header.licence, header.data) == ("CC0-1.0", "rendered discs")
    assert header.training["settings"]["queue_length"] == 16
    assert (header.training["method"], header.training["steps"]) == ("DenseCL", 4)
    assert header.training["fields"] == 4
    assert told[0] == Started(device="cpu", precision="fp32", fields=4, step=0, steps=4)
    assert isinstance(told[1], Report)
    assert result.losses == told[1].losses
    with (out / "metrics.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows] == [["step", "name"], ["4", "global"], ["4", "dense"]]
    assert all(name.startswith("encoder.") for name in load_file(result.encoder))


def test_it_learns_to_find_places_of_other_stripes(tmp_path: Path) -> None:
    """Of no knowledge the dense loss is log(1 + queue); it falls well below that."""
    rows = np.arange(64.0)[:, None] + np.zeros((1, 64))
    for period in (3, 4, 5, 7, 10, 14, 20, 28):
        stripes = 100 + 80 * np.sin(2 * np.pi * rows / period)
        cv2.imwrite(str(tmp_path / f"{period}.png"), stripes.astype(np.uint8))
    settings = dataclasses.replace(TINY, steps=80, batch_size=8, learning_rate=0.01)
    dense: list[float] = []

    def keep(report: object) -> None:
        if isinstance(report, Report):
            dense.append(report.losses["dense"] / settings.dense_weight)

    learn(tmp_path, tmp_path / "run", settings, emit=keep)
    assert dense[-1] < 0.8 * np.log(1 + settings.queue_length)


@pytest.mark.parametrize("kept", ["SAVE_EVERY = 5", "REPORT_EVERY, pretrain.SAVE_AFTER_S = 4, 0.0"])
def test_a_run_killed_with_9_resumes_to_the_same_weights(
    images: Path, kept: str, tmp_path: Path
) -> None:
    """Killed after a state that is written every few steps, or at a report since time is up."""
    settings = dataclasses.replace(TINY, steps=40)
    whole = learn(images, tmp_path / "whole", settings)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from cellseg_cli.config import PretrainSettings\n"
        "from cellseg_cli.training import pretrain\n"
        "from cellseg_cli.training.pictures import find_pictures\n"
        f"pretrain.{kept}\n"
        f"settings = {settings!r}\n"
        "fields = find_pictures([sys.argv[1]], settings).fields\n"
        "pretrain.pretrain(fields, Path(sys.argv[2]), settings)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(loop.__file__).parents[2])}
    command = [sys.executable, "-c", script, str(images), str(tmp_path / "cut")]
    state = tmp_path / "cut" / "state.safetensors"
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    written: set[int] = set()  # the first state is that of step 0
    while len(written) < 2 and child.poll() is None and time.monotonic() < deadline:
        if state.exists():
            written.add(state.stat().st_mtime_ns)
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(written) == 2
    assert not (tmp_path / "cut" / "encoder.safetensors").exists(), "it was killed too late"
    cut = learn(images, tmp_path / "cut", settings)
    for name in ("encoder.safetensors", "state.safetensors"):
        ours, theirs = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=0)
    assert whole.losses == cut.losses


def test_an_interrupted_run_keeps_the_step_it_was_at(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY", 2)
    settings = dataclasses.replace(TINY, steps=6)
    learn(images, tmp_path / "whole", settings)

    def interrupt(report: object) -> None:
        if isinstance(report, Report) and report.step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            learn(images, tmp_path / "cut", settings, emit=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    learn(images, tmp_path / "cut", settings)
    ours, theirs = (load_file(tmp_path / one / "encoder.safetensors") for one in ("whole", "cut"))
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=0)


def test_a_finished_run_is_left_as_it_is(images: Path, tmp_path: Path) -> None:
    first = learn(images, tmp_path / "run")
    before = load_file(first.encoder)
    again = learn(images, tmp_path / "run")
    assert (again.steps, again.losses) == (4, {})
    assert all(
        torch.equal(before[name], tensor) for name, tensor in load_file(again.encoder).items()
    )


def test_other_settings_on_the_same_folder_are_refused(images: Path, tmp_path: Path) -> None:
    learn(images, tmp_path / "run")
    other = dataclasses.replace(TINY, temperature=0.1, seed=5)
    with pytest.raises(OutputExistsError) as error:
        learn(images, tmp_path / "run", other)
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds a run with other settings (seed, temperature); "
        "use another --out, or --overwrite to start anew"
    )
    assert learn(images, tmp_path / "run", other, overwrite=True).steps == 4
    (tmp_path / "run" / "state.safetensors").unlink()
    with pytest.raises(OutputExistsError) as error:
        learn(images, tmp_path / "run", other)
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds encoder.safetensors without the state of their run; "
        "use another --out, or --overwrite to replace them"
    )


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_other_pixels_under_the_same_names_are_another_run(
    images: Path, tmp_path: Path, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are kept in memory or read again: both know a field by the same digest."""
    learn(images, tmp_path / "run")
    limited = functools.partial(usable_pictures, cache_bytes=cache_bytes)
    monkeypatch.setattr(loop, "usable_pictures", limited)
    assert learn(images, tmp_path / "run").steps == 4
    path = images / "f1.png"
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image[3, 4] ^= 1
    cv2.imwrite(str(path), image)
    with pytest.raises(OutputExistsError, match=r"other settings \(fields\);"):
        learn(images, tmp_path / "run")


def test_bad_images_are_left_out_and_the_run_goes_on(images: Path, tmp_path: Path) -> None:
    (images / "f1.png").write_bytes(b"no image")
    cv2.imwrite(str(images / "flat.png"), np.full((40, 40), 7, np.uint8))
    told: list[object] = []
    result = learn(images, tmp_path / "run", emit=told.append)
    assert [failure.field_id for failure in result.failed] == ["f1", "flat"]
    assert result.failed[1].reason == "the image is constant: every pixel is 7"
    assert told[:2] == list(result.failed)
    assert result.fields == 3
    assert read_encoder_header(result.encoder).training["failed_fields"] == 2


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "flat.png"), np.full((40, 40), 7, np.uint8))
    with pytest.raises(InputError) as error:
        learn(tmp_path, tmp_path / "run")
    assert str(error.value) == (
        "not one of 1 images can be used: there is nothing to learn from; the first: "
        "the image is constant: every pixel is 7"
    )


def test_a_loss_that_is_not_finite_names_the_fields(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(loop.DenseCL, "losses", lambda *given: (nan, nan))
    with pytest.raises(TrainingError, match=r"not finite at step 0: .*fields of the batch: f\d"):
        learn(images, tmp_path / "run")


def test_images_of_every_kind_train_from_one_command(tmp_path: Path) -> None:
    """16-bit, RGB, RGB with alpha and grey 8-bit images in one folder, for three channels."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (40, 50)).astype(np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    tifffile.imwrite(folder / "deep.tif", grey.astype(np.uint16) * 200)
    cv2.imwrite(
        str(folder / "rgb.png"), np.stack([grey, grey.T[:40, :40].repeat(2, 1)[:, :50], grey], 2)
    )
    opaque = np.full_like(grey, 255)
    cv2.imwrite(str(folder / "rgba.png"), np.stack([grey, grey // 2, grey, opaque], 2))
    cv2.imwrite(str(folder / "grey.png"), grey)
    tifffile.imwrite(folder / "stack.tif", np.stack([grey, grey]), metadata={"axes": "CYX"})
    result = learn(folder, tmp_path / "run", dataclasses.replace(TINY, in_channels=3, steps=1))
    assert result.fields == 4
    assert [failure.field_id for failure in result.failed] == ["stack"]
    assert result.failed[0].reason == (
        "the image has 2 channels, the model takes 3; choose one, which is repeated, "
        "e.g. --channel 0"
    )


def test_two_sources_may_hold_files_of_one_name(images: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "f0.png").write_bytes((images / "f0.png").read_bytes())
    found = find_pictures([images, tmp_path / "more"], TINY)
    assert [field.id for field in found.fields] == ["0:f0", "0:f1", "0:f2", "0:f3", "1:f0"]


def test_an_image_that_memory_has_no_room_for_gives_the_same_views(images: Path) -> None:
    fields = find_pictures([images], TINY).fields
    kept, _ = usable_pictures(fields, TINY)
    read, _ = usable_pictures(fields, TINY, cache_bytes=0)
    assert kept.scales == read.scales
    for step in range(2):
        ours, theirs = (draw_pairs(one, TINY, step=step) for one in (kept, read))
        assert ours.field_ids == theirs.field_ids
        assert torch.equal(ours.first, theirs.first)
        assert torch.equal(ours.second, theirs.second)


def test_views_differ_between_steps_and_seeds_only(images: Path) -> None:
    pictures, _ = usable_pictures(find_pictures([images], TINY).fields, TINY)
    first = draw_pairs(pictures, TINY, step=3).first
    assert torch.equal(first, draw_pairs(pictures, TINY, step=3).first)
    assert not torch.equal(first, draw_pairs(pictures, TINY, step=4).first)
    other = dataclasses.replace(TINY, seed=1)
    assert not torch.equal(first, draw_pairs(pictures, other, step=3).first)


def test_a_view_shows_the_field_where_it_says(tmp_path: Path) -> None:
    """A view of a ramp shows its own coordinates, scaled to percentiles 0 and 100."""
    height, width = 60, 80
    ramp = np.arange(width, dtype=np.float32)[None, :] + np.zeros((height, 1), np.float32)
    tifffile.imwrite(tmp_path / "ramp.tif", ramp)
    settings = dataclasses.replace(TINY, crop_px=16, low_percentile=0, high_percentile=100)
    pictures, _ = usable_pictures(find_pictures([tmp_path], settings).fields, settings)
    quarter = View(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([40.0, 20.0]))
    with pictures.open(0) as picture:
        shown = cut_view(picture, quarter, settings)[0]
    # view (x, y) is field (40 - y, 20 + x): the ramp falls down the view
    expected = (40 - np.arange(16.0))[:, None] / (width - 1) + np.zeros((1, 16))
    np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_what_lies_beyond_the_border_is_mirrored(tmp_path: Path) -> None:
    ramp = np.arange(40, dtype=np.float32)[None, :] + np.zeros((40, 1), np.float32)
    tifffile.imwrite(tmp_path / "ramp.tif", ramp)
    settings = dataclasses.replace(TINY, crop_px=16, low_percentile=0, high_percentile=100)
    pictures, _ = usable_pictures(find_pictures([tmp_path], settings).fields, settings)
    with pictures.open(0) as picture:
        left = cut_view(picture, View(np.eye(2), np.array([-12.0, 5.0])), settings)[0, 0]
        right = cut_view(picture, View(np.eye(2), np.array([36.0, 5.0])), settings)[0, 0]
    np.testing.assert_allclose(left * 39, [*range(12, -1, -1), 1, 2, 3], atol=1e-3)
    np.testing.assert_allclose(right * 39, [36, 37, 38, 39, *range(38, 26, -1)], atol=1e-3)


def test_two_views_of_a_place_overlap() -> None:
    """The centres of both lie within a quarter of the larger side of the place, per axis."""
    rng = np.random.default_rng(0)
    middle = np.full(2, (TINY.crop_px - 1) / 2)
    largest = TINY.crop_px / TINY.scale_min
    for _ in range(200):
        centres = [view.linear @ middle + view.origin for view in draw_views((400, 500), TINY, rng)]
        assert np.abs(centres[0] - centres[1]).max() <= 2 * 0.25 * largest
        for view in draw_views((9, 9), TINY, rng):
            zoom = 1 / np.sqrt(abs(np.linalg.det(view.linear)))
            assert TINY.scale_min <= zoom <= TINY.scale_max


def test_the_learning_rate_falls_along_half_a_cosine() -> None:
    settings = dataclasses.replace(TINY, steps=100, learning_rate=2.0)
    assert [round(learning_rate(step, settings), 6) for step in (0, 50, 100)] == [2.0, 1.0, 0.0]


def test_all_settings_out_of_range_are_refused_in_one_message() -> None:
    bad = dataclasses.replace(
        TINY, temperature=0.0, momentum=1.5, dense_weight=-1.0, queue_length=2, crop_px=8
    )
    with pytest.raises(ConfigError) as error:
        check_pretrain_settings(bad)
    assert str(error.value) == (
        "temperature=0.0 is not in 0.0001..inf; momentum=1.5 is not in 0..1; "
        "dense_weight=-1.0 is not in 0..1; crop_px=8 is not in 16..inf for levels=3; "
        "queue_length=2 is below batch_size=4"
    )


def test_an_error_in_a_batch_is_raised_at_its_step() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise InputError("gone")
        return step

    done: list[int] = []
    with pytest.raises(InputError, match="gone"):
        done.extend(step for step, _ in prepared(make, 0, 9))
    batches = prepared(make, 0, 9)
    assert [next(batches) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    batches.close()


ARCHITECTURE = Architecture(encoder="resnet10t", levels=3, decoder_channels=4, in_channels=1)


def test_training_begins_with_the_pretrained_encoder(
    images: Path, discs: Path, tmp_path: Path
) -> None:
    pretrained = learn(images, tmp_path / "pre").encoder
    settings = dataclasses.replace(TINY_TRAIN, init=str(tmp_path / "pre"))
    told: list[object] = []
    still = dataclasses.replace(settings, learning_rate=0.0, weight_decay=0.0)
    train(open_split([str(discs)]), tmp_path / "run", still, emit=told.append)
    learned = load_file(tmp_path / "run" / "last.safetensors")
    for name, tensor in load_file(pretrained).items():
        if name.endswith(".weight"):  # the statistics of batch norm go on at any rate
            torch.testing.assert_close(learned[name], tensor, rtol=1e-6, atol=1e-7)
    report = next(one for one in told if type(one).__name__ == "InitialReport")
    assert set(report.taken) == set(load_file(pretrained))
    assert report.source == "encoder"
    assert not any(name.startswith("encoder.") for name in report.left)


def test_another_encoder_in_the_file_is_another_run(
    images: Path, discs: Path, tmp_path: Path
) -> None:
    """And a file that has only moved is the same run."""
    encoder = learn(images, tmp_path / "pre").encoder
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(encoder.read_bytes())
    split, out = open_split([str(discs)]), tmp_path / "run"
    settings = dataclasses.replace(TINY_TRAIN, init=str(encoder))
    train(split, out, settings)
    assert train(split, out, dataclasses.replace(settings, init=str(copy))).steps == 2
    learn(images, tmp_path / "other", dataclasses.replace(TINY, seed=3))
    with pytest.raises(OutputExistsError) as error:
        train(split, out, dataclasses.replace(settings, init=str(tmp_path / "other")))
    assert str(error.value) == (
        f"{out} holds a run with other settings (init); "
        "use another --out, or --overwrite to start anew"
    )


def test_a_model_gives_all_weights_that_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = Embedder(ARCHITECTURE)
    path = tmp_path / "model.safetensors"
    save_model(path, trained, ModelHeader(name="m", architecture=ARCHITECTURE), half=True)
    same = Embedder(ARCHITECTURE)
    report = load_initial(same, path)
    assert (report.source, report.left) == ("model", ())
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    wider = Embedder(dataclasses.replace(ARCHITECTURE, decoder_channels=8))
    report = load_initial(wider, path)
    assert all(name in report.taken for name in wider.state_dict() if name.startswith("encoder."))
    assert "embedding_head.weight" in report.left
    assert str(report) == (
        f"{len(report.taken)} of {len(wider.state_dict())} tensors are taken from the model {path}"
    )


def test_the_head_of_another_kind_is_not_taken_whatever_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, Embedder(ARCHITECTURE), ModelHeader(name="m", architecture=ARCHITECTURE))
    other = dataclasses.replace(ARCHITECTURE, kind="contrastive", embedding_dim=4)
    report = load_initial(Embedder(other), path)
    assert report.left == ("embedding_head.weight", "embedding_head.bias")


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"in_channels": 3}, "in_channels=1"),
        ({"encoder": "test_resnet", "levels": 2}, "encoder=resnet10t, levels=3"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_with_advice(
    changes: dict[str, object], advice: str, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, Embedder(ARCHITECTURE).encoder, EncoderHeader("resnet10t", 3, 1))
    with pytest.raises(CheckpointError) as error:
        load_initial(Embedder(dataclasses.replace(ARCHITECTURE, **changes)), path)
    assert str(error.value) == (
        f"{path} does not fit: its encoder is resnet10t for 1 image channels with 3 stages; "
        f"set {advice}, or leave --init out"
    )


def test_files_that_are_no_beginning_are_refused(tmp_path: Path) -> None:
    encoder = Embedder(ARCHITECTURE).encoder
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(CheckpointError) as error:
        find_initial(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds neither encoder.safetensors nor best.safetensors: no run of cellseg "
        "pretrain or train has finished there"
    )
    with torch.no_grad():
        next(iter(encoder.parameters())).fill_(float("nan"))
    save_encoder(path, encoder, EncoderHeader("resnet10t", 3, 1))
    with pytest.raises(CheckpointError, match="holds weights that are not finite, such as encoder"):
        load_initial(Embedder(ARCHITECTURE), path)
    save_encoder(path, torch.nn.Conv2d(1, 1, 1), EncoderHeader("resnet10t", 3, 1))
    with pytest.raises(CheckpointError, match="does not hold what its header says: "):
        load_initial(Embedder(ARCHITECTURE), path)
    save_file({"a": torch.zeros(1)}, path, metadata={"cellseg": '{"format": "other"}'})
    with pytest.raises(CheckpointError) as error:
        load_initial(Embedder(ARCHITECTURE), path)
    assert str(error.value) == f"{path} is a safetensors file, but no encoder or model of cellseg"


def test_the_fingerprint_is_of_the_weights_and_not_of_the_words(tmp_path: Path) -> None:
    encoder = Embedder(ARCHITECTURE).encoder
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_encoder(one, encoder, EncoderHeader("resnet10t", 3, 1))
    save_encoder(other, encoder, EncoderHeader("resnet10t", 3, 1, licence="CC0-1.0"))
    assert initial_fingerprint(one) == initial_fingerprint(other)
    with torch.no_grad():
        next(iter(encoder.parameters())).view(-1)[0] += 1
    save_encoder(other, encoder, EncoderHeader("resnet10t", 3, 1))
    assert initial_fingerprint(one) != initial_fingerprint(other)


def test_a_share_of_the_fields_is_of_every_group_and_within_every_larger_share() -> None:
    sources = [
        Source(Field(f"{group}{number}", None), None, group)
        for group, count in (("0:cort", 100), ("0:astro", 20), ("1:all", 1))
        for number in range(count)
    ]
    shares = [share_of(sources, share, seed=0) for share in (0.001, 0.07, 0.25, 1.0)]
    counts = [Counter(source.group for source in share) for share in shares]
    assert counts == [
        {"0:cort": 1, "0:astro": 1, "1:all": 1},
        {"0:cort": 7, "0:astro": 2, "1:all": 1},
        {"0:cort": 25, "0:astro": 5, "1:all": 1},
        {"0:cort": 100, "0:astro": 20, "1:all": 1},
    ]
    ids = [[source.field.id for source in share] for share in shares]
    for smaller, larger in pairwise(ids):
        assert set(smaller) <= set(larger)
        assert smaller == [one for one in larger if one in smaller]  # in their order
    again = [source.field.id for source in share_of(sources[::-1], 0.25, seed=0)]
    assert sorted(again) == sorted(ids[2])
    assert set(ids[2]) != {source.field.id for source in share_of(sources, 0.25, seed=1)}
