"""A run in Weights & Biases, fed by the driver, so that a killed rank loses no row.

Offline where no API key is known or the server can't be reached; `metrics.jsonl` is complete without it.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psutil
import wandb

from pfseg.errors import ConfigError, one_line
from pfseg.files import load_json, load_yaml, shown, write_atomic
from pfseg.tracking.loggers import RunContext
from pfseg.tracking.records import (
    ConfusionRow,
    EndRow,
    Row,
    Sink,
    StartRow,
    ValRow,
    figures,
    numbers,
    read_records,
)
from pfseg.tracking.samples import read_maps
from pfseg.tracking.wandb_access import choose_mode, forget_service
from pfseg.tracking.wandb_lineage import use_inputs
from pfseg.tracking.wandb_media import class_tables, confusion_chart, predictions, read_scores, sample_pictures
from pfseg.weights.checkpoint import load_meta

INIT_SECONDS = 10.0
FINISH_SECONDS = 120.0
_ASIDE = {"name", "resume", "logger", "launch", "gpus", "ranks"}  # settings whose change makes no fork
_START = ("device", "ranks", "global_batch", "steps", "steps_per_epoch", "images_train", "images_val")


class WandbLogger(Sink):
    """Writes rows of the records file to one W&B run, the same one when a run folder is resumed.

    Says once where the run can be seen, or why it is offline. Where the server can't be reached, the start takes at
    most 20 s. The settings are those of `logger.wandb`, `options` its project, entity and tags; `mode=auto` heeds the
    variable WANDB_MODE.

    Raises:
        ConfigError: an unknown WANDB_MODE, `online` without an API key, or a registry without checkpoints to link.
    """

    def __init__(
        self,
        run: RunContext,
        *,
        mode: str,
        checkpoints: Sequence[str],
        registry: str | None,
        alerts: Sequence[str],
        fork: bool,
        **options: Any,
    ) -> None:
        if registry and "best" not in checkpoints:
            raise ConfigError(
                f"logger.wandb.registry={registry} links the best checkpoint, which is not uploaded; "
                "add logger.wandb.checkpoints=[best]"
            )
        self.folder, self._console, self._settings = run.folder, run.console, run.settings
        self._checkpoints, self._registry, self._alerts = checkpoints, registry, alerts
        self._edge = (run.settings.get("dataset") or {}).get("edge")
        self._names: list[str] = []
        self._inputs: threading.Thread | None = None
        self._best_artifact: wandb.Artifact | None = None
        wandb.setup(wandb.Settings(silent=True))  # before anything else of W&B, which would print
        self._run = _start(run, mode, options | {"notes": _notes(run, checkpoints)}, fork)
        self._sync_dir = shown(self._run.settings.sync_dir)
        self._run.define_metric("epoch")
        self._run.define_metric("val/*", step_metric="epoch")
        self._run.define_metric("val/mIoU", step_metric="epoch", summary="max")
        earlier = [figures(row, "val/").get("mIoU") for row in read_records(run.folder / "metrics.jsonl")]
        self._best = max((value for value in earlier if value is not None), default=0.0)

    def on_start(self, row: StartRow) -> None:
        """Add the machine, code and data to the settings, and name the data and the checkpoint that the run uses."""
        self._names = row.get("classes") or []
        environment = load_json(self.folder / "environment.json") or {}
        environment |= {key: value for key, value in row.items() if key in _START}
        self._run.config.update({"environment": environment}, allow_val_change=True)
        if not (self._run.offline or self._run.disabled or self._inputs):  # W&B itself takes them online only
            self._inputs = threading.Thread(
                target=self._use_inputs, args=(environment.get("data"),), name="pfseg-wandb-inputs", daemon=True
            )
            self._inputs.start()

    def on_train(self, row: Row) -> None:
        """Log losses, speed and memory; `epoch` counts from 1."""
        self._run.log(numbers(row, "train/", "data/") | {"epoch": row["epoch"] + 1}, step=row["step"])

    def on_val(self, row: ValRow) -> None:
        """Log scores, their tables and the pictures of the samples."""
        scores = figures(row, "val/")
        values: dict[str, object] = numbers(row, "val/") | {"epoch": row["epoch"] + 1} | class_tables(scores)
        if (miou := scores.get("mIoU")) is not None:
            self._best = max(miou, self._best)
            values["best/mIoU"] = self._best  # W&B sweeps optimise a value of its own, not a summary such as max
        if panels := row.get("panels"):
            values["val/samples"] = wandb.Image(str(self.folder / panels))
        if samples := read_maps(self.folder, row.get("samples", [])):
            pictures = sample_pictures(samples, self._names, self._edge)
            known = read_scores(self.folder / "images.csv")
            table = predictions(samples, pictures["val/masks"], self._names, row.get("exclude", []), known)
            values |= {**pictures, "val/predictions": table}
        self._run.log(values, step=row["step"])
        if row.get("best"):
            self._upload("best", row["step"])

    def on_confusion(self, row: ConfusionRow) -> None:
        """Log W&B's chart of the confusion matrix."""
        self._run.log({"val/confusion": confusion_chart(row["confusion"], self._names)}, step=row["step"])

    def on_end(self, row: EndRow) -> None:
        """Put the status into the summary."""
        self._run.summary["status"] = row["status"]
        self._upload("last", row["step"])
        if row["status"] == "early_stop":
            self._alert("early_stop", f"stopped early at step {row['step']}: no better mIoU than {self._best:.2f}")
        elif row["status"] == "done":
            self._alert("finished", f"finished at step {row['step']}, best mIoU {self._best:.2f}")

    def failed(self, reason: str) -> None:
        """Alert to a failure."""
        self._alert("failed", reason)

    def _alert(self, kind: str, text: str) -> None:
        if kind in self._alerts:
            level = "ERROR" if kind == "failed" else "INFO"
            self._run.alert(f"{self._run.name}: {kind.replace('_', ' ')}", text, level)

    def _upload(self, name: str, step: int) -> None:
        """Log a checkpoint as a version of the run's artifact; W&B takes a copy before this returns."""
        file = self.folder / "checkpoints" / f"{name}.safetensors"
        if name in self._checkpoints and file.exists():
            artifact = wandb.Artifact(f"checkpoint-{self._run.id}", "model", metadata={"step": step})
            artifact.add_file(str(file))
            logged = self._run.log_artifact(artifact, aliases=[name, f"step-{step}"])
            self._best_artifact = logged if name == "best" else self._best_artifact

    def _use_inputs(self, data: Mapping[str, str | None] | None) -> None:
        try:
            use_inputs(self._run, self._settings, data)
        except Exception as error:  # W&B raises those of several packages
            self._console.message(f"W&B: what the run uses could not be linked to it ({one_line(error)})", "warning")

    def _link(self) -> None:
        """Link the best checkpoint to the registry."""
        if self._registry and self._best_artifact is not None and not self._run.disabled:
            try:
                self._run.link_artifact(self._best_artifact, self._registry)
            except Exception as error:  # NotImplementedError offline; online those of several packages
                reason = "W&B links online runs only" if self._run.offline else one_line(error)
                self._console.message(f"W&B: the checkpoint isn't linked to {self._registry} ({reason})", "warning")

    def finish(self, exit_code: int = 0) -> None:
        """Mark the run finished, failed if `exit_code` isn't 0; gives up an upload that takes too long."""

        def work() -> None:
            if self._inputs:
                self._inputs.join()
            self._link()
            with suppress(Exception):  # the service may have been killed below
                self._run.finish(exit_code=exit_code)

        thread = threading.Thread(target=work, name="pfseg-wandb", daemon=True)
        thread.start()
        thread.join(FINISH_SECONDS)
        if thread.is_alive():
            for child in psutil.Process().children():  # Python's own exit would wait for it without end
                if child.name().startswith("wandb-core"):
                    child.kill()  # what it wrote to disk stays
            forget_service()
            self._console.message(f"W&B took too long to finish; upload the rest with: wandb sync {self._sync_dir}")


def _notes(run: RunContext, checkpoints: Sequence[str]) -> str:
    """What a run does not log, the settings that would log it, and where the run folder is."""
    missing = ["images of the data set", "output of the ranks (worker.log)"]
    if run.settings.get("job") == "train":
        if kept := [name for name in ("best", "last") if name not in checkpoints]:
            missing.insert(0, f"checkpoint {' and '.join(kept)} (logger.wandb.checkpoints)")
        if not (run.settings.get("trainer") or {}).get("log_grad_norm"):
            missing.insert(0, "gradient norms (trainer.log_grad_norm)")
    return f"Not logged here: {', '.join(missing)}. Run folder: {socket.gethostname()}:{run.folder}"


def _forked(run: RunContext, former: str) -> str | None:
    """Where a run that is resumed with other settings leaves the W&B run `former`; None with the same ones."""
    before = load_yaml(run.folder / "resolved.yaml")
    last = run.folder / "checkpoints" / "last.safetensors"
    if not isinstance(before, dict) or not last.exists():
        return None
    keys = {key for key in {*before, *run.settings} if before.get(key) != run.settings.get(key)}
    return f"{former}?_step={load_meta(last)['progress']['step']}" if keys - _ASIDE else None


def _start(run: RunContext, mode: str, options: dict[str, Any], fork: bool) -> wandb.Run:
    """Start a W&B run, online where that is possible."""
    chosen, reason = choose_mode(mode)
    file = run.folder / "wandb" / "run_id"  # kept in the folder, which may be moved, or resumed on another host
    former = file.read_text().strip() if file.exists() else None
    branch = _forked(run, former) if former and fork else None
    if former is None or branch:
        # The agent of a W&B sweep has chosen an id already, by which it finds the run.
        given = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") and not branch else None
        write_atomic(file, given or uuid.uuid4().hex[:12])
    if former is not None or "WANDB_NOTES" in os.environ:
        del options["notes"]  # the user's may be there
    start: Callable[..., wandb.Run] = partial(
        wandb.init,
        **options,
        dir=str(run.folder),
        config=dict(run.settings),
        id=file.read_text().strip(),
        fork_from=branch,
        resume=None if branch else "allow",
        name=f"{run.settings.get('name', 'pfseg')} {run.folder.name}",
        group=run.group,
        job_type=run.settings.get("job"),
        reinit="create_new",
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=INIT_SECONDS, x_transaction_log_flush_interval=1
        ),
    )
    if chosen == "online":
        try:
            started = start(mode="online")
            run.console.message(f"W&B: {started.url}")
            return started
        except wandb.errors.Error as error:
            forget_service()  # the failed start keeps the run's id in use
            chosen, reason = "offline", str(error).splitlines()[0]
    started = start(mode=chosen)
    if chosen == "offline":
        place = shown(started.settings.sync_dir)
        run.console.message(f"W&B offline ({reason}); upload it later with: wandb sync {place}")
    return started
