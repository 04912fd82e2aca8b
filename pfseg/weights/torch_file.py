"""PyTorch's zip format, written without PyTorch: a pickle that names the tensors, and each tensor's values."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from pfseg.errors import CheckpointError
from pfseg.weights.unpickling import STORAGES, TYPES

_FILE_HEADER = 30  # bytes before a file's name in the archive
_ALIGNMENT = 64  # of the values in the file, as PyTorch maps them into memory
_STORAGES = {TYPES[code].name: name.removeprefix("torch.") for name, code in STORAGES.items() if code != "BF16"}


def torch_bytes(weights: Mapping[str, np.ndarray]) -> bytes:
    """Content of a `.pth` file that holds `weights` as a flat state dict; raises CheckpointError for foreign types."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), _state_dict(weights))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
        for index, array in enumerate(weights.values()):
            entry = zipfile.ZipInfo(f"archive/data/{index}")
            start = out.tell() + _FILE_HEADER + len(entry.filename)
            size = -start % _ALIGNMENT
            size += _ALIGNMENT if size < 4 else 0  # of the extra field, whose header takes 4 bytes
            entry.extra = struct.pack("<2sH", b"FB", size - 4) + bytes(size - 4)
            archive.writestr(entry, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")
    return out.getvalue()


def _state_dict(weights: Mapping[str, np.ndarray]) -> bytes:
    items = b"".join(_text(name) + _tensor(name, array, index) for index, (name, array) in enumerate(weights.items()))
    return pickle.PROTO + b"\x02" + _ORDERED_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _tensor(name: str, array: np.ndarray, index: int) -> bytes:
    kind = _STORAGES.get(array.dtype.name)
    if kind is None:
        raise CheckpointError(f"{name} is of type {array.dtype}, which PyTorch lacks; expected {', '.join(_STORAGES)}")
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    storage = _tuple(_text("storage"), _global("torch", kind), _text(str(index)), _text("cpu"), _whole(array.size))
    parts = (storage + pickle.BINPERSID, _whole(0), _tuple(*map(_whole, array.shape)), _tuple(*map(_whole, strides)))
    arguments = _tuple(*parts, pickle.NEWFALSE, _ORDERED_DICT)
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _whole(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


_ORDERED_DICT = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
