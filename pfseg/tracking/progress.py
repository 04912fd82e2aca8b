"""How far a long command is, on the terminal, and signals that end it in an orderly way."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 15.0  # between lines where nobody sees a bar


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one does what it always does."""
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        restore()

    for each in (signal.SIGINT, signal.SIGTERM):
        before[each] = signal.signal(each, note)
    try:
        yield received
    finally:
        restore()


class ConsoleProgress:
    """A bar with `text` and the time left on a terminal, a line now and then elsewhere; used with `with`."""

    def __init__(self, console: Console, text: str) -> None:
        self._console, self._text = console, text
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console) if console.is_terminal else None
        self._total, self._done, self._before, self._began, self._shown = 0, 0.0, 0, 0.0, 0.0

    def __enter__(self) -> ConsoleProgress:
        """Return this."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._bars:
            self._bars.stop()

    def begin(self, total: int, done: int) -> None:
        """Show the bar of `total` parts, `done` of which were there before."""
        self._total, self._done, self._before = total, done, done
        self._began = self._shown = time.monotonic()
        if self._bars:
            self._bars.start()
            self._bars.add_task(self._text, total=max(1, total), completed=done)

    def advance(self, size: float) -> None:
        """Move the bar."""
        self._done += size
        if self._bars:
            self._bars.advance(self._bars.task_ids[0], size)
        elif (now := time.monotonic()) - self._shown >= _PLAIN_SECONDS:
            self._shown = now
            left = (now - self._began) * (self._total - self._done) / max(1.0, self._done - self._before)
            share = 100 * self._done / max(1, self._total)
            self._console.print(f"{self._text}: {share:.0f} %, about {left / 60:.0f} min left", highlight=False)
