"""The documentation's page about a card, from the results of `make gpu-check`.

    python benchmarks/gpu_page.py outputs/gpu_check/results.json > docs/benchmarks/gpu-<card>.md

Of several files the later ones replace checks of the earlier ones.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
COLUMNS = ("pfseg, ms", "PyTorch, ms", "times as fast", "pfseg, GiB", "PyTorch, GiB", "share of memory")
WORK = {"train": "training step", "feed": "training step, batch from the host", "predict": "prediction"}
INTRODUCTION = """\
Made from the results of `make gpu-check` by `benchmarks/gpu_page.py`. [GPUs](../gpu.md) says what the settings mean.
"""
SPEED = """\
Milliseconds and the card's memory for `pfnet_r50` with 16 classes. A training step consists of the forward pass,
PFNet's loss with OHEM, the backward pass and SGD. Batches lie on the card beforehand, unless stated otherwise. pfseg
and PyTorch run the same network in two processes that take turns; each figure is the median over both turns.
"""
EAGER = (
    "PyTorch runs without compilation, with maps in channels-last order, autocast for 16 bits and cuDNN's own search."
)
COMPILED = "The same, with `torch.compile`:"
PROFILE = """\
`pfnet_r50` with 8 images of 896 px in bf16. Each kernel is waited for, which adds some microseconds to each call and
keeps the processor from working ahead, so that the sum exceeds the times above.
"""
AGREEMENT = """\
Compared with stored results of the published PyTorch code on a CPU, for random weights and noise as images, where
classes lie closer together than in a trained network. Losses and gradients are of `pfnet_r50` at 192 px. Errors are
relative: those of losses to each loss, those of gradients to the largest value of each weight's gradient, those of
logits to the largest logit or, where it says so, the root mean square (rms) to that of all logits.
"""


def page(rows: Sequence[Row]) -> str:
    """The page."""
    start = {row["name"]: row["value"] for row in rows if row["check"] == "start"}
    name, driver, memory = str(start.get("card", "GPU, unknown, unknown")).split(", ")[:3]
    cudnn = int(start.get("cuDNN", 0))
    software = [
        f"driver {driver}",
        f"CUDA {str(start.get('nvcc', 'V?')).rpartition('V')[2]}",
        f"cuDNN {cudnn // 10000}.{cudnn // 100 % 100}",
        f"Jittor {start.get('jittor')}",
        *(str(row["value"]).split(",")[0] for row in rows if row["name"] == "PyTorch"),
    ]
    parts = [f"# {name}", INTRODUCTION, f"{memory} of memory; {', '.join(dict.fromkeys(software))}."]
    parts += ["## Speed and memory", SPEED, EAGER, _speed([row for row in rows if row["check"] == "speed"])]
    if compiled := [row for row in rows if row["check"] == "compiled" and "work" in row]:
        parts += [COMPILED, _speed(compiled)]
    if goldens := [row for row in rows if row["check"] == "goldens"]:
        parts += ["## Agreement", AGREEMENT, _by_precision(goldens)]
    if convolutions := [row for row in rows if row["check"] == "convolutions" and "error" in row]:
        worst = {
            p: max((r["error"] for r in convolutions if r["name"].startswith(p)), default=None) for p in PRECISIONS
        }
        cells = ["" if error is None else f"{error:.0e}" for error in worst.values()]
        text = "Largest error of convolutions and their gradients, relative to the largest value of each result:"
        parts += [text, _table([["", *PRECISIONS], ["convolutions", *cells]])]
    for check, title in (("repeats", "Repeats"), ("training", "Training on the built-in data"), ("ranks", "Two ranks")):
        found = [row for row in rows if row["check"] == check and row["name"] != "seconds"]
        if found:
            lines = [[r["name"], str(r["value"]), "failed" if r["passed"] is False else ""] for r in found]
            parts += [f"## {title}", _table([["run", "result", ""], *lines])]
    if profile := [row for row in rows if row["check"] == "profile" and re.search(r"calls|%$", str(row["value"]))]:
        parts += ["## Where the time goes", PROFILE, _profile(profile)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _profile(rows: Sequence[Row]) -> str:
    lines = [["", "kernel", "ms", "calls", "share"]]
    for row in rows:
        if match := re.fullmatch(r"([\d.]+) ms in (\d+) calls(?: of a step|, (\d+ %))", str(row["value"])):
            work, _, kernel = row["name"].partition(": ")
            lines.append([WORK[work], f"`{kernel}`" if match[3] else kernel, match[1], match[2], match[3] or ""])
    return _table(lines)


def _speed(rows: Sequence[Row]) -> str:
    table = [["work", "images", "precision", *COLUMNS]]
    for row in rows:
        if "work" not in row or "ms" not in row["ours"][0]:
            continue
        cells = [WORK[row["work"]], f"{row['batch']} of {row['size']} px", row["precision"]]
        sides = [[answer for answer in row[side] if "ms" in answer] for side in ("ours", "torch")]
        times = [median(ms for answer in side for ms in answer["ms"]) if side else None for side in sides]
        sizes = [side[-1]["mib"] if side else None for side in sides]
        cells += [f"{time:.1f}" if time else "" for time in times] + [_ratio(times[1], times[0])]
        cells += [f"{size / 1024:.1f}" if size else "" for size in sizes] + [_ratio(sizes[0], sizes[1])]
        table.append(cells)
    return _table(table)


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above and below else ""


def _by_precision(rows: Sequence[Row]) -> str:
    """What was compared, against precisions."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        precision, _, what = row["name"].partition(" ")
        if precision in PRECISIONS and isinstance(row["value"], str):
            what = "gradients, worst" if what.startswith("gradients, worst") else what
            what = f"`{what.replace(' ', '`: ', 1)}" if what.startswith("pfnet") else what
            cells.setdefault(what, {})[precision] = (
                row["value"].split(",")[0].replace(" of the root of the mean square", " rms")
            )
    return _table(
        [["", *PRECISIONS], *([what, *(found.get(p, "") for p in PRECISIONS)] for what, found in cells.items())]
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |" for row in rows
    )


def main() -> None:
    """Write the page to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    checks: dict[str, list[Row]] = {}
    for path in parser.parse_args().results:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
        new: dict[str, list[Row]] = {}
        for row in rows:
            new.setdefault(row["check"], []).append(row)
        checks |= {check: found for check, found in new.items() if len(found) > 1}  # with more than its seconds
    sys.stdout.write(page([row for found in checks.values() for row in found]))


if __name__ == "__main__":
    main()
