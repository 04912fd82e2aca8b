"""The state of a run: finished, running, stopped, failed or lost, as its folder and this machine's processes tell."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

from pfseg.reporting.reading import load_json, number
from pfseg.tracking.records import Row

FRESH_SECONDS = 900.0  # a run of another host that wrote so recently counts as running: its processes can't be seen
_ENDS = {"done": "finished", "early_stop": "finished", "out_of_time": "finished", "stopped": "stopped"}
_DETAILS = {"early_stop": "stopped early: no better mIoU", "out_of_time": "trainer.max_time was reached"}


def status_of(folder: Path, rows: Sequence[Row], logs: Collection[Path]) -> tuple[str, str]:
    """State of a run, and why it failed or ended, in one line.

    Args:
        folder: of the run.
        rows: of its records file.
        logs: as `open_logs` returns them.
    """
    if folder.resolve() / "worker.log" in logs:
        return "running", ""
    errors = [load_json(path) for path in sorted((folder / "errors").glob("rank*.json"))]
    errors = [error for error in errors if isinstance(error, dict) and "message" in error]
    if errors:
        first = min(errors, key=lambda error: number(error.get("time")) or math.inf)
        kind = "" if first.get("user") else f"{first.get('type', 'error')}: "
        return "failed", kind + _first_line(str(first["message"]))
    final: Row = next((row for row in reversed(rows) if row["event"] in ("start", "end")), {})
    result = load_json(folder / "result.json")
    ending = (result if isinstance(result, dict) else final if final.get("event") == "end" else {}).get("status")
    if ending in _ENDS:
        return _ENDS[ending], _DETAILS.get(ending, "")
    if (text := folder / "error.txt").is_file():
        return "failed", _first_line(text.read_text(encoding="utf-8", errors="replace")).removeprefix("error: ")
    host, records = (load_json(folder / "environment.json") or {}).get("hostname"), folder / "metrics.jsonl"
    if not host or host == socket.gethostname():
        return "lost", "no end record and no live process"
    if records.exists() and time.time() - records.stat().st_mtime < FRESH_SECONDS:
        return "running", f"on {host}"
    return "lost", f"no end record; it ran on {host}, whose processes can't be seen from here"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return lines[-1 if lines[0].startswith("Traceback") else 0]


def open_logs() -> set[Path]:
    """`worker.log` files that a process of this machine writes: each run's driver holds its own open."""
    return {
        Path(file.path)
        for process in psutil.process_iter(["open_files"])
        for file in process.info["open_files"] or ()  # None: another user's process
        if file.path.endswith("/worker.log") and file.mode != "r"
    }
