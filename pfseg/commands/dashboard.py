"""`pfseg dashboard`: a W&B workspace for runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pfseg.config.commands import Dashboard
from pfseg.errors import ConfigError, JobError, MissingPackage
from pfseg.files import shown, write_atomic
from pfseg.reporting.runs import Run, find_runs, read_runs
from pfseg.tracking.wandb_access import has_key, server, unreachable


def run(settings: Dashboard) -> None:
    """Save a workspace with panels for what the runs have logged, online or to a file."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise MissingPackage("pfseg dashboard", "wandb-workspaces", "dashboard")
    from pfseg.reporting.workspace import build_workspace, spec

    runs = [run for run in read_runs(find_runs(settings.runs)) if (run.folder / "wandb").is_dir()]
    if not runs:
        raise ConfigError(f"no run in {', '.join(settings.runs)} was logged to W&B: train with logger=wandb first")
    project = settings.project or _only("project", runs)
    entity = settings.entity or _only("entity", runs)
    if settings.json_file is None:
        sys.stdout.write(f"dashboard: {_save(runs, entity, project)}\n")
        return
    path = Path(settings.json_file).absolute()
    write_atomic(path, json.dumps(spec(build_workspace(runs, entity, project)), indent=1))
    sys.stdout.write(f"json: {shown(path)}\n")


def _only(option: str, runs: Sequence[Run]) -> str:
    """What all runs have as `logger.wandb.<option>`; empty where they have none."""
    key = f"logger.wandb.{option}"
    values = sorted({str(run.settings.get(key) or "") for run in runs})
    if len(values) > 1:
        raise ConfigError(f"the runs differ in {key} ({', '.join(values)}): give one with {option}=")
    return values[0]


def _save(runs: Sequence[Run], entity: str, project: str) -> str:
    """Save a new view in the project; returns its address."""
    import wandb

    from pfseg.reporting.workspace import build_workspace

    if not has_key():
        raise ConfigError(
            "no W&B key is known: run `wandb login`, set WANDB_API_KEY, or write to a file with json=<file>"
        )
    if fault := unreachable(server()):
        raise JobError(f"{fault}; try again with a network, or write the workspace to a file with json=<file>")
    wandb.setup(wandb.Settings(silent=True))
    try:
        workspace = build_workspace(runs, entity or wandb.Api().default_entity, project)
        return str(workspace.save_as_new_view().url)
    except Exception as error:  # W&B raises those of several HTTP packages
        raise JobError(
            f"W&B rejected the workspace for {entity or 'the default entity'}/{project} ({error}); check entity and "
            "project: the project must exist, its runs uploaded (`wandb sync`)"
        ) from error
