"""The CPU's own operators, as a reference within a test of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pfseg.ops import kernels

_MAPS_LAST = kernels.maps_last


@contextmanager
def plain_cpu() -> Iterator[None]:
    library, precision, maps_last = kernels._state["emulated"], kernels.precision(), kernels.maps_last
    kernels.emulate(None)
    kernels.set_precision("fp32")
    vars(kernels)["maps_last"] = _MAPS_LAST
    try:
        yield
    finally:
        vars(kernels)["maps_last"] = maps_last
        kernels.set_precision(precision)
        kernels.emulate(library)
