"""A run in Weights & Biases, fed by the driver, so that a killed rank loses no row.

Offline where no API key is known or the server can't be reached; `metrics.jsonl` is complete without it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import threading
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from pfseg.errors import ConfigError
from pfseg.files import shown, write_atomic
from pfseg.tracking.records import Sink, read_records
from pfseg.tracking.wandb_media import class_scores, confusion_chart, sample_pictures

PROBE_SECONDS = 5.0
INIT_SECONDS = 10.0
FINISH_SECONDS = 120.0
_MODES = ("auto", "online", "offline", "disabled")
_START = ("device", "ranks", "global_batch", "steps", "steps_per_epoch", "images_train", "images_val")


class WandbLogger(Sink):
    """Writes rows of the records file to one W&B run, the same one when a run folder is resumed.

    Args:
        folder: the run folder; W&B's files go to `wandb/` in it.
        config: the resolved configuration; `logger.wandb` holds `project`, `entity`, `tags`, `mode` (`offline`,
            `online`, or `auto`: offline without a key, and the variable WANDB_MODE is heeded), and `checkpoints`: those
            of `last` and `best` that become artifacts.
        console: told in one message where the run can be seen, or why it is offline.
        group: runs of one sweep share it.

    Raises:
        ConfigError: `logger.wandb.mode` is unknown, or `online` and no API key is known.
    """

    def __init__(self, folder: Path, config: dict[str, Any], console: Sink, *, group: str | None = None) -> None:
        """Start the run; where the server can't be reached it takes at most 20 s."""
        import wandb

        self.folder, self._wandb, self._console = folder, wandb, console
        self._edge = (config.get("dataset") or {}).get("edge")
        self._names: list[str] = []
        options = config["logger"]["wandb"]
        self._checkpoints = options["checkpoints"]
        wandb.setup(wandb.Settings(silent=True))  # before anything else of W&B, which would print
        mode, reason = _choose_mode(options["mode"])
        arguments = {
            "dir": str(folder),
            "config": config,
            "id": _run_id(folder),
            "resume": "allow",
            "name": f"{config.get('name', 'pfseg')} {folder.name}",
            "project": options["project"],
            "entity": options["entity"],
            "tags": options["tags"],
            "group": group,
            "job_type": config.get("job"),
            "reinit": "create_new",
            "settings": wandb.Settings(
                silent=True, console="off", init_timeout=INIT_SECONDS, x_transaction_log_flush_interval=1
            ),
        }
        if mode == "online":
            try:
                self._run = wandb.init(mode="online", **arguments)
                console.message(f"W&B: {self._run.url}")
            except wandb.errors.Error as error:
                _end_service()  # the failed start keeps the run's id in use
                mode, reason = "offline", str(error).splitlines()[0]
        if mode != "online":
            self._run = wandb.init(mode="offline" if mode == "offline" else "disabled", **arguments)
        self._sync_dir = shown(self._run.settings.sync_dir)
        if mode == "offline":
            console.message(f"W&B offline ({reason}); upload it later with: wandb sync {self._sync_dir}")
        self._run.define_metric("epoch")
        self._run.define_metric("val/*", step_metric="epoch")
        self._run.define_metric("val/mIoU", step_metric="epoch", summary="max")
        earlier = [row.get("val/mIoU") for row in read_records(folder / "metrics.jsonl")]
        self._best = max((value for value in earlier if value is not None), default=None)

    def record(self, row: dict[str, Any]) -> None:
        """Log a training or validation row; the end's status goes into the summary."""
        handler = getattr(self, f"_on_{row['event']}", None)
        if handler is not None:
            handler(row)

    def _on_start(self, row: dict[str, Any]) -> None:
        self._names = row.get("classes") or []
        environment = self.folder / "environment.json"
        found = json.loads(environment.read_text(encoding="utf-8")) if environment.exists() else {}
        found |= {key: row[key] for key in _START if key in row}
        self._run.config.update({"environment": found}, allow_val_change=True)

    def _on_train(self, row: dict[str, Any]) -> None:
        self._run.log(_numbers(row, "train/", "data/"), step=row["step"])

    def _on_val(self, row: dict[str, Any]) -> None:
        values = _numbers(row, "val/") | class_scores(row)
        if (miou := row.get("val/mIoU")) is not None:
            self._best = miou if self._best is None else max(miou, self._best)
            values["best/mIoU"] = self._best  # W&B sweeps optimise a value of its own, not a summary such as max
        if row.get("panels"):
            values["val/samples"] = self._wandb.Image(str(self.folder / row["panels"]))
        values |= sample_pictures(self.folder, row.get("samples") or [], self._names, self._edge)
        self._run.log(values, step=row["step"])
        if row.get("best"):
            self._upload("best", row["step"])

    def _on_confusion(self, row: dict[str, Any]) -> None:
        self._run.log(confusion_chart(row["confusion"], self._names), step=row["step"])

    def _on_end(self, row: dict[str, Any]) -> None:
        self._run.summary["status"] = row["status"]
        self._upload("last", row["step"])

    def _upload(self, name: str, step: int) -> None:
        """Log a checkpoint as a version of the run's artifact; W&B takes a copy before this returns."""
        file = self.folder / "checkpoints" / f"{name}.safetensors"
        if name in self._checkpoints and file.exists():
            artifact = self._wandb.Artifact(f"checkpoint-{self._run.id}", "model", metadata={"step": step})
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
            _kill_service()  # Python's own exit would wait for it without end
            _end_service()
            self._console.message(f"W&B took too long to finish; upload the rest with: wandb sync {self._sync_dir}")


def _numbers(row: dict[str, Any], *prefixes: str) -> dict[str, Any]:
    """The values of a row that are to be logged; `epoch` counts from 1."""
    values = {key: value for key, value in row.items() if key.startswith(prefixes) and value is not None}
    return values | {"epoch": row["epoch"] + 1}


def _choose_mode(mode: str) -> tuple[str, str]:
    """The mode that is possible here, online, offline or disabled, and the reason for being offline."""
    import wandb

    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "auto")
    if mode not in _MODES:
        raise ConfigError(f"logger.wandb.mode={mode!r} is not one of {', '.join(_MODES)}")
    if mode in ("offline", "disabled"):
        return mode, f"logger.wandb.mode={mode}"
    if has_key():
        fault = unreachable(wandb.setup().settings.base_url)
        return ("offline", fault) if fault else ("online", "")
    if mode == "online":
        raise ConfigError(
            "logger.wandb.mode=online needs a W&B key, none is known; run `wandb login`, set WANDB_API_KEY, "
            "or use logger.wandb.mode=auto"
        )
    return "offline", "no API key, see `wandb login`"


def has_key() -> bool:
    """Whether an API key is known for the W&B server."""
    import netrc

    import wandb

    if wandb.setup().settings.api_key or os.environ.get("WANDB_API_KEY"):
        return True
    host = wandb.setup().settings.base_url.split("://")[-1].split("/")[0]
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def unreachable(url: str) -> str:
    """Say why a server gives no answer at all within a few seconds; empty where it gives one, be it an error.

    W&B's own start would try for much longer, and leave its service unusable.
    """
    fault = f"no answer from {url} in {PROBE_SECONDS:.0f} s"
    answers: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
            answers.append("")
        except (urllib.error.HTTPError, http.client.HTTPException):
            answers.append("")
        except TimeoutError:
            answers.append(fault)
        except OSError as error:
            reason = getattr(error, "reason", error)
            # A certificate that only W&B's own settings accept is still an answer.
            answers.append("" if isinstance(reason, ssl.SSLError) else f"{url} can't be reached: {reason}")

    thread = threading.Thread(target=ask, name="pfseg-wandb-probe", daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)  # looking up a name has no time limit of its own
    return answers[0] if answers else fault


def _run_id(folder: Path) -> str:
    """Id of the folder's run, kept in the folder: it may be moved, or resumed on another host.

    The agent of a W&B sweep has chosen one already, by which it finds the run.
    """
    file = folder / "wandb" / "run_id"
    if not file.exists():
        chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        write_atomic(file, chosen or uuid.uuid4().hex[:12])
    return file.read_text().strip()


def _end_service() -> None:
    """Forget W&B's own process, so that the next run starts a new one."""
    import wandb

    with suppress(Exception, SystemExit):  # it exits this process when the other one didn't end well
        wandb.teardown()


def _kill_service() -> None:
    """Kill W&B's own process, a child of this one; what it wrote to disk stays."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if name.startswith("wandb-core") and int(rest.split()[1]) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)
