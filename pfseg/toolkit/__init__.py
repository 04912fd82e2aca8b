"""The CUDA toolkit in the shape that Jittor 1.3.11 wants, made of links (no Jittor, no CUDA context).

Jittor looks for one folder that holds the compiler, the headers and the libraries, and was written before CUDA 13 and
cuDNN 9. `settle()` lays out such a folder from the wheels of `pip install 'pfseg[cuda]'`, or from a toolkit of the
system, and tells Jittor's import of it by environment variables. `headers/` holds what comes before CUDA's own headers.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from pfseg.errors import PfsegError
from pfseg.files import PART, lock

_HEADERS = Path(__file__).with_name("headers")
_NEEDED_HEADERS = ("cuda_runtime.h", "cublas_v2.h", "curand.h", "cufft.h", "cusparse.h", "cudnn.h")
_NEEDED_LIBRARIES = ("cudart", "cublas", "cublasLt", "curand", "cufft", "cusparse", "cudnn")
# In the order in which they need each other; loaded for the whole process, since Jittor gives its own no path to them.
_LOADED = ("cudart", "nvJitLink", "cublasLt", "cublas", "curand", "cufft", "cusparse", "cudnn")
_OLDEST = {12: 70, 13: 75}  # the oldest capability that a version of CUDA builds for
_DRIVERS = {12: "525", 13: "580"}  # the oldest driver that runs it
_DRIVER_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib")
_FREE_BYTES = 1 << 30  # compiled operators take a third of it
_INSTALL = "run `pip install 'pfseg[cuda]'` in the Python environment that runs pfseg"
_CPU = "or set PFSEG_DEVICE=cpu"


class ToolkitError(PfsegError):
    """CUDA can't be used on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Sources:
    """Where a toolkit's parts lie.

    Attributes:
        nvcc: the compiler.
        version: what it says of itself, such as 13.0.88.
        includes: folders of headers; the first that has a name counts.
        libraries: the same for libraries.
    """

    nvcc: Path
    version: str
    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]

    @property
    def major(self) -> int:
        """12 or 13."""
        return int(self.version.split(".")[0])


def settle(folder: Path, cache: Path | None = None) -> Path:
    """Make Jittor find CUDA in `folder`<version> (laid out there if need be), and load the libraries; returns it.

    To be called before Jittor is imported. Safe for several processes at once. `cache` holds operators that Jittor
    compiled on another machine: its compiler is given out for theirs, if it has the same major version. Raises
    ToolkitError.
    """
    driver = find_driver()
    sources = find_sources()
    check_cards(driver, sources.major)
    for compiled in cache.glob(f"cu{sources.major}.*") if cache else ():
        sources = replace(sources, version=compiled.name[2:].partition("_")[0])
    folder = folder.with_name(f"{folder.name}{sources.major}")
    lay_out(folder, sources, driver)
    os.environ["nvcc_path"] = str(folder / "bin" / "nvcc")
    os.environ["FIX_TORCH_ERROR"] = "0"  # it would import PyTorch
    if sources.major >= 13:  # its cudaDeviceProp lacks two fields, which functions of Jittor read that nobody calls
        add_flags("-DcomputeMode=major -DclockRate=minor")
    # For the process that Jittor asks for the capability: it opens libcuda.so, which drivers don't always bring.
    paths = [str(folder / "driver"), *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(dict.fromkeys(paths))
    for name in _LOADED:
        for path in sorted((folder / "lib64").glob(f"lib{name}.so.*"))[:1]:
            ctypes.CDLL(str(path), os.RTLD_NOW | os.RTLD_GLOBAL)
    return folder


def add_flags(flags: str) -> None:
    """Add flags of the C++ compiler to those that Jittor is told, once."""
    before = os.environ.get("cc_flags", "")
    if flags not in before:
        os.environ["cc_flags"] = f"{before} {flags}".strip()


def find_driver() -> Path:
    """The library of the NVIDIA driver; raises ToolkitError."""
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), *_DRIVER_FOLDERS]
    for path in (Path(folder, "libcuda.so.1") for folder in filter(None, folders)):
        if path.exists():
            return path
    listing = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    if found := re.search(r"libcuda\.so\.1 .*=> (\S+)", listing):
        return Path(found[1])
    places = ", ".join(_DRIVER_FOLDERS)
    raise ToolkitError(f"libcuda.so.1 of the NVIDIA driver not found in {places}: set LD_LIBRARY_PATH, {_CPU}")


def check_cards(driver: Path, major: int) -> None:
    """Raise ToolkitError where the driver or a card is too old for this version of CUDA."""
    library = ctypes.CDLL(str(driver), os.RTLD_NOW | os.RTLD_GLOBAL)  # the CUDA runtime finds it by its name then
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) or number.value // 1000 < major:
        raise ToolkitError(
            f"the NVIDIA driver runs CUDA {number.value // 1000}.{number.value % 1000 // 10} at most, and this is CUDA "
            f"{major}: install driver {_DRIVERS[major]} or newer, {_CPU}"
        )
    if error := library.cuInit(0):
        raise ToolkitError(f"the NVIDIA driver doesn't start (cuInit returns {error}): see nvidia-smi, {_CPU}")
    library.cuDeviceGetCount(ctypes.byref(number))
    for index in range(number.value):
        device, parts = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
        library.cuDeviceGet(ctypes.byref(device), index)
        for part, attribute in zip(parts, (75, 76), strict=True):
            library.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
        capability = 10 * parts[0].value + parts[1].value
        if capability < _OLDEST[major]:
            remedy = "use CUDA 12" if capability >= _OLDEST[12] else "pfseg needs 7.0 or newer"
            raise ToolkitError(
                f"GPU {index} has capability {capability / 10}, CUDA {major} needs {_OLDEST[major] / 10}: {remedy}; "
                f"leave the card out by CUDA_VISIBLE_DEVICES, {_CPU}"
            )


def find_sources() -> Sources:
    """Compiler, headers and libraries, this Python's wheels first; raises ToolkitError for what is missing."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(folder) for folder in (spec.submodule_search_locations or () if spec else ())]
    nvcc = _find_nvcc(wheels)
    if nvcc is None:
        raise ToolkitError(f"no CUDA compiler (nvcc) found: {_INSTALL}, {_CPU}")
    version = _version(nvcc)
    major, top = int(version.split(".")[0]), nvcc.resolve().parent.parent
    if major not in _OLDEST:
        raise ToolkitError(f"{nvcc} is CUDA {version}, pfseg needs 12 or 13: {_INSTALL}, {_CPU}")
    names = {12: ("cublas", "cuda_runtime", "curand", "cufft", "cusparse", "nvjitlink"), 13: ("cu13",)}[major]
    # cuDNN's wheels of both versions of CUDA have one folder: the other wheels beside it tell which
    roots = [
        root
        for folder in wheels
        if (folder / names[0]).is_dir()
        for root in (folder / name for name in (*names, "cudnn", "nccl"))
    ]
    machine = f"{os.uname().machine}-linux-gnu"
    includes = (
        *(root / "include" for root in roots),
        top / "include",
        Path("/usr/include", machine),
        Path("/usr/include"),
    )
    libraries = (
        *(root / "lib" for root in roots),
        top / "lib64",
        top / "lib",
        Path("/usr/lib", machine),
        Path("/usr/lib64"),
    )
    missing = [name for name in _NEEDED_HEADERS if not any((folder / name).exists() for folder in includes)]
    missing += [
        f"lib{name}.so" for name in _NEEDED_LIBRARIES if not any(any(f.glob(f"lib{name}.so*")) for f in libraries)
    ]
    if missing:
        raise ToolkitError(f"CUDA {version} of {top} lacks {', '.join(missing)}: {_INSTALL}, {_CPU}")
    return Sources(nvcc, version, includes, libraries)


def _find_nvcc(wheels: list[Path]) -> Path | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [folder / "cu13" / "bin" / "nvcc" for folder in wheels]
    candidates += [Path(home, "bin", "nvcc")] if home else []
    candidates += [Path(found)] if (found := shutil.which("nvcc")) else []
    candidates += [Path("/usr/local/cuda/bin/nvcc"), Path("/opt/cuda/bin/nvcc")]
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def _version(nvcc: Path) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    if found is None:
        raise ToolkitError(f"{nvcc} doesn't run: {_INSTALL}, {_CPU}")
    return found[1]


def lay_out(folder: Path, sources: Sources, driver: Path) -> None:
    """Make the folder unless it is there already, made of the same parts; raises ToolkitError for a full disk."""
    headers = "".join(path.read_text(encoding="utf-8") for path in sorted(_HEADERS.rglob("*.*")))
    parts = [sources, driver, Path(__file__).read_text(encoding="utf-8"), headers]
    made_of = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
    stamp = folder / "made_of"
    with lock(folder):
        if stamp.exists() and stamp.read_text() == made_of and (folder / "lib64" / "libcudart.so").exists():
            return
        if (free := shutil.disk_usage(folder.parent).free) < _FREE_BYTES:
            raise ToolkitError(
                f"{folder.parent} has {free >> 20} MiB left, and operators compiled for GPUs need up to "
                f"{_FREE_BYTES >> 20}: free some space, or set JITTOR_HOME to a folder on another disk"
            )
        new = folder.with_name(f".{folder.name}{PART}")
        shutil.rmtree(new, ignore_errors=True)  # of a killed process
        for name in ("bin", "include-real", "lib64", "driver"):
            (new / name).mkdir(parents=True)
        shutil.copytree(_HEADERS, new / "include")
        _link_headers(new, sources)
        _link_libraries(new / "lib64", sources)
        (new / "driver" / "libcuda.so").symlink_to(driver)
        script = new / "bin" / "nvcc"
        script.write_text(_SCRIPT.format(nvcc=sources.nvcc, version=sources.version))
        script.chmod(0o755)
        (new / "made_of").write_text(made_of)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


# A script, since Jittor follows links. CUDA 13 wants C++17 where Jittor asks for 14; PTX is for cards that are newer
# than what Jittor builds for.
_SCRIPT = """#!/bin/bash
if [ "$*" = --version ]; then
    echo "Cuda compilation tools, V{version}"
    exit
fi
arguments=()
for argument in "$@"; do
    case "$argument" in
        -std=c++14) argument=-std=c++17 ;;
        -arch=compute_*) arguments+=("-code=${{argument#-arch=}}") ;;
    esac
    arguments+=("$argument")
done
exec "{nvcc}" "${{arguments[@]}}"
"""


def _link_headers(new: Path, sources: Sources) -> None:
    """`include-real` has all of CUDA's, `include` those without a replacement."""
    for folder in sources.includes:
        system = folder.is_relative_to("/usr/include")
        for path in folder.glob("cudnn*.h" if system else "*"):
            for target in (new / "include-real" / path.name, new / "include" / path.name):
                if not os.path.lexists(target):
                    target.symlink_to(path)


def _link_libraries(target: Path, sources: Sources) -> None:
    """Each library under the name with which it is looked for at run time, and the one for the linker."""
    for folder in sources.libraries:
        system = folder.parent == Path("/usr/lib") or folder == Path("/usr/lib64")
        for path in sorted([*folder.glob("libcudnn*.so*" if system else "*.so*"), *folder.glob("libcuda*.a")]):
            for name in (path.name, re.sub(r"\.so\.[\d.]+$", ".so", path.name)):
                if not os.path.lexists(target / name):
                    (target / name).symlink_to(path)
    for part in ("ops", "cnn"):  # Jittor opens them by their names of version 8
        for use in ("infer", "train"):
            older = target / f"libcudnn_{part}_{use}.so"
            if not os.path.lexists(older):
                older.symlink_to((target / f"libcudnn_{part}.so").resolve())
