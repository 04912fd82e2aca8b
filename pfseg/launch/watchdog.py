"""Whether a job still makes progress, and where its ranks are when it doesn't (no Jittor).

Progress is a row of the records file, a line of output, or in a rank: processor time of processes that it started, what
it reads and writes, waiting for a file lock, which Jittor holds while another process compiles, and its own processor
time beyond what the system takes of it: MPI waits by yielding the processor over and over, mostly the system's time.
After `launch.timeout` seconds without any the ranks tell where they are, on SIGUSR2, and the driver ends the job.

A process beside each rank tells all that by the rank's output, the one way from every host, because Jittor holds
Python's lock while it computes or waits in MPI. It also ends a rank on another host once the driver is out of reach.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import re
import select
import signal
import socket
import sysconfig
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypedDict, cast

import psutil

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl  # bound here: little may be done between fork and exec
_MARK = "\x1epfseg "
_BUSY_SHARE = 0.01  # of one core, over the whole limit; less is the noise of processes that only wait
_BUSY_BYTES = 1 << 16
_LONGEST_BEAT = 5.0  # seconds between two measurements of a rank, at most
_LONGEST_LOOK = 2.0  # seconds between two looks, at most: a driver that was stopped (Ctrl-Z) has seen nothing meanwhile
_ANSWER_SECONDS = 2.0  # for the ranks to tell where they are
_FRAME = re.compile(r'File "(.+)", line (\d+) in (\S+)')
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class RankError(TypedDict):
    """Why a rank failed, as `errors/rank<k>.json` holds it."""

    rank: int
    time: float  # unix seconds
    type: str  # of the exception
    message: str
    traceback: str
    user: bool  # whether its message says all that the user needs
    exit_code: int


class Word(TypedDict, total=False):
    """What a rank tells the driver."""

    listens: bool  # it would save its state if it were told to stop
    progress: bool
    error: RankError
    rank: int
    host: str
    at: str  # the line of code that it is at


def tell(word: Word) -> None:
    """Send a word to the driver, in one write so that those of several ranks don't mix."""
    with suppress(OSError):  # nobody listens any more
        os.write(1, f"\n{_MARK}{json.dumps(word)}\n".encode())


def told(line: str) -> Word | None:
    """Read a line of the ranks' output; None for one that no `tell` wrote."""
    with suppress(ValueError):  # of another line, or mixed with other output
        return cast(Word, json.loads(line.partition(_MARK)[2]))
    return None


# A rank's side


def accompany(rank: int, limit: float) -> None:
    """Start the process beside this one; to be called before there are further threads.

    After `limit` seconds without a word from the driver it ends a rank on another host, which a cut connection leaves
    alone there; on the driver's own host the kernel ends it together with the driver.
    """
    tell({"rank": rank, "host": socket.gethostname()})
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # for the process beside
    dumps, dump = os.pipe()
    own, daemon = os.getpid(), os.getppid()
    if os.fork() == 0:
        try:
            die_with_parent()
            os.close(dump)
            _serve(rank, dumps, limit, daemon, own)
        finally:
            os._exit(0)
    os.close(dumps)
    faulthandler.register(signal.SIGUSR2, file=dump, all_threads=False)
    # mpirun also signals what the rank forks, such as Jittor's pool of compilers: that must not answer in its place.
    os.register_at_fork(after_in_child=lambda: faulthandler.unregister(signal.SIGUSR2))


def _serve(rank: int, dumps: int, limit: float, daemon: int, process: int) -> None:
    """Tell the driver of the rank's progress and what it dumps, and kill it once the driver has fallen silent."""
    meter, beat = _Meter(process, limit), min(_LONGEST_BEAT, limit / 5)
    measured = time.monotonic()
    sources, dump = [dumps, 0], b""
    word: float | None = None  # when the driver's last one came; on its own host none does
    while True:
        if time.monotonic() - measured > beat:
            measured = time.monotonic()
            if meter.busy():
                tell({"progress": True})
        ready = select.select(sources, [], [], 0.2)[0]
        if dumps in ready:
            part = os.read(dumps, 1 << 16)
            if not part:  # the rank has ended
                return
            dump += part
        elif dump:
            tell({"rank": rank, "host": socket.gethostname(), "at": _place(dump.decode(errors="replace"))})
            dump = b""
        if 0 in ready:
            if os.read(0, 4096):
                word = time.monotonic()
            else:
                sources.remove(0)
        if word is not None and time.monotonic() - word > limit:
            for pid in (daemon, process):  # the daemon would wait on
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return


def _place(dump: str) -> str:
    """The innermost line of a traceback in code that is no library's: `engine/trainer.py:215 (_train_step)`."""
    frames = _FRAME.findall(dump)
    own = [frame for frame in frames if "/pfseg/" in frame[0] or not frame[0].startswith(_LIBRARIES)]
    for file, line, function in own or frames:
        return f"{Path(file).parent.name}/{Path(file).name}:{line} ({function})"
    return "an unknown place"


class _Meter:
    """Measures whether a rank and the processes that it started progress; `limit` seconds without end the job."""

    def __init__(self, process: int, limit: float) -> None:
        self._rank, self._seconds = psutil.Process(process), _BUSY_SHARE * limit
        # By process id at the last progress: seconds by itself and by children that have ended, bytes read and written.
        self._before: dict[int, tuple[float, float, int]] = {}

    def busy(self) -> bool:
        """Whether they have used enough since the last time that they had."""
        uses = self._uses()
        seconds, size = 0.0, 0
        for pid, use in uses.items():
            before = self._before.get(pid, (0.0, 0.0, 0))
            seconds += max(0.0, use[0] - before[0]) + max(0.0, use[1] - before[1])
            size += use[2] - before[2]
        if seconds <= self._seconds and size <= _BUSY_BYTES and not _waits_for_lock(uses):
            return False
        self._before = uses
        return True

    def _uses(self) -> dict[int, tuple[float, float, int]]:
        uses = {}
        with suppress(psutil.Error):  # it has just ended
            below = [process for process in self._rank.children(recursive=True) if process.pid != os.getpid()]
            for process in (self._rank, *below):
                with suppress(psutil.Error), process.oneshot():
                    times, io = process.cpu_times(), process.io_counters()
                    own = times.user - times.system if process == self._rank else times.user + times.system
                    children = times.children_user + times.children_system
                    uses[process.pid] = (own, children, io.read_chars + io.write_chars)
        return uses


def _waits_for_lock(pids: Iterable[int]) -> bool:
    """Whether one of the processes waits for a file lock: `1: -> FLOCK ADVISORY WRITE <pid> ...` in /proc/locks."""
    with suppress(OSError):
        rows = map(str.split, Path("/proc/locks").read_text().splitlines())
        return any(row[1] == "->" and row[5] in set(map(str, pids)) for row in rows)
    return False


# The driver's side


class Watch:
    """Finds out that a job of so many ranks hangs, after `limit` seconds without progress; None never finds it."""

    def __init__(self, ranks: int, limit: float | None) -> None:
        self._ranks, self._limit = ranks, limit
        self._words: dict[int, Word] = {}
        self._idle, self._looked = 0.0, time.monotonic()
        self._asked = False

    def hear(self, word: Word) -> None:
        """Take what a rank told; called by the reading thread."""
        if "progress" in word:
            self.progress()
        else:
            self._words[word["rank"]] = word

    def progress(self) -> None:
        """Hear of progress; called by any thread."""
        if not self._asked:
            self._idle = 0.0

    def look(self, ask: Callable[[], None]) -> bool:
        """Look for progress; True once the job is to be ended. Before, `ask` lets the ranks tell where they are."""
        now = time.monotonic()
        passed, self._looked = min(_LONGEST_LOOK, now - self._looked), now
        self._idle += passed
        if self._limit is None or self._idle <= self._limit:
            return False
        if not self._asked:
            self._asked = True
            ask()
        return self._idle > self._limit + _ANSWER_SECONDS

    def hung(self) -> str | None:
        """Say that the job hangs, and where its ranks are; None if it doesn't."""
        if not self._asked:
            return None
        places: dict[str, list[str]] = {}
        for rank in range(self._ranks):
            word = self._words.get(rank)
            where = f"on host {word['host']}: {word.get('at', 'no answer')}" if word else "not started"
            places.setdefault(where, []).append(str(rank))
        listed = "; ".join(f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks)} {at}" for at, ranks in places.items())
        return f"no progress for {self._limit:g} s (config: launch.timeout): {listed}"
