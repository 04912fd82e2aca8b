"""Signs of life between the ranks of a job and its driver, over the output and input of the ranks (no Jittor).

A small process beside each rank tells the driver every few seconds where the rank's main thread is and for how long
the rank has done nothing. Doing something is using the processor, in the rank or in a process that it started
(compilers, loading processes), or waiting for a file lock, which somebody else holds, as Jittor's is while another
process compiles. So a first start that compiles for minutes, a long validation and slow data are alive; a stopped
process, a deadlock, a dead disk and a host that is out of reach are not. Ranks that wait in MPI for another one use the
processor, so that the one that they wait for is named.

It is a process, not a thread, because Jittor holds Python's lock for as long as it computes, compiles or waits in MPI.

Output is the one way that reaches the driver from every host, without a shared file system.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pfseg.launch.mpirun import die_with_parent

ENDED = "its end"  # where a rank is that has done its part
_MARK = "\x1epfseg "
_BUSY_SHARE = 0.02  # of one core; less is the noise of threads that only wait
_SLOWEST_BEAT = 5.0  # seconds
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")


def tell(**row: Any) -> None:
    """Send a row to the driver, in one write so that rows of several ranks don't mix."""
    os.write(1, f"\n{_MARK}{json.dumps(row)}\n".encode())


def told(line: str) -> dict[str, Any] | None:
    """Read a line of the ranks' output; None for one that is no row of `tell`."""
    _, mark, text = line.partition(_MARK)
    if not mark:
        return None
    try:
        row = json.loads(text)
    except ValueError:  # mixed with other output
        return None
    return row if isinstance(row, dict) else None


def beat_seconds(limit: float) -> float:
    """Seconds between two beats of a job that may be silent for `limit` seconds."""
    return min(_SLOWEST_BEAT, limit / 5)


class Pulse:
    """A rank's side: a process that tells the driver of this one, and ends it once the driver is out of reach.

    Args:
        rank: of this process.
        limit: seconds without a word from the driver after which a rank on another host gives up. A cut connection
            leaves it alone there; on the driver's own host the kernel ends it together with the driver.
    """

    def __init__(self, rank: int, limit: float) -> None:
        """Start it from the thread to be watched, before there are others."""
        self._rank, self._main = rank, threading.get_ident()
        self._seconds = beat_seconds(limit)
        self._done = threading.Event()
        places, self._places = os.pipe()
        os.set_blocking(self._places, False)
        rank_process, daemon = os.getpid(), os.getppid()
        self._beside = os.fork()
        if self._beside == 0:
            try:
                die_with_parent()
                os.close(self._places)
                _Beside(rank, limit, rank_process, daemon, places).run()
            finally:
                os._exit(0)
        os.close(places)
        self._thread = threading.Thread(target=self._show_place, name="pfseg-heartbeat", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Tell the driver that this rank has done its part; others may still be at work."""
        self._done.set()
        self._thread.join()
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._beside, signal.SIGKILL)
            os.waitpid(self._beside, 0)
        tell(beat=self._rank, host=socket.gethostname(), idle=0.0, at=ENDED)

    def _show_place(self) -> None:
        """Let the process beside know where the main thread is, whenever Jittor lets this one run."""
        while True:
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(self._places, f"{self._place()}\n".encode())
            if self._done.wait(self._seconds):
                return

    def _place(self) -> str:
        """Where the main thread is in code that is no library's, such as `engine/trainer.py:215 (_train_step)`."""
        frame = innermost = sys._current_frames().get(self._main)
        while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
            frame = frame.f_back
        if (frame := frame or innermost) is None:
            return ENDED
        path = Path(frame.f_code.co_filename)
        return f"{path.parent.name}/{path.name}:{frame.f_lineno} ({frame.f_code.co_name})"


class _Beside:
    """The process beside a rank.

    Args:
        rank: its number.
        limit: as of `Pulse`.
        process: the rank's.
        daemon: mpirun's on this host, the rank's parent.
        places: where the rank writes lines that say where it is.
    """

    def __init__(self, rank: int, limit: float, process: int, daemon: int, places: int) -> None:
        self._rank, self._limit, self._host = rank, limit, socket.gethostname()
        self._process, self._daemon, self._places = process, daemon, places
        self._idle, self._used = 0.0, 0.0
        self._at = "its start"
        self._word: float | None = None  # when the driver's last word came
        self._words: list[int] = [0]  # standard input, until its end

    def run(self) -> None:
        """Beat until the rank has ended, or end it. The kernel ends this process with the rank."""
        seconds = beat_seconds(self._limit)
        before = beat = time.monotonic()
        while os.getppid() == self._process:  # it may have ended before the kernel knew
            if (now := time.monotonic()) >= beat:
                self._rest(now - before)
                before, beat = now, now + seconds
                with suppress(OSError):  # nobody listens any more
                    tell(beat=self._rank, host=self._host, idle=round(self._idle, 1), at=self._at)
            if self._word is not None and now - self._word > self._limit:
                for pid in (self._daemon, self._process):  # the daemon would wait on
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            ready = select.select([self._places, *self._words], [], [], beat - now)[0]
            if 0 in ready:
                self._listen()
            if self._places in ready:
                self._look()

    def _rest(self, seconds: float) -> None:
        """Count the time in which the rank did nothing."""
        family = [pid for pid in _family(self._process) if pid != os.getpid()]
        used = sum(map(_cpu_seconds, family))
        busy = abs(used - self._used) > _BUSY_SHARE * seconds or _waits_for_lock(family)
        self._idle = 0.0 if busy else self._idle + seconds
        self._used = used

    def _listen(self) -> None:
        """Take in the driver's words; none come where the input ends, on the driver's own host."""
        try:
            heard = os.read(0, 4096)
        except OSError:
            heard = b""
        if heard:
            self._word = time.monotonic()
        else:
            self._words.clear()

    def _look(self) -> None:
        """Take in where the rank is."""
        if lines := os.read(self._places, 4096).decode(errors="replace").splitlines():
            self._at = lines[-1]


class Watch:
    """The driver's side: what the ranks told last, and which one has been silent for too long.

    Args:
        ranks: number of ranks.
        limit: seconds; None never finds one silent.
    """

    def __init__(self, ranks: int, limit: float | None) -> None:
        """Nothing is heard yet."""
        self._limit = limit
        self._last: dict[int, dict[str, Any]] = {}
        self._silent = dict.fromkeys(range(ranks), 0.0)
        self._polled = time.monotonic()

    @property
    def started(self) -> bool:
        """Whether every rank has told something."""
        return len(self._last) == len(self._silent)

    def hear(self, row: dict[str, Any]) -> None:
        """Take a beat; called by the reading thread."""
        self._last[row["beat"]] = row
        self._silent[row["beat"]] = -math.inf if row["at"] == ENDED else row["idle"]

    def hung(self) -> str | None:
        """Say which rank has been silent for longer than the limit, None without one."""
        now = time.monotonic()
        # At most a second a call: a driver that was itself stopped (Ctrl-Z) has heard nothing meanwhile.
        passed, self._polled = min(1.0, now - self._polled), now
        for rank in self._silent:
            self._silent[rank] += passed
        rank = max(self._silent, key=self._silent.__getitem__)
        if self._limit is None or self._silent[rank] <= self._limit:
            return None
        if rank not in self._last:
            return f"rank {rank} has not started within {self._limit:g} s (config: launch.timeout)"
        row = self._last[rank]
        what = "has done nothing" if row["idle"] > self._limit / 2 else "has not been heard of"
        return (
            f"rank {rank} on host {row['host']} {what} for {self._limit:g} s (config: launch.timeout), "
            f"last seen in {row['at']}"
        )


def _family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = children.read_text().split()
        except OSError:  # it has just ended
            continue
        for child in below:
            yield from _family(int(child))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # with its children that have ended


def _waits_for_lock(pids: list[int]) -> bool:
    """Whether one of the processes waits for a file lock: `1: -> FLOCK ADVISORY WRITE <pid> ...` in /proc/locks."""
    try:
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return False
    return any(row[1] == "->" and row[5].isdigit() and int(row[5]) in pids for row in rows)
