"""`pfseg reproduce`: repeat a run; says first what differs from when it ran.

The command repeats the overrides that the run was started with. Where they give another configuration today, because
a file of conf/ has changed or a path was relative, further overrides bring back the stored values.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from rich.text import Text

from pfseg.config.check import check
from pfseg.config.commands import Reproduce
from pfseg.config.compose import compose, quote, spell
from pfseg.config.stored import current, current_key
from pfseg.errors import ConfigError, JobError
from pfseg.files import load_yaml, shown
from pfseg.launch.provenance import Environment, data_state, environment
from pfseg.reporting.runs import flatten
from pfseg.tracking import terminal

_ASIDE = ("resume", "logger.", "launch.", "gpus", "checkpoint")  # what may change without changing the result
_PATHS = ("dataset.root", "checkpoint", "model.pretrained", "model.init")
_FILES: dict[str, object] = {
    "resolved.yaml": dict[str, object],
    ".hydra/overrides.yaml": list[str],
    ".hydra/hydra.yaml": dict[str, object],
    "environment.json": Environment,
}
_OWN_FILES = ("command-line", "working-folder")  # where YAML files of the user's own came from


class Finding(NamedTuple):
    """One thing compared: what it was and is now; `level` is same, minor, or major if it may change the result."""

    what: str
    then: str
    now: str
    level: str


class Stored(NamedTuple):
    """What a run folder says about its start."""

    folder: Path  # absolute
    config: dict[str, object]  # resolved settings
    overrides: list[str]  # as on the command line, without those of folders and resumption
    environment: Environment
    config_dir: str | None  # further folder of YAML files (`--config-dir`)
    config_name: str  # file in conf/
    command: str  # shell line of its start; a sweep's is that of all its jobs


def run(settings: Reproduce) -> None:
    """Show the command that repeats a run and what differs, and start it if the settings say so."""
    stored = read_stored(Path(settings.run))
    overrides, lost = pinned_overrides(stored)
    findings = [*lost, *compare(stored.environment, environment()), *compare_data(stored)]
    folder = stored.folder.with_name(f"{stored.folder.name}-again-{time.strftime('%Y%m%d-%H%M%S')}")
    job = str(stored.config.get("job", "train"))
    command = [sys.executable, "-m", "pfseg", job]
    command += ["--config-dir", stored.config_dir] if stored.config_dir else []
    command += ["--config-name", stored.config_name] if stored.config_name != job else []
    command += [*overrides, f"hydra.run.dir={quote(str(folder))}"]
    _print_findings(findings)
    sys.stdout.write(f"it was started with\n  {stored.command}\nagain\n  {shlex.join(command)}\n")
    if not settings.start:
        return
    different = [finding.what for finding in findings if finding.level == "major"]
    if different and not settings.force:
        git = stored.environment.get("git")
        remedy = f"check out the revision with `git checkout {git['revision']}`, or " if git else ""
        raise ConfigError(
            f"changed since {shown(stored.folder)} ran: {', '.join(different)}, so the result may differ too; "
            f"{remedy}start it anyway with force=true"
        )
    sys.stdout.flush()
    if code := subprocess.run(command, check=False).returncode:
        error = JobError(f"the repeated run ended with exit code {code}")
        error.exit_code = code
        raise error


def read_stored(folder: Path) -> Stored:
    """What a run folder keeps of its start; raises ConfigError if it is none, or lacks what is needed."""
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist: give a run folder, outputs/<name>/<date>/<time>")
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}, which a run writes at its start: give a run folder")
    config, overrides, hydra, state = (_load(folder / name, kind) for name, kind in _FILES.items())
    try:
        name = str(hydra["hydra"]["job"]["config_name"])
        sources = hydra["hydra"]["runtime"]["config_sources"]
        extra = [str(source["path"]) for source in sources if source["provider"] in _OWN_FILES]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder}/.hydra/hydra.yaml is damaged ({error} is not there), nothing to repeat") from error
    kept = [current_key(text) for text in overrides if not text.startswith(("resume=", "hydra."))]
    file = folder / "command.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    command = lines[0] if lines else "(command.txt is missing)"  # later lines resumed the run
    return Stored(folder, current(config), kept, state, extra[0] if extra else None, name, command)


def _load(file: Path, kind: Any) -> Any:
    """The content of a file, which is of this type; ConfigError if it isn't."""
    try:
        return TypeAdapter(kind).validate_python(load_yaml(file))  # JSON is YAML
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise ConfigError(f"{file} is damaged ({where or 'content'}: {fault['msg']}), nothing to repeat") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def pinned_overrides(stored: Stored) -> tuple[list[str], list[Finding]]:
    """The overrides that give the stored configuration today, and the settings that none can bring back."""
    then = flatten(stored.config)
    paths = {key: then[key] for key in _PATHS if then.get(key) is not None}  # absolute ones
    given = [text for text in stored.overrides if text.partition("=")[0] not in paths]
    given += [f"{key}={spell(value)}" for key, value in paths.items()]
    folder = Path(stored.config_dir) if stored.config_dir else None
    try:
        now = flatten(check(compose(stored.config_name, given, folder=folder)).dump())
    except ConfigError as error:
        return given, [Finding("settings", "", str(error), "major")]
    pins, lost = [], []
    for key in {**then, **now}:
        if key.startswith(_ASIDE):
            continue
        if key not in then:  # a new setting, whose default keeps what was
            lost.append(Finding(f"setting {key}", "not there", spell(now[key]), "minor"))
        elif key not in now:
            lost.append(Finding(f"setting {key}", spell(then[key]), "not there", "major"))
        elif then[key] != now[key]:
            pins.append(f"{key}={spell(then[key])}")
    return given + pins, lost


def compare(then: Environment, now: Environment) -> list[Finding]:
    """Compare two environments: another code revision is a major difference, other versions and machines are minor."""
    before, after = then.get("git"), now.get("git")
    revisions = [state and state["revision"] for state in (before, after)]
    same_code = revisions[0] == revisions[1] and then.get("pfseg") == now.get("pfseg")
    dirty = any(state and state["dirty"] for state in (before, after))
    level = "major" if not same_code else "minor" if dirty else "same"
    versions = [state.get("packages", {}) for state in (then, now)]
    facts = {name: [each.get(name) or "not installed" for each in versions] for name in versions[0] | versions[1]}
    both: list[Mapping[str, object]] = [then, now]
    facts |= {key: [str(state.get(key)) for state in both] for key in ("python", "platform", "cores")}
    facts["GPUs"] = [", ".join(state.get("gpus") or []) or "none" for state in (then, now)]
    others = [Finding(name, old, new, "same" if old == new else "minor") for name, (old, new) in facts.items()]
    return [Finding("code", _revision(then), _revision(now), level), *others]


def compare_data(stored: Stored) -> list[Finding]:
    """Compare the data: the folder is there, and its index, where it has one, is the one of then."""
    root = flatten(stored.config).get("dataset.root")
    if not isinstance(root, str):
        return []
    if not Path(root).is_dir():
        return [Finding("data", root, "not there", "major")]
    then, now = (state and state["index"] for state in (stored.environment.get("data"), data_state(root)))
    if then is None and now is None:
        return [Finding("data", root, "there; no index.json to compare", "same")]
    level = "minor" if then is None else "same" if then == now else "major"
    return [Finding("data index", then[:12] if then else "not stored", now[:12] if now else "none", level)]


def _revision(state: Environment) -> str:
    git = state.get("git")
    if not git:
        return f"pfseg {state.get('pfseg')}, outside a clone"
    return git["revision"][:12] + (" with uncommitted changes" if git["dirty"] else "")


def _print_findings(findings: Sequence[Finding]) -> None:
    console = terminal.console()
    different = [finding for finding in findings if finding.level != "same"]
    if not different:
        console.print("code, packages, machine and data are as they were", style="green")
        return
    table = terminal.table("", "then", "now", "")
    for *cells, level in different:
        table.add_row(*map(Text, cells), Text(f"{level} difference", style="red" if level == "major" else "yellow"))
    console.print(table)
    console.print(f"the same: {', '.join(f.what for f in findings if f.level == 'same')}", style="dim", markup=False)
