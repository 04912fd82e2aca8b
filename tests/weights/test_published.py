"""Public weights, downloaded from a server of the test's own."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pfseg import create_model
from pfseg.errors import CheckpointError, ConfigError, WriteError
from pfseg.weights import published

CONTENT = bytes(range(256)) * 9000  # more than one chunk
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Server(ThreadingHTTPServer):
    """Serves `files`; a name ending in `.cut` loses its last bytes on the way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut = False
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server
        name = self.path.rpartition("/")[2]
        server.asked.append(name)
        content = server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if server.cut else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("PFSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PFSEG_MIRROR", raising=False)
    with Server() as running:
        running.files[NAME] = CONTENT
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def kept(tmp_path: Path) -> list[str]:
    """Files in the cache, but for locks."""
    return sorted(path.name for path in (tmp_path / "cache" / "weights").iterdir() if path.suffix != ".lock")


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    path = published.fetch(f"{server.address}/folder/{NAME}", lambda *counts: shown.append(counts))
    assert path == tmp_path / "cache" / "weights" / NAME and path.read_bytes() == CONTENT
    assert shown[0] == (0, len(CONTENT)) and shown[-1] == (len(CONTENT), len(CONTENT)) and len(shown) > 2
    assert published.fetch(f"{server.address}/folder/{NAME}") == path
    assert server.asked == [NAME] and kept(tmp_path) == [NAME]


def test_a_mirror_has_the_files_by_their_names(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFSEG_MIRROR", f"{server.address}/mirror/")
    assert published.fetch(f"https://example.invalid/a/b/{NAME}").read_bytes() == CONTENT


def test_several_processes_download_once(server: Server) -> None:
    threads = [threading.Thread(target=published.fetch, args=(f"{server.address}/{NAME}",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [NAME]


def test_what_can_go_wrong_leaves_no_file(server: Server, tmp_path: Path) -> None:
    address = f"{server.address}/{NAME}"
    where = rf"get {address} elsewhere and put it at {tmp_path}/cache/weights/{NAME}, or give another"
    server.cut = True
    half = rf"the connection ended after {len(CONTENT) // 2:,} of {len(CONTENT):,} bytes"
    with pytest.raises(CheckpointError, match=rf"{NAME} can't be downloaded \({half}\): {where}"):
        published.fetch(address)
    server.cut = False
    server.files[NAME] = CONTENT + b"x"
    wrong = hashlib.sha256(CONTENT + b"x").hexdigest()[:8]
    said = rf"its SHA-256 begins with {wrong}, by its name with {NAME[4:12]}"
    with pytest.raises(CheckpointError, match=rf"can't be downloaded \({said}\): {where}"):
        published.fetch(address)
    del server.files[NAME]
    with pytest.raises(CheckpointError, match=rf"can't be downloaded \(404 Not Found\): {where}"):
        published.fetch(address)
    assert kept(tmp_path) == []


def test_without_a_network(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"net.pth can't be downloaded \(.*refused.*\): get http://127.0.0.1:1/net"
    ):
        published.fetch("http://127.0.0.1:1/net.pth")
    assert kept(tmp_path) == []


def test_a_damaged_file_in_the_cache(server: Server) -> None:
    path = published.fetch(f"{server.address}/{NAME}")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match=rf"{NAME} is damaged: its SHA-256 .*; remove it, and it is downloaded"):
        published.fetch(f"{server.address}/{NAME}")


def test_a_cache_that_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(WriteError, match=rf"weights/{NAME} can't be written"):
        published.fetch(f"{server.address}/{NAME}")


def test_backbones_without_public_weights() -> None:
    with pytest.raises(ConfigError, match=r"no public weights are known for Thin 3; give a file, model.pretrained=<a"):
        published.address("thin.Thin", {"depth": 3})


def torchvision_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of our ConvNeXt-T as torchvision's file names and shapes them."""
    parts = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"}
    theirs = {}
    for key, value in state.items():
        group, *rest = key.split(".")
        if group == "downsample_layers":
            theirs[f"features.{2 * int(rest[0])}.{'.'.join(rest[1:])}"] = value
        elif group == "stages" and rest[2] == "gamma":
            theirs[f"features.{2 * int(rest[0]) + 1}.{rest[1]}.layer_scale"] = value[:, None, None]
        elif group == "stages":
            theirs[f"features.{2 * int(rest[0]) + 1}.{rest[1]}.{parts[rest[2]]}.{rest[3]}"] = value
    return theirs


@pytest.mark.slow
def test_a_network_starts_from_public_weights(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = create_model("convnext_t_upernet", num_classes=2)
    state = {key: var.numpy() for key, var in source.state_dict().items() if not key.startswith(("head.", "aux."))}
    content = save(torchvision_names(state) | {"classifier.2.weight": np.zeros((10, 768), np.float32)})
    name = f"convnext_tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[name] = content
    monkeypatch.setitem(published._ADDRESSES, ("ConvNeXt", "t"), f"{server.address}/{name}")
    network = create_model("convnext_t_upernet", num_classes=2, pretrained="imagenet")
    for key, value in network.state_dict().items():
        if key in state and not key.startswith("norm"):
            np.testing.assert_array_equal(value.numpy(), state[key], err_msg=key)
    said = r"convnext_tiny.* is of another backbone: .*missing in the file.* Give a file of this one, or choose"
    with pytest.raises(CheckpointError, match=said):
        create_model("pfnet_convnext_s", num_classes=2, pretrained=published.place(name))
