"""The pretraining loop: an encoder from images without annotations, resumable at any step.

Files in the run's folder: ``encoder.safetensors`` is what `train --init` takes, written when the
run is done; ``state.safetensors`` is what resumes; ``metrics.csv`` has one row per report.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cellseg_cli.config import PretrainSettings
from cellseg_cli.errors import TrainingError
from cellseg_cli.images.source import Field
from cellseg_cli.networks.allocator import keep_freed_memory
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.devices import computes_bf16, resolve_device
from cellseg_cli.networks.initial import ENCODER, EncoderHeader, save_encoder
from cellseg_cli.training.ahead import prepared
from cellseg_cli.training.data import Failed
from cellseg_cli.training.densecl import DenseCL, ProjectedEncoder, follow, project
from cellseg_cli.training.folder import METRICS, STATE, prepare, refuse_another_run
from cellseg_cli.training.interrupts import held_back
from cellseg_cli.training.limits import check_pretrain_settings
from cellseg_cli.training.metrics import Metrics
from cellseg_cli.training.pictures import Pictures, usable_pictures
from cellseg_cli.training.state import (
    State,
    averaged_copy,
    restore_state,
    save_state,
)
from cellseg_cli.training.views import Pairs, draw_pairs

#: Steps between two reports, and between two writes of the state at most.
REPORT_EVERY = 20
SAVE_EVERY = 250
#: Seconds after which the next report writes the state, where steps are slow: what a kill costs.
SAVE_AFTER_S = 120.0
#: Of stochastic gradient descent: arXiv 2011.09157, section 4.1.
SGD_MOMENTUM = 0.9


@dataclass(frozen=True)
class Started:
    """What a sitting works on, where, and from which step on."""

    device: str
    precision: str
    fields: int
    step: int
    steps: int


@dataclass(frozen=True)
class Report:
    """What a run says of itself now and then; ``losses`` are weighted and add up to the loss."""

    step: int
    steps: int
    losses: Mapping[str, float]
    crops_per_s: float


Emit = Callable[[Started | Report | Failed], None]


@dataclass(frozen=True)
class Result:
    """Where a finished run's encoder lies.

    ``losses`` are those of the last report of this sitting, empty where no step was left.
    """

    encoder: Path
    fields: int
    losses: Mapping[str, float]
    steps: int
    seconds: float
    device: str
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True)
class Notes:
    """What the encoder's file will say: licence, origin of the images."""

    licence: str = "unstated"
    data: str = "unstated"


def pretrain(
    fields: tuple[Field, ...],
    out: Path,
    settings: PretrainSettings,
    *,
    notes: Notes = Notes(),
    overwrite: bool = False,
    emit: Emit = lambda report: None,
) -> Result:
    """Learn an encoder from the images of `fields` and leave it in the folder `out`.

    The same settings on the same folder go on where the last sitting stopped; on the CPU the
    result is then the same as without the stop.

    Raises
    ------
    OutputExistsError
        `out` holds a run with other settings, or an encoder without the state of its run, and
        `overwrite` is not set.
    ConfigError
        Settings out of range.
    InputError
        Not one image can be used.
    TrainingError
        The loss is not finite; the message names the fields of the batch.
    """
    check_pretrain_settings(settings)
    device = resolve_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    state = _new_state(settings, device)
    pictures, failed = usable_pictures(fields, settings)
    for failure in failed:
        emit(failure)
    state.settings = _identity(settings, pictures)
    if not overwrite:
        refuse_another_run(out, state, (ENCODER,))
    prepare(out, overwrite=overwrite, results=(ENCODER,))
    if (out / STATE).exists():
        restore_state(out / STATE, state)
    else:
        save_state(out / STATE, state)  # before any encoder: a kill leaves a run that resumes
    run = _Run(pictures, settings, device, state, emit)
    metrics = Metrics(out / METRICS, after_step=state.step)
    try:
        losses = _steps(run, out, metrics)
    finally:
        metrics.close()
    path = out / ENCODER
    save_encoder(path, state.model.network.encoder, _header(run, notes, len(failed)))
    return Result(path, len(pictures), losses, state.step, state.seconds, str(device), failed)


def learning_rate(step: int, settings: PretrainSettings) -> float:
    """Return the rate of a step: a fall along half a cosine, arXiv 2011.09157, section 4.1."""
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


Pretrained = State[DenseCL, ProjectedEncoder]


@dataclass(frozen=True)
class _Run:
    """A run in progress: what it learns from, where it computes, how far it is."""

    pictures: Pictures
    settings: PretrainSettings
    device: torch.device
    state: Pretrained
    emit: Emit

    @property
    def bf16(self) -> bool:
        """Whether the networks compute in bfloat16; the losses never do."""
        precision = self.settings.precision
        return computes_bf16(self.device) if precision == "auto" else precision == "bf16"


def _new_state(settings: PretrainSettings, device: torch.device) -> Pretrained:
    """Return the networks, the queues and the optimiser before the first step."""
    torch.manual_seed(settings.seed)
    architecture = Architecture(
        encoder=settings.encoder, levels=settings.levels, in_channels=settings.in_channels
    )
    encoder = Embedder(architecture).encoder
    network = ProjectedEncoder(encoder, encoder.feature_info.channels()[-1])
    key = averaged_copy(network).to(device)
    model = DenseCL(network, settings.queue_length, settings.seed).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=SGD_MOMENTUM,
        weight_decay=settings.weight_decay,
    )
    return State(model, key, optimizer, settings={})


def _steps(run: _Run, out: Path, metrics: Metrics) -> dict[str, float]:
    """Do the steps that are left; return the mean losses of the last report."""
    state, settings = run.state, run.settings
    run.emit(
        Started(
            device=str(run.device),
            precision="bf16" if run.bf16 else "fp32",
            fields=len(run.pictures),
            step=state.step,
            steps=settings.steps,
        )
    )
    began, before = time.perf_counter(), state.seconds
    reported, since, saved = state.step, began, began
    sums: dict[str, float] = {}
    means: dict[str, float] = {}
    ahead = prepared(
        lambda step: draw_pairs(run.pictures, settings, step=step), state.step, settings.steps
    )
    with held_back() as stopped:
        for step, pairs in ahead:
            for name, value in _step(run, step, pairs).items():
                sums[name] = sums.get(name, 0.0) + value
            state.step, state.seconds = step + 1, before + time.perf_counter() - began
            last = state.step == settings.steps
            stops = stopped() and not last
            if state.step % REPORT_EVERY == 0 or last:
                count, took = state.step - reported, time.perf_counter() - since
                means = {name: value / count for name, value in sums.items()}
                metrics.write(state.step, means)
                rate = count * settings.batch_size / took
                run.emit(Report(state.step, settings.steps, means, rate))
                sums, reported, since = {}, state.step, time.perf_counter()
            overdue = reported == state.step and time.perf_counter() - saved >= SAVE_AFTER_S
            if state.step % SAVE_EVERY == 0 or last or stops or overdue:
                save_state(out / STATE, state)
                saved = time.perf_counter()
            if stops:
                raise KeyboardInterrupt
    return means


def _step(run: _Run, step: int, pairs: Pairs) -> dict[str, float]:
    """Learn from one batch; return its weighted losses."""
    state, settings = run.state, run.settings
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    first, second = (_on(images, run.device) for images in (pairs.first, pairs.second))
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.bf16):
        query = project(state.model.network, first)
        with torch.no_grad():
            key = project(state.averaged, second, pairs.order.to(run.device))
    whole, dense = state.model.losses(query, key, settings.temperature)
    share = settings.dense_weight
    terms = {"global": (1 - share) * whole, "dense": share * dense}  # equation 3
    losses = {name: float(term.detach()) for name, term in terms.items()}
    if not all(math.isfinite(value) for value in losses.values()):
        raise TrainingError(
            f"the loss is not finite at step {step}: {losses}; fields of the batch: "
            f"{', '.join(sorted(set(pairs.field_ids)))}; look at them, or lower learning_rate "
            f"({settings.learning_rate})"
        )
    state.optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    state.optimizer.step()
    follow(state.averaged, state.model.network, settings.momentum)
    state.model.remember(key)
    return losses


def _on(images: Tensor, device: torch.device) -> Tensor:
    moved = images.to(device, non_blocking=True)
    return moved.contiguous(memory_format=torch.channels_last)


def _header(run: _Run, notes: Notes, failed: int) -> EncoderHeader:
    settings, state = run.settings, run.state
    return EncoderHeader(
        encoder=settings.encoder,
        levels=settings.levels,
        in_channels=settings.in_channels,
        low_percentile=settings.low_percentile,
        high_percentile=settings.high_percentile,
        training={
            "method": "DenseCL",
            "settings": dataclasses.asdict(settings),
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            "device": str(run.device),
            "torch": torch.__version__,
            "fields": len(run.pictures),
            "failed_fields": failed,
        },
        licence=notes.licence,
        data=notes.data,
    )


def _identity(settings: PretrainSettings, pictures: Pictures) -> dict[str, Any]:
    """Return what makes this run this run; where and in which precision it is computed does not."""
    content = dataclasses.asdict(settings)
    for name in ("device", "precision", "include", "exclude", "pattern"):
        content.pop(name)
    content |= {name: list(one) for name, one in content.items() if isinstance(one, tuple)}
    ids = (field.id for field in pictures.fields)
    content["fields"] = [list(one) for one in zip(ids, pictures.digests, strict=True)]
    return content
