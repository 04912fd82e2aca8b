"""What the driver hears from the ranks, rows of the records file and lines of output, and whom it tells."""

from __future__ import annotations

import collections
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pfseg.launch.watchdog import RankError, Watch, told
from pfseg.tracking.records import Follower, Sink

POLL_SECONDS = 0.2
SILENCE_SECONDS = 3.0  # without a row or a compile line for so long, sinks hear that the job is still starting
_COMPILING = re.compile(r"Compiling ([\w ]+)\((\d+)/(\d+)\)\s+used:(?:.*?\beta:\s*([\d.e+]+))?")
_NOISE = "contact information is unknown in file"  # of mpirun, at each word for ranks of which some are on this host
_LOST_RANK = re.compile(r"process rank (\d+)")


class Telemetry:
    """Hears of a job in `folder` and tells the sinks.

    Attributes:
        errors: of ranks on hosts without the folder.
        tail: the last lines of output.
        lost_rank: the rank that mpirun says has ended.
        crashed: whether a rank has met a segmentation fault.
        listening: whether the ranks would save their state if they were told to stop.
    """

    def __init__(self, folder: Path, sinks: Sequence[Sink], watch: Watch) -> None:
        self.sinks, self.watch = list(sinks), watch
        self.errors: list[RankError] = []
        self.tail: collections.deque[str] = collections.deque(maxlen=30)
        self.lost_rank: str | None = None
        self.crashed = False
        self.listening = False
        self._follower = Follower(folder / "metrics.jsonl")
        self._log = open(folder / "worker.log", "ab", buffering=0)
        self._compiled: tuple[str, int, int, float | None] | None = None
        self._started, self._alive = time.monotonic(), False

    def line(self, text: str) -> None:
        """Take one line of the ranks' output; called by the reading thread."""
        if counts := _COMPILING.search(text):
            what = "Jittor" if "core" in counts[1] else "operators"
            self._compiled = (what, int(counts[2]), int(counts[3]), float(counts[4]) if counts[4] else None)
            self.watch.progress()
        elif word := told(text):
            if "listens" in word:
                self.listening = True
            elif "error" in word:
                self.errors.append(word["error"])
            else:
                self.watch.hear(word)
        elif text.strip() and _NOISE not in text:
            self.watch.progress()
            self.tail.append(text)
            self.crashed = self.crashed or "Caught segfault" in text  # Jittor's handler, which then exits with 1
            if lost := _LOST_RANK.search(text):
                self.lost_rank = lost[1]
            self.log(text)

    def log(self, text: str) -> None:
        """Append to `worker.log`; where the disk is full, `tail` still holds the last lines."""
        with suppress(OSError):
            self._log.write(f"{text}\n".encode())

    def poll(self) -> None:
        """Hand on what has come since the last call."""
        if counts := self._compiled:
            self._compiled, self._alive = None, True
            self.tell("compiling", *counts)
        for row in self._follower.rows():
            self._alive = True
            self.watch.progress()
            self.tell("record", row)
        if not self._alive and (seconds := time.monotonic() - self._started) >= SILENCE_SECONDS:
            self.tell("waiting", seconds)

    def tell(self, method: str, *args: object) -> None:
        """Call each sink; leave out for good one that fails: it must not end a training."""
        for sink in list(self.sinks):
            try:
                getattr(sink, method)(*args)
            except Exception as error:
                self.sinks.remove(sink)
                text = f"{type(sink).__name__} failed and is left out from here on: {type(error).__name__}: {error}"
                self.log(text)
                self.tell("message", text, "warning")

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Follow the records in a thread while the job runs in this process."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(POLL_SECONDS):
                self.poll()

        thread = threading.Thread(target=follow, name="pfseg-records", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.poll()

    def close(self) -> None:
        """Close the log."""
        self._log.close()
