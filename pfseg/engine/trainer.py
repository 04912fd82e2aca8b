"""The training loop: `before_step`, `run_step` and `after_step`; everything else is a hook (`pfseg.engine.hooks`).

A run is a pure function of (config, seed): the order of samples, augmentation, dropout and learning rate follow from
the step. A run resumed from `last`, also in the middle of an epoch, computes what the undisturbed one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np

from pfseg.config import run_settings
from pfseg.data.loader import TrainLoader
from pfseg.engine.optimizer import (
    Optimizer,
    WeightAverage,
    average_gradients,
    export_optimizer,
    load_optimizer,
    local_gradients,
    set_lr,
)
from pfseg.errors import JobError
from pfseg.inference.folding import modules_of
from pfseg.models.network import SegmentationNetwork
from pfseg.ops.layers import Random
from pfseg.runtime import jt, rank, world_size
from pfseg.tracking.records import RecordWriter
from pfseg.weights.checkpoint import Meta, Progress, load_checkpoint, save_checkpoint
from pfseg.weights.transfer import Arrays, Var, export_weights, load_weights

DIVERGED = "what was saved before is whole. Lower optimizer.lr, add schedule.warmup_steps or set trainer.clip_grad"


@dataclass
class TrainingState:
    """Where a run stands; stored in every checkpoint."""

    step: int = 0
    validated: int = 0  # step of the last validation
    best_miou: float = -1.0
    best_step: int = 0
    validations_since_best: int = 0

    def judge(self, miou: float) -> bool:
        """Count a validation; returns whether it is the best so far."""
        best = miou > self.best_miou
        self.validated = self.step
        self.validations_since_best = 0 if best else self.validations_since_best + 1
        if best:
            self.best_miou, self.best_step = miou, self.step
        return best


def total_steps(settings: run_settings.TrainerSettings, steps_per_epoch: int) -> int:
    """Steps of the whole run: `max_epochs` or `max_steps`, whichever ends first."""
    limits = [settings.max_steps, settings.max_epochs and settings.max_epochs * steps_per_epoch]
    return min(limit for limit in limits if limit is not None)


class Hook:
    """A duty beside the update; every method may be left as it is."""

    def before_train(self, trainer: Trainer) -> None:
        """Called once, after a resumed run has restored its state."""

    def before_step(self, trainer: Trainer) -> None:
        """Called before each step."""

    def before_update(self, trainer: Trainer) -> None:
        """Called when the optimizer holds the gradients of the step, averaged over the ranks."""

    def after_step(self, trainer: Trainer) -> None:
        """Called after each step, which `trainer.state.step` counts already."""

    def around_validation(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Context in which the network is scored, and the best one saved; contexts of later hooks lie within it."""
        return nullcontext()

    def after_validation(self, trainer: Trainer) -> None:
        """Called when scores are recorded."""

    def after_train(self, trainer: Trainer) -> None:
        """Called once at the end, when `trainer.status` says why it ended."""


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Trains a network."""

    settings: run_settings.TrainerSettings
    model: SegmentationNetwork
    loss: Callable[..., dict[str, Var]]  # (output, batch) -> named terms, as `pfseg.losses.PFNetLoss`
    optimizer: Optimizer
    lr: Callable[[int], float]  # of a step
    loader: TrainLoader  # training batches of this rank
    hooks: Sequence[Hook]  # called in this order
    folder: Path  # of the run
    records: RecordWriter | None  # None on ranks other than 0
    seed: int
    meta: Meta  # stored with every checkpoint: config, versions
    state: TrainingState = field(default_factory=TrainingState)
    status: str | None = None  # why it ended: done, stopped, out_of_time or early_stop
    losses: dict[str, float] = field(default_factory=dict)  # terms of the last step that they were read at
    scores: dict[str, float] = field(default_factory=dict)  # of the last validation
    faults: int = 0  # in the data

    def __post_init__(self) -> None:
        """Start from the model as it is."""
        self.steps_per_epoch = self.loader.batches_per_epoch // self.settings.accumulate
        self.total_steps = total_steps(self.settings, self.steps_per_epoch)
        self.average = WeightAverage(self.model, self.settings.ema) if self.settings.ema else None
        self.terms: tuple[list[str], Var]  # names and values (T,) of the last step, means over batches and ranks
        self._batches: Iterator[dict[str, Any]] | None = None
        self._random = modules_of(self.model, Random)

    def run(self) -> dict[str, Any]:
        """Train to the end, or until a hook sets a status; returns `status`, `step`, best and last scores.

        Raises:
            JobError: a loss or a weight is not finite.
        """
        for hook in self.hooks:
            hook.before_train(self)
        for _ in range(self.state.step, self.total_steps):
            if self.status:
                break
            self.before_step()
            self.run_step()
            self.after_step()
        self.status = self.status or "done"
        for hook in self.hooks:
            hook.after_train(self)
        self.record("end", status=self.status)
        best = {"best/mIoU": self.state.best_miou, "best/step": self.state.best_step}
        return {"status": self.status, "step": self.state.step, **best, **self.scores}

    def before_step(self) -> None:
        """Set everything to the step that follows."""
        if self._batches is None:  # an epoch starts, or what is left of it
            self.model.train()
            epoch, done = divmod(self.state.step, self.steps_per_epoch)
            if hasattr(self.loss, "start_epoch"):
                self.loss.start_epoch(epoch)
            indexing = partial(self.show, "finding where each class occurs")
            self._batches = self.loader.epoch(epoch, start=done * self.settings.accumulate, progress=indexing)
            if self.settings.overfit:
                self._batches = repeat(next(self.loader.epoch(0, progress=indexing)))
        if hasattr(self.loss, "start_step"):
            self.loss.start_step(self.state.step + 1)
        self.seed_dropout()
        set_lr(self.optimizer, self.lr(self.state.step))
        for hook in self.hooks:
            hook.before_step(self)

    def run_step(self) -> None:
        """Update the weights once, from the gradients of `accumulate` batches."""
        assert self._batches is not None
        share = 1.0 / self.settings.accumulate
        summed: dict[str, Var] = {}
        for number in range(self.settings.accumulate):
            if number:
                jt.sync_all()  # computes the batch before and lets go of its maps, of which Jittor would keep all
            batch = next(self._batches)
            inputs = {key: jt.array(batch[key]) for key in ("image", "mask", "edge")}
            terms = self.loss(self.model(inputs["image"]), inputs)
            with local_gradients():
                self.optimizer.backward(sum(terms.values()) * share)
            summed = {key: summed[key] + value * share if summed else value * share for key, value in terms.items()}
        if world_size() > 1:
            average_gradients(self.optimizer)
        for hook in self.hooks:
            hook.before_update(self)
        if self.settings.clip_grad:
            self.optimizer.clip_grad_norm(self.settings.clip_grad)
        self.optimizer.n_step = self.state.step + 1  # Adam's bias correction counts updates, not backward passes
        self.optimizer.step()
        values = jt.concat([value.detach().reshape(1) for value in summed.values()])
        self.terms = list(summed), values.mpi_all_reduce("mean") if world_size() > 1 else values

    def after_step(self) -> None:
        """Count the step."""
        self.state.step += 1
        if self.epoch_ended:
            self._batches = None
        for hook in self.hooks:
            hook.after_step(self)

    def seed_dropout(self, *use: int) -> None:
        """Draw what is random in this step, and in another `use` of the network than training, from the seed."""
        for i, layer in enumerate(self._random):
            layer.generator = np.random.default_rng([self.seed, self.state.step, 0, i, *use])

    # Where the run stands

    @property
    def epoch(self) -> int:
        """Epoch (from 0) of the last update."""
        return max(self.state.step - 1, 0) // self.steps_per_epoch

    @property
    def ended(self) -> bool:
        """Whether no further step follows."""
        return self.status is not None or self.state.step >= self.total_steps

    @property
    def epoch_ended(self) -> bool:
        """Whether the last update was that of an epoch, or of the run."""
        return self.state.step % self.steps_per_epoch == 0 or self.state.step == self.total_steps

    def is_logged(self, step: int) -> bool:
        """Whether the update number `step` (from 1) is logged: every `log_every`-th, and the last of an epoch."""
        return 0 in (step % self.settings.log_every, step % self.steps_per_epoch) or step == self.total_steps

    @property
    def save_due(self) -> bool:
        """Whether `save_every` asks for a checkpoint after this step."""
        return self.settings.save_every is not None and self.state.step % self.settings.save_every == 0

    # Checkpoints and rows

    def save(self, name: str, weights: Arrays | None = None) -> None:
        """Write a checkpoint; without `weights` everything that training needs to go on."""
        if rank() != 0:
            return
        arrays = weights or export_weights(self.model)
        if weights is None:
            if self.average:
                arrays = self.average.export() | {f"train/{key}": value for key, value in arrays.items()}
            arrays |= export_optimizer(self.optimizer)
        for key, value in arrays.items():
            if not np.isfinite(value).all():  # saved, it would replace weights that training can go on with
                raise JobError(f"{key} is not finite after step {self.state.step}; {DIVERGED}")
        progress, scores = cast(Progress, asdict(self.state)), cast(dict[str, float | None], self.scores)
        standing: Meta = {"progress": progress, "scores": scores, "epoch": self.epoch, "seed": self.seed}
        save_checkpoint(self.folder / "checkpoints" / f"{name}.safetensors", arrays, {**standing, **self.meta})

    def restore(self, path: Path) -> None:
        """Continue from a `last` checkpoint; raises CheckpointError if it is of another run."""
        arrays, meta = load_checkpoint(path)
        raw = {key.removeprefix("train/"): value for key, value in arrays.items() if key.startswith("train/")}
        load_weights(self.model, raw or arrays, str(path))
        load_optimizer(self.optimizer, arrays, str(path))
        if self.average:
            self.average.load(arrays)
        standing: Any = meta.get("progress", {})
        self.state, self.scores = TrainingState(**standing), cast(dict[str, float], meta.get("scores", {}))

    def record(self, event: str, **fields: Any) -> None:
        """Write a row."""
        if self.records:
            self.records.write(event, step=self.state.step, epoch=self.epoch, **fields)

    def warn(self, warnings: Sequence[str]) -> None:
        """Write a row for each fault of the data, and count it."""
        self.faults += len(warnings)
        for text in warnings:
            self.record("message", level="warning", text=text)

    def show(self, text: str, done: int, total: int) -> None:
        """Write a row for work of `total` parts."""
        if self.records:
            self.records.progress(text, done, total, step=self.state.step, epoch=self.epoch)
