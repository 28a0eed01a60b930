"""The training loop: one page, one direction, resumable at any step.

Files in the run's folder: ``best.safetensors`` (best validation score) and
``last.safetensors`` are models; ``state.safetensors`` is what resumes;
``metrics.csv`` has a row for each number of a report.

Nothing waits for the device but a report: losses, and what time went to, stay
there until then.  Whatever is written or scored is reported on first, so that
none of it comes from a step that was not finite.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from cellseg_cli.config import TrainSettings
from cellseg_cli.errors import InputError, TrainingError
from cellseg_cli.networks.allocator import keep_freed_memory
from cellseg_cli.networks.architecture import Architecture, Embedder
from cellseg_cli.networks.checkpoint import ModelHeader, save_model
from cellseg_cli.networks.initial import find_initial, load_initial
from cellseg_cli.training.ahead import prepared, threads_ahead
from cellseg_cli.training.clock import Clock, Spent
from cellseg_cli.training.crops import Batch, draw_batch, varied
from cellseg_cli.training.data import Examples, Noted, Split, share_of, usable
from cellseg_cli.training.draw import Draw
from cellseg_cli.training.folder import (
    BEST,
    LAST,
    METRICS,
    STATE,
    identity_of,
    prepare,
    refuse_another_run,
)
from cellseg_cli.training.interrupts import held_back
from cellseg_cli.training.limits import check_settings
from cellseg_cli.training.metrics import Metrics
from cellseg_cli.training.muon import Muon
from cellseg_cli.training.objective import CLUSTERING, OBJECTIVES, Target, target_of
from cellseg_cli.training.pending import NO_FAULT, Fault, Pending
from cellseg_cli.training.processes import launch_of, make_fabric, uses_bf16
from cellseg_cli.training.reports import Emit, Labelling, Report, Result, Started
from cellseg_cli.training.state import (
    State,
    averaged_copy,
    restore_state,
    save_state,
    update_average,
)
from cellseg_cli.training.tune import tune
from cellseg_cli.training.validate import statistics, validate

#: Steps between two reports, and between two writes of the state at most.
REPORT_EVERY = 20
SAVE_EVERY = 250
#: Seconds after which the next report writes the state, where steps are slow: what a kill costs.
SAVE_AFTER_S = 120.0
#: Share of the steps in which the learning rate rises.
WARM_UP = 0.1
MAX_GRADIENT_NORM = 5.0
#: Steps that find how many a time budget allows, at least: the first ones are slower, or have
#: their batches ready, and are not measured.
UNTIMED_STEPS, TIMED_STEPS = 5, 20
#: Timed steps for each thread that makes batches: those made meanwhile are ready at once.
TIMED_PER_THREAD = 3
#: Part of a time budget that is planned for: steps take longer when the machine is busier.
PLANNED = 0.98


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
    DeviceError
        More devices than there are.
    CheckpointError
        Weights to begin with that are not there or do not fit the network.
    InputError
        There is nothing to learn from, or not one of the held-out fields can be read.
    TrainingError
        The loss is not finite; the message names the fields of the batch.
    """
    check_settings(settings)
    fabric = make_fabric(settings)
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
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
    state = State(model, averaged_copy(model), optimizer, identity_of(settings, examples, held))
    if not overwrite:  # in every process: one alone would leave the others waiting
        refuse_another_run(out, state)
    if fabric.global_rank == 0:
        prepare(out, overwrite=overwrite)
    fabric.barrier()
    if resumes := (out / STATE).exists():
        restore_state(out / STATE, state)
    fabric.barrier()
    work = _Work(examples, held, label_statistics, labelling, out, settings)
    runner = _Runner(fabric, work, state, emit)
    try:
        runner.set_steps()
        if runner.leads and not resumes:
            # Before any model: a kill at any time leaves a run that resumes.
            save_state(out / STATE, state)
            if initial is not None:
                emit(initial)
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
        guides=settings.guides,
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


def steps_within(seconds: float, per_step: float) -> int:
    """Return how many steps of `per_step` seconds are planned for `seconds`, at least one.

    >>> steps_within(100.0, 0.5)
    196
    """
    return max(1, int(seconds * PLANNED / per_step))


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
        sharing = launch_of(os.environ, work.settings.devices).sharing
        self.threads = threads_ahead(fabric.device.type, sharing)
        self.metrics = Metrics(work.out / METRICS, after_step=state.step) if self.leads else None
        self.clock = Clock(fabric.device)
        self.since = Spent()
        self.pending = Pending()
        self.saved = time.perf_counter()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return bool(self.fabric.global_rank == 0)

    def close(self) -> None:
        """Close the open files."""
        if self.metrics is not None:
            self.metrics.close()

    def set_steps(self) -> None:
        """Make steps of a time budget, unless an earlier sitting has."""
        if not self.settings.minutes:
            return
        if not self.state.steps:
            self.state.steps = self._steps_in(60 * self.settings.minutes)
        self.settings = dataclasses.replace(self.settings, steps=self.state.steps)

    def run(self) -> Result:
        """Do the steps that are left and return where the models lie."""
        state, settings = self.state, self.settings
        self._announce()
        started, before = time.perf_counter(), state.seconds
        self.clock = Clock(self.fabric.device)
        # Of several processes each hears a signal at another step.
        with held_back(holds=self.fabric.world_size == 1) as stopped:
            for step, drawn in self._drawn(state.step, settings.steps):
                self._step(step, *drawn)
                state.step = step + 1
                state.seconds = before + time.perf_counter() - started
                last = state.step == settings.steps
                stops = stopped() and not last
                self._after(last=last, stops=stops)
                if stops:
                    raise KeyboardInterrupt
        self._count()
        return self._result()

    def _after(self, *, last: bool, stops: bool) -> None:
        """Report, validate and keep the state, each when it is due."""
        state, every = self.state, self.settings.validate_every
        validates = last or bool(every and state.step % every == 0)
        saves = last or stops or state.step % SAVE_EVERY == 0
        reports = validates or saves or state.step % REPORT_EVERY == 0
        if reports:
            self._report()
        if validates and self.leads:
            self._validate()
        # Only what a report has found to be finite is kept.
        overdue = reports and time.perf_counter() - self.saved >= SAVE_AFTER_S
        if self.leads and (saves or overdue):
            save_state(self.out / STATE, state)
            self.saved = time.perf_counter()
            self.clock.lap("writing")

    def _result(self) -> Result:
        state, device = self.state, str(self.fabric.device)
        tuned = tune(self.out / BEST, self.work.held, device) if self.leads else {}
        self.fabric.barrier()
        rate = state.spent.crops_per_s()
        return Result(
            best=self.out / BEST,
            last=self.out / LAST,
            score=state.best,
            tuned=tuned,
            steps=state.step,
            seconds=state.seconds,
            device=device,
            crops_per_s=rate,
            megapixels_per_s=self._megapixels(rate),
            shares=state.spent.shares(),
            rank=self.fabric.global_rank,
        )

    def _steps_in(self, seconds: float) -> int:
        """Measure some steps, undo them, and return how many `seconds` allow after that."""
        networks = (self.state.model, self.state.averaged)
        before = [copy.deepcopy(network.state_dict()) for network in networks]
        begun = time.perf_counter()
        untimed = max(UNTIMED_STEPS, self.threads + 2)
        steps = max(TIMED_STEPS, TIMED_PER_THREAD * self.threads)
        for step, drawn in self._drawn(0, untimed + steps):
            if step == untimed:
                self.clock.read()
            self._step(step, *drawn)
        timed = sum(self.clock.read().values())
        self.pending = Pending()
        for network, weights in zip(networks, before, strict=True):
            network.load_state_dict(weights)
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.optimizer.state.clear()
        taken = time.perf_counter() - begun
        slowest = torch.tensor([timed / steps, taken], device=self.fabric.device)
        if self.fabric.world_size > 1:
            slowest = self.fabric.all_reduce(slowest, reduce_op="max")
        per_step, taken = slowest.tolist()
        return steps_within(seconds - taken, per_step)

    def _drawn(self, first: int, last: int) -> Iterator[tuple[int, tuple[Batch, Target]]]:
        """Yield the steps from `first` to before `last` with what each learns from."""
        return prepared(self._draw, first, last, self.threads)

    def _draw(self, step: int) -> tuple[Batch, Target]:
        """Return the crops of a step and their target, ready for the device; on any thread."""
        settings, rank = self.settings, self.fabric.global_rank
        on_host = self.fabric.device.type == "cpu"
        batch = draw_batch(
            self.work.examples, self.draw, settings, step=step, rank=rank, vary=on_host
        )
        rng = np.random.default_rng([settings.seed, step, rank, 1 << 20])
        target = target_of(batch.labels, settings, rng, batch.under)
        if on_host:
            return batch, target
        return dataclasses.replace(batch, images=batch.images.pin_memory()), target.pinned()

    def _step(self, step: int, batch: Batch, target: Target) -> None:
        settings, device, rank = self.settings, self.fabric.device, self.fabric.global_rank
        self.clock.lap("waiting")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        images = batch.images.to(device, non_blocking=True)
        if device.type != "cpu":
            images = varied(images, settings, step=step, rank=rank)
            images = images.expand(-1, settings.in_channels, -1, -1)
        images = images.contiguous(memory_format=torch.channels_last)
        self.clock.lap("copy")
        output = self.model(images)
        self.clock.lap("forward")
        terms = OBJECTIVES[settings.recipe](output, target, settings)
        loss = torch.stack(list(terms.values())).sum()
        self.clock.lap("loss")
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.clock.lap("backward")
        # A norm that is not finite is found with the losses: asking here would wait for it.
        norm = torch.nn.utils.clip_grad_norm_(self.state.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        update_average(self.state.averaged, self.state.model, step, settings.ema_decay)
        self.clock.lap("optimiser")
        self.pending.add(step, batch.field_ids, terms, norm)

    def _announce(self) -> None:
        if self.leads:
            work, state = self.work, self.state
            count = self.fabric.world_size
            self.emit(
                Started(
                    device=str(self.fabric.device) + (f" × {count}" if count > 1 else ""),
                    precision="bf16" if uses_bf16(self.settings, self.fabric.device) else "fp32",
                    fields=len(work.examples),
                    held_out=len(work.held),
                    step=state.step,
                    steps=self.settings.steps,
                    minutes=self.settings.minutes,
                )
            )

    def _report(self) -> None:
        """Read the losses since the last report, and stop if they are not finite."""
        crops = len(self.pending) * self.settings.batch_size * self.fabric.world_size
        losses, fault = self.pending.settle()
        self._stop_at(fault)
        if self.fabric.world_size > 1:
            means = self.fabric.all_reduce(
                torch.tensor(list(losses.values()), device=self.fabric.device)
            )
            losses = dict(zip(losses, means.tolist(), strict=True))
        self._count(crops)
        rate, shares, self.since = self.since.crops_per_s(), self.since.shares(), Spent()
        self._tell(
            Report(
                step=self.state.step,
                steps=self.settings.steps,
                losses=losses,
                crops_per_s=rate,
                megapixels_per_s=self._megapixels(rate),
                shares=shares,
            )
        )
        self.clock.lap("writing")

    def _stop_at(self, fault: Fault | None) -> None:
        """Raise TrainingError in every process for the first fault of all of them."""
        mine = NO_FAULT if fault is None else fault.order
        first = mine
        if self.fabric.world_size > 1:
            order = torch.tensor(mine, dtype=torch.float64, device=self.fabric.device)
            first = float(self.fabric.all_reduce(order, reduce_op="min"))
        if first == NO_FAULT:
            return
        if fault is not None and mine == first:
            raise TrainingError(f"{fault.message} ({self.settings.learning_rate})")
        raise TrainingError("the loss of another process is not finite; that one says more")

    def _count(self, crops: int = 0) -> None:
        """Add what the clock has measured to the sums of this report and of the run."""
        spent = Spent(self.clock.read(), crops)
        self.since.add(spent)
        self.state.spent.add(spent)

    def _megapixels(self, crops: float) -> float:
        return crops * self.settings.crop_px**2 / 1e6

    def _tell(self, report: Report) -> None:
        if self.metrics is not None:
            self.metrics.write(report.step, report.values())
            self.emit(report)

    def _validate(self) -> None:
        """Score the averaged weights; keep them as last, and as best if they are."""
        state = self.state
        score = validate(state.averaged, self._header({}), self.work.held, str(self.fabric.device))
        self.clock.lap("validation")
        self._count()
        header = self._header(score)
        save_model(self.out / LAST, state.averaged, header)
        better = score.get("mean_ap", 0.0) >= state.best.get("mean_ap", -1.0)
        if better or not (self.out / BEST).exists():
            state.best = {**score, "step": state.step}
            save_model(self.out / BEST, state.averaged, header)
        if score:
            self._tell(Report(state.step, self.settings.steps, {}, 0.0, score=score))
        self.clock.lap("writing")

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
                "crops_per_s": round(state.spent.crops_per_s(), 2),
                "shares": {part: round(one, 4) for part, one in state.spent.shares().items()},
                "device": str(self.fabric.device),
                "devices": self.fabric.world_size,
                "torch": torch.__version__,
                "fields": len(self.work.examples),
                "stains": self.work.examples.stains,
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
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
