"""From the command line to a checked configuration, without Jittor: Hydra, resumed runs, faults in one line.

`main` is what train.py, evaluate.py and `pfseg prepare` call. Whatever is wrong with the settings is found
before Hydra writes anything, and said in one line that names the key and the remedy.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra.version
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pfseg.config.checks import (
    check_classes,
    check_evaluation,
    check_initial,
    check_lengths,
    check_loggers,
    check_prediction,
    check_preparation,
    check_preview,
    check_ranges,
    check_sizes,
    existing,
    find_checkpoint,
    pair,
)
from pfseg.config.command_schemas import Predict, PrepareJob, Preview, Profile
from pfseg.config.resume import expand_resume, quote, resumable
from pfseg.config.schema import Evaluate, Train
from pfseg.config.validate import check_fits, unknown_key, validate
from pfseg.devices import other_slurm_process, plan_ranks
from pfseg.errors import ConfigError, JobError, PfsegError
from pfseg.launch.lease import lease
from pfseg.launch.sweep import mark_stopped, stopped, sweep
from pfseg.weights.checkpoint import load_meta

_VERSION_BASE = "1.3"
_TO_GIVE = {  # what to put for a key that has to be given
    "checkpoint": "run folder or .safetensors file",
    "dataset.root": "folder of the data set",
    "dataset.classes": "class table, best in a YAML file of your own: see conf/dataset/folder.yaml",
    "src": "folder of the unpacked archive or the scenes",
    "out": "folder for the patches",
    "input": "image, folder of images or pattern in quotes",
    "output": "folder for the maps",
}
_SCHEMAS = {
    "train": Train,
    "evaluate": Evaluate,
    "prepare": PrepareJob,
    "preview": Preview,
    "predict": Predict,
    "profile": Profile,
}


def config_dir() -> Path:
    """The folder with the YAML files: inside an installed package, or beside it in a working copy."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def compose(config_name: str, overrides: Sequence[str] = (), *, folder: Path | None = None) -> DictConfig:
    """Compose a configuration outside `main`; a Hydra job that runs at the same time is left alone.

    Args:
        config_name: file in conf/ without its suffix, such as `train`.
        overrides: as on the command line.
        folder: a further folder of YAML files.

    Returns:
        The configuration, not checked yet.

    Raises:
        ConfigError: an unknown choice or key, or an override that cannot be read.
    """
    _register_resolver()
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base=_VERSION_BASE):
            return hydra_compose(config_name, overrides=[*_search(folder), *overrides])
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group set to null
        raise _explain(error, config_name, overrides) from error
    finally:
        GlobalHydra.instance().hydra = running


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check a composed configuration and resolve it.

    Args:
        cfg: as composed from train.yaml, evaluate.yaml, prepare.yaml, preview.yaml, predict.yaml or
            profile.yaml.

    Returns:
        Plain dictionaries, lists and scalars, with what follows from other values filled in: sizes as
        [height, width], `model.num_classes`, `ranks` as a number, absolute paths.

    Raises:
        ConfigError: an unknown or missing key, a wrong type or range, values that don't go together, or a file,
            folder or device that isn't there.
    """
    if cfg.get("verify") == "only" and OmegaConf.is_missing(cfg, "src") and not OmegaConf.is_missing(cfg, "out"):
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"src": cfg.out}))  # a check of patches needs no archive
    try:
        for key in sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError(f"{key} is not set: add {key}=<{_TO_GIVE.get(key, 'value')}>")
        raw = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'a value'} cannot be resolved: {_first_line(error)}") from error
    assert isinstance(raw, dict)
    schema = _SCHEMAS.get(raw.get("job", ""), Train)
    if schema is PrepareJob and "prepare" not in raw["dataset"]:
        raise ConfigError(f"dataset={raw['dataset'].get('name')} has no files to cut: choose another data set")
    config: dict[str, Any] = validate(raw, schema)
    if schema is PrepareJob:
        check_preparation(config)
        return config
    if schema is Preview:
        check_preview(config)
        return config
    if schema is Profile:
        config["size"] = pair(config["size"])
        return config
    if schema is Predict:
        check_prediction(config)
        config["checkpoint"] = str(find_checkpoint(config["checkpoint"]))
        return config
    if schema is Train:
        check_lengths(config)
        check_classes(config)
        check_sizes(config)
        check_ranges(config)
        check_initial(config["model"])
        if config["resume"] is not None:
            config["resume"] = str(folder := resumable(config["resume"]))
            stored = OmegaConf.to_container(OmegaConf.load(folder / "resolved.yaml"))
            check_fits(folder / "checkpoints" / "last.safetensors", cast(dict[str, Any], stored), config)
    else:
        given = config["checkpoint"]
        found = [str(find_checkpoint(one)) for one in ([given] if isinstance(given, str) else given)]
        config["checkpoint"] = found[0] if isinstance(given, str) else found
        check_evaluation(config, {path: load_meta(Path(path))["config"] for path in found})
    if (root := config["dataset"]["root"]) is not None:
        config["dataset"]["root"] = str(existing("dataset.root", root, "the folder of the data set", folder=True))
    check_loggers(config["logger"])
    config["ranks"] = plan_ranks(config)[0]
    if config["launch"]["name"] == "inline" and config["ranks"] != 1:
        raise ConfigError(f"launch=inline runs one rank, got ranks={config['ranks']}: add ranks=1 or use launch=mpi")
    return config


def run_folder(checkpoint: str | Sequence[str]) -> str:
    """Folder that an evaluation of `checkpoint` writes below: the run's, or that of a lone weights file.

    The comparison of several goes below `outputs`.
    """
    if not isinstance(checkpoint, str):
        return "outputs"
    path = Path(checkpoint).expanduser().absolute()
    if path.is_file():
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return str(path)


def main(run: Callable[[dict[str, Any]], float | None], config_name: str) -> NoReturn:
    """Run a command: compose, check, make the run folder, call `run`, and end the process.

    Args:
        run: gets the checked configuration; its value is what a sweep optimises.
        config_name: file in conf/ without its suffix.
    """
    code = 0
    try:
        _run_command(run, config_name)
    except PfsegError as error:
        _say(_failure(error))
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run_command(run: Callable[[dict[str, Any]], float | None], config_name: str) -> None:
    if other_slurm_process():
        return
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        script, ranks = Path(sys.argv[0]).name, os.environ.get("OMPI_COMM_WORLD_SIZE", "N")
        raise ConfigError(f"started by mpirun, which {script} does by itself: type `python {script} ranks={ranks} ...`")
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    args = parser.parse_args()
    args.overrides = [_quote_value(override) for override in args.overrides]
    args.overrides = expand_resume(args.overrides, multirun=args.multirun)
    config_name = args.config_name or config_name
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    if not (args.multirun or shows or args.experimental_rerun or args.config_path):
        check(compose(config_name, args.overrides, folder=Path(args.config_dir) if args.config_dir else None))

    failures: list[Exception] = []

    def task(cfg: DictConfig) -> float | None:
        if other_slurm_process():  # of a job of a sweep
            return None
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            return _sweep_job(run, cfg)
        try:
            return run(check(cfg))
        except Exception as error:
            _keep_failure(error)
            failures.append(error)  # raised below: here Hydra would add lines of its own
            return None

    _register_resolver()
    hydra.version.setbase(_VERSION_BASE)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # Optuna 2.10 uses what SQLAlchemy 2 drops
    try:
        with _sweep(args, config_name) if args.multirun else nullcontext():
            _run_hydra(args, parser, task, str(config_dir()), config_name)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, config_name, args.overrides) from error
    if failures:
        raise failures[0]


def _sweep(args: argparse.Namespace, config_name: str) -> AbstractContextManager[None]:
    """Fix the folder of the sweep that the command line asks for, and prepare for its end."""
    with initialize_config_dir(str(config_dir()), version_base=_VERSION_BASE):
        composer = cast(Hydra, GlobalHydra.instance().hydra)
        overrides = [*_search(args.config_dir), *args.overrides]
        cfg = composer.compose_config(config_name, overrides, RunMode.MULTIRUN, with_log_configuration=False)
        folder = Path(cfg.hydra.sweep.dir).absolute()
    args.overrides.append(f"hydra.sweep.dir={quote(str(folder))}")
    return sweep(folder)


def _sweep_job(run: Callable[[dict[str, Any]], float | None], cfg: DictConfig) -> float | None:
    """Run one job of a sweep when its devices are free, perhaps in a process of its own."""
    job = HydraConfig.get()
    folder = Path(job.sweep.dir)
    if stopped(folder) is not None:
        raise JobError("not started: the sweep was told to stop")
    try:
        config = check(cfg)
        launcher = cast(dict[str, Any], OmegaConf.to_container(job.launcher))
        if "BasicLauncher" not in launcher["_target_"]:
            os.environ["TTY_COMPATIBLE"] = "0"  # jobs side by side share a terminal: plain lines, no bars
        with lease(config, launcher, lambda text: _say(f"job {job.job.num}: {text}")):
            return run(config)
    except Exception as error:
        _say(_keep_failure(error))  # Hydra shows none
        if (code := getattr(error, "exit_code", 1)) not in (1, 2):
            mark_stopped(folder, code)
        raise JobError(_one_line(str(error))) from None  # any other might not survive the way to the sweep's process


def _keep_failure(error: Exception) -> str:
    """Leave `error.txt` in the folder of a run that failed, and was not merely stopped; return what it says."""
    job = HydraConfig.get()
    text = _failure(error)
    if job.output_subdir and getattr(error, "exit_code", 1) in (1, 2):
        (Path(job.runtime.output_dir) / "error.txt").write_text(text, encoding="utf-8")
    return text


def _say(text: str) -> None:
    sys.stderr.write(f"{text.rstrip()}\n")
    sys.stderr.flush()


def _explain(error: Exception, config_name: str, overrides: Sequence[str]) -> ConfigError:
    """Say one of Hydra's errors in one line: what was given, what there is, what to do."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"cannot read `{error.override}` ({_first_line(error)}): expected key=value, such as optimizer.lr=0.01; "
            "put a value with special characters in two pairs of quotes: 'name=\"a=b\"'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        # Of a list Hydra doesn't say what there is.
        options = error.options or sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.4)
        hint = f"did you mean `{group}={near[0]}`? " if near else ""
        more = "; others come with pip install 'pfseg[sweep]'" if group.startswith("hydra/") else ""
        return ConfigError(f"unknown choice `{group}={name}`: {hint}there are {', '.join(options)}{more}")
    if match := re.search(r"(?:Could not (?:override|delete)[^']*|config group )'([^'@]+)'", text):
        return _explain_key(match[1], config_name, overrides)
    if text.startswith("Config group override must be"):
        return ConfigError("a group of settings cannot be null: choose one of its files, such as logger=none")
    if match := re.search(r"An item is already at '([^']+)'", text):
        return ConfigError(f"`{match[1]}` exists already: leave out the + before it")
    cause = f": {_first_line(error.__cause__)}" if error.__cause__ else ""
    return ConfigError(f"{' '.join(text.split())}{cause}")


def _explain_key(key: str, config_name: str, overrides: Sequence[str]) -> ConfigError:
    """The error for `key`, which the configuration lacks, with its neighbours there."""
    others = [text for text in overrides if text.lstrip("+~").partition("=")[0] != key]
    node: Any = compose(config_name, [text for text in others if not set(text) & set(",()")])  # these may be sweeps
    parts = key.replace("/", ".").split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            return ConfigError(f"unknown key `{key}`: `{'.'.join(parts[:depth])}` is a value and has no keys below it")
        if part not in node:
            top = depth == 0 and "trainer" in node
            groups = ["experiment", "hparams_search", "debug"] if top else []  # choices without a key
            return unknown_key(".".join(parts[: depth + 1]), [*map(str, node), *groups])
        node = node._get_node(part)
    return ConfigError(f"unknown key `{key}`: the settings chosen here don't have it")


def _failure(error: Exception) -> str:
    if isinstance(error, PfsegError):
        prefix = "error: " if error.exit_code in (1, 2) else ""  # others say that a job was stopped
        return f"{prefix}{_one_line(str(error))}\n"
    return "".join(traceback.format_exception(error))


def _search(folder: str | Path | None) -> list[str]:
    """The override that has YAML files looked for in a further folder."""
    return [f"hydra.searchpath=[{quote(f'file://{Path(folder).resolve()}')}]"] if folder else []


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}: settings are given as key=value, without dashes; --help lists them all")


def _register_resolver() -> None:
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def _quote_value(override: str) -> str:
    """Quote a plain value that holds a `=`, as paths of runs may: Hydra would not read it."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if "=" in value and not set(value) & set("'\"[]{}()$,") else override


def _first_line(error: BaseException | None) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))
