"""A device that only pretends, for machines without a GPU: `python tests/cuda/pretended/build.py FOLDER`.

Makes libraries under the names of CUDA's, with all functions of the real ones, which have to be there (as wheels or as
a toolkit): they return 0, and those written in the `.c` files here do what callers can't go on without. A Python with
FOLDER on its PYTHONPATH then finds a GPU: everything is compiled and all host code runs, the results mean nothing.
`counts()` gives what a process has asked of the device.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pfseg import toolkit

HERE = Path(__file__).parent
LIBRARIES = ("cudart", "cublas", "cublasLt", "cudnn", "cudnn_ops", "cudnn_cnn", "curand", "cufft", "cusparse")
COUNTS = (
    "launches",
    "library_calls",
    "copies_to_device",
    "bytes_to_device",
    "copies_to_host",
    "bytes_to_host",
    "copies_within",
    "synchronisations",
    "allocations",
)


def build(folder: Path, capability: int = 90) -> None:
    """Make the libraries of a card of that capability (90 for 9.0), and what lets pfseg find them."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = toolkit.find_sources()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: _library(name, sources, folder, capability), LIBRARIES))
    _compile([HERE / "cuda.c", f"-DCAPABILITY={capability}", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1"])
    shutil.copy(HERE / "sitecustomize.py", folder)


def _library(name: str, sources: toolkit.Sources, folder: Path, capability: int) -> None:
    real = next(path for place in sources.libraries for path in sorted(place.glob(f"lib{name}.so.*")))
    listing = subprocess.check_output(["nm", "-D", "--defined-only", real], text=True)
    functions, versions = set(), set()
    for line in listing.splitlines():
        symbol, _, version = line.split()[-1].partition("@@")
        if line.split()[-2] in "TtWwi" and symbol.isidentifier():
            functions.add(symbol)
        versions.add(version)
    own = HERE / f"{name.partition('_')[0]}.c"
    stubs = folder / f"{name}_stubs.c"
    lines = [f"__attribute__((weak)) long {function}() {{ return 0; }}\n" for function in sorted(functions)]
    stubs.write_text("".join(lines))
    objects = [folder / f"{name}_stubs.o"]
    _compile(["-c", stubs, "-o", objects[0]], shared=False)
    if own.exists():
        objects.append(folder / f"{name}_own.o")
        flags = [f"-DCAPABILITY={capability}", *(f"-I{place}" for place in sources.includes)]
        _compile(["-c", own, *flags, "-o", objects[1]], shared=False)
    options = [f"-Wl,-soname,{real.name}"]
    if node := next((version for version in sorted(versions) if version.startswith("lib")), None):
        script = folder / f"{name}.map"
        script.write_text(f"{node} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={script}")
    _compile([*objects, *options, "-o", folder / real.name])
    for path in folder.glob(f"{name}_*.[co]"):
        if path.stem in (f"{name}_stubs", f"{name}_own"):
            path.unlink()


def _compile(arguments: list[object], *, shared: bool = True) -> None:
    options = ["-w", "-O1", "-fPIC", "-fno-builtin", *(["-shared"] if shared else [])]
    subprocess.run(["gcc", *options, *map(str, arguments)], check=True)


def counts() -> dict[str, int]:
    """What this process has asked of the pretended device since the last call; Jittor has to be imported."""
    array = (ctypes.c_long * len(COUNTS)).in_dll(ctypes.CDLL(None), "pretended_count")
    values = dict(zip(COUNTS, array, strict=True))
    ctypes.memset(array, 0, ctypes.sizeof(array))
    return values


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--capability", type=int, default=90)
    arguments = parser.parse_args()
    build(arguments.folder.resolve(), arguments.capability)
