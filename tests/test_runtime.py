"""What happens before Jittor is imported; the import itself is what every other test of networks shows."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pfseg import runtime
from pfseg.errors import JobError
from pfseg.ops.elementwise import gelu
from pfseg.runtime import jt


@pytest.fixture
def prefix(tmp_path):
    """A Python prefix with the files of the oneDNN package."""
    (tmp_path / "prefix" / "include" / "oneapi").mkdir(parents=True)
    (tmp_path / "prefix" / "lib").mkdir()
    (tmp_path / "prefix" / "include" / "dnnl.h").write_text("// header")
    (tmp_path / "prefix" / "lib" / "libdnnl.so.2").write_text("library")
    return tmp_path / "prefix"


def check(folder: Path) -> None:
    assert folder.name.startswith("dnnl")
    assert (folder / "include" / "dnnl.h").read_text() == "// header"
    for name in ("libmkldnn.so", "libdnnl.so", "libdnnl.so.2"):
        assert (folder / "lib" / name).read_text() == "library"


def test_onednn_is_linked_by_several_at_once(prefix, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: runtime.link_onednn(prefix, tmp_path / "home"), range(32)))
    check(*set(folders))
    own = {folders[0].name, f"{folders[0].name}.lock"}
    assert {p.name for p in folders[0].parent.iterdir()} == own  # nothing left over


def test_links_into_a_deleted_environment_are_replaced(prefix, tmp_path):
    folder = runtime.link_onednn(prefix, tmp_path / "home")
    moved = prefix.rename(tmp_path / "moved")
    assert not (folder / "lib" / "libmkldnn.so").exists()
    check(runtime.link_onednn(moved, tmp_path / "home"))


def test_jittor_home_of_an_earlier_process_is_not_taken(monkeypatch, tmp_path):
    import jittor_utils  # not before pfseg.runtime, which undoes what it changes

    (tmp_path / ".cache" / "jittor").mkdir(parents=True)
    (tmp_path / ".cache" / "jittor" / "config.json").write_text(f'{{"JITTOR_HOME": "{tmp_path / "earlier"}"}}')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JITTOR_HOME", "")
    monkeypatch.setattr(jittor_utils, "_jittor_home", None)
    assert runtime.settle_home() == tmp_path
    assert jittor_utils.home() == str(tmp_path)
    assert not (tmp_path / "earlier").exists()


def test_missing_onednn_says_what_to_install(tmp_path):
    with pytest.raises(runtime.RuntimeSetupError, match=r"oneDNN not found: .*pip install onednn-devel-cpu-gomp"):
        runtime.link_onednn(tmp_path, tmp_path)


def test_cuda_is_off_without_a_device_even_with_an_nvcc(monkeypatch):
    monkeypatch.setattr(runtime, "visible_gpus", list)
    monkeypatch.setenv("nvcc_path", "/usr/local/cuda/bin/nvcc")
    assert not runtime.hide_unusable_cuda()
    assert os.environ["nvcc_path"] == ""


def test_cuda_stays_on_with_a_device_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(runtime, "visible_gpus", lambda: ["0"])
    monkeypatch.delenv("nvcc_path", raising=False)
    monkeypatch.delenv("PFSEG_DEVICE", raising=False)
    assert runtime.hide_unusable_cuda()
    assert "nvcc_path" not in os.environ
    monkeypatch.setenv("PFSEG_DEVICE", "cpu")
    assert not runtime.hide_unusable_cuda()


def test_jittor_starts_beside_a_useless_nvcc(tmp_path):
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho Cuda compilation tools, release 12.2, V12.2.140\n")
    (tmp_path / "nvcc").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PFSEG_DEVICE": "cpu"}
    env.pop("nvcc_path", None)
    code = "from pfseg.runtime import jt; assert not jt.flags.use_cuda; assert float(jt.ones(3).sum()) == 3"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # Jittor's own notes stay out of the user's way


def test_seeds():
    draws = []
    for _ in range(2):
        runtime.seed_everything(5)
        draws.append((np.random.rand(), float(jt.randn(1))))
    assert draws[0] == draws[1]


def test_jittor_does_not_take_over_ctrl_c(tmp_path: Path) -> None:
    code = (
        "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from pfseg.runtime import jt; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1); print('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "goes on\n", done.stderr


def test_jittor_leaves_the_limit_of_recursion_and_the_trust_in_servers() -> None:
    code = (
        "import ssl, sys; before = sys.getrecursionlimit(), ssl._create_default_https_context; import pfseg.runtime;"
        "assert before == (sys.getrecursionlimit(), ssl._create_default_https_context)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


def test_a_full_gpu_says_what_to_lower():
    with (
        pytest.raises(JobError, match=r"^the GPU's memory is full: lower batch_size$"),
        runtime.memory_advice("lower batch_size"),
    ):
        raise RuntimeError("[f 12] Unable to alloc cuda device memory for size 123")  # as Jittor says it
    with pytest.raises(RuntimeError, match=r"^other$"), runtime.memory_advice("lower batch_size"):
        raise RuntimeError("other")


def test_a_lone_rank_needs_no_mpi():
    code = (
        "import os; from pfseg.runtime import jt, world_size; assert not jt.in_mpi and not jt.compile_extern.has_mpi;"
        "assert world_size() == 1 and os.environ['OMPI_COMM_WORLD_SIZE'] == '1'"
    )
    environment = {**os.environ, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment")
def test_what_is_compiled_serves_other_environments_and_checkouts():
    gelu(jt.ones(1)).sync()
    keys = [path for path in Path(jt.flags.cache_path).rglob("*.key") if "mpi" not in path.name]
    assert len(keys) > 100
    here = (sys.prefix, str(Path(__file__).parents[1]))
    assert [path for path in keys if any(folder in path.read_text() for folder in here)] == []


def test_a_command_runs_again_when_jittor_ends_it(tmp_path):
    # What Jittor 1.3.11 does after compiling its tools for other flags: sys.exit(0), before anything has run.
    (tmp_path / "jittor").mkdir()
    code = "__version__ = '1.3.11.0'\nimport sys; print('imported', flush=True); sys.exit(0)"
    (tmp_path / "jittor" / "__init__.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "JITTOR_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", "import pfseg.runtime"], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "imported\n" * 2
    assert done.returncode == 1
    assert "RuntimeSetupError: Jittor ends after compiling itself, each time: remove " in done.stderr
