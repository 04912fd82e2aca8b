"""The libraries of GPU kernels (`cuda/`) and of functions for a CPU (`cpu/`), called by one operator of Jittor.

Each is compiled once per environment, on its first use; Jittor would compile each function anew for each combination of
types and dimensions. On a GPU, and on a CPU in bf16, the network's maps are (N, H, W, C), channels last, of `dtype()`;
see `pfseg.ops.maps`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from pfseg import compiler
from pfseg.errors import PfsegError
from pfseg.files import PART, lock, write_atomic
from pfseg.runtime import Var, jt, link_onednn

SOURCES = Path(__file__).with_name("cuda")
_CPU_SOURCES = Path(__file__).with_name("cpu")
Output = tuple[Sequence[int], str]  # shape and type

_DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_state: dict[str, Any] = {"precision": "fp32", "deterministic": False, "emulated": ""}


class KernelError(PfsegError):
    """The functions can't be compiled."""


def active() -> bool:
    """Whether the network runs on the GPU kernels: on a GPU, and in tests that emulate one."""
    return bool(jt.flags.use_cuda or _state["emulated"])


def maps_last() -> bool:
    """Whether the network's maps are channels last: on the GPU kernels, and on a CPU in bf16."""
    return active() or _state["precision"] == "bf16"


def precision() -> str:
    """What the network computes in: fp32, tf32 (products of 10 bits of mantissa), bf16 or fp16."""
    return str(_state["precision"])


def set_precision(precision: str) -> None:
    """Choose what the network computes in."""
    _state["precision"] = precision


def deterministic() -> bool:
    """Whether the same inputs give the same bits each time."""
    return bool(_state["deterministic"])


def set_deterministic(deterministic: bool) -> None:
    """Choose convolutions that give the same bits each time, also where others are faster."""
    _state["deterministic"] = deterministic


def dtype() -> str:
    """Type of the network's maps."""
    return _DTYPES[_state["precision"]]


def emulate(library: Path | None) -> None:
    """Run the kernels on the processor, from a library compiled for it (in tests); None ends that."""
    _state["emulated"] = str(library or "")


def run(function: str, outputs: Sequence[Output], inputs: Sequence[Var], **options: float) -> list[Var]:
    """Call a function of the library (see `cuda/kernels.h`) with the inputs; gives the outputs.

    On a CPU those of the network have a twin with `last_` before the name (see `cpu/functions.h`).
    """
    if not active():
        return run_on_cpu(f"last_{function}", outputs, inputs, **options)
    emulated = _state["emulated"]
    address = _address(emulated or str(_library()), function)
    return _call(address, not emulated, outputs, inputs, options)


def run_on_cpu(function: str, outputs: Sequence[Output], inputs: Sequence[Var], **options: float) -> list[Var]:
    """Call a function of the library for a CPU (see `cpu/functions.h`) with the inputs; gives the outputs."""
    return _call(_address(str(_cpu_library()), function), False, outputs, inputs, options)


def _call(
    address: int, cuda: bool, outputs: Sequence[Output], inputs: Sequence[Var], options: Mapping[str, float]
) -> list[Var]:
    variables: list[Var] = _operators().kernel(
        address,
        cuda,
        [tuple(shape) for shape, _ in outputs],
        [dtype for _, dtype in outputs],
        list(inputs),
        {name: float(value) for name, value in options.items()},
    )
    return variables


@cache
def _operators() -> Any:
    """The operator that calls a function of a library."""
    sources = [SOURCES / "kernels.h", *sorted(SOURCES.with_name("native").iterdir())]
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    # Jittor compiles anew what lies at another path, as in another checkout.
    folder = Path(jt.flags.cache_path) / "pfseg" / f"native_{_digest(''.join(texts.values()))}"
    with lock(folder):
        for name, text in texts.items():
            if not (folder / name).exists():
                write_atomic(folder / name, text)
    return jt.compile_custom_ops([str(folder / name) for name in ("kernel_op.h", "kernel_op.cc")])


@cache
def _address(library: str, function: str) -> int:
    find = ctypes.CDLL(library).pfseg_kernel
    find.restype = ctypes.c_void_p
    address = find(function.encode())
    assert address, function
    return int(address)


@cache
def _library() -> Path:
    """Compile the kernels for this machine's GPUs, unless that is done; raises KernelError."""
    toolkit = Path(jt.flags.nvcc_path).parent.parent
    # PTX beside the machine code is for cards that are newer than what Jittor knows.
    architectures = [f"-gencode=arch=compute_{arch},code=[sm_{arch},compute_{arch}]" for arch in jt.flags.cuda_archs]
    flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", f"-I{SOURCES}", f"-I{toolkit}/include", *architectures]
    linked = [f"-L{toolkit}/lib64", "-Xlinker", f"-rpath,{toolkit}/lib64", "-lcudnn", "-lcublas"]
    linked = ["-shared", "--cudart", "shared", *linked]
    return _build("libpfseg", [jt.flags.nvcc_path, *flags], sorted(SOURCES.glob("*.cu")), linked)


@cache
def _cpu_library() -> Path:
    """Compile the functions for a CPU, with Jittor's flags for operators, unless that is done; raises KernelError."""
    onednn = link_onednn()
    command = [*compiler.command(jt), f"-I{onednn}/include"]
    # Not -Ofast: linked so, loading the library would let this thread round the smallest numbers to 0 from then on.
    linked = ["-shared", "-fopenmp", f"-L{onednn}/lib", f"-Wl,-rpath,{onednn}/lib", "-lmkldnn"]
    return _build("libpfseg_cpu", command, sorted(_CPU_SOURCES.glob("*.cc")), linked)


def _build(name: str, command: list[str], sources: list[Path], linked: list[str]) -> Path:
    """Compile what has changed of a library, on all cores, and link it, after the sources' objects, with `linked`."""
    headers = sorted([*SOURCES.glob("*.h"), *sources[0].parent.glob("*.h")])
    shared = "".join([*command, *(path.read_text(encoding="utf-8") for path in headers)])
    folder = Path(jt.flags.cache_path) / "pfseg"
    objects = {path: folder / f"{path.stem}_{_digest(shared + path.read_text(encoding='utf-8'))}.o" for path in sources}
    library = folder / f"{name}_{_digest(''.join(map(str, [*objects.values(), *linked])))}.so"
    with lock(folder / name):
        if library.exists():
            return library
        changed = [(path, target) for path, target in objects.items() if not target.exists()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda pair: _compile([*command, "-c", str(pair[0])], pair[1]), changed))
        _compile([command[0], *map(str, objects.values()), *linked], library)
    return library


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _compile(command: list[str], target: Path) -> None:
    part = target.with_name(f"{target.stem}{PART}{target.suffix}")
    command = [*command, "-o", str(part)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KernelError(f"compiling pfseg's own operators failed:\n{' '.join(command)}\n{done.stderr[-2000:]}")
    part.rename(target)
