"""Weights from safetensors, PyTorch and Jittor files as NumPy arrays, without PyTorch, Jittor or trust in the file.

A pickle may name `_NAMES` only, and a call of one is merely noted (`_Noted`): arrays are made from notes afterwards.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize

from pfseg.errors import CheckpointError

_OWN_SECTIONS = ("optimizer/", "train/", "ema/")  # of our own checkpoints, beside the network's weights
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_JITTOR_TAIL = b"HCAJSLHD"  # the last 8 bytes of jt.save's files, after the pickle's SHA-1

_NUMPY = {"b1", "f2", "f4", "f8"} | {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_TYPES = {f"{code[0].upper()}{8 * int(code[1])}": np.dtype(f"<{code}") for code in _NUMPY - {"b1"}}
_TYPES |= {"BOOL": np.dtype("?"), "BF16": np.dtype([("bf16", "<u2")])}  # NumPy has no bfloat16: told by a field's name
_STORAGES = {"Bool": "BOOL", "Byte": "U8", "Char": "I8", "Short": "I16", "Int": "I32", "Long": "I64"}
_STORAGES |= {"Half": "F16", "BFloat16": "BF16", "Float": "F32", "Double": "F64"}
_STORAGES = {f"torch.{name}Storage": code for name, code in _STORAGES.items()}

_CONTAINERS: dict[str, type] = {f"collections.{kind.__name__}": kind for kind in (OrderedDict, defaultdict)}
_NAMES = {*_STORAGES, "torch.Size", "torch.device", "numpy.dtype", "numpy.ndarray", "_codecs.encode"}
_NAMES |= {"jittor.Var", "jittor.jittor_core.Var"}  # as versions of jt.save name it
_NAMES |= {f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "parameter", "parameter_with_state")}
for _core in ("numpy.core.", "numpy._core."):  # NumPy 1 and 2
    _NAMES |= {_core + name for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")}
for _builtins in ("builtins.", "__builtin__."):  # Python 3 and 2
    _CONTAINERS |= {_builtins + kind.__name__: kind for kind in (dict, list, tuple, set, frozenset, complex)}
    _NAMES |= {_builtins + name for name in ("int", "long", "float", "bool", "str", "unicode", "bytes")}

_Fetch = Callable[[str], bytes]  # a storage's key -> its values


@dataclass
class WeightMatch:
    """How a file's weights fit a network; `report` says it in words."""

    loaded: dict[str, np.ndarray] = field(default_factory=dict)  # network's name -> array of the network's shape
    skipped: list[str] = field(default_factory=list)  # in the file (by its own name), not in the network
    missing: list[str] = field(default_factory=list)  # in the network, not in the file
    reshaped: list[str] = field(default_factory=list)  # loaded; sides of 1 differ, as (C, 1, 1, 1) for (C,)
    mismatched: list[str] = field(default_factory=list)  # "name: file (16, 256, 1, 1), network (6, 256, 1, 1)"

    def report(self) -> str:
        """Return one to three lines: what was loaded, what the network lacks, what only the file has."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        loaded = [f"loaded {len(self.loaded)} of the network's {total} weights", *_some("reshaped", self.reshaped)]
        lacking = _some("missing in the file", self.missing) + _some("of another shape, not loaded", self.mismatched)
        lines = ["; ".join(loaded), "; ".join(lacking), *_some("in the file only", self.skipped)]
        return "\n".join(line for line in lines if line)


def match_weights(
    state: Mapping[str, tuple[int, ...]], weights: dict[str, np.ndarray], rename: Callable[[str], str] | None = None
) -> WeightMatch:
    """Sort a file's `weights` by what fits a network of names and shapes `state`; `rename` turns file names into its.

    Raises:
        CheckpointError: `rename` gives two weights the same name.
    """
    match = WeightMatch()
    origin: dict[str, str] = {}
    for key, array in weights.items():
        name = rename(key) if rename else key
        if name in origin:
            raise CheckpointError(f"{origin[name]} and {key} of the weights file both become {name}: keep one of them")
        origin[name] = key
        if name not in state:
            match.skipped.append(key)
        elif array.shape == tuple(state[name]):
            match.loaded[name] = array
        elif [side for side in array.shape if side != 1] == [side for side in state[name] if side != 1]:
            match.loaded[name] = array.reshape(state[name])
            match.reshaped.append(name)
        else:
            match.mismatched.append(f"{name}: file {array.shape}, network {tuple(state[name])}")
    match.missing = [name for name in state if name not in origin]
    return match


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a safetensors file, a PyTorch file (zip or legacy stream) or a Jittor pickle.

    The format is told from the content. The weights may be wrapped in `state_dict`, `model_state_dict` or
    `model`; a leading `module.` is stripped; `num_batches_tracked`, whatever is no array, and the sections of our
    own checkpoints beside the weights are left out. Nothing in the file is executed.

    Returns:
        name -> C-contiguous array of its own; float16 and bfloat16 become float32, other types stay.

    Raises:
        CheckpointError: missing, empty, damaged, another kind of file, without weights, or asking for more than these.
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
    except _RefusedError as error:
        raise CheckpointError(
            f"weights file {path} asks for `{error}`, which plain weights never do: refused, nothing was executed. "
            "If you trust it, save its weights alone where it was made: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # hostile bytes fail in every way there is, MemoryError and RecursionError included
        raise CheckpointError(
            f"{path} is damaged or no weights file ({type(error).__name__}: {str(error)[:200]}; it begins with "
            f"{data[:16]!r}); expected safetensors, a PyTorch file or a Jittor pickle: copy or download it again"
        ) from error


def _weights(root: Any, fetch: _Fetch, path: Path, limit: int) -> dict[str, np.ndarray]:
    for _ in _WRAPPERS:  # once for each, as in {"model": {"state_dict": ...}}
        if isinstance(root, dict):
            root = next((root[name] for name in _WRAPPERS if isinstance(root.get(name), dict)), root)
    weights: dict[str, np.ndarray] = {}
    for key, value in root.items() if isinstance(root, dict) else ():
        if not isinstance(key, str) or key.endswith("num_batches_tracked"):
            continue
        try:
            view = _view(value, fetch)
        except Exception as error:
            raise ValueError(f"{key}: {error}") from error
        if view is None:
            continue
        name = key.removeprefix("module.")
        if name in weights:
            raise CheckpointError(f"{path} holds both {name} and module.{name}: save the weights of one network only")
        if (limit := limit - view.nbytes) < 0:  # with overlapping or expanded tensors a small file can hold terabytes
            raise ValueError(f"{key}: shape {view.shape} is absurd for a file of this size")
        weights[name] = _native(view)
    if not weights:
        keys = [str(key) for key in root if isinstance(key, str | int)] if isinstance(root, dict) else []
        raise CheckpointError(
            f"{path} holds no weights but {'; '.join(_some('other entries', keys)) or f'one {type(root).__name__}'}; "
            f"expected arrays by name, flat or under one of {', '.join(_WRAPPERS)}: save model.state_dict()"
        )
    return weights


def _some(what: str, names: list[str]) -> list[str]:
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{len(names)} {what} ({', '.join(names[:3])}{more})"] if names else []


def _parse(data: bytes, limit: int) -> tuple[Any, _Fetch]:
    if data.startswith(b"PK\x03\x04"):
        return _parse_torch_zip(data, limit)
    storages: dict[str, bytes] = {}
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 2**27:  # length of the JSON header
        arrays = {
            name: np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in sorted(deserialize(data))  # which comes in no order
            if not name.startswith(_OWN_SECTIONS)
        }
        return arrays, storages.__getitem__
    if data.endswith(_JITTOR_TAIL):
        checksum, data = data[-28:-8], data[:-28]
        if hashlib.sha1(data, usedforsecurity=False).digest() != checksum:
            raise ValueError("its checksum differs")
    stream = io.BytesIO(data)
    root = _Unpickler(stream).load()
    if root == _TORCH_MAGIC:  # then version, machine, weights, storage keys, each storage's length and values
        _version, _machine, unpickler = _Unpickler(stream).load(), _Unpickler(stream).load(), _Unpickler(stream)
        root = unpickler.load()
        for key in _Unpickler(stream).load():
            length = int.from_bytes(stream.read(8), "little")
            storages[key] = stream.read(length * unpickler.types[key].itemsize)
    return root, storages.__getitem__


def _parse_torch_zip(data: bytes, limit: int) -> tuple[Any, _Fetch]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    if sum(entry.file_size for entry in archive.infolist()) > limit:
        raise ValueError("it unpacks to an absurd size")
    folder = archive.namelist()[0].partition("/")[0]
    if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
        raise ValueError("written on a big-endian machine, which is not supported")
    fetch = functools.lru_cache(maxsize=8)(lambda key: archive.read(f"{folder}/data/{key}"))  # may be shared
    return _Unpickler(io.BytesIO(archive.read(f"{folder}/data.pkl"))).load(), fetch


class _RefusedError(Exception):
    """A pickle names something that is not in the tables."""


@dataclass(eq=False, slots=True)
class _Noted:
    """A name of a pickle, or the call of one: never looked up, never made."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = ()

    def __call__(self, *args: object) -> _Noted:
        return _Noted(self.name, args)

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle._Unpickler):
    """Unpickler of `_NAMES` and `_CONTAINERS` only.

    In pure Python: the C one allocates what a file claims to need, takes copyreg's extensions without `find_class`.
    """

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="latin1")
        self.types: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _CONTAINERS and full not in _NAMES:
            plausible = all(part.isidentifier() for part in full.split("."))  # else text that begins like a pickle
            raise _RefusedError(full) if plausible else pickle.UnpicklingError("not a pickle")
        return _CONTAINERS.get(full) or _Noted(full)

    def get_extension(self, code: int) -> None:
        raise _RefusedError(f"copyreg extension {code}")

    def persistent_load(self, pid: Any) -> _Noted:
        kind, storage, key, _, length, *view = pid
        if kind != "storage" or not isinstance(key, str | int) or view not in ([], [None]):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        self.types[str(key)] = _TYPES[_STORAGES[storage.name]]
        return _Noted("storage", (str(key), _STORAGES[storage.name], length))


def _view(value: Any, fetch: _Fetch) -> np.ndarray | None:
    """Return the array that a note describes, without a copy; None if it describes something else."""
    if not isinstance(value, _Noted):
        return value if isinstance(value, np.ndarray) else None
    fortran: object = False
    match value.name.rpartition(".")[2], value.args:
        case "Var" | "_rebuild_parameter" | "_rebuild_parameter_with_state", (inner, *_):
            return _view(inner, fetch)
        case "_rebuild_tensor" | "_rebuild_tensor_v2", (storage, start, shape, strides, *_):
            return _strided(storage, start, shape, strides, fetch)
        case "_reconstruct", _:
            _, shape, dtype, fortran, data = value.state
        case "_frombuffer", (data, dtype, shape, order):
            fortran = order == "F"
        case "scalar", (dtype, data):
            shape = ()
        case _:
            return None
    if dtype.args[0] not in _NUMPY:  # text, objects
        return None
    if isinstance(data, _Noted):  # protocol 2: _codecs.encode(text, "latin1"), or bytes() for none
        data = data.args[0].encode("latin1") if data.args else b""
    flat = np.frombuffer(data, np.dtype(dtype.args[0]).newbyteorder(dtype.state[1]))
    return flat.reshape(_whole(shape), order="F" if fortran else "C")


def _strided(storage: _Noted, start: int, shape: Any, strides: Any, fetch: _Fetch) -> np.ndarray:
    key, code, length = storage.args
    flat = np.frombuffer(fetch(key), _TYPES[code])
    if flat.size != length:
        raise ValueError(f"its storage holds {flat.size} values, not {length}: the file is truncated or damaged")
    _whole([start, *shape, *strides])
    end = start + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1
    if end > length and 0 not in shape:
        raise ValueError(f"it ends at value {end} of a storage of {length}")
    return np.lib.stride_tricks.as_strided(flat[start:], shape, [stride * flat.itemsize for stride in strides])


def _whole(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("sizes, strides and offsets must be whole and not negative")
    return tuple(values)


def _native(view: np.ndarray) -> np.ndarray:
    """Copy to C order and this machine's byte order, halves as float32."""
    if view.dtype.names:  # bfloat16 is the upper half of a float32
        return np.asarray(np.left_shift(view["bf16"], 16, dtype=np.uint32, order="C")).view(np.float32)
    return view.astype(np.float32 if view.dtype == np.float16 else view.dtype.newbyteorder("="), order="C")
