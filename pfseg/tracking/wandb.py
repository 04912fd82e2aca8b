"""A run in Weights & Biases, fed by the driver, so that a killed rank loses no row.

Offline where no API key is known or the server can't be reached; `metrics.jsonl` is complete without it.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from pfseg.errors import ConfigError
from pfseg.tracking.records import Sink, shown, write_atomic

INIT_SECONDS = 10.0
FINISH_SECONDS = 120.0
_MODES = ("auto", "online", "offline", "disabled")
_TABLE = ("IoU", "precision", "recall", "F1")


class WandbLogger(Sink):
    """Writes rows of the records file to one W&B run, the same one when a run folder is resumed.

    Args:
        folder: the run folder; W&B's files go to `wandb/` in it.
        config: the resolved configuration; `logger` holds `project`, `entity`, `tags` and `mode`: `offline`, `online`
            (a missing key is an error), or `auto` (offline without a key; the variable WANDB_MODE is heeded).
        console: told in one message where the run can be seen, or why it is offline.
        group: runs of one sweep share it.

    Raises:
        ConfigError: `logger.mode` is unknown, or `online` and no API key is known.
    """

    def __init__(self, folder: Path, config: dict[str, Any], console: Sink, *, group: str | None = None) -> None:
        """Start the run; takes at most some 12 s where the server can't be reached."""
        import wandb

        self.folder, self._wandb, self._console = folder, wandb, console
        mode = config["logger"]["mode"]
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", "auto")
        if mode not in _MODES:
            raise ConfigError(f"logger.mode={mode!r} is not one of {', '.join(_MODES)} (config: logger.mode)")
        settings = wandb.Settings(silent=True)
        wandb.setup(settings)  # before anything else of W&B, which would print
        reason = f"logger.mode={mode}"
        if mode in ("auto", "online") and not _has_key():
            if mode == "online":
                raise ConfigError(
                    "logger.mode=online needs a W&B key, none is known; run `wandb login`, set WANDB_API_KEY, "
                    "or use logger.mode=auto"
                )
            mode, reason = "offline", "no API key, see `wandb login`"
        arguments = {
            "dir": str(folder),
            "config": config,
            "id": _run_id(folder),
            "resume": "allow",
            "name": f"{config.get('name', 'pfseg')} {folder.name}",
            "project": config["logger"].get("project"),
            "entity": config["logger"].get("entity"),
            "tags": list(config["logger"].get("tags") or []),
            "group": group,
            "job_type": config.get("job"),
            "reinit": "create_new",
            "settings": wandb.Settings(
                silent=True, console="off", init_timeout=INIT_SECONDS, x_transaction_log_flush_interval=1
            ),
        }
        if mode in ("auto", "online"):
            try:
                self._run = wandb.init(mode="online", **arguments)
                console.message(f"W&B: {self._run.url}")
            except wandb.errors.Error as error:
                _end_service()  # the failed start keeps the run's id in use
                mode, reason = "offline", str(error).splitlines()[0]
        if mode in ("offline", "disabled"):
            self._run = wandb.init(mode=mode, **arguments)
        self._sync_dir = shown(self._run.settings.sync_dir)
        if mode == "offline":
            console.message(f"W&B offline ({reason}); upload it later with: wandb sync {self._sync_dir}")
        self._run.define_metric("epoch")
        self._run.define_metric("val/*", step_metric="epoch")
        self._run.define_metric("val/mIoU", step_metric="epoch", summary="max")

    def record(self, row: dict[str, Any]) -> None:
        """Log a training or validation row; the end's status goes into the summary."""
        event = row["event"]
        if event == "end":
            self._run.summary["status"] = row["status"]
        if event not in ("train", "val"):
            return
        shown = (f"{event}/", "data/")
        values = {key: value for key, value in row.items() if key.startswith(shown) and value is not None}
        values["epoch"] = row["epoch"] + 1
        if event == "val":
            values["val/classes"] = self._class_table(row)
            if row.get("panels"):
                values["val/samples"] = self._wandb.Image(str(self.folder / row["panels"]))
        self._run.log(values, step=row["step"])

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

    def _class_table(self, row: dict[str, Any]) -> Any:
        names = [key.removeprefix("val/IoU/") for key in row if key.startswith("val/IoU/")]
        data = [[name, *(row.get(f"val/{column}/{name}") for column in _TABLE)] for name in names]
        return self._wandb.Table(columns=["class", *_TABLE], data=data)


def _has_key() -> bool:
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


def _run_id(folder: Path) -> str:
    """Id of the folder's run, kept in the folder: it may be moved, or resumed on another host."""
    file = folder / "wandb" / "run_id"
    if not file.exists():
        write_atomic(file, uuid.uuid4().hex[:12])
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
