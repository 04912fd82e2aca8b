"""Files that other processes read meanwhile: written whole or not at all, locked between processes, named for users."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from pydantic_core import to_jsonable_python

from pfseg.errors import WriteError, one_line

PART = ".part"  # end of the names of unfinished files
_PATIENCE_SECONDS = 30.0
_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: of libraries that give no number
_LONGEST_NUMBER = 18  # digits of a whole number in a file of ours, which then fits 64 bits
_MOST_NODES = 100_000  # of a YAML file with its aliases written out, which a small file may have billions of
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def shown(path: str | Path) -> str:
    """Spell a path as the user would type it: relative to the working folder where it lies below."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def program(name: str) -> str | None:
    """Path of a program: beside this Python, where PyPI packages put theirs, or else on the PATH."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, `.<name>.<process id>.part`, which replaces `path` at the end.

    The folder is made where missing. Whatever fails, `path` keeps its previous content and the new file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_atomic(path: Path, data: str | bytes, *, sync: bool = True) -> None:
    """Write a whole file, text as UTF-8, in a folder made where missing, or leave the previous one.

    With `sync` wait until the disk has it, so that a power cut leaves the old file or the new one. Raises WriteError:
    the disk is full, or the folder is missing, read-only or another user's.
    """
    try:
        with replacing(path) as part, open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The error for a file that can't be written, with the remedy."""
    remedy = "free some space on this disk" if error.errno in _FULL else "check the folder and its permissions"
    return WriteError(f"{path} can't be written ({error.strerror or error}); {remedy}")


def write_fault(error: BaseException) -> WriteError | None:
    """The error for users of a disk that is full or read-only; None for any other error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return cannot_write(Path(error.filename or "a file"), error)
    return None


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `path`, which is a file `<path>.lock` beside it, until the end of the process at most.

    The path need not exist; its folder is made where missing. On network file systems without locks nothing is held.
    Without `wait` raises TimeoutError if it is held elsewhere, and OSError if the lock file can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = FileLock(f"{path}.lock", timeout=_PATIENCE_SECONDS if wait else 0)
    while not own.is_locked:
        try:
            own.acquire()
        except TimeoutError:
            if not wait:
                raise
            _log.warning("waiting for another process that holds %s.lock", path)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            break
    try:
        yield
    finally:
        own.release()


def plain(value: object) -> Any:
    """Turn tuples, paths and array scalars into what JSON knows, and NaN and infinity into None."""

    def other(item: object) -> object:
        return item.item() if hasattr(item, "item") else str(item)

    return to_jsonable_python(value, inf_nan_mode="null", fallback=other)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says; ValueError for any other text, also one nested too deeply or with absurd numbers."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"the number {digits[:20]}... is too large")
    return int(digits)


def load_json(path: Path) -> Any:
    """What a JSON file says; None where there is no such file or it can't be read."""
    with suppress(OSError, ValueError):
        return parse_json(path.read_bytes())
    return None


def load_yaml(path: Path) -> Any:
    """What a YAML file says, in plain values; None where there is no such file.

    Raises ValueError, which names file and line, if it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "*" in text and _size(yaml.compose(text, Loader=_YAML), {}) > _MOST_NODES:
            raise ValueError("its aliases unfold to an absurd size")
        return yaml.load(text, Loader=_YAML)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line} can't be read as YAML: {error.problem}") from error
    except RecursionError:
        raise ValueError(f"{path} can't be read as YAML: it is nested too deeply") from None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} can't be read as YAML: {one_line(error)}") from error


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Nodes of a YAML document with its aliases written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES  # to an alias within the node itself, which has no end
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = (part for item in parts for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in flat)
    return known[id(node)]
