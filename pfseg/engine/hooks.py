"""Everything that a training does besides its updates; `standard_hooks` lists it in the order of the calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from pfseg.data.base import ClassInfo
from pfseg.engine.evaluator import Evaluator
from pfseg.engine.optimizer import gradient_norms, trainable
from pfseg.engine.ranks import agreed, memory_mib
from pfseg.engine.scoring import Panel
from pfseg.engine.trainer import DIVERGED, Hook, Trainer
from pfseg.errors import JobError
from pfseg.inference.folding import JittorNetwork, modules_of
from pfseg.metrics.confusion import scores
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt, rank, world_size
from pfseg.tracking.panels import save_panels
from pfseg.tracking.samples import save_maps
from pfseg.weights.transfer import Var, export_weights, load_weights


def standard_hooks(evaluator: Evaluator, classes: Sequence[ClassInfo], stop: Callable[[], bool]) -> list[Hook]:
    """Hooks of a training that `evaluator` scores; `stop` is True once the run is to save and leave."""
    return [
        AveragedWeights(),
        FrozenBackbone(),
        BatchNormStatistics(),  # in a validation those of the averaged weights
        LossTerms(),  # before anything is logged or saved
        Logging(),
        LoaderWarnings(),
        Stop(stop),  # before the validation, which depends on the reason
        Checkpoints(),  # before the validation, which may take long, and after all that changes the state
        Validation(evaluator, classes),
        EarlyStop(),
    ]


class AveragedWeights(Hook):
    """Averages the weights over the steps (`ema`), and puts the average into the network for a validation."""

    def after_step(self, trainer: Trainer) -> None:
        """Include the weights of this step."""
        if trainer.average:
            trainer.average.update(trainer.model, trainer.state.step - 1)

    @contextmanager
    def around_validation(self, trainer: Trainer) -> Iterator[None]:
        """Swap them in, and back."""
        if not trainer.average:
            yield
            return
        raw = export_weights(trainer.model)
        load_weights(trainer.model, trainer.average.export(), "the averaged weights")
        yield
        trainer.average.load(export_weights(trainer.model))  # with the statistics as re-estimated
        load_weights(trainer.model, raw, "the weights before averaging")


class FrozenBackbone(Hook):
    """Keeps the backbone's weights, and the statistics of its BatchNorm, for the first `freeze_backbone` epochs."""

    def __init__(self) -> None:
        self._frozen = False

    def before_step(self, trainer: Trainer) -> None:
        """Freeze it, or let it learn, where that changes."""
        settings = trainer.settings
        frozen = trainer.state.step < settings.freeze_backbone * trainer.steps_per_epoch
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for weight in trainable(trainer.model.backbone).values():
            weight.stop_grad() if frozen else weight.start_grad()
        for norm in modules_of(trainer.model.backbone, BatchNorm2d):
            norm.frozen = frozen or settings.freeze_bn


class LossTerms(Hook):
    """Brings the loss terms to the CPU, and stops a run whose loss is not finite.

    On a GPU that happens only where they are needed, so that the device never waits for Python.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[str], Var]] = []

    def after_step(self, trainer: Trainer) -> None:
        """Read the terms of the steps since the last call; raises JobError if one is not finite."""
        self._pending.append((trainer.state.step, *trainer.terms))
        if jt.flags.use_cuda and not trainer.is_logged(trainer.state.step) and not trainer.save_due:
            return
        jt.sync_all()
        for step, names, values in self._pending:
            trainer.losses = dict(zip(names, values.numpy().tolist(), strict=True))
            if not all(map(math.isfinite, trainer.losses.values())):
                listed = ", ".join(f"{name}={value:.6g}" for name, value in trainer.losses.items())
                listed += f", learning rate {trainer.lr(step - 1):.3g}"
                raise JobError(f"the loss is not finite at step {step} ({listed}); {DIVERGED}")
        self._pending = []


class Logging(Hook):
    """Writes the row `train` of the steps that are logged; the speed is that since the last row or epoch.

    On a GPU a message after the first one says how much memory the training holds.
    """

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None  # step and time
        self._norms: tuple[list[str], Var] | None = None
        self._memory_shown = not jt.flags.use_cuda

    def before_step(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._since = self._since or (trainer.state.step, time.monotonic())

    def before_update(self, trainer: Trainer) -> None:
        """Measure the gradients before they are clipped."""
        if trainer.settings.log_grad_norm and trainer.is_logged(trainer.state.step + 1):
            self._norms = gradient_norms(trainer.model, trainer.optimizer)

    def after_step(self, trainer: Trainer) -> None:
        """Write the row."""
        step = trainer.state.step
        if not trainer.is_logged(step) or self._since is None:
            return
        now = time.monotonic()
        images_per_step = trainer.loader.batch_size * trainer.settings.accumulate * world_size()
        speed = (step - self._since[0]) * images_per_step / max(now - self._since[1], 1e-9)
        self._since = None if trainer.epoch_ended else (step, now)
        row = {"loss": sum(trainer.losses.values()), **trainer.losses, "lr": trainer.lr(step - 1)}
        row |= {"images_per_s": speed, "eta_s": (trainer.total_steps - step) * images_per_step / max(speed, 1e-9)}
        row |= dict(zip(self._norms[0], self._norms[1].tolist(), strict=True)) if self._norms else {}
        row |= memory_mib()
        loading = {"data/worker_mib": trainer.loader.worker_mib} if trainer.loader.worker_mib else {}
        trainer.record("train", **{f"train/{name}": value for name, value in row.items()}, **loading)
        if not self._memory_shown:
            self._memory_shown, total = True, jt.get_mem_info().total_cuda_ram / 2**30
            text = f"training takes {row['gpu_mib'] / 2**10:.1f} of {total:.1f} GiB of GPU memory"
            trainer.record("message", level="info", text=text)


class LoaderWarnings(Hook):
    """Writes a row for each fault in the training data, and a last one with their number."""

    def after_step(self, trainer: Trainer) -> None:
        """Write the new ones."""
        trainer.warn(trainer.loader.pop_warnings())

    def after_train(self, trainer: Trainer) -> None:
        """Write their number."""
        if trainer.faults:
            text = f"{trainer.faults} faults in the data were worked around; see the warnings in metrics.jsonl"
            trainer.record("message", level="warning", text=text)


class Stop(Hook):
    """Ends the run on every rank: without a validation on a stop signal to any of them, with one after `max_time`."""

    def __init__(self, told: Callable[[], bool]) -> None:
        self._told, self._start = told, time.monotonic()

    def after_step(self, trainer: Trainer) -> None:
        """Set the status."""
        minutes = trainer.settings.max_time
        if agreed(self._told()):
            trainer.status = "stopped"
        elif minutes is not None and agreed(time.monotonic() > self._start + 60 * minutes):
            trainer.status = "out_of_time"


class BatchNormStatistics(Hook):
    """Synchronises or freezes BatchNorm, and re-estimates its running statistics before a validation.

    Moving averages lag behind the weights, most of all in short trainings and small batches; the plain average over
    `bn_batches` training batches does not.
    """

    def before_train(self, trainer: Trainer) -> None:
        """Prepare the layers."""
        self._norms = modules_of(trainer.model, BatchNorm2d)
        for norm in self._norms:
            norm.sync = trainer.settings.sync_bn
            if trainer.settings.freeze_bn:
                norm.freeze()

    @contextmanager
    def around_validation(self, trainer: Trainer) -> Iterator[None]:
        """Estimate them."""
        if trainer.settings.freeze_bn or not trainer.settings.bn_batches:
            yield
            return
        trainer.model.train()
        momenta = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.momentum = None
            norm.reset_running_stats()
        count = min(trainer.settings.bn_batches, trainer.loader.batches_per_epoch)
        trainer.seed_dropout(1)
        with jt.no_grad():
            for done, batch in zip(range(1, count + 1), trainer.loader.epoch(trainer.epoch), strict=False):
                trainer.model(jt.array(batch["image"])).logits.sync()
                jt.sync_all()
                trainer.show("estimating BatchNorm statistics", done, count)
        for norm, momentum in zip(self._norms, momenta, strict=True):
            norm.momentum = momentum
        yield


class Validation(Hook):
    """Scores the network every `val_every` epochs and after the last step, and saves the best one so far as `best`."""

    def __init__(self, evaluator: Evaluator, classes: Sequence[ClassInfo]) -> None:
        self._evaluator, self._classes = evaluator, classes

    def before_train(self, trainer: Trainer) -> None:
        """Make up for a validation that a stopped run has skipped."""
        self.after_step(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Validate where due."""
        step, every = trainer.state.step, trainer.settings.val_every
        if every is None:
            return
        regular = step % (every * trainer.steps_per_epoch) == 0
        if step == trainer.state.validated or trainer.status == "stopped" or not (regular or trainer.ended):
            return
        with ExitStack() as stack:
            for hook in trainer.hooks:
                stack.enter_context(hook.around_validation(trainer))
            trainer.model.eval()
            evaluation = self._evaluator.run(JittorNetwork(trainer.model.predict), partial(trainer.show, "validating"))
            trainer.warn(self._evaluator.loader.pop_warnings())
            trainer.scores = scores(evaluation.confusion, [info.name for info in self._classes])
            best = trainer.state.judge(trainer.scores["mIoU"])
            pictures: dict[str, Any] = {}
            if evaluation.panels and rank() == 0:
                pictures = self._pictures(trainer, evaluation.panels)
            if best:
                trainer.save("best", export_weights(trainer.model))
        trainer.record("val", **{f"val/{key}": value for key, value in trainer.scores.items()}, best=best, **pictures)
        trainer.record("confusion", confusion=evaluation.confusion.tolist())
        for hook in trainer.hooks:
            hook.after_validation(trainer)

    def _pictures(self, trainer: Trainer, panels: Sequence[Panel]) -> dict[str, Any]:
        """Write pictures and maps of samples; returns the fields of the row `val` that name the files."""
        step = trainer.state.step
        path = f"samples/step_{step:06d}.png"
        edges = [self._evaluator.edges(trainer.model, panel.image) for panel in panels]
        panels = self._evaluator.shown(panels)
        save_panels(trainer.folder / path, panels, self._classes)
        return {"panels": path, "samples": save_maps(trainer.folder, step, panels, edges)}


class EarlyStop(Hook):
    """Ends the run after `early_stop` validations without a better mIoU."""

    def after_validation(self, trainer: Trainer) -> None:
        """Count."""
        patience = trainer.settings.early_stop
        if patience and trainer.state.validations_since_best >= patience:
            trainer.status = "early_stop"


class Checkpoints(Hook):
    """Saves `last` after each epoch, before and after a validation, every `save_every` steps, and when the run ends."""

    def after_step(self, trainer: Trainer) -> None:
        """Save where due."""
        if trainer.epoch_ended or trainer.ended or trainer.save_due:
            trainer.save("last")

    def after_validation(self, trainer: Trainer) -> None:
        """Save with the scores."""
        trainer.save("last")
