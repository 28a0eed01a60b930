"""At another working scale the answers are still in the pixels of the field, tile or no tile."""

from __future__ import annotations

import json
import struct
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cellseg_cli.errors import CheckpointError, ConfigError
from cellseg_cli.images.normalise import apply, fit_channels, measure
from cellseg_cli.images.synthetic import render_field
from cellseg_cli.networks.architecture import SPATIAL_CHANNELS, Architecture, Embedder, Output
from cellseg_cli.networks.checkpoint import (
    ModelHeader,
    fingerprint,
    read_header,
    save_model,
    write_tuned,
)
from cellseg_cli.networks.passes import Network
from cellseg_cli.networks.predict import Predictor, check_tiling
from cellseg_cli.networks.scaled import Scaled, period_px, scale_fault
from cellseg_cli.networks.views import View

SCALES = [0.25 * steps for steps in range(1, 17)]
ARCHITECTURE = Architecture(encoder="resnet10t", decoder_channels=4)


def predictor(view: View, architecture: Architecture = ARCHITECTURE, **tiling: int) -> Predictor:
    torch.manual_seed(0)
    header = ModelHeader(name="tiny", architecture=architecture)
    return Predictor(Embedder(architecture), header, device="cpu", view=view, **tiling)


def field(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((3, height, width), dtype=np.float32)


# ------------------------------------------------------------------ which scales, which tiles


@given(st.sampled_from(SCALES), st.sampled_from([2, 4, 8, 16]))
@settings(deadline=None, max_examples=50)
def test_a_period_is_the_least_that_fits_the_stride(scale: float, stride: int) -> None:
    assert period_px(stride, scale) == next(px for px in count(1) if px * scale % stride == 0)
    assert 64 % period_px(stride, scale) == 0  # tiles are laid in multiples of 64 px


@pytest.mark.parametrize("scale", [0.0, 0.2, 0.3, 1.1, 4.25, -1.0, float("nan"), float("inf")])
def test_other_scales_are_refused(scale: float) -> None:
    expected = f"scale={scale:g} is not a multiple of 0.25 in 0.25..4"
    assert scale_fault(scale) == expected
    with pytest.raises(ConfigError) as error:
        predictor(View(scale))
    assert str(error.value) == expected


def test_a_scale_that_tiles_cannot_keep_to_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        period_px(32, 1.25)
    assert str(error.value) == (
        "scale=1.25 does not go with a network of stride 32; choose a multiple of 0.5"
    )
    assert period_px(32, 1.5) == 64
    assert period_px(64, 3.0) == 64


def test_tiles_that_do_not_fit_the_scale_are_refused() -> None:
    check_tiling(16, 1024, 64, 0, 1.5)
    check_tiling(16, 24, 8, 0, 2.0)  # smaller than the stride: the network sees 48 and 16
    with pytest.raises(ConfigError) as error:
        check_tiling(16, 1000, 48, 0, 1.5)
    assert str(error.value) == (
        "tile_px=1000 and halo_px=48 must be multiples of 32 (at scale=1.5 of a network of "
        "stride 16) with tile_px > 2 × halo_px ≥ 0"
    )


# ------------------------------------------------------------------ what comes back


class Centres(nn.Module):
    """Knows where one centre is, in the network's frame, and says so at each pixel."""

    def __init__(self, centre: tuple[float, float]) -> None:
        super().__init__()
        self.centre = centre
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Output:
        self.shapes.append(tuple(images.shape))
        (height, width), (y, x) = images.shape[2:], self.centre
        rows = (y - 0.5 - torch.arange(height)).view(-1, 1).expand(height, width)
        columns = (x - 0.5 - torch.arange(width)).expand(height, width)
        bandwidth, seed = torch.full_like(rows, 6.0), torch.full_like(rows, 0.25)
        embedding = torch.stack([rows, columns, bandwidth, seed])[None]
        return Output(
            embedding, torch.tensor([3.0, 1.0, -2.0]).view(1, 3, 1, 1).expand(1, 3, height, width)
        )


@pytest.mark.parametrize("scale", SCALES)
def test_centres_are_where_they_are_in_the_field(scale: float) -> None:
    """A centre 40.3, 77.9 px from the field's corner lies `scale` times as far in the network."""
    inner = Centres((40.3 * scale, 77.9 * scale))
    embedding, classes = Scaled(inner, SPATIAL_CHANNELS, scale)(torch.rand(1, 3, 64, 128))
    assert inner.shapes == [(1, 3, int(64 * scale), int(128 * scale))]
    assert embedding.shape == (1, 4, 64, 128)
    rows = 0.5 + torch.arange(64).view(-1, 1) + embedding[0, 0]
    columns = 0.5 + torch.arange(128) + embedding[0, 1]
    # within half a pixel of the network from a border nothing lies beyond to interpolate with
    rim = 4
    kept = (slice(rim, -rim), slice(rim, -rim))
    torch.testing.assert_close(rows[kept], torch.full_like(rows, 40.3)[kept], rtol=0, atol=1e-3)
    torch.testing.assert_close(columns[kept], torch.full_like(rows, 77.9)[kept], rtol=0, atol=1e-3)
    torch.testing.assert_close(embedding[0, 2], torch.full((64, 128), 6.0 / scale))
    torch.testing.assert_close(embedding[0, 3], torch.full((64, 128), 0.25))
    assert classes is not None
    expected = torch.tensor([3.0, 1.0, -2.0]).view(1, 3, 1, 1).expand(1, 3, 64, 128)
    torch.testing.assert_close(classes, expected)


class Copies(nn.Module):
    """Says of each pixel what it sees there."""

    def forward(self, images: Tensor) -> Output:
        return Output(images, None)


@pytest.mark.parametrize("scale", SCALES)
def test_a_slope_is_seen_as_a_slope(scale: float) -> None:
    slope = torch.arange(128.0).expand(1, 1, 64, 128)
    seen, classes = Scaled(Copies(), ("seed",), scale)(slope)
    assert classes is None
    rim = 16  # of a kernel that is as wide as eight pixels of the field, there and back
    # a triangle sampled at four places, as at 3/4, has its centre a hundredth beside its peak
    torch.testing.assert_close(seen[..., rim:-rim], slope[..., rim:-rim], rtol=0, atol=2e-2)


def test_detail_that_is_lost_leaves_no_pattern() -> None:
    """Stripes of 3 px at a quarter of the size: their mean, not stripes of 12 px."""
    stripes = (torch.arange(192) % 3 == 0).float().expand(1, 1, 64, 192)
    seen = Scaled(Copies(), ("seed",), 0.25)(stripes).embedding[..., 16:-16]
    assert (seen - 1 / 3).abs().max() < 0.06


def test_unit_vectors_have_length_one() -> None:
    architecture = Architecture(
        kind="contrastive", encoder="resnet10t", decoder_channels=4, embedding_dim=6
    )
    values = predictor(View(1.5), architecture).embed(field(50, 70)).values.astype(float)
    assert values.shape == (6, 50, 70)
    np.testing.assert_allclose(np.linalg.norm(values, axis=0), 1, atol=2e-3)


def test_gradients_flow_through() -> None:
    model = Scaled(Embedder(ARCHITECTURE), SPATIAL_CHANNELS, 1.5)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    output = model(images)
    assert output.classes is not None
    (output.embedding.sum() + output.classes.square().sum()).backward()
    assert images.grad is not None and (images.grad.abs().sum((0, 1)) > 0).all()
    assert all(one.grad is not None for one in model.parameters())


def test_a_model_of_small_images_sees_large_cells_in_them() -> None:
    """The bundled model at twice the size of a halved field finds what it finds in the field."""
    image = fit_channels(render_field("A01", 1, size=(256, 256))[0][None], 3)
    image = apply(image, measure(image))
    halved = image.reshape(3, 128, 2, 128, 2).mean((2, 4))
    whole = Predictor.load("nuclei", device="cpu").embed(image).values.astype(float)
    view = View(2.0)
    small = Predictor.load("nuclei", device="cpu", view=view).embed(halved).values.astype(float)
    whole = whole.reshape(4, 128, 2, 128, 2).mean((2, 4))
    inside = whole[3] > 0.5
    assert inside.mean() > 0.02
    np.testing.assert_allclose(np.median(whole[2][inside] / small[2][inside]), 2, atol=0.3)
    for component in (0, 1):
        ours, theirs = 2 * small[component][inside], whole[component][inside]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.9
        assert 0.8 < np.polyfit(theirs, ours, 1)[0] < 1.2


# ------------------------------------------------------------------ tiles


@pytest.mark.parametrize("scale", [0.5, 1.25, 1.5, 2.0])
def test_tiles_agree_with_the_whole_field_away_from_their_rims(scale: float) -> None:
    """As without a scale, with a halo that is as wide in the network."""
    halo_px = int(192 / min(scale, 1))
    image = field(64, 1024)
    whole = predictor(View(scale), tile_px=1024, halo_px=64).embed(image).values.astype(float)
    tiled = predictor(View(scale), tile_px=960, halo_px=halo_px).embed(image).values.astype(float)
    assert np.abs(whole - tiled).max() < 0.05


@pytest.mark.parametrize("shape", [(8, 8), (9, 33), (97, 150)])
@pytest.mark.parametrize("scale", [0.25, 1.75, 4.0])
def test_any_size_gives_an_embedding_of_that_size(shape: tuple[int, int], scale: float) -> None:
    embedding = predictor(View(scale)).embed(field(*shape))
    assert embedding.values.shape == (4, *shape)
    assert embedding.classes is not None
    assert embedding.classes.shape == (3, *shape)


def test_slabs_threads_and_pools_give_the_same() -> None:
    image = field(70, 4200)
    tiling = {"tile_px": 512, "halo_px": 32}
    one = predictor(View(1.5), **tiling)
    whole = one.embed(image)
    assert whole.classes is not None
    for columns in (slice(0, 4096), slice(4096, 4200)):
        part = one.embed_region(lambda y, x: image[:, y, x], (70, 4200), (slice(0, 70), columns))
        np.testing.assert_array_equal(part.values, whole.values[:, :, columns])
        np.testing.assert_array_equal(part.classes, whole.classes[:, :, columns])
    torch.manual_seed(0)
    header = ModelHeader(name="tiny", architecture=ARCHITECTURE)
    model = Embedder(ARCHITECTURE)
    side_by_side = Predictor(model, header, device="cpu", cores=2, view=View(1.5), **tiling)
    np.testing.assert_array_equal(side_by_side.embed(image).values, whole.values)
    pooled = Predictor(
        model, header, device="cpu", pooled=True, batch_size=2, view=View(1.5), **tiling
    )
    # Passes of another length round in another order; in bfloat16 a step is 2⁻⁷ of a value.
    np.testing.assert_allclose(pooled.embed(image).values, whole.values, rtol=2**-7, atol=2e-3)
    pooled.close()


def test_a_pass_of_enlarged_tiles_has_fewer() -> None:
    """16 tiles of 528×704 px go into 8 Mpx; enlarged to four times the area 4 do."""
    plain = predictor(View(), tile_px=1024, halo_px=64)
    assert plain.fields_at_once((520, 704)) == 1  # on the CPU
    header = ModelHeader(name="tiny", architecture=ARCHITECTURE)
    for scale, tiles in ((1.0, 16), (2.0, 4), (0.5, 16)):
        one = Predictor(Embedder(ARCHITECTURE), header, device="cpu", pooled=True, view=View(scale))
        assert one.fields_at_once((520, 704)) == 2 * tiles
        one.close()


# ------------------------------------------------------------------ defaults and model files


def test_without_a_scale_nothing_stands_before_the_network() -> None:
    cpu, model = torch.device("cpu"), Embedder(ARCHITECTURE)
    for view in (View(), View(1.0), View(1.0, "none")):
        assert type(Network(model, cpu, view)._model) is Embedder
    assert type(Network(model, cpu, View(1.5))._model) is Scaled


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "m.safetensors"
    save_model(path, Embedder(ARCHITECTURE), ModelHeader("m", ARCHITECTURE, scale=1.5))
    return path


def rewritten(path: Path, scale: object) -> None:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + length])
    inner = json.loads(outer["__metadata__"]["cellseg"])
    inner.pop("scale")
    inner |= {} if scale is None else {"scale": scale}
    outer["__metadata__"]["cellseg"] = json.dumps(inner)
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_a_model_has_a_scale_of_its_own(saved: Path) -> None:
    assert read_header(saved).scale == 1.5
    image = field(40, 50)
    own = Predictor.load(saved, "cpu").embed(image).values
    asked = predictor(View(1.5)).embed(image).values
    np.testing.assert_array_equal(own, asked)
    other = Predictor.load(saved, "cpu", view=View(1.0)).embed(image).values
    np.testing.assert_array_equal(other, predictor(View()).embed(image).values)
    assert np.abs(own.astype(float) - other).max() > 0


def test_a_file_without_the_key_has_scale_one(saved: Path) -> None:
    rewritten(saved, None)
    assert read_header(saved).scale == 1.0


@pytest.mark.parametrize("scale", [1.3, 1e9, float("nan")])
def test_a_file_with_another_scale_is_refused(saved: Path, scale: float) -> None:
    rewritten(saved, scale)
    with pytest.raises(CheckpointError) as error:
        read_header(saved)
    assert str(error.value) == (
        f"{saved} has a damaged header: scale={scale:g} is not a multiple of 0.25 in 0.25..4"
    )


def test_tuning_may_choose_a_scale_and_leaves_the_model_what_it_is(saved: Path) -> None:
    before = fingerprint(saved)
    write_tuned(saved, {"foreground": 0.4}, {"mean_ap": 0.5})
    assert read_header(saved).scale == 1.5
    write_tuned(saved, {"foreground": 0.4}, {"mean_ap": 0.5}, scale=2.0)
    assert read_header(saved).scale == 2.0
    assert fingerprint(saved) == before


def test_a_process_keeps_views_apart(saved: Path) -> None:
    first = Predictor.resident(saved, "cpu", view=View(2.0))
    assert Predictor.resident(saved, "cpu", view=View(2.0)) is first
    assert Predictor.resident(saved, "cpu", view=View(2.0, "flips")) is not first
