"""Rounds: something bad happens to a command, which must say so in one line and go on afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread

import psutil

from torture.bench import Bench, Round

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSTOP)
STOPPED = {0, 1, 129, 130, 143}  # exit codes after a signal
SPACE = "free some space"
KILLED = (
    "train",
    "train",
    "train",
    "train on two ranks",
    "train with wandb",
    "evaluate",
    "predict",
    "prepare",
    "sweep",
)
FILES = 200  # of a batch
WRITERS = ("train", "train", "evaluate", "predict", "prepare")


def kill(bench: Bench, random: Random, result: Round) -> None:
    """Signals at random moments, also to commands that go on after earlier ones."""
    name = random.choice(KILLED)
    work, folder = bench.works[name], bench.folder / str(result.number)
    result.said.append(name)
    arguments = work.arguments(folder)
    for _ in range(random.choice((1, 2, 3))):
        process = bench.start(arguments, result.number)
        codes = set(STOPPED)
        for pause in [random.uniform(0, 1.1 * work.seconds), random.uniform(0, 1)][: 1 + (random.random() < 0.2)]:
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause)
            codes |= strike(bench, process, random, result)
        code, text = bench.finish(process)
        bench.check(folder, result, code, codes, text)
        arguments = work.again(folder)
    bench.complete(work, folder, result)


def strike(bench: Bench, process: subprocess.Popen[str], random: Random, result: Round) -> set[int]:
    """Send a signal to one of a command's processes; returns the exit code that this explains."""
    kinds: dict[str, int] = {"the command": process.pid}  # each kind once, so that many compilers don't outweigh others
    for each in bench.processes(result.number):
        with suppress(psutil.Error):
            line = each.cmdline()
            if each.pid != process.pid and "resource_tracker" not in " ".join(line):  # what that is for, see the docs
                kinds[" ".join(line[:4])[-60:]] = each.pid
    what, number = random.choice(list(kinds)), random.choice(SIGNALS)
    pause = random.uniform(0, 3)  # of one that is stopped
    if process.poll() is not None:
        result.said.append("it had ended")
        return set()
    with suppress(ProcessLookupError):
        os.kill(kinds[what], number)
        result.said.append(f"{number.name} to {what}")
        if number == signal.SIGSTOP:
            time.sleep(pause)
            os.kill(kinds[what], signal.SIGCONT)
            return set()
        result.kills += 1
    return {-number} if what == "the command" else set()


@contextmanager
def disk(folder: Path, *options: str) -> Iterator[Path]:
    """A file system in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(["mode=700", *options]), "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        shutil.rmtree(folder)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=500m,nr_inodes=100k", folder], check=True)


def full_disk(bench: Bench, random: Random, result: Round) -> None:
    """The output is on a disk that fills up, or runs out of inodes."""
    name = random.choice(WRITERS)
    work = bench.works[name]
    files = [path.stat().st_size for path in bench.reference(name).rglob("*") if path.is_file()]
    size = f"size={random.randint(1, sum(files) >> 12) * 4}k"  # in pages
    limit = random.choice((size, size, f"nr_inodes={random.randint(2, len(files))}"))
    result.said.append(f"{name}, {limit}")
    with disk(bench.folder / f"disk{result.number}", limit) as full:
        code, text = bench.finish(bench.start(work.arguments(full / "run"), result.number))
        bench.check(full / "run", result, code, {0, 1}, text)
        if code == 1 and SPACE not in text:
            result.faults.append(f"the cause isn't named: {text[-1000:]}")
        enlarge(full)
        bench.complete(work, full / "run", result)


def full_scratch(bench: Bench, random: Random, result: Round) -> None:
    """The folder of temporary files is on a disk that is nearly full."""
    name = random.choice(("train on two ranks", "train with wandb", "prepare", "predict"))
    size = random.choice((4, 16, 64, 256, 1024, 4096))
    result.said.append(f"{name}, {size} KiB for temporary files")
    work, folder = bench.works[name], bench.folder / str(result.number)
    with disk(bench.temporary, f"size={size}k"):
        code, text = bench.finish(bench.start(work.arguments(folder), result.number))
        bench.check(folder, result, code, {0, 1}, text)
        if code == 1 and SPACE not in text:
            result.faults.append(f"the cause isn't named: {text[-1000:]}")
    bench.complete(work, folder, result)


def full_cache(bench: Bench, random: Random, result: Round) -> None:
    """Jittor compiles for a loss that no other round uses, and the disk of its cache fills up."""
    loss = random.choice(("focal", "lovasz", "dice", "tversky"))
    size = random.choice((4, 64, 256, 1024))
    result.said.append(f"training with loss={loss}, {size} KiB for the compile cache")
    cache = Path(os.environ.get("JITTOR_HOME") or Path.home()) / ".cache" / "jittor"
    folder = bench.folder / str(result.number)
    arguments = [*bench.works["train"].arguments(folder), f"loss={loss}"]
    with disk(bench.folder / f"disk{result.number}", f"size={size}k") as small:
        layers = [f"lowerdir={cache}", f"upperdir={small / 'upper'}", f"workdir={small / 'work'}"]
        for part in ("upper", "work"):
            (small / part).mkdir()
        subprocess.run(["mount", "-t", "overlay", "-o", ",".join(layers), "overlay", cache], check=True)
        try:
            code, text = bench.finish(bench.start(arguments, result.number))
            bench.check(folder, result, code, {0, 1}, text)
            if code == 1 and SPACE not in text:
                result.faults.append(f"the cause isn't named: {text[-1000:]}")
            enlarge(small)
            shutil.rmtree(folder, ignore_errors=True)
            code, text = bench.finish(bench.start(arguments, result.number))
            bench.check(folder, result, code, {0}, text)
        finally:
            subprocess.run(["umount", "-l", cache], check=True)


def read_only(bench: Bench, random: Random, result: Round) -> None:
    """Nothing can be written into the folder of the output."""
    name = random.choice(WRITERS)
    result.said.append(name)
    with disk(bench.folder / f"disk{result.number}") as closed:
        subprocess.run(["mount", "-o", "remount,ro", closed], check=True)
        arguments = bench.works[name].arguments(closed / "run")
        code, text = bench.finish(bench.start(arguments, result.number))
        bench.check(closed / "run", result, code, {1}, text)
        if "permissions" not in text and "ead-only" not in text:
            result.faults.append(f"the cause isn't named: {text[-1000:]}")


def gone(bench: Bench, random: Random, result: Round) -> None:
    """The run folder is moved or deleted during the training."""
    work, folder = bench.works["train"], bench.folder / str(result.number)
    process = bench.start(work.arguments(folder), result.number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(random.uniform(0.1, 1.0) * work.seconds)
    moved, deleted = folder.with_name(f"{folder.name}-moved"), random.random() < 0.5
    result.said.append("deleted" if deleted else "moved")
    with suppress(OSError):  # it is not there yet, or gets a file just now
        shutil.rmtree(folder) if deleted else folder.rename(moved)
    code, text = bench.finish(process)
    bench.check(folder, result, code, {0, 1}, text)
    if moved.exists():
        shutil.rmtree(folder, ignore_errors=True)
        moved.rename(folder)
        bench.check(folder, result, code, {0, 1}, "")
    bench.complete(work, folder, result)


def little_memory(bench: Bench, random: Random, result: Round) -> None:
    """The kernel kills the largest process of a control group that has too little memory."""
    name = random.choice(("train", "train on two ranks", "predict", "prepare"))
    work, folder = bench.works[name], bench.folder / str(result.number)
    root = Path("/sys/fs/cgroup")
    second = (root / "cgroup.controllers").exists()
    group = (root if second else root / "memory") / f"torture-{os.getpid()}"
    mebibytes = random.randint(100, 600)
    result.said.append(f"{name}, {mebibytes} MiB")
    group.mkdir()
    try:
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(mebibytes << 20))
        process = bench.start(work.arguments(folder), result.number)
        (group / "cgroup.procs").write_text(str(process.pid))  # before it has children
        code, text = bench.finish(process)
        bench.check(folder, result, code, {0, 1, -signal.SIGKILL}, text)
        if code == 1 and "memory" not in text:
            result.faults.append(f"the cause isn't named: {text[-1000:]}")
    finally:
        group.rmdir()
    bench.complete(work, folder, result)


def two_at_once(bench: Bench, random: Random, result: Round) -> None:
    """Two commands write into one folder."""
    name = random.choice(("train", "predict", "prepare", "sweep"))
    work, folder = bench.works[name], bench.folder / str(result.number)
    first = bench.start(work.arguments(folder), result.number)
    time.sleep(random.uniform(0, work.seconds / 2))
    result.said.append(f"{name}, {'after' if first.poll() is not None else 'at once'}")
    second = bench.start(work.arguments(folder), result.number)
    codes = []
    for process in (first, second):
        code, text = bench.finish(process)
        codes.append(code)
        if code not in (0, 1) or "Traceback" in text:
            result.faults.append(f"exit code {code}: {text[-2000:]}")
    bench.check(folder, result, min(codes), {0}, "")  # one of them at least comes to its end
    if work.result(folder) != work.expected:
        result.faults.append("the result differs")
    bench.complete(work, folder, result)


class Unkind(BaseHTTPRequestHandler):
    """A W&B server that answers badly."""

    manner = ""

    def do_POST(self) -> None:
        """Answer as the manner asks."""
        if self.manner == "slow":
            time.sleep(30)
        self.send_response(500 if self.manner == "faulty" else 200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(b'{"data": {' if self.manner == "cut" else b"x" * 1000)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def bad_network(bench: Bench, random: Random, result: Round) -> None:
    """The W&B server is away, slow, faulty, or hangs up in the middle of an answer."""
    manner = random.choice(("away", "slow", "faulty", "cut"))
    result.said.append(manner)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Unkind,), {"manner": manner}))
    Thread(target=server.serve_forever, daemon=True).start()
    if manner == "away":
        server.shutdown()
        server.server_close()
    url = f"http://{socket.gethostbyname('localhost')}:{server.server_port}"
    variables = {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
    work, folder = bench.works["train with wandb"], bench.folder / str(result.number)
    try:
        code, text = bench.finish(bench.start(work.arguments(folder), result.number, variables))
        bench.check(folder, result, code, {0}, text)
        if work.result(folder) != work.expected:
            result.faults.append("the result differs")
    finally:
        if manner != "away":
            server.shutdown()
            server.server_close()


def damaged_files(_: Bench, __: Random, result: Round) -> None:
    """A batch of damaged files, read in a process of its own."""
    result.said.append(f"{FILES} files")
    command = [sys.executable, "-m", "torture.files", str(result.number * FILES), str(FILES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result.faults += done.stdout.splitlines()
    if done.returncode:
        result.faults.append(f"the reader of files ended with {done.returncode}")


Kind = Callable[[Bench, Random, Round], None]
OTHERS: list[Kind] = [full_scratch, gone, two_at_once, little_memory, full_cache, read_only, bad_network]


def kind_of(number: int) -> Kind:
    """What happens in a round. The cycle is odd, so that each of two lanes comes to all kinds."""
    other = OTHERS[number // 11 % len(OTHERS)]
    cycle = (kill, full_disk, kill, damaged_files, kill, full_disk, other, kill, full_disk, kill, kill)
    return cycle[number % len(cycle)]


def play(bench: Bench, kind: Kind, number: int) -> Round:
    """One round, from its number; what it leaves is removed if everything held."""
    result = Round(number)
    kind(bench, Random(number), result)
    if not result.faults:
        for path in bench.folder.glob(f"{number}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return result
