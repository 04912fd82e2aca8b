"""`pfseg reproduce`: repeat a run; says first what differs from when it ran.

The command repeats the overrides that the run was started with. Where they give another configuration today, because
a file of conf/ has changed or a path was relative, further overrides bring back the stored values.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from pfseg.config.check import check
from pfseg.config.commands import Reproduce
from pfseg.config.compose import compose
from pfseg.config.stored import current, current_key
from pfseg.errors import ConfigError, JobError
from pfseg.files import shown
from pfseg.launch.provenance import data_state, environment
from pfseg.reporting.reading import flatten, load_json, load_yaml
from pfseg.tracking import terminal

_ASIDE = ("resume", "logger.", "launch.", "gpus", "checkpoint")  # what may change without changing the result
_PATHS = ("dataset.root", "checkpoint", "model.pretrained", "model.init")
_MISSING = object()
_OWN_FILES = ("command-line", "working-folder")  # where YAML files of the user's own came from
_WORDS = ("null", "true", "false", "nan", "inf")
_MARKS = {"refuse": ("red", "differs"), "warn": ("yellow", "differs"), "same": ("green", "same")}


@dataclass(frozen=True)
class Finding:
    """One thing compared: what it was and is now; `level` is same, warn or refuse."""

    what: str
    then: str
    now: str
    level: str


@dataclass(frozen=True)
class Stored:
    """What a run folder says about its start.

    Attributes:
        folder: absolute path.
        config: resolved settings.
        overrides: as given on the command line, without those of folders and resumption.
        environment: versions and code, as `pfseg.launch.provenance.environment` gives them.
        config_dir: further folder of YAML files (`--config-dir`).
        config_name: file in conf/.
        command: the shell line of its start; a sweep's is that of all its jobs.
    """

    folder: Path
    config: dict[str, Any]
    overrides: list[str]
    environment: dict[str, Any]
    config_dir: str | None
    config_name: str
    command: str

    @property
    def job(self) -> str:
        """The command: train or evaluate."""
        return str(self.config.get("job", "train"))


def run(settings: Reproduce) -> None:
    """Show the command that repeats a run and what differs, and start it if the settings say so.

    Raises:
        ConfigError: no run folder, or code, settings or data differ.
        JobError: the new run failed.
    """
    stored = read_stored(Path(settings.run))
    overrides, lost = pinned_overrides(stored)
    findings = [*lost, *compare(stored.environment, environment()), *compare_data(stored)]
    folder = stored.folder.with_name(f"{stored.folder.name}-again-{time.strftime('%Y%m%d-%H%M%S')}")
    command = [sys.executable, "-m", "pfseg", stored.job, *_config_options(stored), *overrides]
    command.append(f"hydra.run.dir={_quote(folder)}")
    _print_findings(findings)
    sys.stdout.write(f"it was started with\n  {stored.command}\nagain\n  {shlex.join(command)}\n")
    if not settings.start:
        return
    different = [finding.what for finding in findings if finding.level == "refuse"]
    if different and not settings.force:
        raise ConfigError(
            f"not as when {shown(stored.folder)} ran: {', '.join(different)}, so the result may differ too; "
            f"{_remedy(stored)}or start it all the same with force=true"
        )
    sys.stdout.flush()
    code = subprocess.run(command, check=False).returncode
    if code:
        error = JobError(f"the repeated run ended with exit code {code}")
        error.exit_code = code
        raise error


def read_stored(folder: Path) -> Stored:
    """Read what a run folder keeps of its start.

    Raises:
        ConfigError: no run folder, or one that lacks what is needed.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist: give a run folder, outputs/<name>/<date>/<time>")
    needed = ("resolved.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "environment.json")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}, which a run writes at its start: give a run folder")
    try:
        config, overrides, hydra = (load_yaml(folder / name) for name in needed[:3])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found = load_json(folder / "environment.json")
    if not isinstance(config, dict) or not isinstance(overrides, list) or not isinstance(found, dict):
        raise ConfigError(f"{folder}: resolved.yaml, overrides.yaml or environment.json is damaged, nothing to repeat")
    try:
        name = hydra["hydra"]["job"]["config_name"]
        sources = hydra["hydra"]["runtime"]["config_sources"]
        extra = [source["path"] for source in sources if source["provider"] in _OWN_FILES]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder}/.hydra/hydra.yaml is damaged ({error} is not there), nothing to repeat") from error
    kept = [current_key(text) for text in overrides if not text.startswith(("resume=", "hydra."))]
    return Stored(folder, current(config), kept, found, extra[0] if extra else None, name, _first_command(folder))


def pinned_overrides(stored: Stored) -> tuple[list[str], list[Finding]]:
    """The overrides that give the stored configuration today, and the settings that none can bring back."""
    paths = {key: value for key in _PATHS if (value := flatten(stored.config).get(key)) is not None}  # absolute ones
    given = [text for text in stored.overrides if text.partition("=")[0] not in paths]
    given += [f"{key}={_quote(value)}" for key, value in paths.items()]
    try:
        today = _composed(stored, given)
    except ConfigError as error:
        return given, [Finding("settings", "", str(error), "refuse")]
    pins, lost = [], []
    for key, then, now in _differences(flatten(stored.config), flatten(today)):
        if then is _MISSING or now is _MISSING:  # a setting that is new has the default that keeps what was
            level = "warn" if then is _MISSING else "refuse"
            lost.append(Finding(f"setting {key}", _word(then), _word(now), level))
        else:
            pins.append(f"{key}={_quote(then)}")
    return given + pins, lost


def compare(then: dict[str, Any], now: dict[str, Any]) -> list[Finding]:
    """Compare two environments: another code revision is to be refused, other versions and machines are warned of."""
    before, after = then.get("git") or {}, now.get("git") or {}
    same_code = before.get("revision") == after.get("revision") and then.get("pfseg") == now.get("pfseg")
    dirty = before.get("dirty") or after.get("dirty")
    level = "refuse" if not same_code else "warn" if dirty else "same"
    findings = [Finding("code", _revision(then), _revision(now), level)]
    packages = {**then.get("packages", {}), **now.get("packages", {})}
    for name in packages:
        old, new = then.get("packages", {}).get(name), now.get("packages", {}).get(name)
        findings.append(_same(name, old or "not installed", new or "not installed"))
    for key in ("python", "platform", "cores"):
        findings.append(_same(key, str(then.get(key)), str(now.get(key))))
    findings.append(_same("GPUs", ", ".join(then.get("gpus") or []) or "none", ", ".join(now["gpus"]) or "none"))
    return findings


def compare_data(stored: Stored) -> list[Finding]:
    """Compare the data: the folder is there, and its index, where it has one, is the one of then."""
    root = flatten(stored.config).get("dataset.root")
    if root is None:
        return []
    if not Path(root).is_dir():
        return [Finding("data", root, "not there", "refuse")]
    then, now = (stored.environment.get("data") or {}).get("index"), (data_state(root) or {}).get("index")
    if then is None and now is None:
        return [Finding("data", root, "there; no index.json to compare", "same")]
    if then is None:
        return [Finding("data index", "not stored", _short(now), "warn")]
    return [Finding("data index", _short(then), _short(now), "same" if then == now else "refuse")]


def _composed(stored: Stored, overrides: list[str]) -> dict[str, Any]:
    folder = Path(stored.config_dir) if stored.config_dir else None
    return check(compose(stored.config_name, overrides, folder=folder)).dump()


def _differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in {**then, **now}:
        before, after = then.get(key, _MISSING), now.get(key, _MISSING)
        if before != after and not key.startswith(_ASIDE):
            yield key, before, after


def _config_options(stored: Stored) -> list[str]:
    options = ["--config-dir", stored.config_dir] if stored.config_dir else []
    return options + (["--config-name", stored.config_name] if stored.config_name != stored.job else [])


def _first_command(folder: Path) -> str:
    """The line of command.txt that started the run; later ones resumed it."""
    path = folder / "command.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return lines[0] if lines else "(command.txt is missing)"


def _remedy(stored: Stored) -> str:
    revision = (stored.environment.get("git") or {}).get("revision")
    return f"check out the revision with `git checkout {revision}`, " if revision else ""


def _revision(state: dict[str, Any]) -> str:
    git = state.get("git")
    if not git:
        return f"pfseg {state.get('pfseg')}, outside a clone"
    return str(git["revision"][:12]) + (" with uncommitted changes" if git["dirty"] else "")


def _same(what: str, then: str, now: str) -> Finding:
    return Finding(what, then, now, "same" if then == now else "warn")


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


def _word(value: Any) -> str:
    return "not there" if value is _MISSING else _quote(value)


def _quote(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_quote, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_quote(item)}' for key, item in value.items())}}}"
    if isinstance(value, int | float):
        return str(value)
    if re.fullmatch(r"[A-Za-z_/][\w./-]*", str(value)) and str(value).lower() not in _WORDS:
        return str(value)
    return "'" + str(value).replace("'", "\\'") + "'"


def _print_findings(findings: Sequence[Finding]) -> None:
    console = terminal.console()
    different = [finding for finding in findings if finding.level != "same"]
    if not different:
        console.print("code, packages, machine and data are as they were", style="green")
        return
    table = terminal.table("", "then", "now", "")
    for finding in different:
        style, word = _MARKS[finding.level]
        cells = (Text(part, overflow="fold") for part in (finding.what, finding.then, finding.now))
        table.add_row(*cells, Text(f"{word}: {finding.level}", style=style))
    console.print(table)
    console.print(f"the same: {', '.join(f.what for f in findings if f.level == 'same')}", style="dim", markup=False)
