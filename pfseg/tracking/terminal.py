"""The terminal: one console, one style of tables, lines and progress for every command, and its signals."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pfseg.data.base import ClassInfo

PLAIN_WIDTH = 120  # columns of a pipe or a file, unless COLUMNS says otherwise
_AVERAGED_SECONDS = 600.0  # of work that the estimate of the time left goes by
PLAIN_SECONDS = 15.0  # between lines about the same work where nobody sees a bar


def console() -> Console:
    """Standard output, `PLAIN_WIDTH` columns wide where it is no terminal; what its coding lacks is shown as `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    terminal = Console()
    return terminal if terminal.is_terminal or os.environ.get("COLUMNS") else Console(width=PLAIN_WIDTH)


def line(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is: without markup and highlighting, and without breaking paths and commands."""
    console.print(Text(text, style), soft_wrap=True)


def table(*columns: str, numbers: Collection[str] = (), title: str = "") -> Table:
    """An empty table with these heads, if any; columns of `numbers` are aligned on the right and never wrapped."""
    head = Text(title, "bold") if title else None
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=bool(columns), title=head, title_justify="left")
    for column in columns:
        if column in numbers:
            grid.add_column(column, justify="right", no_wrap=True)
        else:
            grid.add_column(column, overflow="fold")
    return grid


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, such as 1:01:40 or 0:07; `-` for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float | None, form: str = ".2f") -> str:
    """A number in a format; `-` for None."""
    return "-" if value is None else format(value, form)


def class_table(classes: Sequence[ClassInfo], pixels: Sequence[float], images: Sequence[float], what: str) -> Table:
    """How often each class occurs: shares of the labelled pixels, and of the images (`what` they are called)."""
    heads = ("% of pixels", f"in % of {what}")
    found = table("class", *heads, numbers=heads)
    for info, share, images_share in zip(classes, pixels, images, strict=True):
        label = Text("■ ", style=info.hex_color) + Text(info.name, style="default")
        found.add_row(label, f"{100 * share:.2f}", f"{100 * images_share:.0f}")
    return found


class ConsoleProgress(AbstractContextManager["ConsoleProgress"]):
    """A bar with `text` and the time left on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, text: str) -> None:
        self._console, self._text, self._plain, self._shown = console, text, not console.is_terminal, 0.0
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, disable=self._plain, speed_estimate_period=_AVERAGED_SECONDS)

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        self._bars.stop()

    def show(self, done: int, total: int) -> None:
        """Show how many parts of all are done, beginning with none."""
        if done == 0:
            self.begin(total, 0)
        else:
            self.advance(done - self._bars.tasks[0].completed)

    def begin(self, total: int, done: int) -> None:
        """Show the bar of `total` parts, `done` of which were there before."""
        self._shown = time.monotonic()
        self._bars.start()
        self._bars.add_task(self._text, total=max(1, total), completed=done)

    def advance(self, size: float) -> None:
        """Move the bar."""
        self._bars.advance(self._bars.task_ids[0], size)
        if self._plain and (now := time.monotonic()) - self._shown >= PLAIN_SECONDS:
            self._shown, task = now, self._bars.tasks[0]
            left = "" if task.time_remaining is None else f", about {task.time_remaining / 60:.0f} min left"
            line(self._console, f"{self._text}: {task.percentage:.0f} %{left}")
