"""All that a GPU machine without a network needs, in one file: `make gpu-bundle` (needs no GPU).

Compiles Jittor, all operators and the kernels for a capability, by running `gpu_check.py` on the pretended device, and
packs them with Python, its packages and this checkout. Jittor's compiled files are valid under the same absolute paths
alone, those below `PFSEG_BUNDLE_ROOT` (default /opt/pfseg-cuda). CUDA's libraries are not in it: the other machine has
them as wheels or as a toolkit. There, as root:

    tar -C / -xJif gpu-bundle.tar.xz && /opt/pfseg-cuda/gpu-check [options of gpu_check.py]
"""

from __future__ import annotations

import argparse
import hashlib
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
    "__pycache__", "*.a", "*/site-packages/pip", "*/site-packages/setuptools", "*/site-packages/pkg_resources",
    "*/site-packages/nvidia", "venv/lib/libdnnl.so", "venv/lib/libdnnl.so.2.6", "*/config-3.*", "*/python3.*/test", "idlelib", "tkinter", "ensurepip", "lib2to3", "numpy/*/tests",
    "jittor/notebook", "jittor/script", "jittor/demo", "venv/share", "onednn*/examples", "*.part",
    "venv/lib/libdnnl.so", "venv/lib/libdnnl.so.2.6", "venv/lib/cmake",  # copies
)  # fmt: skip
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
    standard = [path for path in next((home / "lib").glob("python3.*")).iterdir() if path.name != "site-packages"]
    base = [home / "bin", *home.glob("lib/libpython*"), *standard, home / "include", root / "venv", root / "jh"]
    rest = [root / "cache", root / "checkout", root / "gpu-check"]
    files = [path for folder in base for path in sorted(folder.rglob("*")) if path.is_file()]
    state = hashlib.sha256("".join(f"{path}{path.stat().st_size}" for path in files).encode()).hexdigest()[:16]
    first, second = root / f"base_{state}.tar.xz", root / "rest.tar.xz"
    if not first.exists():
        _archive(base, first, [str(path).lstrip("/") for path in home.glob("lib/python3.*/site-packages")])
    _archive(rest, second, [])
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        for part in (first, second):
            out.write(part.read_bytes())
    sys.stdout.write(f"{target}: {target.stat().st_size / 2**20:.1f} MiB\n")


def _archive(paths: list[Path], target: Path, without: list[str]) -> None:
    part = target.with_suffix(".part")
    left_out = [f"--exclude={pattern}" for pattern in (*LEFT_OUT, *without)]
    names = [str(path).lstrip("/") for path in paths]
    tar = ["tar", "-C", "/", *left_out, "--owner=0", "--group=0", "-cf", "-", *names]
    with part.open("wb") as out, subprocess.Popen(tar, stdout=subprocess.PIPE) as process:
        subprocess.run(["xz", "-T0", "-7"], stdin=process.stdout, stdout=out, check=True)
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
