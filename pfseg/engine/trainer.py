"""The training loop.

    restore if resumed, then for each epoch:
        for each step: forward, loss terms, backward, update, (average weights), (log), (save)
        validate when due: average weights in, BatchNorm statistics anew, predict, score, panels, best
        save `last`
    (a run told to stop saves `last` at once; resumed, it begins with the validation that it left out, if any)

A run is a pure function of (config, seed): the order of samples, augmentation, dropout and learning rate follow from
the step, so that a run resumed from `last` computes what the undisturbed one would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.data.base import ClassInfo
from pfseg.data.loader import TrainLoader
from pfseg.engine import state
from pfseg.engine.evaluator import Evaluator
from pfseg.engine.telemetry import gradient_norms, memory_mib, save_samples
from pfseg.errors import JobError
from pfseg.metrics.confusion import scores
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.layers import ChannelDropout
from pfseg.runtime import jt, rank, world_size
from pfseg.tracking.records import RecordWriter
from pfseg.weights.checkpoint import load_checkpoint, save_checkpoint

Var = Any  # jittor.Var, which ships no types
_DIVERGED = "what was saved before is whole. Lower optimizer.lr, add schedule.warmup_steps or set trainer.clip_grad"


@dataclass(frozen=True)
class Plan:
    """How long to train and what happens around the steps; each field is the key of conf/train.yaml's `trainer`."""

    max_epochs: int | None
    max_steps: int | None
    log_every: int = 10
    val_every: int = 1
    accumulate: int = 1
    clip_grad: float | None = None
    freeze_bn: bool = False
    sync_bn: bool = True
    ema: float | None = None
    bn_batches: int = 0
    early_stop: int | None = None
    save_every: int | None = None
    max_time: float | None = None  # minutes
    log_grad_norm: bool = False

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run: `max_epochs` or `max_steps`, whichever ends first."""
        limits = [self.max_steps, self.max_epochs and self.max_epochs * steps_per_epoch]
        return min(limit for limit in limits if limit is not None)


@dataclass
class Progress:
    """Where a run stands; stored in every checkpoint."""

    step: int = 0
    validated: int = 0  # step of the last validation
    best_miou: float = -1.0
    best_step: int = 0
    validations_since_best: int = 0


class Trainer:
    """Trains a network.

    Args:
        model: Jittor module that maps images to `SegOutput` and has `predict`.
        loss: maps (output, batch) to named terms, as `pfseg.losses.PFNetLoss`.
        optimizer: Jittor optimizer over the model.
        lr: learning rate of a step.
        loader: training batches of this rank.
        evaluator: scores the network.
        plan: lengths and intervals.
        classes: for scores and panels.
        folder: run folder.
        records: where rows go; None on ranks other than 0.
        seed: of the run.
        meta: stored with every checkpoint (config, versions).
        stop: True once the run is to save and leave.
    """

    def __init__(
        self,
        *,
        model: Any,
        loss: Any,
        optimizer: Any,
        lr: Callable[[int], float],
        loader: TrainLoader,
        evaluator: Evaluator,
        plan: Plan,
        classes: tuple[ClassInfo, ...],
        folder: Path,
        records: RecordWriter | None,
        seed: int,
        meta: dict[str, Any],
        stop: Callable[[], bool],
    ) -> None:
        self.model, self.loss, self.optimizer, self.lr = model, loss, optimizer, lr
        self.loader, self.evaluator, self.plan, self.classes = loader, evaluator, plan, classes
        self.folder, self.records, self.seed, self.meta, self.stop = folder, records, seed, meta, stop
        self.steps_per_epoch = loader.batches_per_epoch // plan.accumulate
        self.total_steps = plan.total_steps(self.steps_per_epoch)
        self.progress = Progress()
        self.average = state.WeightAverage(model, plan.ema) if plan.ema else None
        self.norms = [m for m in model.modules() if isinstance(m, BatchNorm2d)]
        self.dropouts = [m for m in model.modules() if isinstance(m, ChannelDropout)]
        for norm in self.norms:
            norm.sync = plan.sync_bn
            if plan.freeze_bn:
                norm.freeze()
        self._images = 0
        self._seconds = 0.0
        self._started = time.monotonic()
        self._scores: dict[str, float] = {}
        self._norms: tuple[list[str], Var] = ([], np.zeros(0))
        self._faults = 0

    @property
    def epoch(self) -> int:
        """Epoch (from 0) of the last update."""
        return max(self.progress.step - 1, 0) // self.steps_per_epoch

    def run(self) -> dict[str, Any]:
        """Train to the end, or until told to stop.

        Returns:
            `status` (done, early_stop, out_of_time or stopped), `step`, and the best and last mIoU in percent.

        Raises:
            JobError: a loss or a weight is not finite.
        """
        status = "done"
        while status == "done" and (self.progress.step < self.total_steps or self._validation_due(status)):
            if not self._validation_due(status):
                status = self._train_epoch()
            if status != "stopped" and self._validation_due(status):
                self._validate()
                if self.plan.early_stop and self.progress.validations_since_best >= self.plan.early_stop:
                    status = "early_stop"
            self._save("last")
        if self._faults:
            text = f"{self._faults} faults in the data were got round, see the warnings in metrics.jsonl"
            self._record("message", level="warning", text=text)
        self._record("end", status=status)
        best = {"best/mIoU": self.progress.best_miou, "best/step": self.progress.best_step}
        return {"status": status, "step": self.progress.step, **best, **self._scores}

    def restore(self, path: Path) -> None:
        """Continue from a `last` checkpoint; raises CheckpointError if it is of another run."""
        arrays, meta = load_checkpoint(path)
        raw = {key.removeprefix("train/"): value for key, value in arrays.items() if key.startswith("train/")}
        state.load_model(self.model, raw or arrays, str(path))
        state.load_optimizer(self.model, self.optimizer, arrays, str(path))
        if self.average:
            self.average.load(arrays)
        self.progress, self._scores = Progress(**meta["progress"]), meta["scores"]

    def _validation_due(self, status: str) -> bool:
        """Whether this step is one to validate after, and has not been: the last one, and every `val_every` epochs."""
        step = self.progress.step
        ended = status != "done" or step >= self.total_steps
        return step > self.progress.validated and (ended or step % (self.plan.val_every * self.steps_per_epoch) == 0)

    # One epoch

    def _train_epoch(self) -> str:
        """Train to the end of the epoch or of the run; returns done, stopped or out_of_time."""
        self.model.train()
        epoch, first = divmod(self.progress.step, self.steps_per_epoch)
        if hasattr(self.loss, "start_epoch"):
            self.loss.start_epoch(epoch)
        indexing = partial(self._show, "finding where each class occurs")
        batches = self.loader.epoch(epoch, start=first * self.plan.accumulate, progress=indexing)
        last_step = min((epoch + 1) * self.steps_per_epoch, self.total_steps)
        pending: list[tuple[int, list[str], Var]] = []
        clock = time.monotonic()
        while self.progress.step < last_step:
            step = self.progress.step
            names, values = self._train_step(step, batches)
            pending.append((step, names, values))
            self.progress.step += 1
            due = self._log_due(step)
            saving = self.plan.save_every and self.progress.step % self.plan.save_every == 0
            # On a GPU the terms are read only where they are needed, so that the device never waits for Python.
            if due or saving or not jt.flags.use_cuda:
                terms = self._read_terms(pending)
                pending = []
                self._seconds, clock = self._seconds + time.monotonic() - clock, time.monotonic()
                if due:
                    self._log_step(step, terms)
            self._pass_on(self.loader.pop_warnings())
            if saving and self.progress.step != last_step:
                self._save("last")
            if self._agreed(self.stop()):
                return "stopped"
            if self.plan.max_time and self._agreed(time.monotonic() - self._started > 60 * self.plan.max_time):
                return "out_of_time"
        return "done"

    def _train_step(self, step: int, batches: Iterator[dict[str, Any]]) -> tuple[list[str], Var]:
        """One update; returns the names of the loss terms and their values (T,), averaged over the batches."""
        self._seed_dropout(step)
        self.optimizer.lr = self.lr(step)
        share = 1.0 / self.plan.accumulate
        summed: dict[str, Var] = {}
        for _ in range(self.plan.accumulate):
            batch = next(batches)
            self._images += len(batch["name"]) * world_size()
            inputs = {key: jt.array(batch[key]) for key in ("image", "mask", "edge")}
            terms = self.loss(self.model(inputs["image"]), inputs)
            with state.without_sums():
                self.optimizer.backward(sum(terms.values()) * share)
            summed = {key: summed[key] + value * share if summed else value * share for key, value in terms.items()}
        if world_size() > 1:
            state.average_gradients(self.optimizer)
        if self.plan.log_grad_norm and self._log_due(step):
            self._norms = gradient_norms(self.model, self.optimizer)
        if self.plan.clip_grad:
            self.optimizer.clip_grad_norm(self.plan.clip_grad)
        self.optimizer.n_step = step + 1  # Adam's bias correction counts updates, not backward passes
        self.optimizer.step()
        if self.average:
            self.average.update(self.model, step)
        values = jt.concat([value.detach().reshape(1) for value in summed.values()])
        if world_size() > 1:
            values = values.mpi_all_reduce("mean")
        return list(summed), values

    def _seed_dropout(self, step: int, *use: int) -> None:
        for i, dropout in enumerate(self.dropouts):
            dropout.generator = np.random.default_rng([self.seed, step, 0, i, *use])

    def _read_terms(self, pending: list[tuple[int, list[str], Var]]) -> dict[str, float]:
        """Bring the steps' terms to the CPU and return the last step's; raises JobError where one is not finite."""
        jt.sync_all()
        terms: dict[str, float] = {}
        for step, names, values in pending:
            terms = dict(zip(names, values.numpy().tolist(), strict=True))
            if not all(map(math.isfinite, terms.values())):
                listed = ", ".join(f"{name}={value:.6g}" for name, value in terms.items())
                raise JobError(
                    f"the loss is not finite at step {step + 1} ({listed}, learning rate {self.lr(step):.3g}); "
                    f"{_DIVERGED}"
                )
        return terms

    def _log_due(self, step: int) -> bool:
        """Whether the update of this step (from 0) is logged: every `log_every`-th, and the last of an epoch."""
        done = step + 1
        return done % self.plan.log_every == 0 or done % self.steps_per_epoch == 0 or done == self.total_steps

    def _log_step(self, step: int, terms: dict[str, float]) -> None:
        speed = self._images / max(self._seconds, 1e-9)
        per_step = self.loader.batch_size * self.plan.accumulate * world_size()
        row = {f"train/{name}": value for name, value in terms.items()}
        loading = {"data/worker_mib": self.loader.worker_mib} if self.loader.worker_mib else {}
        norms = dict(zip(self._norms[0], self._norms[1].tolist(), strict=True))
        self._record(
            "train",
            **{"train/loss": sum(terms.values()), **row},
            **{
                "train/lr": self.lr(step),
                "train/images_per_s": speed,
                "train/eta_s": (self.total_steps - step - 1) * per_step / max(speed, 1e-9),
            },
            **{f"train/{name}": value for name, value in (norms | memory_mib()).items()},
            **loading,
        )
        self._images, self._seconds = 0, 0.0

    def _agreed(self, wanted: bool) -> bool:
        """True on every rank if it is on one."""
        if world_size() == 1:
            return wanted
        return bool(jt.array([float(wanted)]).mpi_all_reduce("add").numpy()[0] > 0)

    # Validation

    def _validate(self) -> None:
        raw = self._averaged_weights_in()
        if self.plan.bn_batches and not self.plan.freeze_bn:
            self._estimate_batchnorm()
        self.model.eval()
        step = self.progress.step
        found = self.evaluator.run(self.model.predict, partial(self._show, "validating"))
        self._pass_on(self.evaluator.loader.pop_warnings())
        self.progress.validated = step
        self._scores = scores(found.confusion, [c.name for c in self.classes])
        miou = self._scores["mIoU"]
        best = miou > self.progress.best_miou
        self.progress.validations_since_best = 0 if best else self.progress.validations_since_best + 1
        if best:
            self.progress.best_miou, self.progress.best_step = miou, step
        pictures: dict[str, Any] = {}
        if found.panels and rank() == 0:
            pictures = save_samples(self.folder, step, found.panels, self.classes, self.model, self.evaluator)
        if best:
            self._save("best", state.export(self.model))
        if raw:
            if self.average:
                self.average.load(state.export(self.model))  # with the statistics as re-estimated
            state.load_model(self.model, raw, "the weights before averaging")
        self._record("val", **{f"val/{key}": value for key, value in self._scores.items()}, best=best, **pictures)
        self._record("confusion", confusion=found.confusion.tolist())

    def _show(self, text: str, done: int, total: int) -> None:
        if self.records:
            self.records.progress(text, done, total, step=self.progress.step, epoch=self.epoch)

    def _averaged_weights_in(self) -> state.Arrays | None:
        """Swap the averaged weights in for validation; returns the ones that training goes on with."""
        if not self.average:
            return None
        raw = state.export(self.model)
        state.load_model(self.model, self.average.export(), "the averaged weights")
        return raw

    def _estimate_batchnorm(self) -> None:
        """Replace BatchNorm's running statistics by the plain average over `bn_batches` training batches.

        Moving averages lag behind the weights, most of all in short trainings and small batches.
        """
        self.model.train()
        momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.momentum = None
            norm.reset_running_stats()
        count = min(self.plan.bn_batches, self.loader.batches_per_epoch)
        self._seed_dropout(self.progress.step, 1)
        with jt.no_grad():
            for done, batch in enumerate(self.loader.epoch(self.epoch)):
                if done == count:
                    break
                self.model(jt.array(batch["image"])).logits.sync()
                jt.sync_all()
                self._show("estimating BatchNorm statistics", done + 1, count)
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum

    # Saving and recording

    def _save(self, name: str, weights: state.Arrays | None = None) -> None:
        """Write a checkpoint; without `weights` everything that training needs to go on."""
        if rank() != 0:
            return
        arrays = weights
        if arrays is None:
            arrays = state.export(self.model, self.optimizer)
            if self.average:
                raw = {f"train/{key}": value for key, value in arrays.items() if not key.startswith("optimizer/")}
                arrays = arrays | raw | self.average.export()
        for key, value in arrays.items():
            if not np.isfinite(value).all():  # saved, it would replace weights that training can go on with
                raise JobError(f"{key} is not finite after step {self.progress.step}; {_DIVERGED}")
        meta = {
            "progress": vars(self.progress),
            "scores": self._scores,
            "epoch": self.epoch,
            "seed": self.seed,
            **self.meta,
        }
        save_checkpoint(self.folder / "checkpoints" / f"{name}.safetensors", arrays, meta)

    def _pass_on(self, warnings: list[str]) -> None:
        self._faults += len(warnings)
        for warning in warnings:
            self._record("message", level="warning", text=warning)

    def _record(self, event: str, **fields: Any) -> None:
        if self.records:
            self.records.write(event, step=self.progress.step, epoch=self.epoch, **fields)
