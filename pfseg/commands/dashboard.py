"""A W&B dashboard for runs: `pfseg dashboard <folders>`; `--help` lists everything."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pfseg.errors import ConfigError, JobError, PfsegError, WriteError
from pfseg.files import shown, write_atomic
from pfseg.reporting.runs import Run, find_runs, read_runs
from pfseg.reporting.workspace import build_workspace, spec
from pfseg.tracking.wandb_access import has_key, server, unreachable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        _dashboard(args)
    except PfsegError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfseg-dashboard", description="Save a W&B workspace with panels for what the given runs have logged."
    )
    parser.add_argument("places", nargs="+", metavar="folder", help="run folders, folders above them, or patterns")
    parser.add_argument("--entity", help="user or team; default: as in the runs' settings, or the key's own")
    parser.add_argument("--project", help="default: as in the runs' settings")
    parser.add_argument("--json", metavar="FILE", help="write the workspace here instead; needs no key and no network")
    return parser


def _dashboard(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError(
            "the dashboard needs wandb-workspaces, which is not installed: pip install 'pfseg[dashboard]'"
        )
    runs = [run for run in read_runs(find_runs(args.places)) if (run.folder / "wandb").is_dir()]
    if not runs:
        raise ConfigError(f"no run in {', '.join(args.places)} was logged to W&B: train with logger=wandb first")
    project = args.project or _only("project", runs)
    entity = args.entity or _only("entity", runs)
    if args.json is None:
        sys.stdout.write(f"dashboard: {_save(runs, entity, project)}\n")
        return
    try:
        write_atomic(Path(args.json), json.dumps(spec(build_workspace(runs, entity, project)), indent=1))
    except WriteError as error:
        cause = error.__cause__
        raise ConfigError(f"--json {args.json} can't be written ({cause}): give a file in a folder of yours") from error
    sys.stdout.write(f"json: {shown(Path(args.json).absolute())}\n")


def _only(option: str, runs: Sequence[Run]) -> str:
    """What all runs have as `logger.wandb.<option>`; empty where they have none."""
    key = f"logger.wandb.{option}"
    values = sorted({run.settings.get(key) or "" for run in runs})
    if len(values) > 1:
        raise ConfigError(f"the runs differ in {key} ({', '.join(values)}): give one with --{option}")
    return str(values[0])


def _save(runs: Sequence[Run], entity: str, project: str) -> str:
    """Save a new view in the project; returns its address."""
    import wandb

    if not has_key():
        raise ConfigError(
            "no W&B key is known: run `wandb login` or set WANDB_API_KEY, or write the workspace to a file with --json"
        )
    if fault := unreachable(server()):
        raise JobError(f"{fault}; try again with a network, or write the workspace to a file with --json")
    wandb.setup(wandb.Settings(silent=True))
    try:
        workspace = build_workspace(runs, entity or wandb.Api().default_entity, project)
        return str(workspace.save_as_new_view().url)
    except Exception as error:  # W&B raises those of several HTTP packages
        raise JobError(
            f"W&B took no workspace for {entity or 'the default entity'}/{project} ({error}); check --entity and "
            "--project: the project must exist, its runs uploaded (`wandb sync`)"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
