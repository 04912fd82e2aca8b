"""What Jittor runs to compile: the real compiler and its precompiled header, without Jittor itself."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pfseg import compiler

GPP = "/usr/bin/g++"


@pytest.fixture
def jittor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for Jittor, with one header."""
    (tmp_path / "jittor" / "src").mkdir(parents=True)
    (tmp_path / "jittor" / "src" / "var.h").write_text("inline int one() { return 1; }\n")
    monkeypatch.setattr(compiler, "_HEADER", '#include "var.h"\n')
    flags = f' -fPIC -shared -ldl -L"{tmp_path}" -I"{tmp_path}/jittor/src" '
    return SimpleNamespace(
        compiler=SimpleNamespace(cc_path=GPP, cc_flags=flags, kernel_opt_flags=" -Ofast "),
        flags=SimpleNamespace(
            cache_path=str(tmp_path / "a cache"),
            jittor_path=str(tmp_path / "jittor"),
            cc_flags=flags,
            python_path="python",
        ),
    )


def compile_operator(jittor: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile an operator as Jittor does; it includes nothing by itself."""
    (folder / "one_op.cc").write_text("#define JIT 1\n#define JIT_cpu 1\nint two() { return 2 * one(); }\n")
    files = f'"{folder}/one_op.cc" {jittor.flags.cc_flags} -Ofast -Winvalid-pch -H -o "{folder}/one_op.so"'
    command = f'{jittor.flags.python_path} {folder}/asm_tuner.py --cc_path="{GPP}" {files}'
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False)


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_operators_take_the_precompiled_header(jittor: Any, tmp_path: Path):
    compiler.hasten(jittor)
    done = compile_operator(jittor, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("! ") and "headers.h.gch" in done.stderr  # how -H marks what was precompiled
    assert (tmp_path / "one_op.so").exists()


def test_a_header_is_precompiled_once_until_something_changes(jittor: Any, tmp_path: Path):
    for _ in range(2):
        jittor.flags.cc_flags = ""
        compiler.hasten(jittor)
        (made,) = (tmp_path / "a cache" / "pfseg").glob("operators_*/headers.h.gch")
        assert str(made.parent) in jittor.flags.cc_flags
    first = made.stat().st_mtime_ns, jittor.flags.cc_flags
    (tmp_path / "jittor" / "src" / "var.h").write_text("inline int one() { return 2 - 1; }\n")
    jittor.flags.cc_flags = ""
    compiler.hasten(jittor)
    assert made.stat().st_mtime_ns == first[0] and jittor.flags.cc_flags != first[1]


def test_without_a_working_compiler_all_stays_as_it_was(jittor: Any, tmp_path: Path):
    before = dict(vars(jittor.flags))
    (tmp_path / "jittor" / "src" / "var.h").write_text("no C++\n")
    compiler.hasten(jittor)
    jittor.compiler.cc_path = "/nowhere/g++"
    compiler.hasten(jittor)
    assert vars(jittor.flags) == before


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Two commands as Jittor gives them for its core, and a list of those that it runs in the end."""
    for name, value in (("cc_flags", "-g"), ("kernel_flags", "")):
        monkeypatch.setenv(name, value)
    (tmp_path / "jittor" / "src").mkdir(parents=True)
    (tmp_path / "jittor" / "src" / "var.h").write_text("inline int one() { return 1; }\n")
    monkeypatch.setattr(compiler, "_CORE_HEADER", '#include "var.h"\n')
    for name, text in (
        ("a", "int two() { return 2 * one(); }"),
        ("b", "int three() { return 1 + 1 + one(); }"),
    ):
        (tmp_path / f"{name}.cc").write_text(text)
    flags = f'-fPIC -O1 -I"{tmp_path}/jittor/src"'
    commands = [f'"{GPP}" "{tmp_path}/{name}.cc" {flags} -c -o "{tmp_path}/{name}.o"' for name in ("a", "b")]
    ran: list[str] = []
    utilities = SimpleNamespace(run_cmds=lambda commands, cache, jittor, message: ran.extend(commands))
    monkeypatch.setitem(sys.modules, "jittor_utils", utilities)
    with compiler.hastened_core():
        assert [os.environ[name] for name in ("cc_flags", "kernel_flags")] == ["-g -O1 -w", " -Ofast "]
    assert [os.environ[name] for name in ("cc_flags", "kernel_flags")] == ["-g", ""]
    return commands, ran


def run_core(commands: list[str], folder: Path) -> None:
    """Let Jittor run commands in its import."""
    run: Any = vars(sys.modules["jittor_utils"])["run_cmds"]
    run(commands, str(folder / "a cache"), str(folder / "jittor"), "Compiling jittor_core")


def test_the_core_takes_the_precompiled_header(core: tuple[list[str], list[str]], tmp_path: Path):
    commands, ran = core
    run_core(commands, tmp_path)
    assert [shlex.split(command)[1] for command in ran] == [f"{tmp_path}/{name}.cc" for name in ("b", "a")]  # by size
    for command in ran:
        done = subprocess.run(f"{command} -H", shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("! ") and "headers.h.gch" in done.stderr


def test_without_its_header_the_core_is_compiled_as_by_jittor(core: tuple[list[str], list[str]], tmp_path: Path):
    commands, ran = core
    (tmp_path / "jittor" / "src" / "var.h").write_text("no C++\n")
    run_core(commands, tmp_path)
    assert sorted(ran) == commands


@pytest.fixture
def environments(tmp_path: Path) -> list[Path]:
    """Two Python environments with the same Jittor, and one with another."""
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder in folders:
        for part in ("jittor/src", "jittor/test", "jittor_utils"):
            (folder / part).mkdir(parents=True)
        (folder / "jittor" / "__init__.py").write_text("import jittor_utils\n")
        (folder / "jittor" / "src" / "var.h").write_text("// other" if folder.name == "other" else "// one")
        (folder / "jittor" / "test" / "test_var.py").write_text(f"# of {folder}, which nothing imports")
        (folder / "jittor_utils" / "__init__.py").write_text("")
    return folders


def places(environment: Path, shared: Path) -> str:
    """Where a process in an environment imports Jittor from."""
    code = (
        "import sys; from pathlib import Path; from pfseg import compiler; before = [*sys.path]\n"
        f"with compiler.shared_package(Path({str(shared)!r})): import jittor\n"
        "assert sys.path == before; print(jittor.__file__, sys.modules['jittor_utils'].__file__)"
    )
    path = os.pathsep.join([str(environment), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_environments_with_the_same_jittor_share_it(environments: list[Path], tmp_path: Path):
    with ThreadPoolExecutor() as pool:
        first, second, other = pool.map(lambda environment: places(environment, tmp_path / "shared"), environments)
    assert first == second != other
    for place in (first, other):
        package, utilities = map(Path, place.split())
        assert package.parents[1].parent == tmp_path / "shared" and utilities.parents[1] == package.parents[1]
        assert not (package.parent / "test").exists()


def test_where_there_cannot_be_a_copy_jittor_comes_from_its_environment(environments: list[Path], tmp_path: Path):
    (tmp_path / "shared").write_text("a file where the folder would be")
    package, utilities = environments[0] / "jittor", environments[0] / "jittor_utils"
    assert places(environments[0], tmp_path / "shared") == f"{package}/__init__.py {utilities}/__init__.py"


def test_the_library_is_compiled_with_the_flags_of_operators(jittor: Any, tmp_path: Path):
    assert compiler.command(jittor) == [GPP, "-fPIC", f"-I{tmp_path}/jittor/src", "-Ofast"]


def test_lines_tell_how_far_a_compilation_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = 10.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = compiler._Progress("Compiling jittor_core", 4)
    for index in range(4):
        progress.update(index)
        now += 1.5
    assert capsys.readouterr().err == (
        "Compiling jittor_core(2/4) used: 1.5s eta: 1.5s\r"
        "Compiling jittor_core(3/4) used: 3.0s eta: 1.0s\r"
        "Compiling jittor_core(4/4) used: 4.5s eta: 0.0s\n"
    )


def test_temporary_files_of_the_compiler_are_in_the_folder_of_the_job(
    jittor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiler.hasten(jittor)
    jittor.flags.cc_flags += " -v"
    assert f" -o {tmp_path}/cc" not in compile_operator(jittor, tmp_path).stderr
    monkeypatch.setenv("PFSEG_SCRATCH", str(tmp_path))
    assert f" -o {tmp_path}/cc" in compile_operator(jittor, tmp_path).stderr


def test_a_compiler_that_failed_is_one_line_for_users():
    error = RuntimeError("[f 1127] Error happend during compilation:\n[Error] source file location: ...")
    assert str(compiler.explained(error)).startswith("Jittor could not compile an operator: often the compiler was ")
    other = RuntimeError("shapes do not fit")
    assert compiler.explained(other) is other


def test_a_compiling_process_that_is_killed_ends_the_compilation():
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(BrokenProcessPool) as broken:
            list(compiler._Pool(2, lambda: None).imap_unordered(die, [0, 1]))
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert str(compiler.explained(broken.value)).startswith("Jittor could not compile an operator: ")
