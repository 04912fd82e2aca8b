"""Composing settings from the YAML files in conf/ and the user's own, by Hydra's public interface.

YAML files are looked for in pfseg's own conf/, in a folder `conf` of the working folder, in `--config-dir`, and in
`hydra.searchpath`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pfseg.config.validation import as_typed, nearest, unknown_key
from pfseg.errors import ConfigError
from pfseg.files import load_yaml
from pfseg.weights.sources import is_source

VERSION_BASE = "1.3"
DEFAULT_BACKBONE = "resnet50"
_SHORT = {"resnet": "r", "res2net": "r2n"}  # of backbones in the names of networks
_MANY = 20  # aliases in a file
_LONGEST = 200  # characters of a key
# What composing raises.
FAULTS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError, AssertionError)


def config_dir() -> Path:
    """Pfseg's own YAML files: inside an installed package, or beside it in a working copy."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def working_config_dir() -> Path | None:
    """The folder `conf` of the working folder, whose folders must not almost be named like groups of settings.

    None where there is none, or it is pfseg's own.
    """
    folder = Path.cwd() / "conf"
    if not folder.is_dir() or folder.resolve() == config_dir():
        return None
    groups = sorted(path.name for path in config_dir().iterdir() if path.is_dir())
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in groups and (hint := nearest(path.name, groups)):
            raise ConfigError(f"{path} is not a group of settings: {hint}groups: {', '.join(groups)}")
    return folder


class WorkingFolder(SearchPathPlugin):
    """Has Hydra look for YAML files in the working folder too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder after pfseg's own, whose files can't be replaced by accident."""
        if (folder := working_config_dir()) is not None:
            search_path.append("working-folder", f"file://{folder}")


def heads() -> list[str]:
    """The files of conf/model/head and the user's own, without the one that they share."""
    return [name for name in _files("model/head") if name != "common"]


def networks() -> dict[str, tuple[str, str]]:
    """The choices of `model` that stand in no file: each head on each backbone, as sfnet_r18, with the files of both.

    The name of a head alone, as sfnet, is that head on ResNet-50.
    """
    pairs = [(head, backbone) for head in heads() for backbone in _files("model/backbone")]
    alone = {head: (head, DEFAULT_BACKBONE) for head in heads()}
    return alone | {f"{head}_{_short(backbone)}": (head, backbone) for head, backbone in pairs}


def _files(group: str) -> list[str]:
    folders = [folder for folder in (config_dir(), working_config_dir()) if folder is not None]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _short(backbone: str) -> str:
    family = backbone.rstrip("0123456789")
    return _SHORT.get(family, family) + backbone.removeprefix(family)


def prepare_hydra() -> None:
    """Teach Hydra where YAML files are, which networks there are, and the interpolation `run_folder`."""
    Plugins.instance().register(WorkingFolder)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    for name, (head, backbone) in networks().items():
        node = {"defaults": [{"head": head}, {"backbone": backbone}, "_self_"], "name": name}
        ConfigStore.instance().store(name, node, group="model", provider="pfseg")


@contextmanager
def initialized(folder: Path | None = None) -> Iterator[ConfigLoader]:
    """Prepare composing from pfseg's own conf/, or `folder`; a Hydra job that runs at the same time is left alone."""
    prepare_hydra()
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str((folder or config_dir()).absolute()), version_base=VERSION_BASE):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = running


def compose(
    config_name: str,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    config_path: Path | None = None,
    with_hydra: bool = False,
) -> DictConfig:
    """Compose settings, which are not checked yet.

    Args:
        config_name: file in conf/ without its suffix, such as `train`.
        overrides: as on the command line.
        folder: a further folder of YAML files, as `--config-dir`.
        config_path: replaces pfseg's own conf/, as `--config-path`.
        with_hydra: whether to compose a sweep's common settings, with Hydra's own under `hydra`.

    Raises:
        ConfigError: an unknown choice or key, or an override that can't be read.
    """
    with initialized(config_path) as loader:
        _check_files(loader, folder, aliases=_MANY)  # with their aliases written out there may be no end of them
        parsed = _parse([*search(folder), *overrides])
        if with_hydra:
            parsed = [override for override in parsed if not override.is_sweep_override()]
        texts = [str(override.input_line) for override in parsed]
        try:
            with warnings.catch_warnings():  # of a stored run's folder that is gone; what it lacks then is told
                warnings.filterwarnings("ignore", message="provider=hydra.searchpath", category=UserWarning)
                return hydra_compose(config_name, overrides=texts, return_hydra_config=with_hydra)
        except FAULTS as error:
            raise _explain(error, config_name, parsed, loader, sweep=False) from error


def choices(config_name: str, *, folder: Path | None = None, config_path: Path | None = None) -> dict[str, str]:
    """The groups of settings that a command's file chooses from, with their choices in words; see `compose`."""
    chosen = compose(config_name, folder=folder, config_path=config_path, with_hydra=True).hydra.runtime.choices
    found = {}
    with initialized(config_path) as loader:
        for group in (group for group in loader.list_groups("") if group in chosen):
            own = {path.stem for path in (folder / group).glob("*.yaml")} if folder else set()
            found[group] = _listed(group, sorted({*loader.get_group_options(group, ObjectType.CONFIG), *own}))
    return found


def _check_files(loader: ConfigLoader, folder: Path | None = None, *, aliases: int = 0) -> None:
    """Raise ConfigError for a YAML file of the user's own with so many aliases that can't be read."""
    places = [Path(place.path.removeprefix("file://")) for place in loader.get_search_path().get_path() if place.path]
    for place in (*places, *([folder] if folder else ())):
        for path in sorted(place.rglob("*.yaml")) if place.is_absolute() and place != config_dir() else ():
            try:
                if path.is_file() and path.read_bytes().count(b"*") >= aliases:
                    load_yaml(path)
            except (OSError, ValueError) as error:
                raise ConfigError(str(error)) from error


def search(folder: str | Path | None) -> list[str]:
    """The override that has YAML files looked for in a further folder."""
    return [f"hydra.searchpath=[{quote(f'file://{Path(folder).resolve()}')}]"] if folder else []


def quote(value: str) -> str:
    """Quote a value for Hydra's command line."""
    return "'" + value.replace("'", "\\'") + "'"


def spell(value: object) -> str:
    """A value as Hydra's command line takes it, before the shell's own quoting."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{spell(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(spell, value)) + "]"
    if not isinstance(value, str):
        return as_typed(value)
    word = re.fullmatch(r"[A-Za-z_/][\w/.-]*", value, re.ASCII)
    return value if word and value.lower() not in ("true", "false", "null", "nan", "inf") else quote(value)


def run_folder(checkpoint: str | Sequence[str]) -> str:
    """Folder that an evaluation writes below: the checkpoint's run or folder; `outputs` for several or shared ones."""
    if not isinstance(checkpoint, str) or is_source(checkpoint):
        return "outputs"
    path = Path(checkpoint).expanduser().absolute()
    if path.is_file():
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return str(path)


def _parse(overrides: Sequence[str]) -> list[Override]:
    for text in overrides:
        if len(key := text.partition("=")[0]) > _LONGEST:  # Hydra looks for a file of this name
            raise ConfigError(f"unknown key `{key[:40]}...` of {len(key)} characters")
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ConfigError(
            f"cannot read `{error.override}` ({first_line(error)}): expected key=value, such as optimizer.lr=0.01; "
            "put a value with special characters in two pairs of quotes: 'name=\"a=b\"'"
        ) from error


def explain(
    error: Exception,
    config_name: str,
    given: Sequence[str],
    folder: Path | None,
    config_path: Path | None,
    *,
    sweep: bool,
) -> ConfigError:
    """Say an error of composing, one of `FAULTS`, in one line: what was given, what there is, what to do.

    The arguments are those of `compose`; `sweep`: whether overrides may have several values.
    """
    with initialized(config_path) as loader:
        return _explain(error, config_name, _parse([*search(folder), *given]), loader, sweep=sweep)


def _explain(
    error: Exception, config_name: str, overrides: Sequence[Override], loader: ConfigLoader, *, sweep: bool
) -> ConfigError:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_choice(error, loader)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ConfigError(f"{mark.name}:{mark.line + 1} can't be read as YAML: {error.problem}")
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        _check_files(loader)
    if isinstance(error, AssertionError):
        return ConfigError("an entry of `defaults` has no name: check `defaults` in your own files")
    if isinstance(error, RecursionError):
        return ConfigError("YAML files include each other in a circle: check `defaults` in your own files")
    groups = [each.key_or_group.partition("@")[0] for each in overrides]  # asking about each takes Hydra 0.2 s
    choices = [
        each for each, name in zip(overrides, groups, strict=True) if "." not in name and loader.get_group_options(name)
    ]
    if any(override.value() is None and not override.is_delete() for override in choices):
        return ConfigError("a group of settings cannot be null: choose one of its files, such as logger=none")
    for override in overrides:
        if override.is_sweep_override() and not sweep:
            return ConfigError(
                f"`{override.input_line}` has several values: add -m (--multirun) to run them all, or put a list in "
                f"brackets: {override.key_or_group}=[...]"
            )
    texts = [str(override.input_line) for override in choices if not override.is_sweep_override()]
    try:
        composed = hydra_compose(config_name, overrides=texts, return_hydra_config=True)
    except FAULTS as fault:
        return _plain(fault)
    for override in overrides:
        if override not in choices and (found := _explain_key(override, composed)) is not None:
            return found
    return _plain(error)


def _explain_key(override: Override, composed: DictConfig) -> ConfigError | None:
    """The error for an override of a key that the settings lack, or that it would add although they have it."""
    node: Any = composed
    key = override.key_or_group
    parts = key.replace("/", ".").split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            return ConfigError(f"unknown key `{key}`: `{'.'.join(parts[:depth])}` is a value and has no keys below it")
        if part not in node.keys():  # `in` alone leaves out values that have to be given
            if override.is_add() or override.is_force_add():
                return None
            groups = [] if depth else composed.hydra.runtime.choices  # some hold no settings, such as experiment
            known = {name for name in (*node, *groups) if not name.startswith("hydra")}
            return unknown_key(".".join(parts[: depth + 1]), known)
        node = node._get_node(part)
    return ConfigError(f"`{key}` exists already: leave out the + before it") if override.is_add() else None


def _unknown_choice(error: MissingConfigException, loader: ConfigLoader) -> ConfigError:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = error.options or sorted(loader.get_group_options(group, ObjectType.CONFIG))
    if not group:
        return ConfigError(f"unknown command file `{name}`: {nearest(name, options)}choices: {', '.join(options)}")
    if not options:
        groups = sorted(loader.list_groups(""))
        return ConfigError(f"unknown group `{group}`: {nearest(group, groups)}groups of settings: {', '.join(groups)}")
    hint = nearest(name, options, f"{group}={{}}")
    more = "; others come with pip install 'pfseg[sweep]'" if group.startswith("hydra/") else ""
    return ConfigError(f"unknown choice `{group}={name}`: {hint}choices: {_listed(group, options)}{more}")


def _listed(group: str, options: Sequence[str]) -> str:
    """The choices of a group; of `model` the heads with the endings that name backbones, not each on each."""
    if group != "model":
        return ", ".join(options)
    endings = [f"_{_short(backbone)}" for backbone in _files("model/backbone")]
    others = [name for name in options if name not in networks()]
    return f"{', '.join(heads())}, also with {', '.join(endings)}; and {', '.join(others)}"


def _plain(error: Exception) -> ConfigError:
    cause = f": {first_line(error.__cause__)}" if error.__cause__ else ""
    return ConfigError(f"{' '.join(str(error).split())}{cause}")


def first_line(error: BaseException | None) -> str:
    """The first line of an error's text that isn't empty, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
