"""Model files: safetensors with a JSON header that says all there is to know.

Loading reads a JSON text and raw numbers, nothing else: a hostile file can be
refused but cannot run anything.  Limits: a file of at most 2 GiB, a header
text of at most 1 MiB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cellseg_cli import __version__, durable
from cellseg_cli.errors import CheckpointError, ConfigError
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.scaled import scale_fault

FORMAT = "cellseg-model"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 2 << 30
MAX_HEADER_BYTES = 1 << 20

#: Where bundled models lie.
WEIGHTS = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class ModelHeader:
    """What a model file says of itself.

    Attributes
    ----------
    name
        Short name, such as ``nuclei``.
    architecture
        Shapes of the weights.
    low_percentile, high_percentile
        Normalisation of a field before it enters the network.
    cluster
        Tuned clustering settings; keys of ``ClusterSettings``, and ``by_type``: such a table
        for each cell type that was tuned for.
    label_statistics
        Of the training truth: number of instances, median and extreme areas in
        pixels, cell types.
    training
        Settings, steps, seconds, device and scores of the run that made it.
    licence, data
        Under which licence the weights may be used, and what they learned from.
    version
        Version of cellseg that wrote the file.
    scale
        Working scale at which the network is used unless another is asked for; see
        :mod:`cellseg_cli.networks.scaled`.
    """

    name: str
    architecture: Architecture
    low_percentile: float = 1.0
    high_percentile: float = 99.8
    cluster: dict[str, Any] = field(default_factory=dict)
    label_statistics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    licence: str = "unstated"
    data: str = "unstated"
    version: str = __version__
    scale: float = 1.0

    @property
    def kind(self) -> str:
        """``spatial`` or ``contrastive``."""
        return self.architecture.kind

    @property
    def channels(self) -> tuple[str, ...]:
        """Meaning of each component of the embedding."""
        return self.architecture.channels

    @property
    def in_channels(self) -> int:
        """Image channels that the network takes."""
        return self.architecture.in_channels


def save_model(path: Path, model: Embedder, header: ModelHeader, *, half: bool = False) -> None:
    """Write `model` and `header` to `path`, atomically.

    Parameters
    ----------
    half
        Store floating-point weights as float16 to halve the file; they are
        computed with in float32 after loading.
    """
    from safetensors.torch import save

    tensors = {
        name: _stored(tensor, half=half).contiguous() for name, tensor in model.state_dict().items()
    }
    text = json.dumps(
        {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(header)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(save(tensors, metadata={"cellseg": text}))
    temporary.replace(path)


def _stored(tensor: Tensor, *, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.half() if half and tensor.is_floating_point() else tensor


def read_header(path: Path) -> ModelHeader:
    """Return the header of the model file at `path` without reading its weights.

    Raises
    ------
    CheckpointError
        The file is missing, is no model file of ours, or of another version.
    """
    content, _, _ = read_content(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file, but not a cellseg model")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of model format {content.get('format_version')!r}, "
            f"this version reads {FORMAT_VERSION}; use the cellseg that wrote it"
        )
    return _header(path, {k: v for k, v in content.items() if not k.startswith("format")})


def load_model(path: Path) -> tuple[Embedder, ModelHeader]:
    """Return the network, in evaluation mode on the CPU, and the header of a model file.

    Raises
    ------
    CheckpointError
        As :func:`read_header`, and where the weights do not fit the header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    try:
        _refuse_other_shapes(path, header.architecture)
        model = Embedder(header.architecture, trained=True)
        tensors = load_file(path)
        floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        model.load_state_dict(floats)
    except (SafetensorError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"the weights in {path} do not fit its header: {error}") from error
    if broken := [name for name, tensor in floats.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{path} holds weights that are not finite, such as {broken[0]}")
    return model.eval(), header


def _refuse_other_shapes(path: Path, architecture: Architecture) -> None:
    """Raise RuntimeError where names or shapes differ, before memory is taken for a network.

    A small file could name an encoder of gigabytes; on torch's ``meta`` device
    that network has shapes but no numbers.
    """
    from safetensors import safe_open

    with torch.device("meta"):
        shapes = Embedder(architecture, trained=True).state_dict()
        expected = {name: list(tensor.shape) for name, tensor in shapes.items()}
    with safe_open(path, framework="pt") as file:
        there = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if differing := sorted(
        name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name)
    ):
        name = differing[0]
        raise RuntimeError(
            f"{len(differing)} tensors differ, such as {name}: "
            f"{there.get(name, 'missing')} in the file, {expected.get(name, 'none')} needed"
        )


def find_model(name: str | Path) -> Path:
    """Return the file of a bundled model's name, or `name` itself where it is a file."""
    path = Path(name)
    bundled = WEIGHTS / f"{name}.safetensors"
    if path.name == str(name) and bundled.is_file():
        return bundled
    if path.is_dir() and (path / "best.safetensors").is_file():
        return path / "best.safetensors"
    if path.is_file():
        return path
    raise CheckpointError(
        f"no model {str(name)!r}: neither a file nor one of the bundled models "
        f"({', '.join(bundled_models()) or 'none'})"
    )


def bundled_models() -> tuple[str, ...]:
    """Return the names of the models that come with the package, sorted."""
    return tuple(sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of what in a model file decides an embedding, hexadecimal.

    These are the weights, the architecture and the normalisation, as they stand in the file.
    Name, licence, scores, the tuned clustering settings and the working scale are not covered: a
    model may be tuned anew, and the stores that were made with it still are of this model.  (Of the
    scale a store keeps what it was made with.)

    Raises
    ------
    CheckpointError
        The file is missing or no model file of ours.
    """
    content, tensors, length = read_content(path)
    keys = ("architecture", "low_percentile", "high_percentile")
    decisive = {"tensors": tensors, **{key: content.get(key) for key in keys}}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    with path.open("rb") as file:
        file.seek(8 + length)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_tuned(
    path: Path,
    cluster: Mapping[str, Any],
    reached: Mapping[str, float],
    scale: float | None = None,
) -> None:
    """Put clustering settings into the header of a model file, atomically.

    The weights and everything else in the header stay as they are, and so does the
    :func:`fingerprint`.

    Parameters
    ----------
    path
        A model file.
    cluster
        What becomes ``ModelHeader.cluster``.
    reached
        What these settings reach, by what they were chosen by: ``mean_ap`` is kept as
        ``tuned_mean_ap`` with the training, in the place of what an earlier tuning left there.
    scale
        What becomes ``ModelHeader.scale``; None leaves it.

    Raises
    ------
    CheckpointError
        The file is missing or no model file of ours.
    """
    content, tensors, length = read_content(path)
    earlier = content.get("training", {}).items()
    kept = {name: value for name, value in earlier if not name.startswith("tuned_")}
    training = {**kept, **{f"tuned_{name}": value for name, value in reached.items()}}
    changed: dict[str, Any] = {"cluster": dict(cluster), "training": training}
    if scale is not None:
        changed["scale"] = scale
    text = json.dumps({**content, **changed})
    outer = json.dumps({"__metadata__": {"cellseg": text}, **tensors}).encode()
    outer += b" " * (-len(outer) % 8)  # the format keeps the numbers aligned to 8 bytes
    with durable.temporary_path(path.parent) as temporary:
        with path.open("rb") as old, temporary.open("wb") as new:
            old.seek(8 + length)
            new.write(struct.pack("<Q", len(outer)) + outer)
            shutil.copyfileobj(old, new)
        shutil.copymode(path, temporary)
        durable.replace(temporary, path)


def read_content(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return our JSON, the table of tensors, and the length of both in the file, in bytes.

    See the README of the safetensors format.

    Raises
    ------
    CheckpointError
        The file is missing, too large, or has no header of ours.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if size > MAX_FILE_BYTES or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path} is not a model file (safetensors): {size} bytes")
            outer = json.loads(file.read(length))
            content = json.loads(outer["__metadata__"]["cellseg"])
    except OSError as error:
        raise CheckpointError(f"cannot read the model {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is not a cellseg model: its header does not hold one; "
            "models are the .safetensors files that cellseg train writes"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a cellseg model: its header is no table")
    return content, {k: v for k, v in outer.items() if k != "__metadata__"}, length


def _header(path: Path, content: dict[str, Any]) -> ModelHeader:
    from pydantic import TypeAdapter, ValidationError

    try:
        header = TypeAdapter(ModelHeader).validate_python(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise CheckpointError(f"{path} has a damaged header: {where}: {fault['msg']}") from error
    if not 0 <= header.low_percentile < header.high_percentile <= 100:
        raise CheckpointError(
            f"{path} has a damaged header: percentiles {header.low_percentile:g} and "
            f"{header.high_percentile:g} do not satisfy 0 <= low < high <= 100"
        )
    if reason := scale_fault(header.scale):
        raise CheckpointError(f"{path} has a damaged header: {reason}")
    _check_settings(path, header.cluster)
    return header


def _check_settings(path: Path, cluster: Mapping[str, Any]) -> None:
    """Refuse tuned settings, of all cells or of one type, that nothing can be done with."""
    by_type = cluster.get("by_type", {})
    if not isinstance(by_type, dict) or not all(isinstance(t, dict) for t in by_type.values()):
        raise CheckpointError(
            f"{path} has a damaged header: cluster.by_type is no table with a table for each type"
        )
    tables = {"cluster": cluster, **{f"cluster.by_type.{k}": v for k, v in by_type.items()}}
    for table, values in tables.items():
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise CheckpointError(f"{path} has a damaged header: {table}.{name} is {value}")
