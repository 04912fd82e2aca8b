"""Signals that ask a command to stop: handled, or collected by work that stops where it can."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING: dict[int, int] = {  # exit codes of a command that is asked to stop
    signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 0,
}  # fmt: skip


@contextmanager
def handled(signals: Iterable[int], handler: Callable[[int], None], *, once: bool = False) -> Iterator[None]:
    """Handle signals, or only the first one (`once`), by `handler`, which takes their number.

    SIGHUP also takes the terminal away, and stays ignored where it is, as by nohup. Only the main thread can handle
    signals; in any other nothing happens.
    """
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, earlier in before.items():
            signal.signal(number, earlier)

    def handle(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            _hang_up()
        if once:
            restore()
        handler(number)

    for number in signals if threading.current_thread() is threading.main_thread() else ():
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect the signals `STOPPING` instead of dying of them; a second one does what it always does."""
    received: list[int] = []
    with handled(STOPPING, received.append, once=True):
        yield received


def _hang_up() -> None:
    """Go on without the terminal, which is gone: writing to it would fail. Files and pipes stay."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode):
            os.dup2(nowhere, number)
    os.close(nowhere)
