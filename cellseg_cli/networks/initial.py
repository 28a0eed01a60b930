"""Weights to begin with: the encoder that pretraining leaves, or a model that is trained.

An encoder's file is a safetensors file with a JSON header, as a model's, and its tensors have
the names that they have in a model: ``encoder.`` and timm's.  So one function takes both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellseg_cli import __version__, durable
from cellseg_cli.errors import CheckpointError
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import FORMAT as MODEL_FORMAT
from cellseg_cli.networks.checkpoint import find_model, read_content, read_header

FORMAT = "cellseg-encoder"
FORMAT_VERSION = 1

#: Name of the encoder in the folder of a pretraining run.
ENCODER = "encoder.safetensors"
#: Names of the encoder's tensors begin with this, here and in a model's file.
PREFIX = "encoder."


@dataclass(frozen=True)
class EncoderHeader:
    """What an encoder's file says of itself.

    Attributes
    ----------
    encoder, levels, in_channels
        As of :class:`Architecture`.
    low_percentile, high_percentile
        Normalisation of the fields that it learned from.
    training
        Method, settings, steps, seconds, device and number of fields of the run that made it.
    licence, data
        Under which licence the weights may be used, and what they learned from.
    version
        Version of cellseg that wrote the file.
    """

    encoder: str
    levels: int
    in_channels: int
    low_percentile: float = 1.0
    high_percentile: float = 99.8
    training: dict[str, Any] = field(default_factory=dict)
    licence: str = "unstated"
    data: str = "unstated"
    version: str = __version__


@dataclass(frozen=True)
class InitialReport:
    """Which weights were taken over.

    Attributes
    ----------
    path
        The file.
    source
        ``encoder`` or ``model``: what the file is of.
    taken
        Names of the tensors that the network has now from the file.
    left
        Names of the tensors of the network that begin at random: the file has none that fits.
    """

    path: Path
    source: str
    taken: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        every = len(self.taken) + len(self.left)
        return f"{len(self.taken)} of {every} tensors are taken from the {self.source} {self.path}"


def save_encoder(path: Path, encoder: nn.Module, header: EncoderHeader) -> None:
    """Write `encoder` and `header` to `path`, atomically."""
    from safetensors.torch import save

    tensors = {
        PREFIX + name: tensor.detach().cpu().contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    text = json.dumps(
        {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(header)}
    )
    with durable.temporary_path(path.parent) as temporary:
        temporary.write_bytes(save(tensors, metadata={"cellseg": text}))
        durable.replace(temporary, path)


def read_encoder_header(path: Path) -> EncoderHeader:
    """Return the header of the encoder's file at `path`.

    Raises
    ------
    CheckpointError
        The file is missing, is no encoder of ours, or of another version.
    """
    from pydantic import TypeAdapter, ValidationError

    content, _, _ = read_content(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file, but no encoder or model of cellseg")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of encoder format {content.get('format_version')!r}, "
            f"this version reads {FORMAT_VERSION}; use the cellseg that wrote it"
        )
    try:
        return TypeAdapter(EncoderHeader).validate_python(
            {key: value for key, value in content.items() if not key.startswith("format")}
        )
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise CheckpointError(f"{path} has a damaged header: {where}: {fault['msg']}") from error


def find_initial(name: str | Path) -> Path:
    """Return the file that `name` means.

    A file is itself, a folder is the run in it (of pretraining or of training), and any other
    name is that of a bundled model.

    Raises
    ------
    CheckpointError
        There is none.
    """
    path = Path(name)
    if (path / ENCODER).is_file():
        return path / ENCODER
    if path.is_dir() and not (path / "best.safetensors").is_file():
        raise CheckpointError(
            f"{path} holds neither {ENCODER} nor best.safetensors: no run of cellseg pretrain or "
            "train has finished there"
        )
    return find_model(name)


def initial_fingerprint(path: Path) -> str:
    """Return the SHA-256 of the file's tensors, hexadecimal; its header is not covered.

    Raises
    ------
    CheckpointError
        The file is missing or none of ours.
    """
    read_content(path)
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(path).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_initial(model: Embedder, path: Path) -> InitialReport:
    """Give `model` the weights of the file at `path` that fit it; the others stay as they are.

    What fits has the same name and shape.  Of a model of another kind the embedding head is not
    taken, whatever its shape: its outputs mean something else.

    Parameters
    ----------
    model
        On any device.
    path
        An encoder's file, or a model's.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, none of ours, or of another encoder, other stages or
        another number of channels than `model`.
    """
    wanted = model.architecture
    source, there = _source(path)
    if faults := _differences(wanted, there):
        raise CheckpointError(
            f"{path} does not fit: its encoder is {there.encoder} for {there.in_channels} image "
            f"channels with {there.levels} stages; set {', '.join(faults)}, or leave --init out"
        )
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in _tensors(path).items()
        if name in own and own[name].shape == tensor.shape and _means_the_same(name, wanted, there)
    }
    _check(path, fitting, own)
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)  # float16 of a model that is stored so becomes float32
    left = tuple(name for name in own if name not in fitting)
    return InitialReport(path, source, tuple(name for name in own if name in fitting), left)


@dataclass(frozen=True)
class _There:
    """What the file's network is; ``kind`` is None of an encoder alone."""

    encoder: str
    levels: int
    in_channels: int
    kind: str | None = None
    guides: tuple[str, ...] = ()


def _source(path: Path) -> tuple[str, _There]:
    """Return what the file is of, and that network."""
    content, _, _ = read_content(path)
    if content.get("format") == MODEL_FORMAT:
        shape = read_header(path).architecture
        return "model", _There(
            shape.encoder, shape.levels, shape.in_channels, shape.kind, shape.guides
        )
    header = read_encoder_header(path)
    return "encoder", _There(header.encoder, header.levels, header.in_channels)


def _differences(wanted: Architecture, there: _There) -> list[str]:
    """Return the settings that would make the network fit, such as ``encoder=resnet34``."""
    names = ("encoder", "levels", "in_channels", "guides")
    return [
        f"{name}={list(own) if isinstance(own, tuple) else own}"
        for name in names
        if (own := getattr(there, name)) != getattr(wanted, name)
    ]


def _means_the_same(name: str, wanted: Architecture, there: _There) -> bool:
    return wanted.kind == there.kind or not name.startswith("embedding_head.")


def _check(path: Path, fitting: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuse a file that lacks a part of the encoder, or holds NaN."""
    missing = [name for name in own if name.startswith(PREFIX) and name not in fitting]
    if missing:
        raise CheckpointError(
            f"{path} does not hold what its header says: {len(missing)} tensors of the encoder "
            f"are missing or of another shape, such as {missing[0]}"
        )
    broken = [name for name, tensor in fitting.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{path} holds weights that are not finite, such as {broken[0]}")


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the weights in {path} cannot be read: {error}") from error
