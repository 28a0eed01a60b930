"""The mean over turned copies turns with the image, whatever the weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cellseg_cli.networks.architecture import SPATIAL_CHANNELS, Architecture, Embedder, Output
from cellseg_cli.networks.augmented import TURNS, Augmented, Tta, Turn
from cellseg_cli.networks.checkpoint import ModelHeader
from cellseg_cli.networks.passes import Network
from cellseg_cli.networks.predict import Predictor
from cellseg_cli.networks.scaled import Scaled
from cellseg_cli.networks.views import View

ARCHITECTURE = Architecture(encoder="resnet10t", decoder_channels=4)
CONTRASTIVE = Architecture(
    kind="contrastive", encoder="resnet10t", decoder_channels=4, embedding_dim=5
)
ALL = TURNS["dihedral"]


def embedder(architecture: Architecture = ARCHITECTURE) -> Embedder:
    torch.manual_seed(0)
    return Embedder(architecture).eval()


def predictor(view: View, **tiling: int) -> Predictor:
    header = ModelHeader(name="tiny", architecture=ARCHITECTURE)
    return Predictor(embedder(), header, device="cpu", view=view, **tiling)


def turned_by_hand(values: np.ndarray, turn: Turn, vectors: bool) -> np.ndarray:
    """A field of values (C, Y, X) seen in the turned frame, pixel by pixel.

    The pixel at (y, x) goes to (y', x'), and the vector to a centre goes to the difference of
    where its two ends go.
    """
    _, height, width = values.shape
    rows, columns = (width, height) if turn.swap else (height, width)

    def moved(y: float, x: float) -> tuple[float, float]:
        y, x = (x, y) if turn.swap else (y, x)
        return rows - 1 - y if turn.up_down else y, columns - 1 - x if turn.left_right else x

    result = np.empty((len(values), rows, columns), values.dtype)
    for y in range(height):
        for x in range(width):
            to_y, to_x = moved(y, x)
            one = values[:, y, x].copy()
            if vectors:
                end = moved(y + float(one[0]), x + float(one[1]))
                one[:2] = end[0] - to_y, end[1] - to_x
            result[:, int(to_y), int(to_x)] = one
    return result


# ------------------------------------------------------------------ turns


def test_there_are_four_flips_and_eight_symmetries() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    seen = {kind: {str(turn.of(image).tolist()) for turn in TURNS[kind]} for kind in TURNS}
    assert [len(seen[kind]) for kind in ("none", "flips", "dihedral")] == [1, 4, 8]
    assert seen["none"] < seen["flips"] < seen["dihedral"]
    assert str([[[[5.0, 4.0, 3.0], [2.0, 1.0, 0.0]]]]) in seen["flips"]
    # a quarter turn
    assert str([[[[3.0, 0.0], [4.0, 1.0], [5.0, 2.0]]]]) in seen["dihedral"]


@given(st.sampled_from(ALL), st.integers(1, 6), st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_turning_back_undoes_turning(turn: Turn, height: int, width: int) -> None:
    images = torch.rand(2, 3, height, width)
    assert torch.equal(turn.back(turn.of(images)), images)
    expected = turned_by_hand(images[0].numpy(), turn, vectors=False)
    np.testing.assert_array_equal(turn.of(images)[0].numpy(), expected)


@pytest.mark.parametrize("turn", ALL)
def test_components_come_back_from_the_turned_frame(turn: Turn) -> None:
    here = torch.randn(1, 4, 3, 5)
    there = torch.from_numpy(turned_by_hand(here[0].numpy(), turn, vectors=True))[None]
    source, signs = turn.components(SPATIAL_CHANNELS)
    back = turn.back(there)[:, source] * torch.tensor(signs).view(1, -1, 1, 1)
    torch.testing.assert_close(back, here)


def test_lengths_in_two_directions_change_places_without_a_sign() -> None:
    channels = ("offset_y_px", "offset_x_px", "bandwidth_y_px", "bandwidth_x_px", "seed")
    found = Turn(swap=True, up_down=True, left_right=True).components(channels)
    assert found == ([1, 0, 3, 2, 4], [-1.0, -1.0, 1.0, 1.0, 1.0])


# ------------------------------------------------------------------ means


class Answers(nn.Module):
    """Gives one answer after the other, the same at each pixel."""

    def __init__(self, embeddings: Sequence[Sequence[float]], classes: Sequence[float]) -> None:
        super().__init__()
        self.embeddings, self.classes, self.count = embeddings, classes, 0

    def forward(self, images: Tensor) -> Output:
        said = torch.tensor(self.embeddings[self.count]).view(1, -1, 1, 1)
        logits = torch.tensor([self.classes[self.count], 0.0, 0.0]).view(1, 3, 1, 1)
        self.count += 1
        return Output(said + 0 * images[:, :1], logits + 0 * images[:, :1])


def test_what_is_averaged_how() -> None:
    # offset y in the frame of the copy: 1, and 3 where it is upside down
    said = [(1, 2, 2, 0.1), (1, 2, 8, 0.2), (3, 2, 8, 0.3), (3, 2, 32, 0.4)]
    model = Answers(said, [0.0, 1.0, 2.0, 3.0])
    embedding, classes = Augmented(model, SPATIAL_CHANNELS, TURNS["flips"])(torch.rand(1, 3, 2, 3))
    assert model.count == 4
    # copies: as it is, left-right, up-down, both
    expected = [(1 + 1 - 3 - 3) / 4, 0, (2 * 8 * 8 * 32) ** 0.25, 0.25]
    torch.testing.assert_close(embedding[0, :, 1, 2], torch.tensor(expected))
    shares = [np.exp(logit) / (np.exp(logit) + 2) for logit in (0.0, 1.0, 2.0, 3.0)]
    assert classes is not None
    mean = torch.softmax(classes, 1)[0, :, 1, 2]
    background = float(np.mean(shares))
    torch.testing.assert_close(
        mean, torch.tensor([background, (1 - background) / 2, (1 - background) / 2])
    )


def test_unit_vectors_are_added_up_to_a_direction() -> None:
    model = Answers([(1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 1)], [0.0] * 4)
    channels = ("unit_0", "unit_1", "unit_2")
    embedding, _ = Augmented(model, channels, TURNS["flips"])(torch.rand(1, 3, 2, 3))
    expected = torch.tensor([1.0, 2.0, 1.0]) / 6**0.5
    torch.testing.assert_close(embedding[0, :, 0, 0], expected)


def test_gradients_flow_through_copies() -> None:
    model = Augmented(embedder(CONTRASTIVE).train(), CONTRASTIVE.channels, ALL)
    images = torch.rand(1, 3, 32, 64, requires_grad=True)
    output = model(images)
    assert output.classes is not None
    (output.embedding[:, 0].sum() + output.classes.square().sum()).backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()
    assert all(one.grad is not None for one in model.parameters())


# ------------------------------------------------------------------ the law


def assert_law(model: nn.Module, architecture: Architecture, tta: Tta) -> None:
    images = torch.rand(1, 3, 32, 32)
    spatial = architecture.kind == "spatial"
    with torch.inference_mode():
        embedding, logits = model(images)
        for turn in TURNS[tta]:
            there, logits_there = model(turn.of(images))
            expected = turned_by_hand(embedding[0].numpy(), turn, vectors=spatial)
            np.testing.assert_allclose(there[0].numpy(), expected, rtol=1e-3, atol=1e-3)
            classes = torch.softmax(logits_there, 1)
            torch.testing.assert_close(
                classes, turn.of(torch.softmax(logits, 1)), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("architecture", [ARCHITECTURE, CONTRASTIVE], ids=lambda one: one.kind)
@pytest.mark.parametrize("tta", ["flips", "dihedral"])
def test_a_turned_square_has_the_turned_embedding(architecture: Architecture, tta: Tta) -> None:
    model = embedder(architecture)
    assert_law(Augmented(model, architecture.channels, TURNS[tta]), architecture, tta)
    with pytest.raises(AssertionError):  # which is not so of the network alone
        assert_law(model, architecture, tta)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_a_turned_square_has_the_turned_embedding_at_any_scale(scale: float) -> None:
    model = View(scale, "dihedral").through(embedder(), ARCHITECTURE.channels)
    assert_law(model, ARCHITECTURE, "dihedral")


def test_a_turned_field_has_the_turned_embedding() -> None:
    """Up to the roundings of float16 and, where the CPU has it, of bfloat16 in the network."""
    one = predictor(View(tta="dihedral"))
    image = np.random.default_rng(1).random((3, 64, 64), dtype=np.float32)
    expected = one.embed(image)
    assert expected.classes is not None
    for turn in ALL:
        turned = np.ascontiguousarray(turn.of(torch.from_numpy(image)[None])[0].numpy())
        made = one.embed(turned)
        values = turned_by_hand(expected.values.astype(np.float64), turn, vectors=True)
        np.testing.assert_allclose(made.values.astype(np.float64), values, rtol=5e-3, atol=1e-2)
        classes = turned_by_hand(expected.classes.astype(int), turn, vectors=False)
        assert made.classes is not None
        assert np.abs(made.classes.astype(int) - classes).max() <= 2


# ------------------------------------------------------------------ passes and tiles


def test_a_view_says_how_much_work_it_is() -> None:
    work = [
        View(scale, tta).work
        for scale, tta in ((None, "none"), (1.0, "flips"), (2.0, "none"), (1.5, "dihedral"))
    ]
    assert work == [1, 4, 4, 8 * 2.25]


def test_every_copy_is_one_pass_of_the_network() -> None:
    model = embedder()
    network = Network(model, torch.device("cpu"), View(2.0, "dihedral"))
    augmented = network._model
    assert type(augmented) is Augmented and type(augmented.model) is Scaled
    shapes = []
    inner = augmented.model.model
    inner.register_forward_hook(lambda _, given, __: shapes.append(tuple(given[0].shape)))
    network(torch.rand(1, 3, 32, 64))
    assert shapes == [(1, 3, 64, 128)] * 4 + [(1, 3, 128, 64)] * 4


def test_a_pass_without_copies_is_the_network_itself() -> None:
    assert type(Network(embedder(), torch.device("cpu"), View())._model) is Embedder


@pytest.mark.parametrize("view", [View(tta="flips"), View(1.5, "dihedral")])
def test_tiles_agree_with_the_whole_field_away_from_their_rims(view: View) -> None:
    image = np.random.default_rng(0).random((3, 64, 512), dtype=np.float32)
    whole = predictor(view, tile_px=1024, halo_px=64).embed(image).values.astype(float)
    tiled = predictor(view, tile_px=448, halo_px=192).embed(image).values.astype(float)
    assert np.abs(whole - tiled).max() < 0.05


def test_a_pooled_pass_gives_what_a_pass_alone_gives() -> None:
    view = View(1.5, "flips")
    image = np.random.default_rng(0).random((3, 96, 150), dtype=np.float32)
    alone = predictor(view, tile_px=96, halo_px=32).embed(image)
    header = ModelHeader(name="tiny", architecture=ARCHITECTURE)
    pooled = Predictor(
        embedder(),
        header,
        device="cpu",
        pooled=True,
        batch_size=3,
        tile_px=96,
        halo_px=32,
        view=view,
    )
    made = pooled.embed(image)
    np.testing.assert_allclose(made.values, alone.values, rtol=2e-3, atol=2e-3)
    kept = pooled.embed_on_device(image).on_host()
    np.testing.assert_array_equal(kept.values, made.values)
    pooled.close()


@pytest.mark.gpu
@pytest.mark.parametrize("view", [View(1.5), View(0.5, "flips"), View(2.0, "dihedral")])
def test_cuda_agrees_with_cpu(view: View) -> None:
    """bf16 keeps 8 bits; offsets of some pixels then agree to a tenth of a pixel."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = np.random.default_rng(0).random((3, 256, 256), dtype=np.float32)
    header = ModelHeader(name="tiny", architecture=ARCHITECTURE)
    on_cuda = Predictor(embedder(), header, device="cuda", view=view).embed(image).values
    on_cpu = predictor(view).embed(image).values.astype(float)
    assert np.abs(on_cpu - on_cuda).max() < 0.1
