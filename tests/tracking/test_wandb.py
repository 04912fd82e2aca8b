"""W&B offline runs, read back from their files."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import wandb
import yaml
from logged import wandb_history, wandb_records, wandb_rows
from wandb_server import wandb_server

from pfseg.errors import ConfigError
from pfseg.files import write_atomic
from pfseg.tracking.loggers import RunContext, make_loggers
from pfseg.tracking.records import Sink
from pfseg.tracking.samples import save_maps
from pfseg.tracking.wandb import WandbLogger
from pfseg.tracking.wandb_access import choose_mode, has_key
from pfseg.weights.checkpoint import save_checkpoint


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key is known, whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def config(mode: str = "auto") -> dict[str, Any]:
    wandb = {"project": "pfseg", "entity": None, "mode": mode, "tags": ["test"], "checkpoints": ["last", "best"]}
    wandb |= {"registry": None, "alerts": ["failed", "early_stop"], "fork": False}
    edge = {"rule": "class", "thickness": 4}
    return {
        "name": "tiny", "job": "train", "optimizer": {"lr": 0.1}, "dataset": {"edge": edge}, "logger": {"wandb": wandb},
    }  # fmt: skip


class Said(Sink):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.texts.append(text)


def logger_of(folder: Path, settings: dict[str, Any], console: Sink, group: str | None = None) -> WandbLogger:
    (logger,) = make_loggers(RunContext(folder, settings, console, group))
    assert isinstance(logger, WandbLogger)
    return logger


def train_row(step: int) -> dict[str, Any]:
    return {"event": "train", "step": step, "epoch": 0, "time": 1.0, "train/loss": 1.0 / step, "train/lr": None}


def write_maps(folder: Path, step: int) -> list[dict[str, str]]:
    image, mask = np.full((24, 32, 3), 90, np.uint8), np.zeros((24, 32), np.uint8)
    mask[:12], mask[:, :4] = 1, 255
    return save_maps(folder, step, [(image, mask, np.zeros_like(mask), "tile")], [np.full((16, 16), 200, np.uint8)])


def test_an_offline_run_holds_all_rows_media_and_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    console = Said()
    (tmp_path / "samples").mkdir()
    cv2.imwrite(str(tmp_path / "samples" / "step_000002.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "environment.json").write_text('{"git": {"revision": "abc123", "dirty": false}}')
    for name in ("last", "best"):
        write_atomic(tmp_path / "checkpoints" / f"{name}.safetensors", name)
    logger = logger_of(tmp_path, config(), console, group="sweep")
    logger.record({"event": "start", "step": 0, "epoch": 0, "ranks": 2, "classes": ["road", "roof"]})
    for step in (1, 2):
        logger.record(train_row(step))
    scores = {"val/mIoU": 50.0, "val/IoU/road": 40.0, "val/IoU/roof": None, "val/F1/road": 57.0}
    scores |= {"val/boundary_IoU": 9.0, "val/boundary_IoU/road": 12.5, "val/boundary_IoU/roof": None}
    pictures = {"panels": "samples/step_000002.png", "samples": write_maps(tmp_path, 2)}
    logger.record({"event": "val", "step": 2, "epoch": 0, "best": True, **pictures, **scores})
    logger.record({"event": "confusion", "step": 2, "epoch": 0, "confusion": [[5, 1], [2, 7]]})
    logger.record({"event": "val", "step": 3, "epoch": 1, "best": False, "val/mIoU": 45.0})
    logger.record({"event": "end", "step": 3, "epoch": 1, "status": "stopped"})
    logger.finish(exit_code=7)
    (text,) = console.texts
    assert text.startswith("W&B offline (no API key, see `wandb login`); upload it later with: wandb sync ")
    (records,) = wandb_records(tmp_path)
    first, second, third = wandb_history(records)
    assert (first["_step"], first["epoch"], first["train/loss"]) == (1, 1, 1.0) and "train/lr" not in first
    assert (second["_step"], second["train/loss"], second["val/mIoU"], second["val/IoU/road"]) == (2, 0.5, 50, 40)
    assert "val/IoU/roof" not in second
    assert (third["val/mIoU"], third["best/mIoU"]) == (45, 50)

    files = next((tmp_path / "wandb").glob("offline-run-*")) / "files"
    table = json.loads((files / second["val/classes.path"]).read_text())
    assert table["columns"] == ["class", "IoU", "precision", "recall", "F1", "boundary_IoU"]
    assert table["data"] == [["road", 40, None, None, 57, 12.5], ["roof", None, None, None, None, None]]
    bars = json.loads((files / second["val/IoU_bars_table.path"]).read_text())
    assert bars["data"] == [["road", 40], ["roof", 0]]
    confusion = json.loads((files / second["val/confusion_table.path"]).read_text())
    assert confusion["data"] == [["road", "road", 5], ["road", "roof", 1], ["roof", "road", 2], ["roof", "roof", 7]]
    assert (files / second["val/samples.path"]).exists()
    ((name, miou, accuracy, picture),) = wandb_rows(records, "valpredictions")
    # Predicted as road everywhere: right in 12 of 24 rows, without the ignored columns.
    assert (name, miou, accuracy, picture["_type"]) == ("tile", 25, 50, "image-file")
    assert set(picture["masks"]) == {"ground_truth", "prediction"}
    media = files / "media" / "images"
    assert [len(list((media / "val").glob(f"{name}_2_*"))) for name in ("masks", "boundaries", "edges")] == [1, 1, 1]
    masks = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (media / "mask" / "val").glob("masks_2_*")]
    assert sorted(np.unique(mask).tolist() for mask in masks) == [[0], [0, 1, 255]]

    updates = [record["summary"]["update"] for record in records if record["type"] == "summary"]
    assert {"max": 50} in [update.get("val/mIoU") for update in updates]
    assert "stopped" in [update.get("status") for update in updates]
    run = next(record["run"] for record in records if record["type"] == "run")
    assert run["notes"].startswith("Not logged here: gradient norms (trainer.log_grad_norm), images of the data set, ")
    assert (run["project"], run["job_type"], run["run_group"], run["tags"]) == ("pfseg", "train", "sweep", ["test"])
    assert run["config"]["update"]["optimizer"] == {"lr": 0.1}
    settings = [record["config"]["update"] for record in records if record["type"] == "config"]
    assert {"git": {"revision": "abc123", "dirty": False}, "ranks": 2} in [row.get("environment") for row in settings]
    assert next(record["exit"] for record in records if record["type"] == "exit")["exit_code"] == 7
    uploads = [record["artifact"] for record in records if record["type"] == "artifact"]
    aliases = [set(upload["aliases"]) - {"latest"} for upload in uploads if upload["type"] == "model"]
    assert aliases == [{"best", "step-2"}, {"last", "step-3"}]


def test_an_evaluation_lists_every_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are neither the worst nor the best have no picture."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "images.csv").write_text("image,mIoU,OA\nother,70.5,80.25\ntile,25.0,50.0\nunlabelled,,\n")
    logger = logger_of(tmp_path, config(), Said())
    logger.record({"event": "start", "step": 9, "epoch": 0, "classes": ["road", "roof"]})
    logger.record({"event": "val", "step": 9, "epoch": 0, "samples": write_maps(tmp_path, 9), "val/mIoU": 25.0})
    logger.finish()
    data = wandb_rows(wandb_records(tmp_path)[0], "valpredictions")
    assert [line[:3] for line in data] == [["other", 70.5, 80.25], ["tile", 25, 50], ["unlabelled", None, None]]
    assert [bool(line[3]) for line in data] == [False, True, False]


@pytest.mark.parametrize(
    ("end", "alerts", "expected"),
    [
        ("failed", ["failed"], ("tiny run: failed", "rank 1 was killed", "ERROR")),
        (
            "early_stop",
            ["early_stop"],
            ("tiny run: early stop", "stopped early at step 3: no better mIoU", "INFO"),
        ),
        ("done", ["finished"], ("tiny run: finished", "finished at step 3, best mIoU 40.00", "INFO")),
        ("done", ["failed", "early_stop"], None),
        ("stopped", ["failed", "early_stop", "finished"], None),
    ],
)
def test_alerts(tmp_path: Path, end: str, alerts: list[str], expected: tuple[str, ...] | None) -> None:
    settings = config()
    settings["logger"]["wandb"] |= {"alerts": alerts, "checkpoints": []}
    logger = logger_of(tmp_path / "run", settings, Said())
    logger.record({"event": "val", "step": 3, "epoch": 0, "val/mIoU": 40.0})
    if end == "failed":
        logger.failed("rank 1 was killed")
    else:
        logger.record({"event": "end", "step": 3, "epoch": 0, "status": end})
    logger.finish()
    sent = [record["alert"] for record in wandb_records(tmp_path / "run")[0] if record["type"] == "alert"]
    assert len(sent) == (expected is not None)
    for alert, (title, text, level) in zip(sent, [expected] if expected else [], strict=True):
        assert (alert["title"], alert["level"]) == (title, level) and alert["text"].startswith(text)


def test_a_run_that_goes_on_with_other_settings_is_a_fork_if_wanted(tmp_path: Path) -> None:
    progress = {"progress": {"step": 7}, "config": {}}
    save_checkpoint(tmp_path / "checkpoints" / "last.safetensors", {"w": np.zeros(1, np.float32)}, progress)
    for lr, fork in ((0.1, True), (0.1, True), (0.2, False), (0.3, True)):
        settings = config() | {"optimizer": {"lr": lr}, "resume": str(lr)}
        settings["logger"]["wandb"] |= {"fork": fork, "checkpoints": []}
        logger_of(tmp_path, settings, Said()).finish()
        (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(settings))
        time.sleep(1)  # W&B's folder names have seconds
    runs = [next(record["run"] for record in records if record["type"] == "run") for records in wandb_records(tmp_path)]
    branches = [run.get("branch_point") for run in runs]
    first, last = runs[0]["run_id"], runs[-1]["run_id"]
    assert branches == [None, None, None, {"metric": "_step", "run": first, "value": 7}]
    assert [run["run_id"] for run in runs] == [first, first, first, last] and last != first
    assert (tmp_path / "wandb" / "run_id").read_text() == last


def test_a_registry_needs_a_checkpoint_to_link(tmp_path: Path) -> None:
    settings = config()
    settings["logger"]["wandb"] |= {"registry": "wandb-registry-model/roofs", "checkpoints": ["last"]}
    with pytest.raises(
        ConfigError, match=r"^logger\.wandb\.registry=wandb-registry-model/roofs links the best .*checkpoints=\[best\]$"
    ):
        logger_of(tmp_path, settings, Said())


ONLINE = """
    import sys
    from pathlib import Path
    from pfseg.tracking import wandb
    from pfseg.tracking.loggers import RunContext
    from pfseg.tracking.records import Sink
    class Said(Sink):
        def message(self, text, level="info"):
            print(f"{level}: {text}", flush=True)
    options = {"project": "maps", "entity": "team", "mode": "online", "tags": [], "checkpoints": ["best"]}
    options |= {"registry": "team/maps/roofs", "alerts": ["failed"], "fork": False}
    folder, init = map(Path, sys.argv[1:])
    log = wandb.WandbLogger(RunContext(folder, {"name": "tiny", "model": {"init": str(init)}}, Said()), **options)
    log.record({"event": "start", "step": 0, "epoch": 0, "classes": ["road", "roof"]})
    log.record({"event": "val", "step": 2, "epoch": 0, "best": True, "val/mIoU": 4.0})
    log.failed("the loss is not finite at step 3")
    log.finish(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("uploaded", [True, False])
def test_an_online_run_names_what_it_uses_and_links_what_it_makes(tmp_path: Path, uploaded: bool) -> None:
    """What offline runs leave out: the index of the data, the starting checkpoint and the registry."""
    data, run, cache = tmp_path / "my data", tmp_path / "run", tmp_path / "cache"
    write_atomic(data / "index.json", "{}")
    write_atomic(run / "environment.json", json.dumps({"data": {"root": str(data), "index": "abc"}}))
    write_atomic(run / "checkpoints" / "best.safetensors", "weights")
    init = cache / "wandb/team/maps/checkpoint-x/v3/best.safetensors" if uploaded else tmp_path / "init.safetensors"
    write_atomic(init, "weights")
    with wandb_server() as server:
        place = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.address, "PFSEG_CACHE": str(cache)}
        command = [sys.executable, "-c", textwrap.dedent(ONLINE), str(run), str(init)]
        done = subprocess.run(
            command, env=os.environ | place, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2]
        )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1, done.stdout + done.stderr
    assert done.stdout.startswith(f"info: W&B: {server.address}/team/maps/runs/")
    used = [use["artifactID"] for use in server.asked("UseArtifact")]
    assert sorted(used) == sorted(["data-my-data", "checkpoint-x" if uploaded else "weights-init"])
    made = {new["artifactCollectionName"]: new for new in server.asked("CreateArtifact")}
    assert json.loads(made["data-my-data"]["metadata"])["index"] == "abc"
    (best,) = (name for name in made if name.startswith("checkpoint-"))
    assert {alias["alias"] for alias in made[best]["aliases"]} == {"latest", "best", "step-2"}
    assert [(link["artifactID"], link["artifactPortfolioName"]) for link in server.asked("LinkArtifact")] == [
        (best, "roofs")
    ]
    (alert,) = server.asked("NotifyScriptableRunAlert")
    assert (alert["title"], alert["text"]) == ("tiny run: failed", "the loss is not finite at step 3")


def test_a_resumed_folder_keeps_its_run(tmp_path: Path) -> None:
    for step in (1, 2):
        logger = logger_of(tmp_path, config(), Said())
        logger.record(train_row(step))
        logger.finish()
        time.sleep(1)  # W&B's folder names have seconds
    runs = [next(record["run"] for record in records if record["type"] == "run") for records in wandb_records(tmp_path)]
    assert len(runs) == 2 and runs[0]["run_id"] == runs[1]["run_id"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("silent", "reason"), [(False, "can't be reached: .*refused"), (True, "no answer from .* in 5 s")]
)
def test_no_route_ends_offline(silent: bool, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = socket.create_server(("127.0.0.1", 0))  # takes connections, but never answers
    port = server.getsockname()[1]
    if not silent:
        server.close()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    script = """
        import sys
        from pathlib import Path
        from pfseg.tracking import wandb
        from pfseg.tracking.loggers import RunContext
        from pfseg.tracking.records import Sink
        class Said(Sink):
            def message(self, text, level="info"):
                print(text, flush=True)
        options = {"project": "p", "entity": None, "mode": "online", "tags": [], "checkpoints": []}
        options |= {"registry": None, "alerts": [], "fork": False}
        log = wandb.WandbLogger(RunContext(Path(sys.argv[1]), {"name": "tiny"}, Said()), **options)
        log.record({"event": "train", "step": 1, "epoch": 0, "train/loss": 1.0})
        log.finish(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    server.close()
    (said,) = done.stdout.splitlines()
    assert re.search(rf"W&B offline \(.*{reason}\); upload it later with: wandb sync ", said)
    assert len(wandb_history(wandb_records(tmp_path)[0])) == 1


def test_a_stuck_service_does_not_hold_the_end(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from pfseg.tracking import wandb
        from pfseg.tracking.loggers import RunContext
        from pfseg.tracking.records import Sink
        class Said(Sink):
            def message(self, text, level="info"):
                print(text, flush=True)
        wandb.FINISH_SECONDS = 1.0
        options = {"project": "p", "entity": None, "mode": "offline", "tags": [], "checkpoints": []}
        options |= {"registry": None, "alerts": [], "fork": False}
        log = wandb.WandbLogger(RunContext(Path(sys.argv[1]), {"name": "tiny"}, Said()), **options)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            name, parent = stat.read_text().rpartition(")")[::2]
            if int(parent.split()[1]) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGSTOP)
        log.finish(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "W&B took too long to finish; upload the rest with: wandb sync" in done.stdout


@pytest.mark.slow
def test_a_killed_driver_leaves_its_rows(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from pfseg.tracking import wandb
        from pfseg.tracking.loggers import RunContext
        from pfseg.tracking.records import Sink
        class Said(Sink):
            def message(self, text, level="info"):
                print(text, flush=True)
        options = {"project": "p", "entity": None, "mode": "offline", "tags": [], "checkpoints": []}
        options |= {"registry": None, "alerts": [], "fork": False}
        log = wandb.WandbLogger(RunContext(Path(sys.argv[1]), {"name": "tiny"}, Said()), **options)
        log.record({"event": "train", "step": 1, "epoch": 0, "train/loss": 1.0})
        log.record({"event": "train", "step": 2, "epoch": 0, "train/loss": 1.0})
        time.sleep(2)
        print("now", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("W&B offline")
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    time.sleep(1)
    assert len(wandb_history(wandb_records(tmp_path)[0])) >= 1


def test_online_without_a_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^logger\.wandb\.mode=online needs a W&B key, none is known; run `wandb login`"
    ):
        logger_of(tmp_path, config("online"), Said())


def test_a_key_is_found_in_netrc(tmp_path: Path) -> None:
    host = wandb.setup().settings.base_url.removeprefix("https://")
    assert not has_key()
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'0' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert has_key()


@pytest.mark.parametrize(
    ("given", "mode"), [("dryrun", "offline"), ("shared", ""), ("", "offline"), ("disabled", "disabled")]
)
def test_modes_of_the_environment(given: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that W&B itself takes; without a key a run stays offline, unless online is asked for."""
    monkeypatch.setenv("WANDB_MODE", given)
    if given == "shared":
        with pytest.raises(ConfigError, match="needs a W&B key"):
            choose_mode("auto")
    else:
        assert choose_mode("auto") == (mode, f"WANDB_MODE={given}" if given else "no API key, see `wandb login`")
    assert choose_mode("offline") == ("offline", "logger.wandb.mode=offline")
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(
        ConfigError, match=r"WANDB_MODE=sometimes .* is not one of auto, online, offline, disabled, dry"
    ):
        choose_mode("auto")
