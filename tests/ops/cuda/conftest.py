"""The GPU kernels on a GPU where there is one, else on the processor: compiled by g++ with `emulation.h` for CUDA.

Tests of operators that a CPU has for the same layout, (N, H, W, C), run with those as well.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pfseg.files import lock
from pfseg.ops import kernels
from pfseg.runtime import jt

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O2", "-march=native", "-fPIC", "-w", f"-I{kernels.SOURCES}", f"-I{HERE}"]


def build() -> Path:
    """Compile what has changed, and link the library; `*_emulated.cu` here stand in for files that call cuDNN."""
    own = sorted(HERE.glob("*_emulated.cu"))
    replaced = {path.name.replace("_emulated", "") for path in own}
    sources = [*own, *(path for path in sorted(kernels.SOURCES.glob("*.cu")) if path.name not in replaced)]
    headers = b"".join(path.read_bytes() for path in sorted([*kernels.SOURCES.glob("*.h"), *HERE.glob("*.h")]))
    folder = Path(jt.flags.cache_path) / "emulated"
    folder.mkdir(exist_ok=True)

    def compile(source: Path) -> Path:
        target = folder / f"{source.stem}_{hashlib.sha256(headers + source.read_bytes()).hexdigest()[:16]}.o"
        if not target.exists():
            part = target.with_suffix(".part")
            subprocess.run(["g++", *FLAGS, "-c", "-x", "c++", source, "-o", part], check=True)
            part.rename(target)
        return target

    with lock(folder / "library"):
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile, sources))
        name = hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()[:16]
        library = folder / f"libpfseg_{name}.so"
        if not library.exists():
            subprocess.run(["g++", "-shared", *objects, "-o", library], check=True)
    return library


def use_gpu(library: Path | None) -> None:
    """Stands in for `kernels.emulate` where there is a GPU."""
    jt.flags.use_cuda = int(library is not None)


@pytest.fixture(scope="session")
def library() -> Path:
    return Path() if jt.flags.use_cuda else build()


ON_CPUS = {"test_batchnorm", "test_convolution", "test_maps", "test_points", "test_pooling", "test_resampling"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "emulated" in metafunc.fixturenames and "emulated" not in marks:
        on_cpus = metafunc.module.__name__.rpartition(".")[2] in ON_CPUS
        kinds = ["fp32", "bf16", *(["cpu-fp32", "cpu-bf16"] if on_cpus else [])]
        metafunc.parametrize("emulated", kinds, indirect=True)


@pytest.fixture
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The network runs on the GPU, on the emulated kernels or channels last on a CPU, in the precision given."""
    place, _, precision = request.param.rpartition("-")
    if place == "cpu":
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "maps_last", lambda: True)
            kernels.set_precision(precision)
            yield precision
            kernels.set_precision("fp32")
        return
    library: Path = request.getfixturevalue("library")
    if library == Path():
        monkeypatch.setattr(kernels, "emulate", use_gpu)
    kernels.emulate(library)
    kernels.set_precision(precision)
    yield precision
    kernels.set_precision("fp32")
    kernels.emulate(library if library == Path() else None)  # a GPU stays in use for the next test
