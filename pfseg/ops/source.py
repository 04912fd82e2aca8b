"""C++ of the operators: header files beside this module, compiled by Jittor on first use."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def header(name: str) -> str:
    """Text of `<name>.h`, to be passed on as `cpu_header` of `jittor.code`."""
    return Path(__file__).with_name(f"{name}.h").read_text(encoding="utf-8")
