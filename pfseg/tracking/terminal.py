"""The terminal: one console, one style of tables and lines for every command."""

from __future__ import annotations

import os
from collections.abc import Collection

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 120  # columns of a pipe or a file, unless COLUMNS says otherwise


def console() -> Console:
    """Standard output, `PLAIN_WIDTH` columns wide where it is no terminal."""
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


def as_typed(value: object) -> str:
    """A setting as on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def number(value: float | None, form: str = ".2f") -> str:
    """A number in a format; `-` for None."""
    return "-" if value is None else format(value, form)
