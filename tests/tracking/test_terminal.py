from __future__ import annotations

import os
import subprocess
import sys

import pytest
from rich.console import Console
from runs import ROOT

from pfseg.tracking import terminal


def lines(console: Console) -> list[str]:
    return [line.rstrip() for line in console.export_text().splitlines() if line.strip()]


@pytest.mark.parametrize(("columns", "width"), [(None, terminal.PLAIN_WIDTH), ("", terminal.PLAIN_WIDTH), ("77", 77)])
def test_where_there_is_no_terminal_lines_have_a_fixed_width(
    columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch
):
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert terminal.console().width == width


def test_tables_have_one_style():
    console = Console(width=40, record=True, quiet=False, file=None)
    table = terminal.table("name", "mIoU", numbers=("mIoU",), title="runs [b]")
    table.add_row("a " * 30, terminal.number(41.239))
    table.add_row("b", terminal.number(None))
    console.print(table)
    title, head, rule, first, *_, last = lines(console)
    assert title == "runs [b]"
    assert head.split() == ["name", "mIoU"] and set(rule.strip()) == {"─"}
    assert first.endswith("41.24") and last.startswith(" b") and last.endswith("    -")


def test_a_line_is_printed_as_it_is():
    console = Console(width=20, record=True)
    terminal.line(console, "written: [x] outputs/a/very/long/path/1.png")
    assert lines(console) == ["written: [x] outputs/a/very/long/path/1.png"]


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (7, "0:07"), (6100, "1:41:40")])
def test_durations(seconds: float | None, text: str):
    assert terminal.duration(seconds) == text


def test_a_terminal_of_few_letters_shows_question_marks():
    code = "from pfseg.tracking import terminal; terminal.console().print('■ Gebäude ★')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode("latin-1").strip() == "? Gebäude ?", done.stderr


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    console = Console(width=80, record=True, get_time=lambda: now)
    with terminal.ConsoleProgress(console, "cutting") as progress:
        progress.begin(100, 40)
        for _ in range(30):
            now += 10
            progress.advance(1)
    assert lines(console) == [f"cutting: {40 + n} %, about {round((60 - n) / 6)} min left" for n in range(2, 31, 2)]
    progress = terminal.ConsoleProgress(Console(width=80, record=True), "scoring")
    for done in (0, 3, 8):
        progress.show(done, 10)
    assert progress._bars.tasks[0].percentage == 80
