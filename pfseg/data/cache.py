"""Results kept on disk between runs: written whole, made by one process while the others that need them wait."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.errors import WriteError
from pfseg.files import lock, write_atomic

_DIGEST = 32  # bytes of SHA-256


def cache_folder() -> Path:
    """Folder for what can be made again: `PFSEG_CACHE` of the environment, or `~/.cache/pfseg`.

    Where there is no home, or one that can't be written to, it is a folder for temporary files.
    """
    if given := os.environ.get("PFSEG_CACHE"):
        return Path(given).expanduser()
    with suppress(RuntimeError):  # there is no home
        folder = Path("~/.cache/pfseg").expanduser()
        there = next((each for each in (folder, *folder.parents) if each.is_dir()), folder)
        if os.access(there, os.W_OK | os.X_OK):
            return folder
    return Path(tempfile.gettempdir()) / f"pfseg-{os.getuid()}"


def key_of(*parts: Any) -> str:
    """Short text that differs wherever any of the parts (which JSON can hold) does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def stat_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns, which tell whether a file was changed; zeros if it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def cached_array(folders: Sequence[Path], name: str, build: Callable[[], np.ndarray]) -> np.ndarray:
    """Load an array, or build it and store it for the next time in the first of `folders` that can be written, if any.

    The `name` of the file is to hold the key of everything that the array depends on. Other processes that ask for it
    wait until it is built.
    """
    path = _writable(folders, name)
    if path is None:
        return build()
    with lock(path):
        array = _load(path)
        if array is None:
            array = build()
            body = io.BytesIO()
            np.save(body, array, allow_pickle=False)
            with suppress(WriteError):  # a full disk costs the time to build it again, not the run
                write_atomic(path, hashlib.sha256(body.getvalue()).digest() + body.getvalue(), sync=False)
        return array


def _writable(folders: Sequence[Path], name: str) -> Path | None:
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            open(folder / f"{name}.lock", "a").close()
            return folder / name
    return None


def _load(path: Path) -> np.ndarray | None:
    """The stored array, None if there is none or it is damaged."""
    with suppress(OSError, ValueError, EOFError):
        data = path.read_bytes()
        if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
            array: np.ndarray = np.load(io.BytesIO(data[_DIGEST:]), allow_pickle=False)
            return array
    return None
