"""Commands with `key=value` settings: composed by Hydra, checked, and run once or as the jobs of a sweep."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from pfseg.config.check import check
from pfseg.config.compose import FAULTS, VERSION_BASE, compose, config_dir, explain, prepare_hydra, quote
from pfseg.config.schema import Job
from pfseg.config.settings import Settings
from pfseg.config.stored import expand_resume
from pfseg.devices import other_slurm_process
from pfseg.errors import ConfigError, JobError, PfsegError
from pfseg.files import cannot_write, write_fault
from pfseg.launch.lease import lease, sole_use
from pfseg.launch.sweep import mark_stopped, stopped, sweep
from pfseg.signals import handled

Run = Callable[[Any], float | None]
_FLAGS = ("--help -h", "--hydra-help", "--version", "--resolve", "--run -r", "--multirun -m", "--shell-completion -sc")
_OPTIONS = ("--package -p", "--config-path -cp", "--config-name -cn", "--config-dir -cd", "--experimental-rerun")
_OPEN_GROUPS = ("evaluate", "predict", "export")  # take any setting of the data set, which the checkpoint holds


def run(command: str, arguments: list[str], words: str | None) -> int:
    """Run a command with the settings of a command line; returns the exit code. Bare words are values of `words`."""
    if other_slurm_process():
        return 0
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        ranks = os.environ.get("OMPI_COMM_WORLD_SIZE", "N")
        raise ConfigError(f"started by mpirun, which pfseg does by itself: type `pfseg {command} ranks={ranks} ...`")
    flags, rest, args = _split(arguments)
    overrides = expand_resume(_expand(command, rest, words), multirun=args.multirun)
    name = args.config_name or command
    folder = Path(args.config_dir) if args.config_dir else None
    if folder and not folder.is_dir():
        raise ConfigError(
            f"--config-dir {folder} is not a folder (looked in {folder.absolute()}): give one of YAML files"
        )
    config_path = Path(args.config_path).absolute() if args.config_path else None
    if args.help:
        import_module("pfseg.commands.help").show(command, name, folder, config_path)
        return 0
    settings = sweep_folder = None
    if args.experimental_rerun:
        _check_rerun(args.experimental_rerun, overrides)
    elif args.multirun:
        cfg = compose(name, overrides, folder=folder, config_path=config_path, with_hydra=True)
        sweep_folder = Path(cfg.hydra.sweep.dir).absolute()
        overrides.append(f"hydra.sweep.dir={quote(str(sweep_folder))}")
    elif args.hydra_help or args.cfg or args.info or args.shell_completion:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `pfseg train --info | head`
    else:
        settings = check(compose(name, overrides, folder=folder, config_path=config_path))
        _check_free(overrides)
    failures: list[Exception] = []
    task = _task(command, settings, failures, rerun=bool(args.experimental_rerun))
    prepare_hydra()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    sys.argv = [sys.argv[0], *flags, *overrides]
    source = str(config_path or config_dir())
    try:
        with sweep(sweep_folder) if sweep_folder else nullcontext():
            hydra.main(version_base=VERSION_BASE, config_path=source, config_name=name)(task)()
    except FAULTS as error:
        raise explain(error, name, overrides, folder, config_path, sweep=args.multirun) from error
    except OSError as error:  # of Hydra's own files
        raise cannot_write(Path(error.filename or "the run folder"), error) from error
    if failures:
        if not isinstance(failures[0], PfsegError):
            sys.stderr.write("".join(traceback.format_exception(failures[0])))
            return 1
        raise failures[0]
    return 0


def _check_rerun(config: str, overrides: Sequence[str]) -> None:
    if overrides:
        raise ConfigError(f"--experimental-rerun repeats a run as it was: leave out {overrides[0]}")
    if not Path(config).is_file():
        raise ConfigError(f"--experimental-rerun {config} does not exist: give a run's config.pickle")


def _check_free(overrides: Sequence[str]) -> None:
    """Raise JobError if another command works in the run folder that is given, before Hydra writes into it."""
    for key, _, value in (text.partition("=") for text in overrides):
        if key == "hydra.run.dir" and "$" not in value:
            with sole_use(Path(value.strip("'\""))):
                pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: settings are given as key=value, without dashes; --help lists them all")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str], argparse.Namespace]:
    """Hydra's flags, everything else, and the flags as read."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("rest", nargs="*")
    for flag in _FLAGS:
        parser.add_argument(*flag.split(), action="store_true")
    for flag in _OPTIONS:
        parser.add_argument(*flag.split())
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    args = parser.parse_intermixed_args(arguments)
    flags = [text for text in arguments if text not in args.rest]
    for name in ("--config-path", "-cp"):  # Hydra takes it from the folder of this file
        if name in flags:
            del flags[flags.index(name) : flags.index(name) + 2]
    return [text for text in flags if not text.startswith("--config-path=")], args.rest, args


def _expand(command: str, arguments: Sequence[str], words: str | None) -> list[str]:
    """Overrides as Hydra reads them: bare words become a setting's value, plain values with a `=` are quoted."""
    bare = [text for text in arguments if "=" not in text and not text.startswith("~")] if words else []
    overrides = []
    for text in arguments:
        key, _, value = text.partition("=")
        if "=" in value and not set(value) & set("'\"[]{}()$,"):  # as in paths of runs; Hydra would not read it
            text = f"{key}='{value}'"
        if text not in bare:
            overrides.append(f"++{text}" if command in _OPEN_GROUPS and text.startswith("dataset.") else text)
    if words == "runs" and bare:
        overrides.append(f"runs=[{','.join(map(quote, bare))}]")
    elif len(bare) > 1:
        raise ConfigError(f"{words} takes one value, got {len(bare)}: {' '.join(bare)}")
    return overrides + [f"{words}={quote(text)}" for text in bare if words != "runs"]


def _task(command: str, settings: Settings | None, failures: list[Exception], *, rerun: bool) -> Run:
    """What Hydra calls with the settings of a run, or of each job of a sweep."""

    def task(cfg: DictConfig) -> float | None:
        if other_slurm_process():  # of a job of a sweep
            return None
        work = cast(Run, import_module(f"pfseg.commands.{command}").run)
        if callable(signal.getsignal(signal.SIGINT)):  # not ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on there is something to finish
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return _sweep_job(work, cfg)
        if rerun:
            _take_new_folder()
        try:
            with handled((signal.SIGTERM, signal.SIGHUP), _end):  # until the work handles them itself
                return work(settings or check(cfg))
        except Exception as raised:
            error = write_fault(raised) or raised
            _keep_failure(error)
            failures.append(error)  # raised later: here Hydra would add lines of its own
            return None

    return task


def _end(number: int) -> NoReturn:
    """End as a program does, not as one that was killed: W&B, for one, then removes its temporary folder."""
    raise SystemExit(128 + number)


def _sweep_job(work: Run, cfg: DictConfig) -> float | None:
    """Run one job of a sweep when its devices are free, perhaps in a process of its own."""
    job = HydraConfig.get()
    folder = Path(job.sweep.dir)
    if stopped(folder) is not None:
        raise JobError("not started: the sweep was told to stop")
    try:
        settings = check(cfg)
        launcher = cast(dict[str, str | int | None], OmegaConf.to_container(job.launcher))
        if "BasicLauncher" not in str(launcher["_target_"]):
            os.environ["TTY_COMPATIBLE"] = "0"  # jobs side by side share a terminal: plain lines, no bars
        assert isinstance(settings, Job)
        with lease(settings, launcher, lambda text: _say(f"job {job.job.num}: {text}")):
            return work(settings)
    except Exception as error:
        _say(_keep_failure(error))  # Hydra shows none
        if (code := getattr(error, "exit_code", 1)) not in (1, 2):
            mark_stopped(folder, code)
        raise JobError(" ".join(str(error).splitlines())) from None  # others can't be sent to the sweep's process


class KeepSettings(Callback):
    """Leaves `.hydra/config.pickle` in a run's folder, which Hydra's `--experimental-rerun` starts from."""

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        """Write the file."""
        if config.hydra.output_subdir is not None:
            folder = Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir
            (folder / "config.pickle").write_bytes(pickle.dumps(config))


def _take_new_folder() -> None:
    """Give a repeated run a folder of its own, beside that of the run."""
    config = cast(DictConfig, HydraConfig.instance().cfg)
    old = Path(config.hydra.runtime.output_dir)
    new = old.with_name(f"{old.name}-again-{time.strftime('%Y%m%d-%H%M%S')}")
    with read_write(config.hydra):
        config.hydra.runtime.output_dir = str(new)
    shutil.copytree(old / config.hydra.output_subdir, new / config.hydra.output_subdir)  # to resume and reproduce it


def _keep_failure(error: Exception) -> str:
    """Leave `error.txt` in the folder of a run that failed, and was not merely stopped; return what it says."""
    job = HydraConfig.get()
    user = isinstance(error, PfsegError)
    text = f"error: {' '.join(str(error).splitlines())}\n" if user else "".join(traceback.format_exception(error))
    folder = Path(job.runtime.output_dir)
    if job.output_subdir and getattr(error, "exit_code", 1) in (1, 2) and folder.is_dir():
        with suppress(OSError):
            (folder / "error.txt").write_text(text, encoding="utf-8")
    return text


def _say(text: str) -> None:
    sys.stderr.write(f"{text.rstrip()}\n")
    sys.stderr.flush()
