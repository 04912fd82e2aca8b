"""Two hosts on one machine: network namespaces with addresses, host names, file systems and sshd of their own."""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from data.fakes import tif
from rasterio.transform import from_origin
from runs import ENVIRONMENT, ROOT, TINY, finished, rows, train
from tiny_network import make_checkpoint

TESTS = Path(__file__).resolve().parents[1]
HERE, THERE = "10.79.0.1", "10.79.0.2"
LINK, PORT = "pfl0", 2222
TIMEOUT = 10
pytestmark = [pytest.mark.slow, pytest.mark.system("ip", "ssh", "ssh-keygen", "unshare", "sshd", root=True)]

DRIVER = """
    import sys
    from pathlib import Path
    from pfseg.errors import PfsegError
    from pfseg.launch.driver import run_job
    from stand_in import settings
    behave, hosts = sys.argv[2], sys.argv[3].split(",")
    told = {"behave": behave, "steps": 6000 if behave == "raise" else 3, "seconds": 0.1}
    job = settings({"hosts": hosts, "timeout": 10}, ranks="auto", **told)
    try:
        run_job(Path(sys.argv[1]), job, worker_module="stand_in")
    except PfsegError as error:
        sys.exit(str(error))
"""


class Hosts:
    """This host and another one; the other one sees nothing of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, (f"pf{os.getpid()}a", f"pf{os.getpid()}b")
        self.run = folder / "run"
        self.there = name_of_equal_cache()
        keys = folder / "keys"  # seen by sshd because it is mounted over only below
        keys.mkdir()
        for name in ("user", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
        here, there = self.names
        for name in self.names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        link = f"ip link add {LINK} netns {here} type veth peer name {LINK} netns {there}"
        subprocess.run(link.split(), check=True)
        for name, address in ((here, HERE), (there, THERE)):
            # Also a network that every host has for itself, such as that of its containers.
            for command in (f"addr add {address}/24 dev {LINK}", f"link set {LINK} up", "link set lo up",
                            "link add own type veth peer name other", "addr add 10.80.0.1/24 dev own",
                            "link set own up", "link set other up"):  # fmt: skip
                subprocess.run(["ip", "-n", name, *command.split()], check=True)
        self._start_sshd(keys)

    def _start_sshd(self, keys: Path) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        server = f"Port {PORT}\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\nStrictModes no\nPidFile none\n"
        client = f"IdentityFile {keys}/user\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        (keys / "sshd").write_text(server + "UsePAM no\n")
        (keys / "ssh").write_text(f"Host *\nBatchMode yes\n{client}")
        self.run.mkdir()
        inside = f"hostname {self.there}; mount -t tmpfs none {self.run}; exec /usr/sbin/sshd -D -f {keys}/sshd"
        command = ["ip", "netns", "exec", self.names[1], "unshare", "--uts", "--mount", "sh", "-c", inside]
        self._sshd = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._agent = f"ssh -p {PORT} -F {keys}/ssh"
        probe = ["ip", "netns", "exec", self.names[0], *self._agent.split(), THERE, "true"]
        for _ in range(50):
            if subprocess.run(probe, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError("sshd does not answer")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Python on this host."""
        environment = {**ENVIRONMENT, "PRTE_MCA_plm_ssh_agent": self._agent}
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{TESTS}"
        command = ["ip", "netns", "exec", self.names[0], sys.executable, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)

    def start_stand_in(self, behave: str, hosts: str = f"{HERE}:1,{THERE}:1") -> subprocess.Popen[str]:
        shutil.rmtree(self.run / "errors", ignore_errors=True)
        return self.start("-c", textwrap.dedent(DRIVER), str(self.run), behave, hosts)

    def cut(self) -> None:
        subprocess.run(["ip", "-n", self.names[0], "link", "set", LINK, "down"], check=True)

    def mend(self) -> None:
        subprocess.run(["ip", "-n", self.names[0], "link", "set", LINK, "up"], check=True)

    def ranks(self) -> list[str]:
        """Processes of the job in both namespaces, but for sshd."""
        found = []
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if "sshd" not in command and command:
                    found.append(command)
        return found

    def close(self) -> None:
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                subprocess.run(["kill", "-9", pid], capture_output=True)
            subprocess.run(["ip", "netns", "del", name])
        self._sshd.wait()


def name_of_equal_cache() -> str:
    """A host name that has this host's folder in Jittor's compile cache: two digits of a hash tell hosts apart."""

    def digits(name: str) -> str:
        return hashlib.md5(f"{platform.platform()}{name}".encode()).hexdigest()[:2]

    here = platform.node()
    return next(name for number in itertools.count() if digits(name := f"there{number}") == digits(here))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    yield made
    made.close()


def wait_for_end(hosts: Hosts, seconds: float) -> None:
    end = time.monotonic() + seconds
    while left := hosts.ranks():
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_an_error_on_the_other_host_comes_back(hosts: Hosts) -> None:
    process = hosts.start_stand_in("raise")
    _, err = process.communicate(timeout=60)
    assert err.splitlines()[-1].startswith("rank 1: ValueError: the cat sat on the mask; traceback and full output: ")
    assert process.returncode == 1
    assert "Traceback" in (hosts.run / "worker.log").read_text()
    wait_for_end(hosts, 10)


def test_what_a_rank_leaves_behind_does_not_hold_the_end(hosts: Hosts) -> None:
    finished(hosts.start_stand_in("leftover"))  # it would run for longer than a test may
    wait_for_end(hosts, 5)


def test_the_first_host_has_to_be_this_one(hosts: Hosts) -> None:
    _, err = hosts.start_stand_in("well", f"{THERE}:1,{HERE}:1").communicate(timeout=30)
    assert f"launch.hosts begins with {THERE}, which is not this host (" in err


def test_a_training_cut_off_and_resumed_has_the_losses_of_one_host(hosts: Hosts, tmp_path: Path) -> None:
    settings = [*TINY, "batch_size=1", "optimizer=sgd", "dataset.train_images=8", "trainer.save_every=1"]
    train(tmp_path / "one", *settings, "ranks=2")

    folder = hosts.run / "training"
    both = [f"launch.hosts=[{HERE}:1,{THERE}:1]", f"launch.interface={LINK}", "ranks=auto"]
    both.append(f"launch.timeout={TIMEOUT}")
    process = hosts.start("train.py", *settings, *both, f"hydra.run.dir={folder}")
    while len(rows(folder, "train")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    hosts.cut()
    told = finished(process, 1)
    assert told.startswith(f"error: no progress for {TIMEOUT} s (config: launch.timeout): rank 0 on host ")
    assert f"; rank 1 on host {hosts.there}: no answer" in told
    assert f"go on with: pfseg train resume={folder}" in told
    wait_for_end(hosts, 2 * TIMEOUT)
    assert len(rows(folder, "train")) < 8, "ended before the link was cut"

    hosts.mend()
    finished(hosts.start("train.py", f"resume={folder}"))  # the other host has the checkpoint from this one
    wait_for_end(hosts, 5)
    assert rows(folder, "start")[0]["ranks"] == 2
    losses = [[(row["step"], row["train/loss"]) for row in rows(run, "train")] for run in (folder, tmp_path / "one")]
    assert losses[0] == losses[1]


def test_maps_need_a_folder_that_both_hosts_see(hosts: Hosts, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "colour.safetensors")
    pixels = np.random.default_rng(0).integers(0, 80, (900, 300, 3)) * 3 + np.arange(3)  # no two channels alike
    place = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
    tif(tmp_path / "a.tif", np.moveaxis(pixels, 2, 0).astype(np.uint8), **place)
    given = [f"checkpoint={tmp_path / 'colour.safetensors'}", "trust=true", f"input={tmp_path / 'a.tif'}", "window=64"]
    given += ["gpus=0", "ranks=auto", f"launch.hosts=[{HERE}:1,{THERE}:1]", f"launch.interface={LINK}"]
    told = finished(hosts.start("-m", "pfseg", "predict", *given, f"output={hosts.run}/maps"), 2)
    assert f"error: host {hosts.there} doesn't see {hosts.run}/maps/.pfseg: give an output that all hosts share" in told
    wait_for_end(hosts, 10)
    finished(hosts.start("-m", "pfseg", "predict", *given, f"output={tmp_path}/maps"))
    with rasterio.open(tmp_path / "maps" / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1), pixels.argmax(2))
