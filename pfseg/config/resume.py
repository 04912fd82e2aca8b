"""`resume=<run>`: the settings of a run that is continued, without Jittor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from yaml import YAMLError

from pfseg.config.compose import quote
from pfseg.config.stored import current_key
from pfseg.errors import ConfigError

_NEEDED = {
    ".hydra/overrides.yaml": "is no run folder (no .hydra/overrides.yaml): give outputs/<name>/<date>/<time>",
    "resolved.yaml": "has no resolved.yaml: it never started; start a new run",
    "checkpoints/last.safetensors": "has no checkpoints/last.safetensors to go on from: start a new run",
}


def expand_resume(overrides: Sequence[str], *, multirun: bool = False) -> list[str]:
    """Replace `resume=<run>` by that run's own overrides, its folder, and whatever else is given now.

    The run's own overrides are those of its start that aren't given anew. `multirun`: whether several runs were asked
    for, of which none can be resumed.

    Raises:
        ConfigError: no such run folder, or none that can be resumed.
    """
    given = [override for override in overrides if override.startswith("resume=")]
    value = given[-1].partition("=")[2].strip("'\"") if given else ""
    if value in ("", "null"):
        return list(overrides)
    if multirun:
        raise ConfigError("resume continues one run: leave out -m (--multirun)")
    folder = resumable(value)
    now = [override for override in overrides if not override.startswith(("resume=", "hydra.run.dir="))]
    keys = {override.partition("=")[0] for override in now}
    try:
        saved = OmegaConf.to_object(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
        assert isinstance(saved, list) and all(isinstance(old, str) for old in saved)
    except (AssertionError, YAMLError, OSError) as error:
        raise ConfigError(f"resume={value}: .hydra/overrides.yaml is damaged; start a new run") from error
    saved = [current_key(old) for old in saved]
    kept = [old for old in saved if (key := old.partition("=")[0]) not in keys and key != "resume"]
    return [*kept, *now, f"resume={quote(str(folder))}", f"hydra.run.dir={quote(str(folder))}"]


def resumable(resume: str) -> Path:
    """The run folder that `resume` names; raises ConfigError if it can't be continued."""
    folder = Path(resume).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"resume={resume} does not exist (looked in {folder}): give outputs/<name>/<date>/<time>")
    for file, fault in _NEEDED.items():
        if not (folder / file).is_file():
            raise ConfigError(f"resume={resume} {fault}")
    return folder
