"""A run in Weights & Biases, fed by the driver, so that a killed rank loses no row.

Offline where no API key is known or the server can't be reached; `metrics.jsonl` is complete without it.
"""

from __future__ import annotations

import http.client
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import wandb

from pfseg.data.base import IGNORE
from pfseg.errors import ConfigError
from pfseg.files import load_json, shown, write_atomic
from pfseg.tracking.loggers import RunContext
from pfseg.tracking.records import (
    ConfusionRow,
    EndRow,
    MapFiles,
    Row,
    Sink,
    StartRow,
    ValRow,
    boundary_scores,
    class_names,
    figures,
    numbers,
    read_records,
)
from pfseg.tracking.samples import boundary_picture, edge_picture, read_maps

INIT_SECONDS = 10.0
FINISH_SECONDS = 120.0
PROBE_SECONDS = 5.0
_MATRIX = ("Actual", "Predicted", "nPredictions")
CONFUSION = ("wandb/confusion_matrix/v1", {name: name for name in _MATRIX}, "Confusion, pixels")  # chart, fields, title
_MODES = ("auto", "online", "offline", "disabled")
_WANDB_MODES = {"": "auto", "dryrun": "offline", "run": "online", "shared": "online"}  # further ones that W&B knows
_START = ("device", "ranks", "global_batch", "steps", "steps_per_epoch", "images_train", "images_val")


class WandbLogger(Sink):
    """Writes rows of the records file to one W&B run, the same one when a run folder is resumed.

    Says once where the run can be seen, or why it is offline. Where the server can't be reached, the start takes at
    most 20 s. The settings are those of `logger.wandb`, `options` its project, entity and tags; `mode=auto` heeds the
    variable WANDB_MODE.

    Raises:
        ConfigError: an unknown mode, or `online` without an API key.
    """

    def __init__(self, run: RunContext, *, mode: str, checkpoints: Sequence[str], **options: Any) -> None:
        self.folder, self._console, self._checkpoints = run.folder, run.console, checkpoints
        self._edge = (run.settings.get("dataset") or {}).get("edge")
        self._names: list[str] = []
        wandb.setup(wandb.Settings(silent=True))  # before anything else of W&B, which would print
        self._run = _start(run, mode, options)
        self._sync_dir = shown(self._run.settings.sync_dir)
        self._run.define_metric("epoch")
        self._run.define_metric("val/*", step_metric="epoch")
        self._run.define_metric("val/mIoU", step_metric="epoch", summary="max")
        earlier = [figures(row, "val/").get("mIoU") for row in read_records(run.folder / "metrics.jsonl")]
        self._best = max((value for value in earlier if value is not None), default=0.0)

    def on_start(self, row: StartRow) -> None:
        """Add the machine, code and data to the settings."""
        self._names = row.get("classes") or []
        environment = load_json(self.folder / "environment.json") or {}
        environment |= {key: value for key, value in row.items() if key in _START}
        self._run.config.update({"environment": environment}, allow_val_change=True)

    def on_train(self, row: Row) -> None:
        """Log losses, speed and memory; `epoch` counts from 1."""
        self._run.log(numbers(row, "train/", "data/") | {"epoch": row["epoch"] + 1}, step=row["step"])

    def on_val(self, row: ValRow) -> None:
        """Log scores, their tables and the pictures of the samples."""
        scores = figures(row, "val/")
        values: dict[str, object] = numbers(row, "val/") | {"epoch": row["epoch"] + 1} | _class_scores(scores)
        if (miou := scores.get("mIoU")) is not None:
            self._best = max(miou, self._best)
            values["best/mIoU"] = self._best  # W&B sweeps optimise a value of its own, not a summary such as max
        if panels := row.get("panels"):
            values["val/samples"] = wandb.Image(str(self.folder / panels))
        values |= sample_pictures(self.folder, row.get("samples") or [], self._names, self._edge)
        self._run.log(values, step=row["step"])
        if row.get("best"):
            self._upload("best", row["step"])

    def on_confusion(self, row: ConfusionRow) -> None:
        """Log W&B's chart of the confusion matrix."""
        rows = zip(self._names, row["confusion"], strict=False)
        data = [[truth, *pair] for truth, counts in rows for pair in zip(self._names, counts, strict=False)]
        chart, fields, title = CONFUSION
        table = wandb.Table(columns=list(fields), data=data)
        self._run.log({"val/confusion": wandb.plot_table(chart, table, fields, {"title": title})}, step=row["step"])

    def on_end(self, row: EndRow) -> None:
        """Put the status into the summary."""
        self._run.summary["status"] = row["status"]
        self._upload("last", row["step"])

    def _upload(self, name: str, step: int) -> None:
        """Log a checkpoint as a version of the run's artifact; W&B takes a copy before this returns."""
        file = self.folder / "checkpoints" / f"{name}.safetensors"
        if name in self._checkpoints and file.exists():
            artifact = wandb.Artifact(f"checkpoint-{self._run.id}", "model", metadata={"step": step})
            artifact.add_file(str(file))
            self._run.log_artifact(artifact, aliases=[name, f"step-{step}"])

    def finish(self, exit_code: int = 0) -> None:
        """Mark the run finished, failed if `exit_code` isn't 0; gives up an upload that takes too long."""

        def work() -> None:
            with suppress(Exception):  # the service may have been killed below
                self._run.finish(exit_code=exit_code)

        thread = threading.Thread(target=work, name="pfseg-wandb", daemon=True)
        thread.start()
        thread.join(FINISH_SECONDS)
        if thread.is_alive():
            for child in psutil.Process().children():  # Python's own exit would wait for it without end
                if child.name().startswith("wandb-core"):
                    child.kill()  # what it wrote to disk stays
            _forget_service()
            self._console.message(f"W&B took too long to finish; upload the rest with: wandb sync {self._sync_dir}")


def sample_pictures(
    folder: Path, rows: Sequence[MapFiles], names: Sequence[str], edge: Mapping[str, Any] | None
) -> dict[str, list[wandb.Image]]:
    """Pictures of the validation samples `rows` in a run folder.

    `val/masks` are images under truth and prediction, with the class `names`; others are `val/boundaries` and, where
    the network finds edges and `edge` gives `rule` and `thickness` of their labels, `val/edges`.
    """
    labels = {**dict(enumerate(names)), IGNORE: "ignored"}
    pictures: defaultdict[str, list[wandb.Image]] = defaultdict(list)
    for sample in read_maps(folder, rows):
        maps = {"ground_truth": sample.mask, "prediction": sample.pred}
        masks = {key: {"mask_data": data, "class_labels": labels} for key, data in maps.items()}
        pictures["val/masks"].append(wandb.Image(sample.image, masks=masks, caption=sample.name, file_type="jpg"))
        caption = f"{sample.name}: green found, orange missed, blue wrong"
        pictures["val/boundaries"].append(wandb.Image(boundary_picture(sample), caption=caption))
        if edge and sample.edge is not None:
            picture = edge_picture(sample, edge["rule"], edge["thickness"])
            caption = f"{sample.name}: prediction | label"
            pictures["val/edges"].append(wandb.Image(picture, caption=caption, file_type="jpg"))
    return dict(pictures)


def _class_scores(scores: Mapping[str, float | None]) -> dict[str, object]:
    """The table of scores by class, boundary scores included where they were measured, and bars of the IoU."""
    names = class_names(scores)
    columns = ["IoU", "precision", "recall", "F1", *boundary_scores(scores)]
    data = [[name, *(scores.get(f"{column}/{name}") for column in columns)] for name in names]
    bars = wandb.Table(columns=["class", "IoU"], data=[[name, scores.get(f"IoU/{name}") or 0.0] for name in names])
    return {
        "val/classes": wandb.Table(columns=["class", *columns], data=data),
        "val/IoU_bars": wandb.plot.bar(bars, "class", "IoU", title="IoU by class, %"),
    }


def _start(run: RunContext, mode: str, options: Mapping[str, Any]) -> wandb.Run:
    """Start a W&B run, online where that is possible."""
    chosen, reason = choose_mode(mode)
    file = run.folder / "wandb" / "run_id"  # kept in the folder, which may be moved, or resumed on another host
    if not file.exists():  # the agent of a W&B sweep has chosen one already, by which it finds the run
        given = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        write_atomic(file, given or uuid.uuid4().hex[:12])
    start: Callable[..., wandb.Run] = partial(
        wandb.init,
        **options,
        dir=str(run.folder),
        config=dict(run.settings),
        id=file.read_text().strip(),
        resume="allow",
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
            _forget_service()  # the failed start keeps the run's id in use
            chosen, reason = "offline", str(error).splitlines()[0]
    started = start(mode=chosen)
    if chosen == "offline":
        place = shown(started.settings.sync_dir)
        run.console.message(f"W&B offline ({reason}); upload it later with: wandb sync {place}")
    return started


def _forget_service() -> None:
    """Forget W&B's own process, so that the next run starts a new one."""
    with suppress(Exception, SystemExit):  # it exits this process when the other one didn't end well
        wandb.teardown()


def choose_mode(mode: str) -> tuple[str, str]:
    """The mode that is possible here (online, offline or disabled), and the reason for being offline.

    Raises:
        ConfigError: an unknown mode, or `online` without an API key.
    """
    if mode == "auto":
        given = os.environ.get("WANDB_MODE", "").strip().lower()
        mode = _WANDB_MODES.get(given, given)
        if mode not in _MODES:
            known = ", ".join([*_MODES, *filter(None, _WANDB_MODES)])
            raise ConfigError(
                f"WANDB_MODE={given} (of the environment) is not one of {known}; unset it or use one of them"
            )
    if mode not in _MODES:
        raise ConfigError(f"logger.wandb.mode={mode!r} is not one of {', '.join(_MODES)}")
    if mode in ("disabled", "offline"):
        return mode, "logger.wandb.mode=offline"
    if has_key():
        fault = unreachable(server())
        return ("offline", fault) if fault else ("online", "")
    if mode == "online":
        raise ConfigError(
            "logger.wandb.mode=online needs a W&B key, none is known; run `wandb login`, set WANDB_API_KEY, "
            "or use logger.wandb.mode=auto"
        )
    return "offline", "no API key, see `wandb login`"


def server() -> str:
    """The address of the W&B server."""
    return str(wandb.setup().settings.base_url)


def has_key() -> bool:
    """Whether an API key is known for the W&B server."""
    if wandb.setup().settings.api_key or os.environ.get("WANDB_API_KEY"):
        return True
    host = server().split("://")[-1].split("/")[0]
    try:
        file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: there is no home
        return False


def unreachable(url: str) -> str:
    """Say why a server gives no answer at all within a few seconds; empty where it gives one, be it an error."""
    # W&B's own start would try for much longer, and leave its service unusable.
    fault = f"no answer from {url} in {PROBE_SECONDS:.0f} s"

    def ask() -> None:
        nonlocal fault
        try:
            with suppress(urllib.error.HTTPError, http.client.HTTPException):
                urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
            fault = ""
        except TimeoutError:
            pass
        except OSError as error:
            reason = getattr(error, "reason", error)
            # A certificate that only W&B's own settings accept is still an answer.
            fault = "" if isinstance(reason, ssl.SSLError) else f"{url} can't be reached: {reason}"

    thread = threading.Thread(target=ask, name="pfseg-wandb-probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)  # looking up a name has no time limit of its own
    return fault
