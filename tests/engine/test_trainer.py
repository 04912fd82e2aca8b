"""The loop and its hooks, with a network of one convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfseg.config import run_settings
from pfseg.data.base import ClassInfo
from pfseg.engine.evaluator import Evaluator
from pfseg.engine.hooks import Validation, standard_hooks
from pfseg.engine.optimizer import build_optimizer
from pfseg.engine.range_test import RangeTest
from pfseg.engine.scoring import Evaluation
from pfseg.engine.trainer import Hook, Trainer
from pfseg.errors import JobError
from pfseg.models import SegOutput
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt
from pfseg.tracking.records import RecordWriter, read_records
from pfseg.weights.transfer import export_weights

STEPS = 4  # of an epoch
CLASSES = (ClassInfo("dark", (0, 0, 0)), ClassInfo("bright", (255, 255, 255)))


class Network(jt.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = jt.nn.Conv(3, 2, 1), BatchNorm2d(2)
        rng = np.random.default_rng(0)
        self.convolution.weight.assign(jt.array(rng.standard_normal((2, 3, 1, 1)).astype(np.float32)))
        self.convolution.bias.assign(jt.array(np.zeros(2, np.float32)))

    def execute(self, image: Any) -> SegOutput:
        return SegOutput(self.norm(self.convolution(image)))

    def predict(self, image: Any) -> Any:
        return self(image).logits


class Loader:
    """Batches that follow from epoch and number."""

    batches_per_epoch, batch_size, worker_mib = STEPS, 2, None

    def epoch(self, epoch: int, start: int = 0, progress: Any = None) -> Iterator[dict[str, Any]]:
        for number in range(start, STEPS):
            image = np.random.default_rng([epoch, number]).standard_normal((2, 3, 4, 4)).astype(np.float32)
            yield {"image": image, "mask": image[:, 0] > 0, "edge": image[:, 0], "name": ["a", "b"]}

    def pop_warnings(self) -> list[str]:
        return []


class Scores(Evaluator):
    """Scores that are told beforehand, in pixels that are right of 100."""

    def __init__(self, *right: int) -> None:
        self.right, self.loader = iter(right), Loader()  # type: ignore[assignment]

    def run(self, predict: Any, progress: Any) -> Evaluation:
        evaluation = Evaluation(2, ignore_index=255, num_panels=0, boundary=False, details=None)
        right = next(self.right)
        evaluation.confusion += np.array([[right, 100 - right], [0, 100]])
        evaluation.images = 1
        return evaluation


def settings(**changes: Any) -> run_settings.TrainerSettings:
    plain: dict[str, Any] = {"max_epochs": 2, "max_steps": None, "log_every": 1, "val_every": 1, "accumulate": 1}
    plain |= {"clip_grad": None, "freeze_bn": False, "sync_bn": True, "ema": None, "bn_batches": 0, "early_stop": None}
    plain |= {"num_samples": 0, "workers": 0, "save_every": None, "max_time": None, "log_grad_norm": False}
    plain |= {"checkpointing": False, "deterministic": False, "freeze_backbone": 0, "overfit": False}
    return run_settings.TrainerSettings(**plain | changes)


def loss(output: SegOutput, batch: dict[str, Any]) -> dict[str, Any]:
    return {"square": ((output.logits[:, 0] - batch["image"][:, 0]) ** 2).mean()}


def make(
    folder: Path, *right: int, stop: Callable[[], bool] = lambda: False, hooks: tuple[Hook, ...] = (), **changes: Any
) -> Trainer:
    model, chosen = Network(), settings(**changes)
    sgd = {"name": "sgd", "lr": 0.1, "scale_lr": "none", "reference_batch": 16, "momentum": 0.9, "weight_decay": 0.0}
    sgd |= {"decay_norms": True, "lr_factors": {}}
    standard = standard_hooks(Scores(*right), CLASSES, stop)
    return Trainer(
        settings=chosen,
        model=model,
        loss=loss,
        optimizer=build_optimizer(run_settings.Sgd(**sgd, nesterov=False), model),
        lr=lambda step: 0.1 / (1 + step),
        loader=Loader(),  # type: ignore[arg-type]
        hooks=[*standard, *hooks],
        folder=folder,
        records=RecordWriter(folder / "metrics.jsonl"),
        seed=0,
        meta={"config": {}},
    )


def events(folder: Path, *kinds: str) -> list[tuple[str, int]]:
    rows = read_records(folder / "metrics.jsonl")
    return [(row["event"], row["step"]) for row in rows if not kinds or row["event"] in kinds]


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.safetensors"


def after(steps: int) -> Callable[[], bool]:
    """Asks to stop after so many steps."""
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= steps


def test_rows_of_a_run(tmp_path: Path):
    result = make(tmp_path, 50, 90).run()
    steps = [("train", step) for step in range(1, 9)]
    scored = [[("val", step), ("confusion", step)] for step in (4, 8)]
    assert events(tmp_path) == [*steps[:4], *scored[0], *steps[4:], *scored[1], ("end", 8)]
    assert (result["status"], result["step"], result["best/step"]) == ("done", 8, 8)


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "bn_batches": 2}, {"accumulate": 2, "clip_grad": 0.1}])
@pytest.mark.parametrize("stopped", [1, 3, 4, 6])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path, stopped: int, changes: dict[str, Any]):
    whole = make(tmp_path / "whole", 50, 90, **changes)
    whole.run()
    first = make(tmp_path / "parts", 50, 90, stop=after(min(stopped, whole.total_steps - 1)), **changes)
    assert first.run()["status"] == "stopped"
    second = make(tmp_path / "parts", *(iter((50, 90)) if first.state.validated == 0 else (90,)), **changes)
    second.restore(last(tmp_path / "parts"))
    second.run()
    for key, value in export_weights(whole.model).items():
        np.testing.assert_array_equal(export_weights(second.model)[key], value)
    assert whole.state == second.state
    assert events(tmp_path / "parts", "train", "val") == events(tmp_path / "whole", "train", "val")


def test_what_ends_a_run(tmp_path: Path):
    assert make(tmp_path / "a", 50, 40, 30, max_epochs=9, early_stop=2).run()["status"] == "early_stop"
    assert events(tmp_path / "a", "val", "end") == [("val", 4), ("val", 8), ("val", 12), ("end", 12)]
    assert make(tmp_path / "b", 50, max_time=1e-9).run()["status"] == "out_of_time"
    assert events(tmp_path / "b", "val", "end") == [("val", 1), ("end", 1)]
    assert last(tmp_path / "b").exists()


def test_a_backbone_that_learns_later(tmp_path: Path):
    class Look(Hook):
        def after_step(self, trainer: Trainer) -> None:
            weights.append(export_weights(trainer.model))

    weights: list[dict[str, Any]] = []
    trainer = make(tmp_path / "whole", 50, 50, freeze_backbone=1, hooks=(Look(),))
    trainer.model.backbone = trainer.model.convolution
    start = export_weights(trainer.model)
    trainer.run()
    for key, learns in (("convolution.weight", False), ("norm.weight", True)):
        assert all((after[key] != start[key]).any() == learns for after in weights[:STEPS])
        assert all((after[key] != start[key]).any() for after in weights[STEPS:])


def test_one_batch_again_and_again(tmp_path: Path):
    trainer = make(tmp_path, overfit=True, val_every=None, max_epochs=10)
    trainer.run()
    losses = [row["train/loss"] for row in read_records(tmp_path / "metrics.jsonl") if row["event"] == "train"]
    assert len(losses) == 10 * STEPS and losses == sorted(losses, reverse=True)
    assert events(tmp_path, "val") == [] and last(tmp_path).exists()


def test_the_learning_rate_finder_ends_where_the_loss_grows(tmp_path: Path):
    trainer = make(tmp_path, val_every=None, max_epochs=20, hooks=(RangeTest(),))
    trainer.lr = lambda step: 1e-6 * 10 ** (step / 8)
    result = trainer.run()
    assert result["status"] == "done" and 40 < result["step"] < 80
    (text,) = [row["text"] for row in read_records(tmp_path / "metrics.jsonl") if row["event"] == "message"]
    assert text.startswith("the loss falls most steeply at a learning rate of") and "try optimizer.lr=" in text
    assert "over log10(learning rate)" in (tmp_path / "lr_find.html").read_text()


def test_checkpoints(tmp_path: Path):
    saved: list[tuple[int, list[str]]] = []

    class Look(Hook):
        def after_step(self, trainer: Trainer) -> None:
            names = sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.safetensors"))
            saved.append((trainer.state.step, names))
            for path in (tmp_path / "checkpoints").glob("*.safetensors"):
                path.unlink()

    make(tmp_path, 50, 40, save_every=3, hooks=(Look(),)).run()
    assert [(step, names) for step, names in saved if names] == [
        (3, ["last"]),
        (4, ["best", "last"]),
        (6, ["last"]),
        (8, ["last"]),
    ]


def test_a_loss_that_is_not_finite(tmp_path: Path):
    trainer = make(tmp_path)
    trainer.loss = lambda output, batch: {"a": output.logits.sum() * float("inf"), "b": output.logits.mean()}
    with pytest.raises(
        JobError, match=r"the loss is not finite at step 1 \(a=-?(inf|nan), b=.*learning rate 0.1\); what"
    ):
        trainer.run()


def test_accumulation_keeps_the_graph_of_one_batch(tmp_path: Path):
    operators: dict[int, int] = {}

    class Count(Hook):
        def before_update(self, trainer: Trainer) -> None:
            operators[trainer.settings.accumulate] = jt.liveness_info()["lived_ops"]

    for batches in (2, 4):
        make(tmp_path / str(batches), 50, accumulate=batches, max_epochs=1, hooks=(Count(),)).run()
    assert operators[2] == operators[4]


def test_a_run_that_is_killed_in_a_validation_has_saved_its_epoch(tmp_path: Path):
    class Killed(Scores):
        def run(self, predict: Any, progress: Any) -> Evaluation:
            raise KeyboardInterrupt

    trainer = make(tmp_path)
    next(hook for hook in trainer.hooks if isinstance(hook, Validation))._evaluator = Killed()
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    second = make(tmp_path, 50, 90)
    second.restore(last(tmp_path))
    assert (second.state.step, second.state.validated) == (4, 0)
    assert second.run()["step"] == 8
    assert events(tmp_path, "val") == [("val", 4), ("val", 8)]
