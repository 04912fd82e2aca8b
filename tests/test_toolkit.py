"""The CUDA toolkit that Jittor is given, from a tree of files that stand in for the wheels; no GPU is needed."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pfseg import toolkit
from pfseg.toolkit import Sources, ToolkitError

HEADERS = ("cuda_runtime.h", "cublas_v2.h", "curand.h", "cufft.h", "cusparse.h", "npp.h")
LIBRARIES = ("cudart.so.13", "cublas.so.13", "cublasLt.so.13", "curand.so.10", "cufft.so.12", "cusparse.so.12")
NVCC = '#!/bin/sh\n[ "$1" = --version ] && echo \'Cuda compilation tools, release 1, V{version}\' || echo "$@"\n'


def write(path: Path, text: str = "", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`nvidia` in site-packages, as the wheels of CUDA 13 leave it."""
    nvidia = tmp_path / "site-packages" / "nvidia"
    write(nvidia / "cu13" / "bin" / "nvcc", NVCC.format(version="13.0.88"), 0o755)
    for name in HEADERS:
        write(nvidia / "cu13" / "include" / name)
    for name in LIBRARIES:
        write(nvidia / "cu13" / "lib" / f"lib{name}")
    write(nvidia / "cudnn" / "include" / "cudnn.h")
    for part in ("", "_ops", "_cnn"):
        write(nvidia / "cudnn" / "lib" / f"libcudnn{part}.so.9")
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(nvidia)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    for name in ("CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return nvidia


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a driver for a version of CUDA with one card."""

    def make(version: int = 13000, capability: int = 90, error: int = 0) -> Path:
        folder = tmp_path / f"driver{version}_{capability}_{error}"
        source = write(
            folder / "cuda.c",
            f"int cuDriverGetVersion(int* v) {{ *v = {version}; return 0; }}\n"
            f"int cuInit(unsigned f) {{ return {error}; }}\n"
            "int cuDeviceGetCount(int* n) { *n = 1; return 0; }\n"
            "int cuDeviceGet(int* d, int i) { *d = i; return 0; }\n"
            f"int cuDeviceGetAttribute(int* v, int a, int d) {{ *v = a == 75 ? {capability // 10} : {capability % 10};"
            " return 0; }\n",
        )
        # without RTLD_GLOBAL, which would let it be found by whatever this process loads later
        monkeypatch.setattr(ctypes, "RTLD_GLOBAL", ctypes.RTLD_LOCAL)
        library = folder / "libcuda.so.1"
        subprocess.run(["gcc", "-shared", "-fPIC", "-fno-builtin", source, "-o", library], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        return library

    return make


def test_layout(wheels: Path, tmp_path: Path, driver: Callable[..., Path]):
    folder, library = tmp_path / "home", driver()
    toolkit.lay_out(folder, toolkit.find_sources(), library)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("bin", "driver", "include", "include-real", "lib64", "made_of")
    ]
    assert (folder / "lib64" / "libcudart.so").resolve() == wheels / "cu13" / "lib" / "libcudart.so.13"
    assert (folder / "lib64" / "libcudart.so.13").exists()
    assert (folder / "lib64" / "libcudnn_ops_infer.so").resolve() == wheels / "cudnn" / "lib" / "libcudnn_ops.so.9"
    assert (folder / "driver" / "libcuda.so").resolve() == library
    for name in ("cudnn.h", "npp.h"):  # ours come first, and find CUDA's
        assert (folder / "include" / name).read_text() == (toolkit._HEADERS / name).read_text() != ""
        assert (folder / "include-real" / name).resolve().is_relative_to(wheels)
    assert (folder / "include" / "cuda_runtime.h").resolve() == wheels / "cu13" / "include" / "cuda_runtime.h"


def test_compiler_takes_a_newer_standard_and_makes_ptx(wheels: Path, tmp_path: Path, driver: Callable[..., Path]):
    toolkit.lay_out(tmp_path / "home", toolkit.find_sources(), driver())
    nvcc = tmp_path / "home" / "bin" / "nvcc"
    version = subprocess.check_output([nvcc, "--version"], text=True)
    assert version == "Cuda compilation tools, V13.0.88\n"
    command = [nvcc, "-std=c++14", "-arch=compute_90", "-code=sm_90", "a b.cu"]
    given = subprocess.check_output(command, text=True).strip()
    assert given == "-std=c++17 -code=compute_90 -arch=compute_90 -code=sm_90 a b.cu"


def test_laid_out_once_and_anew_for_other_parts(wheels: Path, tmp_path: Path, driver: Callable[..., Path]):
    folder, library = tmp_path / "home", driver()
    toolkit.lay_out(folder, toolkit.find_sources(), library)
    mark = write(folder / "mark")
    toolkit.lay_out(folder, toolkit.find_sources(), library)
    assert mark.exists()
    write(wheels / "cu13" / "bin" / "nvcc", NVCC.format(version="13.0.99"), 0o755)
    toolkit.lay_out(folder, toolkit.find_sources(), library)
    assert not mark.exists()
    assert "V13.0.99" in (folder / "bin" / "nvcc").read_text()
    (folder / "lib64" / "libcudart.so").unlink()  # as if the wheels had gone and come back
    toolkit.lay_out(folder, toolkit.find_sources(), library)
    assert (folder / "lib64" / "libcudart.so").exists()


def test_several_at_once(wheels: Path, tmp_path: Path, driver: Callable[..., Path]):
    folder, sources, library = tmp_path / "home", toolkit.find_sources(), driver()
    (tmp_path / ".home.part").mkdir()  # of a killed process
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: toolkit.lay_out(folder, sources, library), range(8)))
    assert (folder / "lib64" / "libcudart.so").exists()
    assert {path.name for path in tmp_path.iterdir() if "home" in path.name} == {"home", "home.lock"}


def test_a_full_disk_is_said(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 5 << 20))
    with pytest.raises(
        ToolkitError, match=r"^\S+ has 5 MiB left, and operators .* up to 1024: free some space, or set "
    ):
        toolkit.lay_out(tmp_path / "home", toolkit.find_sources(), tmp_path / "libcuda.so.1")
    assert not (tmp_path / "home").exists()


def test_sources_of_the_wheels(wheels: Path):
    sources = toolkit.find_sources()
    assert (sources.nvcc, sources.version, sources.major) == (wheels / "cu13" / "bin" / "nvcc", "13.0.88", 13)
    assert sources.includes[0] == wheels / "cu13" / "include"
    assert wheels / "cudnn" / "lib" in sources.libraries


def test_a_toolkit_of_the_system_is_taken_where_the_compiler_is_not_installed(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (wheels / "cu13" / "bin" / "nvcc").unlink()
    system = tmp_path / "cuda"
    shutil.copytree(wheels / "cu13" / "lib", system / "lib64")
    shutil.copytree(wheels / "cu13" / "include", system / "include")
    nvcc = write(system / "bin" / "nvcc", NVCC.format(version="12.8.61"), 0o755)
    for name in ("lib64/libcudnn.so.9", "include/cudnn.h"):
        write(system / name)
    monkeypatch.setenv("CUDA_HOME", str(system))
    sources = toolkit.find_sources()
    assert (sources.nvcc, sources.major, sources.includes[0]) == (nvcc, 12, system / "include")
    assert not any(folder.is_relative_to(wheels) for folder in sources.libraries), "of another version of CUDA"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda nvidia: (nvidia / "cu13/bin/nvcc").unlink(), r"^no CUDA compiler \(nvcc\) found: run `pip install"),
        (
            lambda nvidia: write(nvidia / "cu13/bin/nvcc", NVCC.format(version="11.8.89"), 0o755),
            r"^\S+nvcc is CUDA 11\.8\.89, pfseg needs 12 or 13: run",
        ),
        (lambda nvidia: write(nvidia / "cu13/bin/nvcc", "#!/bin/sh\n", 0o755), r"^\S+nvcc doesn't run: run"),
        (
            lambda nvidia: [(nvidia / "cu13/include/cufft.h").unlink(), (nvidia / "cu13/lib/libcurand.so.10").unlink()],
            r"^CUDA 13\.0\.88 of \S+cu13 lacks cufft\.h, libcurand\.so: run .*, or set PFSEG_DEVICE=cpu$",
        ),
    ],
    ids=["no compiler", "an old one", "a broken one", "parts"],
)
def test_what_is_missing_is_said(
    wheels: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], text: str
):
    change(wheels)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).is_relative_to(wheels) and Path(path).exists())
    with pytest.raises(ToolkitError, match=text):
        toolkit.find_sources()


@pytest.mark.parametrize(
    ("version", "capability", "error", "major", "text"),
    [
        (
            12040,
            90,
            0,
            13,
            r"^the NVIDIA driver runs CUDA 12\.4 at most, and this is CUDA 13: install driver 580 or newer",
        ),
        (13000, 90, 100, 13, r"^the NVIDIA driver doesn't start \(cuInit returns 100\): see nvidia-smi"),
        (13000, 70, 0, 13, r"^GPU 0 has capability 7\.0, CUDA 13 needs 7\.5: use CUDA 12; leave the card out by"),
        (
            13000,
            61,
            0,
            12,
            r"^GPU 0 has capability 6\.1, CUDA 12 needs 7\.0: pfseg needs 7\.0 or newer; leave the card",
        ),
    ],
    ids=["old driver", "no start", "Volta", "Pascal"],
)
def test_cards_and_drivers_that_are_too_old(
    driver: Callable[..., Path], version: int, capability: int, error: int, major: int, text: str
):
    with pytest.raises(ToolkitError, match=text):
        toolkit.check_cards(driver(version, capability, error), major)


def test_cards_that_fit(driver: Callable[..., Path]):
    toolkit.check_cards(driver(13000, 75), 13)
    toolkit.check_cards(driver(12040, 70), 12)


def test_driver(driver: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = driver()
    assert toolkit.find_driver() == library
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setattr(toolkit, "_DRIVER_FOLDERS", (str(tmp_path / "empty"),))
    listing = "\tlibcuda.so.1 (libc6,x86-64) => /somewhere/libcuda.so.1\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=listing))
    assert toolkit.find_driver() == Path("/somewhere/libcuda.so.1")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=""))
    with pytest.raises(
        ToolkitError, match=r"^libcuda\.so\.1 of the NVIDIA driver not found in \S+: set LD_LIBRARY_PATH"
    ):
        toolkit.find_driver()


def test_settling_tells_jittor(
    wheels: Path, tmp_path: Path, driver: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    driver()
    monkeypatch.setattr(toolkit, "_LOADED", ())  # they are empty here
    for name in ("nvcc_path", "FIX_TORCH_ERROR", "cc_flags"):
        monkeypatch.setenv(name, "")
    cache = tmp_path / "cache"
    (cache / "cu13.0.77_sm_90").mkdir(parents=True)  # compiled elsewhere
    folder = toolkit.settle(tmp_path / "home", cache)
    assert folder == tmp_path / "home13"
    assert os.environ["nvcc_path"] == str(folder / "bin" / "nvcc")
    assert "V13.0.77" in (folder / "bin" / "nvcc").read_text()
    assert os.environ["cc_flags"] == "-DcomputeMode=major -DclockRate=minor"
    assert os.environ["LD_LIBRARY_PATH"].startswith(f"{folder / 'driver'}:")
    toolkit.settle(tmp_path / "home", cache)
    assert os.environ["cc_flags"] == "-DcomputeMode=major -DclockRate=minor", "once"


def test_sources_know_their_version():
    assert Sources(Path("nvcc"), "12.8.61", (), ()).major == 12
