"""The CPU's own operators, as a reference within a test of the GPU kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pfseg.ops import kernels


@contextmanager
def plain_cpu() -> Iterator[None]:
    library = kernels._state["emulated"]
    kernels.emulate(None)
    try:
        yield
    finally:
        kernels.emulate(library)
