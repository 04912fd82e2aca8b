"""Root without the right to pass over permissions, so that tests of them hold for root as for anyone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_LIBC = ctypes.CDLL(None, use_errno=True)
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2  # linux/capability.h
_VERSION_3, _PR_CAPBSET_DROP = 0x20080522, 24


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def permissions_hold() -> Iterator[None]:
    """Within this context, permissions of files bind this thread and those that it starts."""
    sets = (_Sets * 2)()
    _call(_LIBC.capget, ctypes.byref(header := _Header(_VERSION_3, 0)), sets)
    before = sets[0].effective
    sets[0].effective &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    _call(_LIBC.capset, ctypes.byref(header), sets)
    try:
        yield
    finally:
        sets[0].effective = before
        _call(_LIBC.capset, ctypes.byref(header), sets)


def obey_permissions() -> None:
    """For `preexec_fn`: permissions of files bind the program that is started."""
    if os.geteuid() == 0:
        for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
            _call(_LIBC.prctl, _PR_CAPBSET_DROP, capability, 0, 0, 0)


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:  # type: ignore[name-defined]
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
