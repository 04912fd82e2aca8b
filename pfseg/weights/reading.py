"""Weights from safetensors, PyTorch and Jittor files as NumPy arrays, without PyTorch, Jittor or trust in the file."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize

from pfseg.errors import CheckpointError
from pfseg.weights.matching import summary
from pfseg.weights.unpickling import TYPES, FetchStorage, ForbiddenNameError, WeightsUnpickler, view

_OWN_SECTIONS = ("optimizer/", "train/", "ema/")  # of our own checkpoints, beside the network's weights
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_JITTOR_TAIL = b"HCAJSLHD"  # the last 8 bytes of jt.save's files, after the pickle's SHA-1


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a safetensors file, a PyTorch file (zip or legacy stream) or a Jittor pickle, by name.

    The format is told from the content. The weights may be wrapped in `state_dict`, `model_state_dict` or `model`; a
    leading `module.` is stripped; `num_batches_tracked`, whatever is no array, and the sections of our own checkpoints
    beside the weights are left out. Nothing in the file is executed. Arrays are C-contiguous copies; float16 and
    bfloat16 become float32, other types stay.

    Raises CheckpointError: missing, empty, damaged, another kind of file, without weights, or asking for more than
    these.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"weights file {path} cannot be read ({error.strerror}); check the path") from error
    if not data:
        raise CheckpointError(f"weights file {path} is empty; copy or download it again")
    limit = 20 * len(data) + 2**26  # bytes that honest content may unfold to: weights hardly compress, few are shared
    try:
        return _weights(*_parse(data, limit), path, limit)
    except CheckpointError:
        raise
    except ForbiddenNameError as error:
        raise CheckpointError(
            f"weights file {path} asks for `{error}`, which plain weights never do: rejected, nothing was executed. "
            "If you trust it, save its weights alone where it was made: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # hostile bytes fail in every way there is, MemoryError and RecursionError included
        raise CheckpointError(
            f"{path} is damaged or no weights file ({type(error).__name__}: {str(error)[:200]}; it begins with "
            f"{data[:16]!r}); expected safetensors, a PyTorch file or a Jittor pickle: copy or download it again"
        ) from error


def _weights(root: Any, fetch: FetchStorage, path: Path, limit: int) -> dict[str, np.ndarray]:
    """The arrays by name in the content of `path`, at most `limit` bytes of them."""
    for _ in _WRAPPERS:  # once for each, as in {"model": {"state_dict": ...}}
        if isinstance(root, dict):
            root = next((root[name] for name in _WRAPPERS if isinstance(root.get(name), dict)), root)
    weights: dict[str, np.ndarray] = {}
    for key, value in root.items() if isinstance(root, dict) else ():
        if not isinstance(key, str) or key.endswith("num_batches_tracked"):
            continue
        try:
            array = view(value, fetch)
        except Exception as error:
            raise ValueError(f"{key}: {error}") from error
        if array is None:
            continue
        name = key.removeprefix("module.")
        if name in weights:
            raise CheckpointError(f"{path} holds both {name} and module.{name}: save the weights of one network only")
        if (limit := limit - array.nbytes) < 0:  # with overlapping or expanded tensors a small file can hold terabytes
            raise ValueError(f"{key}: shape {array.shape} is absurd for a file of this size")
        weights[name] = _native(array)
    if not weights:
        keys = [str(key) for key in root if isinstance(key, str | int)] if isinstance(root, dict) else []
        raise CheckpointError(
            f"{path} holds no weights but {'; '.join(summary('other entries', keys)) or f'one {type(root).__name__}'}; "
            f"expected arrays by name, flat or under one of {', '.join(_WRAPPERS)}: save model.state_dict()"
        )
    return weights


def _parse(data: bytes, limit: int) -> tuple[Any, FetchStorage]:
    """The file's content as unpickled, and a function that fetches the storages of its tensors."""
    if data.startswith(b"PK\x03\x04"):
        return _parse_torch_zip(data, limit)
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 2**27:  # length of the JSON header
        entries = sorted(deserialize(data))  # type: ignore[no-untyped-call]  # comes in no order
        return {
            name: np.frombuffer(entry["data"], TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in entries
            if not name.startswith(_OWN_SECTIONS)
        }, dict[str, bytes]().__getitem__
    if data.endswith(_JITTOR_TAIL):
        checksum, data = data[-28:-8], data[:-28]
        if hashlib.sha1(data, usedforsecurity=False).digest() != checksum:
            raise ValueError("its checksum differs")
    return _parse_pickles(data)


def _parse_torch_zip(data: bytes, limit: int) -> tuple[Any, FetchStorage]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    if sum(entry.file_size for entry in archive.infolist()) > limit:
        raise ValueError("it unpacks to an absurd size")
    folder = archive.namelist()[0].partition("/")[0]
    if f"{folder}/byteorder" in archive.namelist() and _unpacked(archive, f"{folder}/byteorder") != b"little":
        raise ValueError("written on a big-endian machine, which is not supported")
    fetch = functools.lru_cache(maxsize=8)(lambda key: _unpacked(archive, f"{folder}/data/{key}"))  # may be shared
    return WeightsUnpickler(io.BytesIO(_unpacked(archive, f"{folder}/data.pkl"))).load(), fetch


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of an archive; never more bytes than its entry says, also in between."""
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size + 1)


def _parse_pickles(data: bytes) -> tuple[Any, FetchStorage]:
    """A lone pickle, or PyTorch's legacy stream: a number, version, machine, content, storage keys, storages."""
    stream = io.BytesIO(data)
    root = WeightsUnpickler(stream).load()
    storages: dict[str, bytes] = {}
    if root == _TORCH_MAGIC:
        for _ in ("version", "machine"):
            WeightsUnpickler(stream).load()
        unpickler = WeightsUnpickler(stream)
        root = unpickler.load()
        for key in map(str, WeightsUnpickler(stream).load()):
            length = int.from_bytes(stream.read(8), "little")
            storages[key] = stream.read(length * unpickler.types[key].itemsize)
    return root, storages.__getitem__


def _native(array: np.ndarray) -> np.ndarray:
    """Copy to C order and this machine's byte order, halves as float32."""
    if array.dtype.names:  # bfloat16 is the upper half of a float32
        return np.asarray(np.left_shift(array["bf16"], 16, dtype=np.uint32, order="C")).view(np.float32)
    return array.astype(np.float32 if array.dtype == np.float16 else array.dtype.newbyteorder("="), order="C")
