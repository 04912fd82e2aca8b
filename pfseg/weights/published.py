"""ImageNet weights that backbones' authors have published: where they are, and fetching them once.

The eight hexadecimal digits at the end of a file's name are the start of its SHA-256, by which it is checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pfseg.data.cache import cache_folder
from pfseg.errors import CheckpointError, ConfigError
from pfseg.files import cannot_write, lock, replacing

NAME = "imagenet"  # value of model.pretrained
_MIRROR = "PFSEG_MIRROR"  # environment: an address below which the files lie by their names
_TIMEOUT = 30.0  # seconds without an answer
_CHUNK = 1 << 20  # bytes

_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1"
_CSAIL = "http://sceneparsing.csail.mit.edu/model/pretrained_resnet"
_TORCHVISION = "https://download.pytorch.org/models"
_V1C = "https://download.openmmlab.com/pretrain/third_party"
_RES2NET = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-res2net"
_SEGNEXT = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segnext"
# class of the backbone and those of its settings that the weights depend on -> address
_ADDRESSES = {
    ("ResNet", 18, "deep"): f"{_CSAIL}/resnet18-imagenet.pth",
    ("ResNet", 50, "deep"): f"{_GLUON}/gluon_resnet50_v1s-1762acc0.pth",
    ("ResNet", 101, "deep"): f"{_GLUON}/gluon_resnet101_v1s-60fe0cc1.pth",
    ("ResNet", 18, "plain"): f"{_TORCHVISION}/resnet18-f37072fd.pth",
    ("ResNet", 50, "plain"): f"{_TORCHVISION}/resnet50-0676ba61.pth",
    ("ResNet", 101, "plain"): f"{_TORCHVISION}/resnet101-63fe2227.pth",
    ("ResNet", 18, "v1c"): f"{_V1C}/resnet18_v1c-b5776b93.pth",
    ("ResNet", 50, "v1c"): f"{_V1C}/resnet50_v1c-2cccc1ad.pth",
    ("ResNet", 101, "v1c"): f"{_V1C}/resnet101_v1c-e67eebb6.pth",
    ("Res2Net", 101): f"{_RES2NET}/res2net101_26w_4s-02a759a1.pth",
    ("MSCAN", "t"): f"{_SEGNEXT}/mscan_t_20230227-119e8c9f.pth",
    ("MSCAN", "s"): f"{_SEGNEXT}/mscan_s_20230227-f33ccdf2.pth",
    ("MSCAN", "b"): f"{_SEGNEXT}/mscan_b_20230227-3ab7d230.pth",
    ("ConvNeXt", "t"): f"{_TORCHVISION}/convnext_tiny-983f1562.pth",
    ("ConvNeXt", "s"): f"{_TORCHVISION}/convnext_small-0c510722.pth",
}
_SETTINGS = ("depth", "size", "stem")


def address(target: str, settings: Mapping[str, Any]) -> str:
    """Address of the weights of a backbone by its class and settings; raises ConfigError if there are none."""
    key = (target.rpartition(".")[2], *(settings[name] for name in _SETTINGS if name in settings))
    if target.startswith("pfseg.") and key in _ADDRESSES:
        return _ADDRESSES[key]
    raise ConfigError(
        f"model.pretrained={NAME}: no public weights are known for {' '.join(map(str, key))}; give a file, "
        "model.pretrained=<a backbone file>, or another backbone (config: model.pretrained, model.backbone)"
    )


def place(address: str) -> Path:
    """Where the file of an address is kept."""
    return cache_folder() / "weights" / address.rpartition("/")[2]


def fetch(address: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """Path of the file of an address, which is downloaded unless it is there; whole or not at all.

    Several processes may ask for it. `progress` is called with the bytes that are there and those in all.

    Raises:
        CheckpointError: no network, an answer other than the file, or another checksum than its name says.
        WriteError: the folder can't be written to.
    """
    path = place(address)
    try:
        with lock(path):
            if not path.is_file():
                with replacing(path) as part:
                    _download(address, part, path, progress or (lambda done, total: None))
                return path
    except OSError as error:
        raise cannot_write(path, error) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(_checksum(path)):
        raise CheckpointError(f"{path} is damaged: {_differs(path, digest)}; remove it, and it is downloaded again")
    return path


def _download(address: str, part: Path, path: Path, progress: Callable[[int, int], None]) -> None:
    """Write the file of an address to `part`, of which `path` will be made."""
    source = address
    if mirror := os.environ.get(_MIRROR):
        source = f"{mirror.rstrip('/')}/{path.name}"
    digest, done, total = hashlib.sha256(), 0, 0
    try:
        with urllib.request.urlopen(source, timeout=_TIMEOUT) as answer, part.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            progress(0, total)
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, max(total, done))
    except urllib.error.HTTPError as error:
        raise _unavailable(source, path, f"{error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _unavailable(source, path, str(error.reason)) from error
    except (HTTPException, ValueError, TimeoutError, ConnectionError) as error:
        raise _unavailable(source, path, str(error) or type(error).__name__) from error
    except OSError as error:
        raise cannot_write(path, error) from error
    if done < total:
        raise _unavailable(source, path, f"the connection ended after {done:,} of {total:,} bytes")
    if not digest.hexdigest().startswith(_checksum(path)):
        raise _unavailable(source, path, _differs(path, digest.hexdigest()))


def _unavailable(source: str, path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} can't be downloaded ({reason}): get {source} elsewhere and put it at {path}, or give another "
        "file (config: model.pretrained)"
    )


def _checksum(path: Path) -> str:
    """Start of the SHA-256 by a file's name; nothing where the name has none."""
    found = re.search(r"-([0-9a-f]{8})$", path.stem)
    return found[1] if found else ""


def _differs(path: Path, digest: str) -> str:
    return f"its SHA-256 begins with {digest[:8]}, by its name with {_checksum(path)}"
