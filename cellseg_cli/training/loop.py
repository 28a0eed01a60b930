"""The training loop: one page, one direction, resumable at any step.

Files in the run's folder: ``best.safetensors`` (best validation score) and
``last.safetensors`` are models; ``state.safetensors`` is what resumes;
``metrics.csv`` has one row per report.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, Strategy

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import (
    ConfigError,
    DeviceError,
    InputError,
    OutputExistsError,
    TrainingError,
)
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, save_model
from cellseg_cli.networks.devices import computes_bf16, resolve_device
from cellseg_cli.networks.initial import (
    InitialReport,
    find_initial,
    initial_fingerprint,
    load_initial,
)
from cellseg_cli.training.ahead import prepared
from cellseg_cli.training.crops import Batch, draw_batch
from cellseg_cli.training.data import Examples, Failed, Noted, Split, share_of, usable
from cellseg_cli.training.draw import Draw
from cellseg_cli.training.limits import check_settings
from cellseg_cli.training.metrics import Metrics
from cellseg_cli.training.muon import Muon
from cellseg_cli.training.objective import CLUSTERING, OBJECTIVES, Target
from cellseg_cli.training.state import (
    State,
    averaged_copy,
    read_settings,
    restore_state,
    save_state,
    update_average,
)
from cellseg_cli.training.tune import tune
from cellseg_cli.training.validate import statistics, validate

#: Steps between two reports, and between two writes of the state.
REPORT_EVERY = 20
SAVE_EVERY = 250
#: Names of the models of a run.
MODELS = ("best.safetensors", "last.safetensors")
#: Share of the steps in which the learning rate rises.
WARM_UP = 0.1
MAX_GRADIENT_NORM = 5.0
#: One process validates while the others wait at their next step; the usual
#: limit of half an hour would end a run with many held-out fields.
LONGEST_WAIT = timedelta(days=1)


@dataclass(frozen=True)
class Started:
    """What a sitting works on, where, and from which step on."""

    device: str
    precision: str
    fields: int
    held_out: int
    step: int
    steps: int


@dataclass(frozen=True)
class Report:
    """What a run says of itself now and then; ``score`` only after a validation."""

    step: int
    steps: int
    losses: Mapping[str, float]
    crops_per_s: float
    score: Mapping[str, float] | None = None


Emit = Callable[[Started | Report | Failed | Noted | InitialReport], None]


@dataclass(frozen=True)
class Result:
    """Where a finished run's models lie, and its best validation score.

    ``score`` is reached with the method's default settings; ``tuned`` holds the
    settings that the best model carries and what they reach.  Of several
    processes only the one of rank 0 writes, reports and knows the score.
    """

    best: Path
    last: Path
    score: Mapping[str, Any]
    tuned: Mapping[str, Any]
    steps: int
    seconds: float
    device: str
    rank: int = 0
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True)
class Labelling:
    """What the model file will say: name, licence, origin of the data."""

    name: str = "model"
    licence: str = "unstated"
    data: str = "unstated"


def train(
    split: Split,
    out: Path,
    settings: TrainSettings,
    *,
    labelling: Labelling = Labelling(),
    overwrite: bool = False,
    emit: Emit = lambda report: None,
) -> Result:
    """Learn a model from `split` and leave it in the folder `out`.

    The same settings on the same folder go on where the last sitting stopped;
    on the CPU the result is then the same as without the stop.

    Raises
    ------
    OutputExistsError
        `out` holds a run with other settings, or a model without the state of
        its run, and `overwrite` is not set.
    ConfigError
        Settings out of range.
    CheckpointError
        Weights to begin with that are not there or do not fit the network.
    InputError
        There is nothing to learn from, or not one of the held-out fields can be read.
    DeviceError
        More devices than there are.
    TrainingError
        The loss is not finite; the message names the fields of the batch.
    """
    check_settings(settings)
    fabric = _fabric(settings)
    fabric.launch()
    sources = share_of(split.train, settings.fields_share, settings.seed)
    examples, failed = usable(sources, settings)
    # Held-out fields are scored at full size, never cut into crops: nothing to keep.
    held, held_failed = usable(split.validation, settings, cache_bytes=0)
    if fabric.global_rank == 0:
        for failure in (*failed, *held_failed):
            emit(failure)
        if (note := examples.note()) is not None:
            emit(Noted(note))
    if split.validation and not len(held):
        raise InputError(
            f"not one of {len(split.validation)} held-out fields can be read: there is nothing "
            f"to choose the best model by; the first: {held_failed[0].reason}"
        )
    label_statistics = statistics(examples)
    torch.manual_seed(settings.seed)
    model = Embedder(architecture_of(settings))
    initial = load_initial(model, find_initial(settings.init)) if settings.init else None
    model = model.to(fabric.device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, settings)
    state = State(model, averaged_copy(model), optimizer, _identity(settings, examples))
    if not overwrite:  # in every process: one alone would leave the others waiting
        _refuse_another_run(out, state)
    if fabric.global_rank == 0:
        if initial is not None:
            emit(initial)
        _prepare(out, overwrite=overwrite)
    fabric.barrier()
    kept = out / "state.safetensors"
    if kept.exists():
        restore_state(kept, state)
    elif fabric.global_rank == 0:
        save_state(kept, state)  # before any model: a kill at any time leaves a run that resumes
    fabric.barrier()
    work = _Work(examples, held, label_statistics, labelling, out, settings)
    runner = _Runner(fabric, work, state, emit)
    try:
        result = runner.run()
    finally:
        runner.close()
    return dataclasses.replace(result, failed=(*failed, *held_failed))


def architecture_of(settings: TrainSettings) -> Architecture:
    """Return the network that `settings` describe."""
    return Architecture(
        kind="spatial" if settings.recipe == "spatial" else "contrastive",
        encoder=settings.encoder,
        levels=settings.levels,
        decoder=settings.decoder,
        decoder_channels=settings.decoder_channels,
        in_channels=settings.in_channels,
        embedding_dim=settings.embedding_dim,
        classes_head=settings.classes_head,
        classes_from="embedding" if settings.recipe == "binary" else "features",
    )


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return the rate of a step: a rise and a fall along half cosines (one cycle), or constant.

    Source: Smith and Topin, arXiv 1708.07120, with cosine flanks.
    """
    if settings.schedule == "constant":
        return settings.learning_rate
    rise = max(1, round(settings.steps * WARM_UP))
    if step < rise:
        return settings.learning_rate * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise)))
    fall = (step - rise) / max(1, settings.steps - rise)
    return settings.learning_rate * (1e-3 + 0.999 * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0))))


@dataclass(frozen=True)
class _Work:
    """What a run works on and where it leaves the result."""

    examples: Examples
    held: Examples
    label_statistics: Mapping[str, Any]
    labelling: Labelling
    out: Path
    settings: TrainSettings


class _Runner:
    """A run in progress: holds the processes, the batches ahead and the open files."""

    def __init__(self, fabric: Fabric, work: _Work, state: State, emit: Emit) -> None:
        self.fabric, self.work, self.state, self.emit = fabric, work, state, emit
        self.settings, self.out = work.settings, work.out
        self.model, self.optimizer = fabric.setup(state.model, state.optimizer)
        self.draw = Draw.of(work.examples.sources, work.settings)
        self.metrics = (
            Metrics(work.out / "metrics.csv", after_step=state.step) if self.leads else None
        )

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return bool(self.fabric.global_rank == 0)

    def close(self) -> None:
        """Close the open files."""
        if self.metrics is not None:
            self.metrics.close()

    def run(self) -> Result:
        """Do the steps that are left and return where the models lie."""
        state, settings, device = self.state, self.settings, str(self.fabric.device)
        self._announce()
        started, since, crops = time.perf_counter(), time.perf_counter(), 0
        before = state.seconds
        sums: dict[str, float] = {}
        for step, batch in self._batches(state.step):
            losses = self._step(step, batch)
            state.step = step + 1
            state.seconds = before + time.perf_counter() - started
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            crops += len(batch.field_ids)
            last = state.step == settings.steps
            if state.step % REPORT_EVERY == 0 or last:
                rate = crops * self.fabric.world_size / (time.perf_counter() - since)
                steps = crops / settings.batch_size
                means = {name: value / steps for name, value in sums.items()}
                self._report(Report(state.step, settings.steps, means, rate))
                sums, since, crops = {}, time.perf_counter(), 0
            every = settings.validate_every
            if last or (every and state.step % every == 0):
                self._validate()
                since = time.perf_counter()
            if self.leads and (last or state.step % SAVE_EVERY == 0):
                save_state(self.out / "state.safetensors", state)
        tuned = tune(self.out / "best.safetensors", self.work.held, device) if self.leads else {}
        self.fabric.barrier()
        return Result(
            best=self.out / "best.safetensors",
            last=self.out / "last.safetensors",
            score=state.best,
            tuned=tuned,
            steps=state.step,
            seconds=state.seconds,
            device=device,
            rank=self.fabric.global_rank,
        )

    def _batches(self, first: int) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch), a few prepared ahead on threads."""

        def prepare(step: int) -> Batch:
            rank = self.fabric.global_rank
            return draw_batch(self.work.examples, self.draw, self.settings, step=step, rank=rank)

        yield from prepared(prepare, first, self.settings.steps)

    def _step(self, step: int, batch: Batch) -> dict[str, float]:
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        images = batch.images.to(self.fabric.device, non_blocking=True)
        output = self.model(images.contiguous(memory_format=torch.channels_last))
        rng = np.random.default_rng([settings.seed, step, self.fabric.global_rank, 1 << 20])
        terms = OBJECTIVES[settings.recipe](
            output, Target(batch.labels, batch.under), settings, rng
        )
        loss = torch.stack(list(terms.values())).sum()
        losses = {name: float(value.detach()) for name, value in terms.items()}
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingError(
                f"the loss is not finite at step {step}: {losses}; fields of the batch: "
                f"{', '.join(batch.field_ids)}; look at them, or lower learning_rate "
                f"({settings.learning_rate})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=MAX_GRADIENT_NORM)
        self.optimizer.step()
        update_average(self.state.averaged, self.state.model, step, settings.ema_decay)
        return losses

    def _announce(self) -> None:
        if self.leads:
            work, state = self.work, self.state
            count = self.fabric.world_size
            self.emit(
                Started(
                    device=str(self.fabric.device) + (f" × {count}" if count > 1 else ""),
                    precision="bf16" if _uses_bf16(self.settings, self.fabric.device) else "fp32",
                    fields=len(work.examples),
                    held_out=len(work.held),
                    step=state.step,
                    steps=self.settings.steps,
                )
            )

    def _report(self, report: Report) -> None:
        if self.metrics is not None:
            self.metrics.write(report.step, dict(report.losses) | dict(report.score or {}))
            self.emit(report)

    def _validate(self) -> None:
        """Score the averaged weights; keep them as last, and as best if they are."""
        if not self.leads:
            return
        state = self.state
        header = self._header({})
        score = validate(state.averaged, header, self.work.held, str(self.fabric.device))
        header = self._header(score)
        save_model(self.out / "last.safetensors", state.averaged, header)
        better = score.get("mean_ap", 0.0) >= state.best.get("mean_ap", -1.0)
        if better or not (self.out / "best.safetensors").exists():
            state.best = {**score, "step": state.step}
            save_model(self.out / "best.safetensors", state.averaged, header)
        if score:
            self._report(Report(state.step, self.settings.steps, {}, 0.0, score))

    def _header(self, score: Mapping[str, float]) -> ModelHeader:
        settings, state = self.settings, self.state
        return ModelHeader(
            name=self.work.labelling.name,
            architecture=state.model.architecture,
            low_percentile=settings.low_percentile,
            high_percentile=settings.high_percentile,
            cluster=dict(CLUSTERING.get(settings.recipe, {})),
            label_statistics=dict(self.work.label_statistics),
            training={
                "settings": dataclasses.asdict(settings),
                "step": state.step,
                "seconds": round(state.seconds, 1),
                "device": str(self.fabric.device),
                "devices": self.fabric.world_size,
                "torch": torch.__version__,
                "fields": len(self.work.examples),
                "validation_fields": len(self.work.held),
                "validation": dict(score),
            },
            licence=self.work.labelling.licence,
            data=self.work.labelling.data,
        )


def _optimizer(model: Embedder, settings: TrainSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "muon":
        return Muon(model, rate, decay)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


def _fabric(settings: TrainSettings) -> Fabric:
    device, wanted = resolve_device(settings.device), settings.devices
    if device.index is not None and wanted > 1:
        raise ConfigError(
            f"--device {settings.device} is one device, --devices {wanted} asks for several; "
            "use --device cuda, or --devices 1"
        )
    if device.type == "cuda" and wanted > (there := torch.cuda.device_count()):
        raise DeviceError(
            f"--devices {wanted}: PyTorch sees {there} CUDA devices; use --devices {there} or fewer"
        )
    strategy: str | Strategy = DDPStrategy(timeout=LONGEST_WAIT) if wanted > 1 else "auto"
    with warnings.catch_warnings():
        # Said on every node of a SLURM cluster, where one process per task is not what is wanted.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        return Fabric(
            accelerator="cuda" if device.type == "cuda" else "cpu",
            strategy=strategy,
            devices=[device.index] if device.index is not None else wanted,
            precision="bf16-mixed" if _uses_bf16(settings, device) else "32-true",
        )


def _uses_bf16(settings: TrainSettings, device: torch.device) -> bool:
    return computes_bf16(device) if settings.precision == "auto" else settings.precision == "bf16"


def _identity(settings: TrainSettings, examples: Examples) -> dict[str, Any]:
    """Return what makes this run this run.

    Where and in which precision it is computed does not, nor the rhythm of validation.
    """
    content = dataclasses.asdict(settings)
    for name in ("device", "devices", "validate_every", "precision", "cache"):
        content.pop(name)
    if settings.init is not None:  # what is in the file counts, not where it lies
        content["init"] = initial_fingerprint(find_initial(settings.init))
    content |= {name: list(one) for name, one in content.items() if isinstance(one, tuple)}
    content["fields"] = [source.identity for source in examples.sources]
    return content


def _refuse_another_run(out: Path, state: State) -> None:
    kept = out / "state.safetensors"
    if kept.exists():
        if (there := read_settings(kept)) != state.settings:
            keys = [k for k in state.settings if there.get(k) != state.settings[k]]
            raise OutputExistsError(
                f"{out} holds a run with other settings ({', '.join(sorted(keys))}); "
                "use another --out, or --overwrite to start anew"
            )
    elif models := [name for name in MODELS if (out / name).exists()]:
        raise OutputExistsError(
            f"{out} holds {' and '.join(models)} without the state of their run; "
            "use another --out, or --overwrite to replace them"
        )


def _prepare(out: Path, *, overwrite: bool) -> None:
    """Make the folder `out` ready: new, resumable, or emptied of the older run."""
    if (out / "state.safetensors").exists() and not overwrite:
        return
    for name in ("state.safetensors", *MODELS, "metrics.csv"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
