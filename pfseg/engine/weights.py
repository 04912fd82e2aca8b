"""Weights from safetensors, PyTorch and Jittor files as NumPy arrays, without PyTorch, Jittor or trust in the file.

A pickle is a program: it names functions and calls them. Here every name is looked up in the table `_MAKERS`
and nowhere else; its entries only note what they are given, and arrays are built from the notes afterwards.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import deserialize

from pfseg.errors import CheckpointError

_OWN_SECTIONS = ("optimizer/", "train/", "ema/")  # of our own checkpoints, beside the network's weights
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_JITTOR_TAIL = b"HCAJSLHD"  # the last 8 bytes of jt.save's files, after the pickle's SHA-1
_SAFETENSORS = {"BOOL": "b1", "F16": "f2", "BF16": "bf16", "F32": "f4", "F64": "f8"} | {
    f"{sign}{8 * size}": f"{sign.lower()}{size}" for sign in "IU" for size in (1, 2, 4, 8)
}
_TORCH = {"Bool": "b1", "Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8"}
_TORCH |= {"Half": "f2", "BFloat16": "bf16", "Float": "f4", "Double": "f8"}
_CODES = frozenset(_SAFETENSORS.values())


@dataclass
class WeightMatch:
    """How a file's weights fit a network.

    Attributes:
        loaded: network's name -> array of the network's shape.
        skipped: names that are in the file but not in the network (as in the file).
        missing: names that are in the network but not in the file.
        reshaped: loaded names whose shape differs by sides of 1 only, such as (C, 1, 1, 1) for (C,).
        mismatched: "name: file (16, 256, 1, 1), network (6, 256, 1, 1)"; these are not loaded.
    """

    loaded: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def report(self) -> str:
        """Return one to three lines: what was loaded, what the network lacks, what only the file has."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        lines = [f"loaded {len(self.loaded)} of the network's {total} weights"]
        if self.reshaped:
            lines[0] += f", {len(self.reshaped)} of them reshaped ({_first(self.reshaped)})"
        lacking = [f"{len(self.missing)} missing in the file ({_first(self.missing)})"] if self.missing else []
        if self.mismatched:
            lacking.append(f"{len(self.mismatched)} of another shape ({_first(self.mismatched)})")
        if lacking:
            lines.append("not loaded: " + "; ".join(lacking))
        if self.skipped:
            lines.append(f"{len(self.skipped)} in the file only ({_first(self.skipped)})")
        return "\n".join(lines)


def match_weights(
    state: Mapping[str, tuple[int, ...]],
    weights: dict[str, np.ndarray],
    rename: Callable[[str], str] | None = None,
) -> WeightMatch:
    """Sort a file's weights by what the network can use.

    Args:
        state: the network's names and shapes.
        weights: the file's names and arrays, as `read_weights` returns them.
        rename: turns a name of the file into the network's.

    Raises:
        CheckpointError: `rename` gives two weights the same name.
    """
    match, origin = WeightMatch(), {}
    for key, array in weights.items():
        name = rename(key) if rename else key
        if name in origin:
            raise CheckpointError(f"{origin[name]} and {key} of the weights file both become {name}; load one of them")
        origin[name] = key
        if name not in state:
            match.skipped.append(key)
        elif array.shape == tuple(state[name]):
            match.loaded[name] = array
        elif _squeezed(array.shape) == _squeezed(state[name]):
            match.loaded[name] = array.reshape(state[name])
            match.reshaped.append(name)
        else:
            match.mismatched.append(f"{name}: file {array.shape}, network {tuple(state[name])}")
    match.missing = [name for name in state if name not in origin]
    return match


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a safetensors file, a PyTorch file (zip or legacy stream) or a Jittor pickle.

    The format is told from the content. The weights may be wrapped in `state_dict`, `model_state_dict` or
    `model`; a leading `module.` is stripped; `num_batches_tracked`, whatever is no array, and the optimizer's,
    training's and averaged weights' sections of our own checkpoints are left out. Nothing in the file is executed.

    Returns:
        name -> C-contiguous, writable array of its own; float16 and bfloat16 become float32, other types stay.

    Raises:
        CheckpointError: the file is missing, empty, damaged, of another kind, holds no weights, or is a pickle
            that asks for anything but plain containers, arrays and tensors.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"weights file {path} cannot be read ({error.strerror}); check the path") from error
    if not data:
        raise CheckpointError(f"weights file {path} is empty; copy or download it again")
    try:
        return _weights(_parse(data), path, limit=_limit(data))
    except CheckpointError:
        raise
    except _RefusedError as error:
        raise CheckpointError(
            f"weights file {path} asks for `{error}`, which no plain weights need; it was refused and nothing in the "
            "file was executed. If you trust its source, load it where it was made and save the weights alone: "
            "torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # hostile bytes fail in every way there is, MemoryError and RecursionError included
        raise CheckpointError(
            f"{path} is damaged or no weights file ({type(error).__name__}: {str(error)[:200]}; it begins with "
            f"{data[:16]!r}); expected safetensors, a PyTorch file or a Jittor pickle: copy or download it again"
        ) from error


def _weights(root: Any, path: Path, limit: int) -> dict[str, np.ndarray]:  # noqa: ANN401 (whatever the file holds)
    for _ in range(len(_WRAPPERS)):  # such as {"model": {"state_dict": ...}}
        if not isinstance(root, dict):
            break
        root = next((root[name] for name in _WRAPPERS if isinstance(root.get(name), dict)), root)
    if not isinstance(root, dict):
        raise CheckpointError(f"{path} holds a {type(root).__name__}, expected weights by name; save model.state_dict()")
    weights: dict[str, np.ndarray] = {}
    for key, value in root.items():
        if not isinstance(value, _Tensor | _Array) or value.code not in _CODES or not isinstance(key, str):
            continue
        if key.endswith("num_batches_tracked"):
            continue
        name = key.removeprefix("module.")
        if name in weights:
            raise CheckpointError(f"{path} holds both {name} and module.{name}; save the weights of one network only")
        limit -= math.prod(value.shape) * 4  # of overlapping or expanded tensors a tiny file can hold terabytes
        if limit < 0:
            raise ValueError(f"{name} of shape {value.shape} is too large for a file of this size")
        try:
            weights[name] = value.load()
        except Exception as error:
            raise ValueError(f"{name}: {error}") from error
    if not weights:
        keys = _first([str(key) for key in root if isinstance(key, str | int)]) or "none"
        raise CheckpointError(
            f"{path} holds no weights (its keys: {keys}); expected arrays by name, flat or under {', '.join(_WRAPPERS)}"
        )
    return weights


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")


def _squeezed(shape: Iterable[int]) -> list[int]:
    return [side for side in shape if side != 1]


def _limit(data: bytes) -> int:
    """Bytes that honest content of a file may unfold to: weights hardly compress, few are shared."""
    return 20 * len(data) + 2**26


# ------------------------------------------------------------------------------------------------- file formats


def _parse(data: bytes) -> Any:  # noqa: ANN401
    if data.startswith(b"PK\x03\x04"):
        return _parse_torch_zip(data)
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 2**27:  # length of the JSON header
        entries = ((name, entry) for name, entry in deserialize(data) if not name.startswith(_OWN_SECTIONS))
        return {
            name: _Array(entry["shape"], _SAFETENSORS.get(entry["dtype"], entry["dtype"]), entry["data"])
            for name, entry in entries
        }
    if data.endswith(_JITTOR_TAIL):
        checksum, data = data[-28:-8], data[:-28]
        if hashlib.sha1(data, usedforsecurity=False).digest() != checksum:
            raise ValueError("its checksum differs")
    stream = io.BytesIO(data)
    root = _Unpickler(stream).load()
    return _parse_torch_stream(stream) if root == _TORCH_MAGIC else root


def _parse_torch_zip(data: bytes) -> Any:  # noqa: ANN401
    archive = zipfile.ZipFile(io.BytesIO(data))
    if sum(entry.file_size for entry in archive.infolist()) > _limit(data):
        raise ValueError("it unpacks to an absurd size")
    names = archive.namelist()
    pickled = next((name for name in names if name.rpartition("/")[2] == "data.pkl"), None)
    if pickled is None:
        raise ValueError("a zip without data.pkl, which torch.save would have written")
    prefix = pickled.removesuffix("data.pkl")
    big = f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") == b"big"

    @functools.lru_cache(maxsize=8)  # tensors may share a storage
    def fetch(key: str) -> bytes:
        return archive.read(f"{prefix}data/{key}")

    return _Unpickler(io.BytesIO(archive.read(pickled)), fetch, ">" if big else "<").load()


def _parse_torch_stream(stream: io.BytesIO) -> Any:  # noqa: ANN401
    """Read what follows the magic number: version, machine, object, storage keys; each storage: length, data.

    Storages are little-endian whatever machine wrote them.
    """
    _Unpickler(stream).load()
    _Unpickler(stream).load()
    content: dict[str, memoryview] = {}
    reader = _Unpickler(stream, content.__getitem__)
    root = reader.load()
    view = stream.getbuffer()
    for key in _Unpickler(stream).load():
        length, start = int.from_bytes(stream.read(8), "little"), stream.tell()
        stream.seek(start + length * _dtype(reader.storages[key].code).itemsize)
        content[key] = view[start : stream.tell()]
    return root


# --------------------------------------------------------------------- what a pickle's names and calls turn into


class _RefusedError(Exception):
    """A pickle names something that is not in the table."""


class _Dtype:
    """numpy.dtype: noted, not built."""

    __slots__ = ("code", "order")

    def __init__(self, code: str = "", *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """numpy.ndarray: noted, built by `load`."""

    __slots__ = ("code", "data", "fortran", "order", "shape")

    def __init__(self, shape: Iterable[int] = (), code: str = "", data: Any = b"", order: str = "<") -> None:  # noqa: ANN401
        self.shape, self.code, self.data, self.order, self.fortran = _sides(shape), code, data, order, False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, self.fortran, self.data = state
        self.shape, self.code, self.order = _sides(shape), dtype.code, dtype.order

    def load(self) -> np.ndarray:
        flat = np.frombuffer(self.data, _dtype(self.code, self.order))
        return _native(flat.reshape(self.shape, order="F" if self.fortran else "C"), self.code)


# Named tuples: a pickle can set no attribute on them.
class _Storage(NamedTuple):
    code: str
    key: str
    length: int
    order: str
    fetch: Callable[[str], Any]


class _Tensor(NamedTuple):
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def code(self) -> str:
        return self.storage.code

    def load(self) -> np.ndarray:
        code, key, length, order, fetch = self.storage
        flat = np.frombuffer(fetch(key), _dtype(code, order))
        end = self.start + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True)) + 1
        if flat.size != length:
            raise ValueError(f"its storage holds {flat.size} values, {length} were announced: the file is truncated?")
        if 0 in self.shape:
            return _native(np.empty(self.shape, flat.dtype), code)
        if end > length:
            raise ValueError(f"it ends at value {end} of a storage of {length}")
        strides = [stride * flat.itemsize for stride in self.strides]
        return _native(np.lib.stride_tricks.as_strided(flat[self.start :], self.shape, strides), code)


class _Maker:
    """Callable that a pickle gets for a name; it can be neither instantiated nor changed by the pickle."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: object) -> Any:  # noqa: ANN401
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


class _Dict(dict[Any, Any]):
    """OrderedDict or defaultdict; the attributes a pickle sets on it, as state_dict's `_metadata`, are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle._Unpickler):
    """Unpickler whose only globals are `_MAKERS`.

    The pure Python base, because the C one allocates whatever memo size a file claims and takes globals from
    copyreg's cache without asking `find_class`.
    """

    def __init__(self, stream: io.BytesIO, fetch: Callable[[str], Any] | None = None, order: str = "<") -> None:
        super().__init__(stream, encoding="latin1")
        self._fetch, self._order = fetch, order
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        full = f"{module}.{name}"
        if full in _MAKERS:
            return _MAKERS[full]
        if all(part.isidentifier() for part in full.split(".")):
            raise _RefusedError(full)
        raise pickle.UnpicklingError("not a pickle")  # text, say, that begins like one

    def get_extension(self, code: int) -> None:
        raise _RefusedError(f"copyreg extension {code}")

    def persistent_load(self, pid: Any) -> _Storage:  # noqa: ANN401
        kind, code, key, _, length, *view = pid
        if self._fetch is None or kind != "storage" or view not in ([], [None]) or code not in _CODES:
            raise pickle.UnpicklingError("unknown kind of storage")
        self.storages[str(key)] = storage = _Storage(code, str(key), *_sides([length]), self._order, self._fetch)
        return storage


def _sides(values: Iterable[int]) -> tuple[int, ...]:
    result = tuple(values)
    if not all(type(value) is int and value >= 0 for value in result):
        raise pickle.UnpicklingError("sizes, strides and offsets must be whole and not negative")
    return result


def _dtype(code: str, order: str = "<") -> np.dtype[Any]:
    return np.dtype("u2" if code == "bf16" else code).newbyteorder(order)  # type: ignore[arg-type]


def _native(array: np.ndarray, code: str) -> np.ndarray:
    """Copy to C order and this machine's byte order, halves as float32."""
    if code == "bf16":  # the upper half of a float32
        bits = array.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)
    return array.astype(np.float32 if code == "f2" else code, order="C")


def _tensor(storage: _Storage, start: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, *_sides([start]), _sides(shape), _sides(strides))


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array(shape, dtype.code, data, dtype.order)
    array.fortran = order == "F"
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):  # others import modules, some unpack
        raise _RefusedError(f"_codecs.encode to {encoding}")
    return text.encode(encoding)


def _refuse_call(*_: object) -> None:
    raise pickle.UnpicklingError("it calls a type that is only ever named")


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Dict,
    "collections.defaultdict": lambda *_: _Dict(),
    "_codecs.encode": _encode,
    "jittor.Var": lambda array: array,  # what jt.save(model.state_dict()) wraps each array in
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _refuse_call,
    "torch.Size": tuple,
    "torch.device": lambda *args: ":".join(map(str, args)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}
for _module in ("builtins", "__builtin__"):  # Python 3 and 2
    _CALLS |= {f"{_module}.{kind.__name__}": kind for kind in (dict, list, tuple, set, frozenset, complex)}
    _CALLS |= {f"{_module}.{name}": _refuse_call for name in ("int", "float", "bool", "str")}
    _CALLS[f"{_module}.bytes"] = lambda: b""
for _module in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _CALLS[f"{_module}.multiarray._reconstruct"] = lambda *_: _Array()
    _CALLS[f"{_module}.multiarray.scalar"] = lambda dtype, data: _Array((), dtype.code, data, dtype.order)
    _CALLS[f"{_module}.numeric._frombuffer"] = _from_buffer
_MAKERS = {name: _Maker(call) for name, call in _CALLS.items()} | {f"torch.{t}Storage": c for t, c in _TORCH.items()}
