"""Everything about GPUs that no machine without one can tell: `make gpu-check`.

Runs from an installed environment or from a bundle (`gpu_bundle.py`), without a network. Each check is a process of
its own with a time limit, so that a crash or a stuck kernel ends that check alone; its lines appear as they come and
stay in `<out>/results.json` and `<out>/results.md` whenever the whole is cut. The most telling checks run first.

`--torch` names a Python that has PyTorch, for the speed beside it. `--pretend` runs on the pretended device
(`tests/cuda/pretended`): all is compiled and called, small, and no value is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMITS = {  # seconds; in the order in which they run
    "start": 60,
    "convolutions": 60,
    "operators": 120,
    "goldens": 80,
    "speed": 150,
    "repeats": 45,
    "profile": 40,
    "training": 90,
    "compiled": 120,
    "ranks": 60,
}


class Results:
    """Rows of all checks, written to both files after each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """Print a row and keep it."""
        self.rows.append(row)
        mark = {True: "ok  ", False: "FAIL", None: "    "}[row.get("passed")]
        sys.stdout.write(f"{mark} {row['check']:<13}{row['name']:<58}{row['value']}\n")
        sys.stdout.flush()
        (self.folder / "results.json").write_text(json.dumps(self.rows, indent=1))
        (self.folder / "results.md").write_text(self._markdown())

    def _markdown(self) -> str:
        lines: list[str] = []
        for check in dict.fromkeys(row["check"] for row in self.rows):
            lines += [f"## {check}", "", "| | | |", "|---|---|---|"]
            for row in self.rows:
                if row["check"] == check:
                    mark = {True: "passed", False: "**failed**", None: ""}[row.get("passed")]
                    value = str(row["value"]).replace("|", "\\|").replace("\n", "<br>")
                    lines.append(f"| {row['name']} | {value} | {mark} |")
            lines.append("")
        return "\n".join(lines)


def run(check: str, limit: float, arguments: argparse.Namespace, results: Results) -> None:
    """Run one check; whatever becomes of it is a row."""
    command = [sys.executable, str(HERE / "gpu_checks.py"), check, "--out", str(arguments.out)]
    command += ["--torch", arguments.torch, "--seconds", str(limit), *(["--pretend"] if arguments.pretend else [])]
    log = arguments.out / f"{check}.log"
    started = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=environment()
        )
        timer = threading.Timer(limit, lambda: os.killpg(process.pid, 9))
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"row":'):
                results.add({"check": check, **json.loads(line)["row"]})
        process.wait()
        timer.cancel()
    seconds = time.monotonic() - started
    if process.returncode:
        ended = "time is up" if seconds >= limit else f"ended with {process.returncode}"
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-12:])
        results.add({"check": check, "name": ended, "value": tail[-1500:], "passed": False})
    results.add({"check": check, "name": "seconds", "value": round(seconds, 1), "passed": None})


def environment() -> dict[str, str]:
    """The checks' surroundings: this checkout and the tests' own helpers can be imported."""
    paths = [str(HERE.parent), str(HERE.parent / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def main() -> None:
    """Run the checks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--limit", type=float, default=480, help="seconds for all")
    parser.add_argument("--torch", default="", help="a Python that has PyTorch")
    parser.add_argument("--pretend", action="store_true")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    results = Results(arguments.out)
    end = time.monotonic() + arguments.limit
    for check in arguments.only:
        left = end - time.monotonic()
        if left < 5:
            results.add({"check": check, "name": "not run", "value": "the time for all checks is up", "passed": None})
            continue
        limit = left if arguments.pretend else min(LIMITS[check], left)
        run(check, limit, arguments, results)
    failed = sum(row.get("passed") is False for row in results.rows)
    sys.stdout.write(f"{len(results.rows)} rows, {failed} failed; {arguments.out / 'results.md'}\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
