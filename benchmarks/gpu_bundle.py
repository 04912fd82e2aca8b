"""All that a GPU machine without a network needs, in one file: `make gpu-bundle` (needs no GPU).

Compiles Jittor, all operators and the kernels for a capability, by running `gpu_check.py` on the pretended device, and
packs them with Python, its packages and this checkout. Jittor's compiled files are valid under the same absolute paths
alone, those below `PFSEG_BUNDLE_ROOT` (default /opt/pfseg-cuda). CUDA's libraries are not in it: the other machine has
them as wheels or as a toolkit. There, as root:

    tar -C / -xJif gpu-bundle.tar.xz && /opt/pfseg-cuda/gpu-check [options of gpu_check.py]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pfseg.toolkit import find_sources

HERE = Path(__file__).parent
CHECKOUT = HERE.parent
PACKAGES = (  # what a training needs, with the OpenCV that brings no window system, and what the checks need
    "jittor==1.3.11.0", "onednn-devel-cpu-gomp==2022.2.1", "numpy>=1.26,<2", "opencv-python-headless>=4.9,<4.12",
    "hydra-core>=1.3.2,<1.4", "omegaconf>=2.3,<2.4", "safetensors>=0.4.3,<0.9", "isal>=1.7,<2", "rich>=13.7,<16",
    "pyyaml>=6,<7", "pydantic>=2.7,<3", "jinja2>=3.1,<4", "pillow>=10.3", "filelock>=3.16,<5", "psutil>=6,<8",
    "pytest>=8,<10", "pytest-timeout>=2.3,<3",
)  # fmt: skip
LEFT_OUT = (
    "__pycache__", "*.a", "*.s", "*.part", "idlelib", "tkinter", "ensurepip", "lib2to3", "*/python3.*/test",
    "*/config-3.*-linux-gnu",
    "*/site-packages/pip", "*/site-packages/setuptools", "*/site-packages/pkg_resources", "*/site-packages/nvidia",
    "numpy/*/tests", "jittor/notebook", "jittor/script", "jittor/demo", "cv2/data", "_avif.*", "libavif*",
    "venv/share", "venv/lib/libdnnl.so", "venv/lib/libdnnl.so.2.6", "venv/lib/cmake", ".cache/jittor/jt*",
)  # fmt: skip
# OpenCV's for films, and for large systems of equations: nothing calls them, and they are a third of all.
STUBS = ("libavcodec", "libavformat", "libavutil", "libswscale", "libopenblas")
# Finds the libraries of the machine's own Python, or a toolkit, and starts the checks.
SCRIPT = """#!/bin/bash
cd {root}/checkout
export PFSEG_PORTABLE={root} PYTHONDONTWRITEBYTECODE=1
other=$(command -v python3)
wheels=$("$other" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null)
[ -n "$wheels" ] && ln -sfn "$wheels" {packages}/nvidia
"$other" -c 'import torch' 2>/dev/null && torch=(--torch "$other")
exec {root}/venv/bin/python benchmarks/gpu_check.py "${{torch[@]}}" "$@"
"""


def prepare(root: Path, capability: int) -> Path:
    """Make the environment, the copy of the checkout and the pretended device; returns the environment's Python."""
    python = root / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    copy = root / "checkout"
    listing = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT, text=True
    )
    shutil.rmtree(copy, ignore_errors=True)
    for name in listing.splitlines():
        source = CHECKOUT / name
        if source.is_file() and not name.startswith("docs/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name)
    link = _packages(root) / "nvidia"
    wheels = next((place for place in find_sources().includes if place.parts[-2] == "cu13"), None)
    if wheels and not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(wheels.parent.parent)
    build = copy / "tests" / "cuda" / "pretended" / "build.py"
    command = [python, build, root / "pretended", "--capability", str(capability)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(copy)})
    script = root / "gpu-check"
    script.write_text(SCRIPT.format(root=root, packages=_packages(root)))
    script.chmod(0o755)
    return python


def _packages(root: Path) -> Path:
    return next((root / "venv" / "lib").glob("python3.*")) / "site-packages"


def compile_all(python: Path, root: Path, only: list[str]) -> None:
    """Compile whatever the checks use."""
    environment = {**os.environ, "PFSEG_PORTABLE": str(root), "PYTHONPATH": f"{root / 'pretended'}:{root / 'checkout'}"}
    command = [python, "benchmarks/gpu_check.py", "--pretend", "--limit", "7200", "--out", root / "pretended_check"]
    subprocess.run(
        [*command, *(["--only", *only] if only else [])], cwd=root / "checkout", env=environment, check=False
    )


def pack(root: Path, target: Path) -> None:
    """Two archives behind each other, so that what rarely changes isn't compressed anew each time."""
    config = (root / "venv" / "pyvenv.cfg").read_text()
    home = Path(next(line.split("=")[1].strip() for line in config.splitlines() if line.startswith("home"))).parent
    base = [home / "bin", home / "lib", home / "include", root / "venv", root / "jh"]
    rest = [root / "cache", root / "checkout", root / "gpu-check"]
    first, second = root / "base.tar.xz", root / "rest.tar.xz"
    if not first.exists():
        staging = root / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        own_packages = [str(path).lstrip("/") for path in home.glob("lib/python3.*/site-packages")]
        with subprocess.Popen(_tar(Path("/"), base, own_packages), stdout=subprocess.PIPE) as process:
            subprocess.run(["tar", "-C", staging, "-xf", "-"], stdin=process.stdout, check=True)
        _shrink(staging, home)
        _compress(_tar(staging, base, []), first)
        shutil.rmtree(staging)
    _drop_old_kernels(root / "cache")
    _compress(_tar(Path("/"), rest, []), second)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        for part in (first, second):
            out.write(part.read_bytes())
    sys.stdout.write(f"{target}: {target.stat().st_size / 2**20:.1f} MiB\n")


def _drop_old_kernels(cache: Path) -> None:
    """Leave the latest of the libraries of kernels, and of each file's objects."""
    latest: dict[str, Path] = {}
    for path in sorted(cache.glob("*/pfseg/*_*"), key=lambda path: path.stat().st_mtime_ns):
        name = path.name.partition("_")[0] + path.suffix
        if name in latest:
            latest[name].unlink()
        latest[name] = path


def _shrink(staging: Path, home: Path) -> None:
    """Take the symbols from the copy of Python, and OpenCV's large libraries out of the copy of its package."""
    for path in (staging / str(home).lstrip("/")).rglob("*.so*"):
        subprocess.run(["strip", "--strip-unneeded", path], check=False)
    (folder,) = staging.rglob("opencv_python_headless.libs")
    for path in list(folder.iterdir()):
        if not path.name.startswith((*STUBS, "libpng")):
            path.unlink()
        elif path.name.startswith(STUBS):
            _stub(path)


def _stub(library: Path) -> None:
    """Replace a library by one whose functions do nothing."""
    listing = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True)
    found = [line.split()[-2:] for line in listing.splitlines()]
    names = [symbol.partition("@@") for kind, symbol in found if kind in "TtWwi"]
    source, script = library.with_suffix(".c"), library.with_suffix(".map")
    functions = sorted({name for name, _, _ in names if name.isidentifier()} - {"_init", "_fini"})
    source.write_text("".join(f"long {name}() {{ return 0; }}\n" for name in functions))
    command = ["gcc", "-w", "-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{library.name}", source, "-o", library]
    if version := next((version for _, _, version in names if version), None):
        script.write_text(f"{version} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, check=True)
    source.unlink()
    script.unlink(missing_ok=True)


def _tar(top: Path, paths: list[Path], without: list[str]) -> list[str]:
    left_out = [f"--exclude={pattern}" for pattern in (*LEFT_OUT, *without)]
    return [
        "tar",
        "-C",
        str(top),
        *left_out,
        "--owner=0",
        "--group=0",
        "-cf",
        "-",
        *(str(p).lstrip("/") for p in paths),
    ]


def _compress(tar: list[str], target: Path) -> None:
    part = target.with_suffix(".part")
    with part.open("wb") as out, subprocess.Popen(tar, stdout=subprocess.PIPE) as process:
        subprocess.run(["xz", "-T0", "-6"], stdin=process.stdout, stdout=out, check=True)
    part.rename(target)


def main() -> None:
    """Make the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--capability", type=int, default=90, help="of the cards it is for; 90 is the H100's")
    parser.add_argument("--only", nargs="+", default=[], help="compile what these checks use")
    parser.add_argument("--no-compile", action="store_true", help="pack what has been compiled before")
    arguments = parser.parse_args()
    root = Path(os.environ.get("PFSEG_BUNDLE_ROOT", "/opt/pfseg-cuda"))
    python = prepare(root, arguments.capability)
    if not arguments.no_compile:
        compile_all(python, root, arguments.only)
    pack(root, arguments.out.resolve())


if __name__ == "__main__":
    main()
