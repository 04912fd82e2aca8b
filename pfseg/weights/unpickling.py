"""Arrays from pickles of PyTorch, Jittor and NumPy, without trust in the file.

A pickle may name what `_NAMES` and `_CONTAINERS` list. Only the plain containers are made; every other name, and a call
of one, is recorded as a `Reference`, never looked up or executed. `view` turns records into NumPy arrays afterwards.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMPY_CODES = {"b1", "f2", "f4", "f8"} | {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
# By the codes of safetensors, such as F32.
TYPES: dict[str, np.dtype[Any]] = {
    f"{code[0].upper()}{8 * int(code[1])}": np.dtype(f"<{code}") for code in NUMPY_CODES - {"b1"}
}
TYPES |= {"BOOL": np.dtype("?"), "BF16": np.dtype([("bf16", "<u2")])}  # NumPy has no bfloat16: told by a field's name

_KINDS = "Bool Byte Char Short Int Long Half BFloat16 Float Double".split()
_CODES = "BOOL U8 I8 I16 I32 I64 F16 BF16 F32 F64".split()
STORAGES = {f"torch.{kind}Storage": code for kind, code in zip(_KINDS, _CODES, strict=True)}

_CONTAINERS: dict[str, type] = {f"collections.{kind.__name__}": kind for kind in (OrderedDict, defaultdict)}
_NAMES = {*STORAGES, "torch.Size", "torch.device", "numpy.dtype", "numpy.ndarray", "_codecs.encode"}
_NAMES |= {"jittor.Var", "jittor.jittor_core.Var"}  # as versions of jt.save name it
_NAMES |= {f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "parameter", "parameter_with_state")}
for _core in ("numpy.core.", "numpy._core."):  # NumPy 1 and 2
    _NAMES |= {_core + name for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")}
for _builtins in ("builtins.", "__builtin__."):  # Python 3 and 2
    _CONTAINERS |= {_builtins + kind.__name__: kind for kind in (dict, list, tuple, set, frozenset, complex)}
    _NAMES |= {_builtins + name for name in ("int", "long", "float", "bool", "str", "unicode", "bytes")}

_PLAIN = (str, bytes, int, float, type(None))
_ROOM = 1 << 20  # items of containers that a file may copy, besides one for each of its bytes
_KEYS = {  # where the keys are on the stack when an opcode puts them into a container
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(0, None, 2),
    pickle.DICT: slice(0, None, 2),
    pickle.ADDITEMS: slice(0, None),
    pickle.FROZENSET: slice(0, None),
}
FetchStorage = Callable[[str], bytes]  # a storage's key -> its values


class ForbiddenNameError(Exception):
    """A pickle names something that plain weights never do."""


@dataclass(eq=False, slots=True)
class Reference:
    """A name in a pickle, or a call of one: recorded, never looked up or called."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = ()

    def __call__(self, *args: object) -> Reference:
        """Record a call."""
        return Reference(self.name, args)

    def __setstate__(self, state: object) -> None:
        """Record the state that a pickle would restore."""
        self.state = state


def _check_keys(keys: Iterable[Any]) -> None:
    """Raise UnpicklingError unless keys are plain values or tuples of such: of tuples in tuples a hash has no end."""
    for key in keys:
        if not all(isinstance(part, _PLAIN) for part in (key if isinstance(key, tuple) else (key,))):
            raise pickle.UnpicklingError(f"a key is a {type(key).__name__} of other containers")


def _check_first(code: int, keys: slice) -> Callable[[Any], None]:
    """What an unpickler does for an opcode, once it has checked the keys that are on its stack."""
    load = pickle._Unpickler.dispatch[code]

    def check_and_load(unpickler: Any) -> None:
        _check_keys(unpickler.stack[keys])
        load(unpickler)

    return check_and_load


@dataclass(eq=False, slots=True, frozen=True)
class _Maker:
    """Makes containers for an unpickler; few bytes could copy a large one over and over."""

    unpickler: WeightsUnpickler
    kind: type

    def __call__(self, *args: Any) -> Any:
        for items in args:
            sized = isinstance(items, dict | list | tuple | set | frozenset | str | bytes)
            if sized:
                self.unpickler.room -= len(items)
                if self.unpickler.room < 0:
                    raise pickle.UnpicklingError("it unfolds to an absurd size")
                if self.kind in (set, frozenset) or isinstance(items, dict):
                    _check_keys(items)
                elif issubclass(self.kind, dict):
                    _check_keys(key for key, _ in items)
        return self.kind(*args)


class WeightsUnpickler(pickle._Unpickler):
    """Reads one pickle of a stream; raises ForbiddenNameError, or anything else for bytes that are no pickle.

    In pure Python: the C one allocates what a file claims to need, takes copyreg's extensions without `find_class`.
    `types` has the data type of each storage that the pickle mentions, by key.
    """

    dispatch = pickle._Unpickler.dispatch | {code[0]: _check_first(code[0], keys) for code, keys in _KEYS.items()}

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="latin1")
        self.types: dict[str, np.dtype[Any]] = {}
        self.room = _ROOM + len(stream.getbuffer())

    def find_class(self, module: str, name: str) -> _Maker | Reference:
        """What makes a container, or a record of any other name that is allowed."""
        full = f"{module}.{name}"
        if full in _CONTAINERS:
            return _Maker(self, _CONTAINERS[full])
        if full in _NAMES:
            return Reference(full)
        plausible = all(part.isidentifier() for part in full.split("."))  # else text that begins like a pickle
        raise ForbiddenNameError(full) if plausible else pickle.UnpicklingError("not a pickle")

    def get_extension(self, code: int) -> None:
        """Reject names of copyreg's registry."""
        raise ForbiddenNameError(f"copyreg extension {code}")

    def persistent_load(self, pid: Any) -> Reference:
        """Record a tensor's storage: key, data type, number of values."""
        kind, storage, key, _, length, *view = pid
        if kind != "storage" or not isinstance(key, str | int) or view not in ([], [None]):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        self.types[str(key)] = TYPES[STORAGES[storage.name]]
        return Reference("storage", (str(key), STORAGES[storage.name], length))


def view(value: object, fetch: FetchStorage) -> np.ndarray | None:
    """The array that a value is or describes, without a copy, or None; ValueError for sizes that don't fit it."""
    if not isinstance(value, Reference):
        return value if isinstance(value, np.ndarray) else None
    fortran: object = False
    match value.name.rpartition(".")[2], value.args:
        case "Var" | "_rebuild_parameter" | "_rebuild_parameter_with_state", (inner, *_):
            return view(inner, fetch)
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
    if not isinstance(dtype.args[0], str) or dtype.args[0] not in NUMPY_CODES:  # text, objects
        return None
    if isinstance(data, Reference):  # protocol 2: _codecs.encode(text, "latin1"), or bytes() for none
        data = data.args[0].encode("latin1") if data.args else b""
    flat = np.frombuffer(data, np.dtype(dtype.args[0]).newbyteorder(dtype.state[1]))
    return flat.reshape(_natural(shape), order="F" if fortran else "C")


def _strided(
    storage: Reference, start: int, shape: Sequence[int], strides: Sequence[int], fetch: FetchStorage
) -> np.ndarray:
    key, code, length = storage.args
    flat = np.frombuffer(fetch(key), TYPES[code])
    if flat.size != length:
        raise ValueError(f"its storage holds {flat.size} values, not {length}: the file is truncated or damaged")
    _natural([start, *shape, *strides])
    end = start + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1
    if end > length and 0 not in shape:
        raise ValueError(f"it ends at value {end} of a storage of {length}")
    return np.lib.stride_tricks.as_strided(flat[start:], shape, [stride * flat.itemsize for stride in strides])


def _natural(values: Iterable[Any]) -> tuple[int, ...]:
    values = tuple(values)
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("sizes, strides and offsets must be whole and not negative")
    return values
