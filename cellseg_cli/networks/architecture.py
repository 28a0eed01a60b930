"""The network: a timm encoder, a decoder to full size, and the heads.

Invariant: the output has the input's height and width, so that one embedding
belongs to one pixel.  Nothing here knows of files, fields or instances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellseg_cli.errors import ConfigError
from cellseg_cli.networks import resnet
from cellseg_cli.networks.decoders import DECODERS, DecoderName
from cellseg_cli.networks.guides import Guide, Guides
from cellseg_cli.networks.guides import channels as guided_channels

Kind = Literal["spatial", "contrastive"]

#: Meaning of the components of a spatial embedding, in order.
SPATIAL_CHANNELS = ("offset_y_px", "offset_x_px", "bandwidth_px", "seed")

#: Offsets leave the head in units of this many pixels, about the radius of a
#: nucleus at the usual magnifications, so that raw outputs start near one.
OFFSET_UNIT_PX = 8.0

#: Bandwidth where the head's raw output is zero; a cell of radius r has
#: phi = 0.5 at its rim when sigma = r / sqrt(2 ln 2), 6.8 px for r = 8.
BANDWIDTH_UNIT_PX = 6.0

#: |log(bandwidth / unit)| is held below this: 0.3 to 120 px.
LOG_BANDWIDTH_LIMIT = 3.0

MAX_LEVELS = 6

#: Hidden channels of a classes head that reads the embedding: twice the components of the usual
#: embedding, so that a neighbourhood can be told from a pixel.
CLASSIFIER_CHANNELS = 16


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the shapes of the weights.

    Attributes
    ----------
    kind
        ``spatial`` (offset, bandwidth, seed) or ``contrastive`` (unit vectors).
    encoder
        A timm model that knows ``features_only``.  EfficientNets weigh their channels by means
        over the whole input (squeeze and excitation), so that with them what is said of a pixel
        depends a little on its tile.
    levels
        Encoder stages used; stage i has stride 2**(i + 1).
    decoder_channels
        Channels of the full-size stage; doubled at each coarser one.
    in_channels
        Image channels.
    embedding_dim
        Unit components of a contrastive embedding; 4 for spatial ones.
    classes_head
        Whether background / interior / border logits come along.
    classes_from
        What the classes head reads: the decoder's ``features``, or the ``embedding``.
    decoder
        Key of :data:`cellseg_cli.networks.decoders.DECODERS`.
    guides
        What the network is shown besides the image: any of
        :data:`cellseg_cli.networks.guides.GUIDES`.
    """

    kind: Kind = "spatial"
    encoder: str = "resnet18"
    levels: int = 4
    decoder_channels: int = 16
    in_channels: int = 3
    embedding_dim: int = 8
    classes_head: bool = True
    classes_from: Literal["features", "embedding"] = "features"
    decoder: DecoderName = "unet"
    guides: tuple[Guide, ...] = ()

    def __post_init__(self) -> None:
        limits = {
            "levels": MAX_LEVELS,
            "decoder_channels": 256,
            "in_channels": 64,
            "embedding_dim": 64,
        }
        faults = [
            f"{name}={getattr(self, name)} is not in 1..{most}"
            for name, most in limits.items()
            if not 1 <= getattr(self, name) <= most
        ]
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def stride(self) -> int:
        """Height and width of the network's input are multiples of this, in pixels."""
        return 2**self.levels

    @property
    def encoder_channels(self) -> int:
        """Channels that the encoder takes: those of the image, and of its guides."""
        return guided_channels(self.in_channels, self.guides)

    @property
    def channels(self) -> tuple[str, ...]:
        """Meaning of each component of the embedding."""
        if self.kind == "spatial":
            return SPATIAL_CHANNELS
        return tuple(f"unit_{index}" for index in range(self.embedding_dim))


class Output(NamedTuple):
    """What the network says of a batch.

    Attributes
    ----------
    embedding
        (B, E, H, W) float32: for ``spatial`` offset y, offset x and bandwidth
        in pixels and the seed logit's sigmoid; for ``contrastive`` unit vectors.
    classes
        (B, 3, H, W) float32 logits of background, interior, border, or None.
    """

    embedding: Tensor
    classes: Tensor | None


class Embedder(nn.Module):
    """Encoder, decoder and heads of one :class:`Architecture`.

    Parameters
    ----------
    architecture
        Decides the shapes.
    trained
        Weights will be loaded: the encoders of :mod:`cellseg_cli.networks.resnet` are then built
        without timm.
    """

    def __init__(self, architecture: Architecture, *, trained: bool = False) -> None:
        super().__init__()
        self.architecture = architecture
        self.guides = Guides(architecture.guides)
        known = architecture.encoder in resnet.BLOCKS and architecture.levels <= len(resnet.WIDTHS)
        if trained and known:
            encoder: Any = resnet.Encoder(
                architecture.encoder, architecture.encoder_channels, architecture.levels
            )
            widths = encoder.widths
        else:
            encoder = _encoder(architecture)
            widths = encoder.feature_info.channels()
        self.encoder = encoder
        decoder = DECODERS[architecture.decoder]
        self.decoder = decoder(widths, architecture.encoder_channels, architecture.decoder_channels)
        components = len(architecture.channels)
        self.embedding_head = nn.Conv2d(architecture.decoder_channels, components, kernel_size=1)
        self.classes_head = _classes_head(architecture) if architecture.classes_head else None

    def forward(self, images: Tensor) -> Output:
        """Return embedding and classes of `images`, (B, C, H, W).

        H and W are multiples of the stride.
        """
        shown = self.guides(images)
        features = self.decoder(shown, self.encoder(shown))
        raw = self.embedding_head(features).float()
        embedding = _spatial(raw) if self.architecture.kind == "spatial" else _unit(raw)
        if self.classes_head is None:
            return Output(embedding, None)
        read = embedding if self.architecture.classes_from == "embedding" else features
        return Output(embedding, self.classes_head(read).float())


def _classes_head(architecture: Architecture) -> nn.Module:
    if architecture.classes_from == "features":
        return nn.Conv2d(architecture.decoder_channels, 3, kernel_size=1)
    # The embedding of one pixel says cell or background; a border is seen in those around it.
    return nn.Sequential(
        nn.Conv2d(len(architecture.channels), CLASSIFIER_CHANNELS, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(CLASSIFIER_CHANNELS, 3, kernel_size=1),
    )


def _encoder(architecture: Architecture) -> Any:
    import timm

    if not timm.is_model(architecture.encoder):
        raise ConfigError(
            f"timm knows no encoder named {architecture.encoder!r}; "
            "timm.list_models() lists them, resnet18 is the usual one"
        )
    try:
        encoder: Any = timm.create_model(
            architecture.encoder,
            features_only=True,
            pretrained=False,
            in_chans=architecture.encoder_channels,
            out_indices=tuple(range(architecture.levels)),
        )
    except (RuntimeError, AssertionError, IndexError, TypeError) as error:
        raise ConfigError(
            f"timm's {architecture.encoder} gives no {architecture.levels} feature stages: "
            f"{error}; choose another encoder or fewer levels"
        ) from error
    expected = [2 ** (level + 1) for level in range(architecture.levels)]
    if (strides := list(encoder.feature_info.reduction())) != expected:
        raise ConfigError(
            f"{architecture.encoder} has stages of stride {strides}, needs {expected}; "
            "choose an encoder whose first stage has stride 2, such as resnet18"
        )
    _drop_unused(encoder)
    _check_stages(encoder, architecture)
    return encoder


def _check_stages(encoder: Any, architecture: Architecture) -> None:
    """Refuse an encoder whose stages are not of the size that their strides promise.

    Some convolve without padding, and some attend in windows that only certain sizes suit.
    """
    stride = architecture.stride
    was_training = encoder.training
    encoder.eval()
    for side in (5 * stride, 6 * stride):
        halves = [side // 2 ** (level + 1) for level in range(architecture.levels)]
        try:
            with torch.no_grad():
                stages = encoder(torch.zeros(1, architecture.encoder_channels, side, side))
            sizes = [tuple(stage.shape[-2:]) for stage in stages]
            instead = "" if sizes == [(half, half) for half in halves] else str(sizes)
        except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
            instead = " ".join(str(error).split()) or type(error).__name__
        if instead:
            raise ConfigError(
                f"{architecture.encoder} gives of {side}×{side} px no stages of "
                f"{', '.join(map(str, halves))} px, but {instead}; choose an encoder that suits "
                "every size, such as resnet18"
            )
    encoder.train(was_training)


def _drop_unused(encoder: Any) -> None:
    """Take away what lies behind the last stage that is used.

    These two families keep and compute it, though nothing reads it and nothing trains it: 25 to
    40 % of the encoder's time at four levels, and three quarters of its weights.
    """
    from timm.models.efficientnet import EfficientNetFeatures
    from timm.models.mobilenetv3 import MobileNetV3Features

    if isinstance(encoder, EfficientNetFeatures | MobileNetV3Features):
        last = max(stage["stage"] for stage in encoder.feature_info.get_dicts())
        encoder.blocks = encoder.blocks[:last]


def _spatial(raw: Tensor) -> Tensor:
    """Return offsets and bandwidth in pixels and the seed in (0, 1) from raw (B, 4, H, W)."""
    offset = raw[:, :2] * OFFSET_UNIT_PX
    limited = LOG_BANDWIDTH_LIMIT * torch.tanh(raw[:, 2:3] / LOG_BANDWIDTH_LIMIT)
    return torch.cat(
        [offset, BANDWIDTH_UNIT_PX * torch.exp(limited), torch.sigmoid(raw[:, 3:4])], 1
    )


def _unit(raw: Tensor) -> Tensor:
    return functional.normalize(raw, dim=1, eps=1e-6)
