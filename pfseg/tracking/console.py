"""A run in the terminal: settings, progress bars and tables of scores; plain lines where the output is no terminal.

Fed by the driver (`pfseg.launch.driver`) with the rows of the records file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pfseg.config.validation import as_typed
from pfseg.data.base import parse_classes
from pfseg.files import shown
from pfseg.tracking import terminal
from pfseg.tracking.records import (
    EndRow,
    MasksRow,
    MessageRow,
    ProgressRow,
    Row,
    Sink,
    StartRow,
    ValRow,
    boundary_scores,
    class_names,
    figures,
)

_COLUMNS = ("IoU", "precision", "recall", "F1")
_MEANS = {"IoU": "mIoU", "F1": "mF1"}  # of columns whose mean has a name of its own
_OTHERS = {"OA": ".2f", "mAcc": ".2f", "fwIoU": ".2f", "kappa": ".4f", "loss": ".4f"}
_STYLES = {"warning": "yellow", "error": "red"}
Scores = Mapping[str, float | None]  # of a validation, by name


class RunConsole(Sink):
    """Shows a run in `folder` as it goes on, by default on standard output; `finish` leaves the terminal in order."""

    def __init__(self, folder: Path | None = None, console: Console | None = None) -> None:
        self.folder = folder
        self.console = console or terminal.console()
        self.live = self.console.is_terminal
        self._colors: dict[str, str] = {}
        self._steps, self._steps_per_epoch = 0, 0  # 0: unknown
        self._lr: float | None = None  # as configured
        self._split: str | None = None  # that is evaluated; None in a training
        self._last: dict[str, tuple[float, str]] = {}
        self._began = time.monotonic()
        self._best = ""
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(24 if self.console.width >= 100 else 12, complete_style="cyan", finished_style="green"),
            TaskProgressColumn("[dim]{task.percentage:3.0f} %"),
            TextColumn("{task.fields[facts]}"),
            console=self.console,
            transient=True,
            refresh_per_second=2,
            disable=not self.live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._work = ("", 0, 0.0)  # what is shown as progress, how far it was when it was first heard of, and when

    def show_config(self, config: Mapping[str, Any]) -> None:
        """Show the composed configuration as a tree."""
        classes = (config.get("dataset") or {}).get("classes") or []
        self._colors = {info.name: info.hex_color for info in parse_classes(classes)} if classes else {}
        self._lr = (config.get("optimizer") or {}).get("lr")
        self._split = config["split"] if config.get("job") == "evaluate" else None
        tree = Tree(Text(str(config.get("name", "pfseg")), style="bold"), guide_style="dim")
        _grow(tree, {key: value for key, value in config.items() if key != "name"})
        self.console.print(tree)
        if self.folder is not None:
            self._line(f"run folder: {shown(self.folder)}", "dim")

    def compiling(self, what: str, done: int, total: int, left: float | None) -> None:
        """Show how far Jittor is with compiling itself or operators."""
        count = f" {done}/{total}" if total else ""
        time_left = "" if left is None else f"{terminal.duration(left)} left"
        plain = f", {time_left}" if time_left and not self.live else ""
        self._bar("wait", f"compiling {what}{count}{plain}, cached for next time", done, total or None, time_left)

    def waiting(self, seconds: float) -> None:
        """Show that Jittor is being prepared."""
        text = "preparing Jittor: a first start compiles it, 1-3 minutes, cached for next time"
        since = f"{seconds:.0f} s"
        self._bar("wait", text if self.live else f"{text} ... {since}", None, None, since)

    def message(self, text: str, level: str = "info") -> None:
        """Show a text; warnings and errors say so."""
        self._line(text if level == "info" else f"{level}: {text}", _STYLES.get(level, ""))

    def finish(self, exit_code: int = 0) -> None:
        """End the live display; a second call does nothing."""
        self._hide(*[*self._tasks])
        self._progress.stop()

    def on_start(self, row: StartRow) -> None:
        """Say what the job works on, or where it goes on."""
        self._hide("wait")
        self._steps, self._steps_per_epoch = row.get("steps", 0), row.get("steps_per_epoch", 0)
        ranks = row.get("ranks", 1)
        machine = f"{len(row.get('classes', []))} classes, {row.get('device', '?')}, {ranks} rank{'s' * (ranks > 1)}"
        if self._split:
            self._line(f"evaluating {row.get('images_val', '?')} images of split {self._split}, {machine}", "bold")
            return
        whole, size = row.get("global_batch"), row.get("batch_size")
        batch = f"global batch {whole or '?'}"
        if whole and size and whole != size:
            accumulated = whole // (size * ranks)
            batch += f" ({size} per rank{f', {accumulated} accumulated' if accumulated > 1 else ''})"
        self._line(
            f"{row.get('images_train', '?')} training and {row.get('images_val', '?')} validation images, {machine}, "
            f"{batch}, {row.get('steps', '?')} steps",
            "bold",
        )
        if (base := row.get("base_lr")) is not None and base != self._lr:
            self._line(f"learning rate {base:.3g}: optimizer.lr scaled to this global batch")
        if row["step"]:
            self._line(f"continuing after step {row['step']}")

    def on_masks(self, row: MasksRow) -> None:
        """Show what masks hold."""
        ignored = f", {100 * row['ignored']:.3g} % of their pixels without a class" if row["ignored"] else ""
        self._line(f"{row['masks']:,} training masks{ignored}:")
        classes = parse_classes(row["classes"])
        self.console.print(terminal.class_table(classes, row["pixels"], row["images"], "images"))

    def on_train(self, row: Row) -> None:
        """Show losses, speed and the time left."""
        self._hide("wait", "progress")
        step, steps, per_epoch, values = row["step"], self._steps, self._steps_per_epoch, figures(row, "train/")
        loss, rate = terminal.number(values.get("loss"), ".4f"), terminal.number(values.get("lr"), ".2e")
        speed, left = terminal.number(values.get("images_per_s"), ".1f"), terminal.duration(values.get("eta_s"))
        epoch = f"epoch {row['epoch'] + 1}" + (f"/{-(-steps // per_epoch)}" if steps and per_epoch else "")
        at = f"step {step:{len(str(steps))}}/{steps}" if steps else f"step {step}"
        if not self.live:
            self._line(f"{at}  {epoch}  loss {loss}  lr {rate}  {speed} images/s  left {left}")
            return
        facts = f"loss [b]{loss}[/]  lr {rate}  {speed} images/s"
        self._bar("epoch", epoch, step - row["epoch"] * per_epoch, per_epoch or None, facts)
        self._bar("run", at, step, steps or None, f"left [b]{left}[/]  since {self._elapsed()}{self._best}")

    def on_progress(self, row: ProgressRow) -> None:
        """Show how far a validation, an evaluation or a prediction is, and how long it will still take."""
        text, done, now = row["text"], row["done"], time.monotonic()
        if text != self._work[0] or done <= self._work[1]:
            self._work = text, done, now
        _, before, began = self._work
        left = (now - began) * (row["total"] - done) / max(1, done - before)
        facts = f"{terminal.duration(left)} left" if before < done < row["total"] else ""
        self._bar("progress", text, done, row["total"], facts)

    def on_message(self, row: MessageRow) -> None:
        """Show a message of a rank."""
        self.message(row["text"], row.get("level", "info"))

    def on_val(self, row: ValRow) -> None:
        """Show the scores of a validation as tables."""
        self._hide("wait", "progress")
        scores, exclude, best = figures(row, "val/"), row.get("exclude", []), row.get("best")
        if best:
            self._best = f"  best mIoU [b]{terminal.number(scores.get('mIoU'))}[/]"
        title = f"validation after epoch {row['epoch'] + 1}, step {row['step']}{'  ★ best so far' if best else ''}"
        self._line(title, "bold green" if best else "bold")
        self.console.print(self._score_table(scores, exclude, "class", _COLUMNS, bars=self.live))
        if boundary := boundary_scores(scores):
            self.console.print(self._score_table(scores, exclude, "boundary", boundary))
        others = {name: terminal.number(scores[name], form) for name, form in _OTHERS.items() if name in scores}
        self._line("   ".join(f"{name} {value}" for name, value in others.items()))
        if path := row.get("panels"):
            self._line(f"samples: {shown(self.folder / path) if self.folder else path}", "dim")

    def on_end(self, row: EndRow) -> None:
        """Say how the job ended."""
        self.finish()
        status = {"done": "finished", "early_stop": "stopped early: no better mIoU"}.get(row["status"], row["status"])
        self._line(f"{status} at step {row['step']} after {self._elapsed()}", "bold")

    def _score_table(
        self, scores: Scores, exclude: Sequence[str], head: str, columns: Sequence[str], bars: bool = False
    ) -> Table:
        """A line for each class and one of the means, with bars of the first column where asked for."""
        heads = [column.removeprefix("boundary_") for column in columns]
        table = terminal.table(head, *heads, numbers=heads)
        if bars:
            table.add_column("", width=20)
        for name in (names := class_names(scores)):
            color = self._colors.get(name)
            label = Text.assemble(("■ ", color), name) if color and self.live else Text(name)
            values = [scores.get(f"{column}/{name}") for column in columns]
            bar = [Bar(100, 0, values[0] or 0, color=color or "green")] if bars else []
            table.add_row(label, *map(terminal.number, values), *bar)
        table.add_section()
        kept = [name for name in names if name not in exclude]
        table.add_row("mean", *(terminal.number(_mean(scores, column, kept)) for column in columns), style="bold")
        return table

    def _elapsed(self) -> str:
        return terminal.duration(time.monotonic() - self._began)

    def _bar(self, key: str, text: str, done: float | None, total: float | None, facts: str = "") -> None:
        """Show or move one line of the live display; as plain lines only the waits, now and then."""
        if not self.live:
            if key not in ("epoch", "run"):
                count = f" {done}/{total}{', ' * bool(facts)}{facts}" if key == "progress" and total else ""
                self._seldom(key, text + count, key == "wait" and done is not None and done == total)
            return
        self._progress.start()
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(text, total=total, facts=facts)
        self._progress.update(self._tasks[key], description=text, completed=done or 0, total=total, facts=facts)

    def _seldom(self, key: str, text: str, at_once: bool) -> None:
        now = time.monotonic()
        # A wait is said at once, a validation only when it takes long.
        last, before = self._last.setdefault(key, (now if key == "progress" else now - terminal.PLAIN_SECONDS, ""))
        if text != before and (at_once or now - last >= terminal.PLAIN_SECONDS):
            self._last[key] = (now, text)
            self._line(text)

    def _hide(self, *keys: str) -> None:
        for key in keys:
            self._last.pop(key, None)
            if key in self._tasks:
                self._progress.remove_task(self._tasks.pop(key))

    def _line(self, text: str, style: str = "") -> None:
        terminal.line(self.console, text, style)


def _mean(scores: Scores, column: str, names: Sequence[str]) -> float | None:
    """The mean of a score over the classes `names`, as recorded or else worked out."""
    if (key := _MEANS.get(column, column)) in scores:
        return scores[key]
    values = [value for name in names if (value := scores.get(f"{column}/{name}")) is not None]
    return fmean(values) if values else None


def _grow(tree: Tree, values: Mapping[str, Any]) -> None:
    """Add the plain values packed into lines, then each group as a branch."""
    groups = {key: value for key, value in values.items() if isinstance(value, dict) and value}
    plain = Text()
    for key, value in values.items():
        if key == "classes" and isinstance(value, list) and value:
            text = Text(f"{len(value)} classes: ")
            for info in parse_classes(value):
                text.append("■ ", style=info.hex_color).append(f"{info.name}   ")
            tree.add(text)
        elif key not in groups:
            plain.append(f"{key}=", style="dim").append(as_typed(value)).append("  ")
    if plain:
        plain.rstrip()
        tree.add(plain)
    for key, value in groups.items():
        target = str(value.get("_target_", "")).rpartition(".")[2]
        label = Text.assemble((key, "bold cyan"), (f"  {target}" if target else "", "cyan"))
        _grow(tree.add(label), {k: v for k, v in value.items() if k != "_target_"})
