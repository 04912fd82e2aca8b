from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged import wandb_history, wandb_records
from run_folders import NAMES, make_run
from runs import command

from pfseg.reporting.runs import Run, read_runs
from pfseg.reporting.workspace import build_workspace, logged_names
from pfseg.tracking.loggers import RunContext
from pfseg.tracking.records import RecordWriter, Sink, read_records
from pfseg.tracking.samples import save_maps
from pfseg.tracking.wandb import WandbLogger


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key is known, whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def logged_run(folder: Path, **settings: Any) -> Path:
    make_run(folder, steps=4, val_every=2, **settings)
    (folder / "wandb").mkdir()
    return folder


def asked(spec: Any) -> set[str]:
    """Every metric, medium, table and setting that a stored workspace names."""
    if isinstance(spec, list):
        return set().union(*map(asked, spec))
    if not isinstance(spec, dict):
        return set()
    found = set().union(*map(asked, spec.values()))
    found |= set(spec.get("metrics", [])) | set(spec.get("mediaKeys", []))
    found |= {spec[key] for key in ("accessor", "targetKey") if key in spec}
    return found | ({spec["value"]} if spec.get("name") == "tableKey" else set())


def written(folder: Path, *options: str) -> Any:
    file = folder / "workspace.json"
    assert command("dashboard", str(folder), f"json={file}", *options) == 0
    return json.loads(file.read_text())


@pytest.mark.slow
def test_no_panel_asks_for_what_a_wandb_run_lacks(tmp_path: Path):
    run = make_run(tmp_path / "run", steps=4, val_every=2)
    plane = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    samples = save_maps(run, 5, [(np.dstack([plane] * 3), plane, plane, "a")], [plane])
    writer = RecordWriter(run / "metrics.jsonl")
    writer.write("val", step=5, epoch=2, samples=samples, **{"val/mIoU": 1.0, "val/boundary_IoU": 2.0})
    settings = {"project": "pfseg", "entity": None, "mode": "offline", "tags": [], "checkpoints": []}
    settings |= {"registry": None, "alerts": [], "fork": False}
    edge = {"rule": "class", "thickness": 4}
    logger = WandbLogger(RunContext(run, {"job": "train", "dataset": {"edge": edge}}, Sink()), **settings)
    for row in read_records(run / "metrics.jsonl"):
        logger.record(row)
    logger.finish()
    with (run / "resolved.yaml").open("a") as file:
        file.write("dataset.edge.rule: class\n")
    (records,) = wandb_records(run)
    held = {key.removesuffix(".path") for item in wandb_history(records) for key in item}
    held = {key.partition(".")[0] if key.startswith("val/") else key for key in held}
    named = asked(written(tmp_path))
    metrics = {name for name in named if name.startswith(("train/", "val/", "best/"))}
    assert metrics <= held, metrics - held
    assert {"val/masks", "val/boundaries", "val/edges", "val/samples", "val/boundary_IoU"} <= metrics
    assert all(
        f'"{table}"' in (tmp_path / "workspace.json").read_text() for table in ("val/classes", "val/predictions")
    )
    assert {"train/loss", "train/lr", "val/mIoU", "val/confusion_table", *(f"val/IoU/{n}" for n in NAMES[:-1])} <= named
    assert f"val/IoU/{NAMES[-1]}" not in named, "a class that never occurs"


def test_a_sweep_is_compared_by_what_differs_with_seeds_grouped(tmp_path: Path):
    for number, (weight, seed) in enumerate((w, s) for w in (1.0, 25.0) for s in (0, 1)):
        logged_run(tmp_path / str(number), seed=seed, edge_weight=weight)
    spec = written(tmp_path)
    axes = {"config:loss.value.edge_weight", "config:seed.value", "summary:best/mIoU", "best/mIoU"}
    assert axes == {name for name in asked(spec) if not name.startswith(("train/", "val/"))}
    (runset,) = spec["section"]["runSets"]
    assert runset["grouping"] == [{"section": "config", "name": "loss.value.edge_weight"}]


def test_models_are_told_apart_by_name(tmp_path: Path):
    for model in ("pfnet_r18", "pfnet_r50"):
        logged_run(tmp_path / model, model=model)
    spec = written(tmp_path)
    assert "config:model.value.name" in asked(spec)
    assert spec["section"]["runSets"][0]["grouping"] == []


def test_runs_that_differ_in_what_wandb_cannot_name_are_not_grouped(tmp_path: Path):
    settings: list[dict[str, Any]] = [
        {"augment": "none", "augment.hflip": 0.0, "optimizer.lr": 0.1, "seed": 0},
        {"augment": "strong", "augment.hflip": 0.5, "optimizer.lr": 0.2, "seed": 1},
    ]
    runs = [Run(tmp_path, "run", settings=values) for values in settings]
    assert build_workspace(runs, "team", "pfseg").runset_settings.groupby == []
    runs[1].settings["augment"] = "none"
    assert len(build_workspace(runs, "team", "pfseg").runset_settings.groupby) == 2


def test_names_follow_the_records_alone(tmp_path: Path):
    run = logged_run(tmp_path / "run", panels=False)
    names = logged_names(read_runs([run]))
    assert "val/samples" not in names and "train/grad_norm" not in names and "best/mIoU" in names


def test_faults_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    plain = make_run(tmp_path / "plain" / "run", steps=2)
    assert command("dashboard", str(plain)) == 2
    assert f"no run in {plain} was logged to W&B: train with logger=wandb first" in capsys.readouterr().err
    run = logged_run(tmp_path / "run")
    assert command("dashboard", str(run)) == 2
    assert "error: no W&B key is known: run `wandb login`, set WANDB_API_KEY, or write" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command("dashboard", str(run), f"json={tmp_path}/file/x.json") == 1
    assert "x.json can't be written (" in capsys.readouterr().err
    monkeypatch.setattr("pfseg.commands.dashboard.has_key", lambda: True)
    monkeypatch.setattr("pfseg.commands.dashboard.unreachable", lambda url: f"{url} can't be reached: no route")
    assert command("dashboard", str(run)) == 1
    assert "can't be reached: no route; try again with a network, or write" in capsys.readouterr().err
