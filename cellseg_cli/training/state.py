"""Everything a run needs to go on as if it had never stopped, in one file.

Tensors lie in safetensors, the rest as JSON in its header.  Crops and their
augmentation are drawn from (seed, step), so there is no random state or data
position to keep beyond the step itself.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from cellseg_cli.errors import CheckpointError
from cellseg_cli.training.clock import Spent

FORMAT_VERSION = 2

Network = TypeVar("Network", bound=nn.Module)
Average = TypeVar("Average", bound=nn.Module)


@dataclass
class State(Generic[Network, Average]):
    """A run between two steps.

    Attributes
    ----------
    model, averaged
        What is trained, and the exponential average of its weights, or of a part of
        them.
    optimizer
        Of the weights that are trained.
    step
        Steps done.
    steps
        Steps of the whole run where a time budget has decided them; else 0.
    seconds
        Wall time of these steps, over all sittings.
    spent
        What it went to.
    best
        Best validation score so far, and its step.
    settings
        JSON of what is to be learned and how; another one is another run.  Where
        and in which precision it is computed may change between sittings.
    """

    model: Network
    averaged: Average
    optimizer: torch.optim.Optimizer
    settings: dict[str, Any]
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    spent: Spent = field(default_factory=Spent)
    best: dict[str, Any] = field(default_factory=dict)


def averaged_copy(model: Network) -> Network:
    """Return a copy of `model` that carries no gradients."""
    return copy.deepcopy(model).requires_grad_(False)


def update_average(averaged: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move `averaged` towards `model`; early on faster, so that the start is forgotten.

    The decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow's
    ExponentialMovingAverage.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    kept = [*averaged.parameters(), *averaged.buffers()]
    current = [*model.parameters(), *model.buffers()]
    floating = [index for index, tensor in enumerate(kept) if tensor.is_floating_point()]
    others = [index for index, tensor in enumerate(kept) if not tensor.is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_([kept[i] for i in floating], [current[i] for i in floating], weight)
        if others:
            torch._foreach_copy_([kept[i] for i in others], [current[i] for i in others])


def save_state(path: Path, state: State[Any, Any]) -> None:
    """Write `state` to `path`, atomically."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for part, module in (("model", state.model), ("averaged", state.averaged)):
        tensors.update({f"{part}/{name}": t for name, t in module.state_dict().items()})
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer/{index}/{name}": t for name, t in moments.items()})
    content = {
        "format_version": FORMAT_VERSION,
        "settings": state.settings,
        "step": state.step,
        "steps": state.steps,
        "seconds": state.seconds,
        "spent": state.spent.as_json(),
        "best": state.best,
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(save(plain, metadata={"state": json.dumps(content)}))
    temporary.replace(path)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the run that wrote `path`."""
    settings = _content(path)["settings"]
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no training settings")
    return settings


def restore_state(path: Path, state: State[Any, Any]) -> None:
    """Bring `state`, freshly made with the same settings, to where `path` was written.

    Raises
    ------
    CheckpointError
        The file is damaged or belongs to another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    content = _content(path)
    try:
        tensors = load_file(path)
        for part, module in (("model", state.model), ("averaged", state.averaged)):
            prefix = f"{part}/"
            module.load_state_dict(
                {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            )
        _restore_optimizer(state.optimizer, tensors)
        state.step = int(content["step"])
        state.steps = int(content["steps"])
        state.seconds = float(content["seconds"])
        state.spent = Spent.from_json(content["spent"])
        state.best = dict(content["best"])
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"cannot resume from {path}: {error}; --overwrite starts anew"
        ) from error


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    # Files hold them contiguous.  A fused optimiser walks a weight and its moments alike, as they
    # lie in memory: those of a channels-last weight must be laid out as it is.
    for weight, kept in optimizer.state.items():
        for key, moment in kept.items():
            if moment.shape == weight.shape:
                kept[key] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)


def _content(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no training state: {error}; --overwrite starts anew"
        ) from error
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is a training state of another version; --overwrite starts anew"
        )
    return content
