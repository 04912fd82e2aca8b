"""How Jittor compiles: for a CPU in less than half the time, and all of it with a count (imports no Jittor).

Jittor 1.3.11 parses its headers anew for each of the 150 files of its core and for each operator, which takes most of
the time, and lets each operator pass through a Python program that rewrites its assembler where an option that nobody
sets asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pfseg.errors import PfsegError
from pfseg.files import PART, lock, write_atomic

_log = logging.getLogger(__name__)
_SILENT_SECONDS = 1.0  # of a compilation, which may find all in the cache
_FAILED = ("Error happend during compilation", "Run cmd failed")  # in Jittor's errors
_UNUSED = frozenset({"notebook", "test"})  # folders of Jittor that nothing imports
_LINKING = ("-l", "-L", "-Wl,", "-shared")

# What most files of the core include.
_CORE_HEADER = """#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <iomanip>
#include <iostream>
#include <mutex>
#include <sstream>
#include <thread>
#include "var.h"
#include "fused_op.h"
#include "graph.h"
#include "executor.h"
#include "var_holder.h"
#include "ops/op_register.h"
#include "pyjt/py_obj_holder.h"
#include "pyjt/py_converter.h"
#include "utils/str_utils.h"
"""
# What most operators include. The two definitions stand at the head of each operator and change what headers declare.
_DEFINITIONS = "-DJIT=1 -DJIT_cpu=1"
_HEADER = """#include <cmath>
#include <algorithm>
#include <limits>
#include <assert.h>
#include "var.h"
#include "fused_op.h"
#include "misc/cpu_math.h"
#include "ops/op_register.h"
#include "ops/array_op.h"
#include "ops/broadcast_to_op.h"
#include "ops/binary_op.h"
#include "ops/unary_op.h"
#include "ops/reduce_op.h"
"""
# Jittor calls: <interpreter> .../asm_tuner.py --cc_path=<compiler> <arguments>
# What a killed compiler leaves is in the folder that the job removes.
_SCRIPT = """#!/bin/sh
compiler="${2#--cc_path=}"
shift 2
TMPDIR="${PFSEG_SCRATCH:-$TMPDIR}" exec "$compiler" "$@"
"""


class CompilationError(PfsegError):
    """The compiler failed: for lack of space or memory, or for a fault of an operator."""


class _Progress:
    """Says how many of some files are compiled; in place of Jittor's, which is silent where its log is."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.began = time.monotonic()

    def update(self, index: int) -> None:
        """Note that the file of this index (from 0) is done."""
        used = time.monotonic() - self.began
        if used > _SILENT_SECONDS:
            left = used / (index + 1) * (self.total - index - 1)
            say(self.what, index + 1, self.total, used, left)


class _Pool:
    """Processes that compile, in place of Jittor's pool, which waits for ever for one that was killed, and stays."""

    def __init__(self, processes: int, initializer: Callable[[], None]) -> None:
        self._processes, self._initializer = processes, initializer

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def imap_unordered(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """Results as they come; raises BrokenProcessPool if a process was killed."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Jittor's handler may wait for ever for a lock
        with ProcessPoolExecutor(self._processes, get_context("fork"), self._initializer) as pool:
            futures = [pool.submit(function, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()


def say(what: str, done: int, total: int, used: float = 0.0, left: float | None = None) -> None:
    """Write a line as Jittor does for operators, which `pfseg.launch.driver` looks for."""
    rest = "" if left is None else f" eta: {left:.1f}s"
    end = "\n" if done == total else "\r"
    sys.stderr.write(f"{what}({done}/{total}) used: {used:.1f}s{rest}{end}")
    sys.stderr.flush()


def replace_parts() -> None:
    """Let Jittor say how far it is with compiling itself, and survive it; to be called before it is imported."""
    utilities = importlib.import_module("jittor_utils")
    vars(utilities).update(DelayProgress=_Progress, Pool=_Pool)
    cache = Path(utilities.cache_path)
    if not any(any(cache.glob(pattern)) for pattern in ("jittor_core*.so", "cu*/jittor_core*.so")):
        say("Compiling jittor_core", 0, 0)


@contextmanager
def shared_package(folder: Path) -> Iterator[None]:
    """Import Jittor, within, from a copy in `folder` that serves all Python environments with the same Jittor.

    Jittor names its cache after the folder that it lies in, and knows by the paths in commands what it has compiled.
    Safe for several processes at once. Where there can't be a copy Jittor comes from its environment, as it would.
    """
    try:
        path = str(_copy_package(folder))
    except (OSError, shutil.Error) as error:
        _log.debug("Jittor isn't shared with other environments: %s", error)
        yield
        return
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _copy_package(folder: Path) -> Path:
    """Copy what Jittor needs to a folder named after its content, unless that is done."""
    digest, sources = hashlib.sha256(), {}
    for name in ("jittor", "jittor_utils"):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"{name} isn't installed")
        sources[name] = Path(spec.submodule_search_locations[0])
        for path in sorted(sources[name].rglob("*")):
            inside = path.relative_to(sources[name])
            if path.is_file() and _UNUSED.isdisjoint(inside.parts) and path.suffix != ".pyc":
                digest.update(f"{name}/{inside}\n".encode() + path.read_bytes())
    ready = folder / digest.hexdigest()[:16]
    with lock(ready):
        if not ready.exists():
            new = ready.with_name(f"{ready.name}{PART}")
            shutil.rmtree(new, ignore_errors=True)  # of a killed process
            for name, source in sources.items():
                shutil.copytree(source, new / name, ignore=shutil.ignore_patterns(*_UNUSED))
            new.rename(ready)
    return ready


@contextmanager
def hastened_core() -> Iterator[None]:
    """Let Jittor, imported within, compile its core and custom operators for a CPU with a precompiled header.

    They get less optimisation too: what takes time at work are the other operators, which keep theirs. Where the header
    can't be made all is compiled without it. Safe for several processes at once, of which Jittor lets one compile.
    """
    before = {name: os.environ.get(name, "") for name in ("cc_flags", "kernel_flags")}
    utilities = importlib.import_module("jittor_utils")
    run = utilities.run_cmds
    headers: list[str] = []

    def run_hastened(commands: list[str], cache_path: str, jittor_path: str, message: str = "run_cmds") -> None:
        if not headers:  # the first commands are those of the core
            headers.append(_precompile_core(shlex.split(commands[0]), Path(cache_path), Path(jittor_path)))
        commands = sorted(commands, key=_source_size, reverse=True)  # so that none is left alone at the end
        run([f"{command}{headers[0]}" for command in commands], cache_path, jittor_path, message)

    vars(utilities)["run_cmds"] = run_hastened
    os.environ["cc_flags"] = f"{before['cc_flags']} -O1 -w"
    os.environ["kernel_flags"] = f"{before['kernel_flags']} -Ofast "  # Jittor's own, if the others name no level
    try:
        yield
    finally:
        os.environ.update(before)


def _precompile_core(command: list[str], cache_path: Path, jittor_path: Path) -> str:
    """The flag, if any, that makes a command like `<compiler> <source> <flags> -c -o <object>` take the header."""
    try:
        compile = [command[0], *command[2 : command.index("-c")]]
        # Without a space, so that Jittor doesn't take it for a source, which it would read at each start.
        return f' -include"{_prepare(cache_path / "pfseg" / "core", compile, _CORE_HEADER, jittor_path)}"'
    except (OSError, PfsegError) as error:
        _log.debug("Jittor's core is compiled without a precompiled header: %s", error)
        return ""


def _source_size(command: str) -> int:
    return Path(shlex.split(command)[1]).stat().st_size


def command(jittor: Any) -> list[str]:
    """The compiler and the flags with which Jittor compiles operators for a CPU, without those of the linker."""
    given = shlex.split(jittor.compiler.cc_flags + jittor.compiler.kernel_opt_flags)
    return [jittor.compiler.cc_path, *(flag for flag in given if not flag.startswith(_LINKING))]


def hasten(jittor: Any) -> None:
    """Let Jittor compile operators for a CPU with a precompiled header, and by the compiler itself.

    Prepares that once per cache. Safe for several processes at once. Where it can't be done all stays as it was.
    """
    folder = Path(jittor.flags.cache_path) / "pfseg"
    try:
        compile = [*command(jittor), *_DEFINITIONS.split()]
        header = _prepare(folder / "operators", compile, _HEADER, Path(jittor.flags.jittor_path))
        script = folder / "compile.sh"
        if not script.exists() or script.read_text() != _SCRIPT:
            write_atomic(script, _SCRIPT)
    except (OSError, PfsegError) as error:
        _log.debug("operators are compiled without a precompiled header: %s", error)
        return
    jittor.flags.cc_flags += f' {_DEFINITIONS} -include "{header}" '
    jittor.flags.python_path = f'/bin/sh "{script}"'


def explained(error: BaseException) -> BaseException:
    """An error of Jittor's for a compilation that failed, as one for users; any other as it is."""
    failed = isinstance(error, RuntimeError) and any(text in str(error) for text in _FAILED)
    if not failed and not isinstance(error, BrokenProcessPool):
        return error
    folders = f"{os.environ.get('JITTOR_HOME', '~')}/.cache/jittor and {tempfile.gettempdir()}"
    return CompilationError(
        "Jittor could not compile an operator: often the compiler was killed for lack of memory, or a disk is full; "
        f"free some space in {folders}, or memory, and give the command again (the compiler's words are in worker.log)"
    )


def _prepare(name: Path, compile: list[str], text: str, jittor_path: Path) -> Path:
    """Precompile a header in a folder `<name>_<digest>`, unless that is done; gives its path for `-include`.

    The compiler takes the precompiled one if it was made by itself with the same flags, or else the plain one. It
    doesn't see that a header has changed; the digest does.
    """
    if not re.search(r"(^|-)g\+\+", Path(compile[0]).name):
        raise PfsegError(f"{compile[0]} isn't g++")  # others refuse a header that doesn't fit, instead of ignoring it
    digest = hashlib.sha256("\n".join([*compile, text]).encode())
    for path in sorted((jittor_path / "src").rglob("*.h")):
        digest.update(path.read_bytes())
    ready = name.with_name(f"{name.name}_{digest.hexdigest()[:16]}")
    with lock(name):
        if not ready.exists():
            new = ready.with_name(f"{ready.name}{PART}")
            shutil.rmtree(new, ignore_errors=True)  # of a killed process
            new.mkdir()
            header = new / "headers.h"
            header.write_text(text)
            arguments = ["-x", "c++-header", str(header), "-o", f"{header}.gch"]
            done = subprocess.run([*compile, *arguments], capture_output=True, text=True, check=False)
            if done.returncode:
                raise PfsegError(done.stderr[-2000:])
            new.rename(ready)
    return ready / "headers.h"
