"""Operators that Jittor lacks or computes otherwise; their C++ is in header files beside these modules."""

from functools import cache
from pathlib import Path


@cache
def header(name: str) -> str:
    """Text of `<name>.h`, for `cpu_header` of `jittor.code`, which compiles it on first use."""
    return Path(__file__).with_name(f"{name}.h").read_text(encoding="utf-8")
