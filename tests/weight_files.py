"""Weights files as PyTorch and Jittor write them, written without either."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

CODES = {"Float": "f4", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Byte": "u1", "Bool": "?", "Double": "f8"}


class Storage:
    def __init__(self, values, kind="Float"):
        self.values, self.kind = np.asarray(values, CODES[kind]), kind


class Tensor:
    """A view of a storage: element strides, as in PyTorch."""

    def __init__(self, storage, start, shape, strides, rebuild="_rebuild_tensor_v2"):
        self.args, self.rebuild = (storage, start, shape, strides), rebuild

    def __reduce__(self):
        more = (False, OrderedDict()) if self.rebuild.endswith("v2") else ()
        return getattr(sys.modules["torch._utils"], self.rebuild), (*self.args, *more)


class Parameter:
    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, (self.data, True, OrderedDict())


def tensor(values, kind="Float"):
    values = np.asarray(values)
    strides = [int(np.prod(values.shape[axis + 1 :])) for axis in range(values.ndim)]
    return Tensor(Storage(values.reshape(-1), kind), 0, values.shape, tuple(strides))


def add_names(monkeypatch: pytest.MonkeyPatch):
    """Add modules whose functions a pickle may name, of libraries that need not be installed."""

    def function(module, name, kind=types.FunctionType):
        made = type(name, (), {}) if kind is type else (lambda *_: None)
        made.__module__, made.__name__, made.__qualname__ = module, name, name
        setattr(sys.modules[module], name, made)
        return made

    for module in ("torch", "torch._utils", "jittor", "numpy._core", "numpy._core.multiarray"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        function("torch._utils", name)
    for name in CODES:
        function("torch", f"{name}Storage", type)
    return function


class Pickler(pickle.Pickler):
    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.storages, self.legacy = [], legacy

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        kind = getattr(sys.modules["torch"], f"{value.kind}Storage")
        pid = ("storage", kind, str(self.storages.index(value)), "cpu", value.values.size)
        return (*pid, None) if self.legacy else pid


def torch_zip(root, *, order=b"little", cut=0, compression=zipfile.ZIP_STORED) -> bytes:
    stream, out = io.BytesIO(), io.BytesIO()
    pickler = Pickler(stream, legacy=False)
    pickler.dump(root)
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", order)
        for index, storage in enumerate(pickler.storages):
            data = storage.values.tobytes()
            archive.writestr(f"archive/data/{index}", data[: len(data) - cut])
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def torch_stream(root) -> bytes:
    out = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
        pickle.dump(part, out, protocol=2)
    pickler = Pickler(out, legacy=True)
    pickler.dump(root)
    pickle.dump([str(index) for index in range(len(pickler.storages))], out, protocol=2)
    for storage in pickler.storages:
        out.write(struct.pack("<q", storage.values.size) + storage.values.tobytes())
    return out.getvalue()


def jittor_file(root, protocol=4) -> bytes:
    data = pickle.dumps(root, protocol)
    return data + hashlib.sha1(data).digest() + b"HCAJSLHD"
