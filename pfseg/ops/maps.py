"""The layout of a network's maps: (N, C, H, W) float32, or (N, H, W, C) of `kernels.dtype()` on a GPU and in bf16.

A network's parts that are written in the operators of `pfseg.ops` alone then run inside `channels_last()`, and take
what depends on the layout from here. Operators called outside of it, as in a user's own head, take and give
(N, C, H, W) float32 on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pfseg.ops import kernels
from pfseg.ops.function import Function
from pfseg.runtime import Var, jt

_state = {"last": False}


@contextmanager
def channels_last(enabled: bool = True) -> Iterator[None]:
    """Let the operators take and give maps (N, H, W, C), where they run on the GPU kernels."""
    before = _state["last"]
    _state["last"] = enabled and kernels.maps_last()
    try:
        yield
    finally:
        _state["last"] = before


def is_last() -> bool:
    """Whether maps are (N, H, W, C) now."""
    return _state["last"]


def size(x: Var) -> tuple[int, int]:
    """(H, W) of maps."""
    height, width = x.shape[1:3] if _state["last"] else x.shape[2:4]
    return height, width


def channels(x: Var) -> int:
    """C of maps."""
    return int(x.shape[3 if _state["last"] else 1])


class _Transpose(Function):
    """(N, C, H, W) to (N, H, W, C) of another type, or back."""

    def __init__(self, to_last: bool, dtype: str) -> None:
        self.to_last, self.dtype = to_last, dtype

    def execute(self, x: Var) -> Var:
        self.source = str(x.dtype)
        return _transpose(x, self.to_last, self.dtype)

    def grad(self, upstream: Var) -> Var:
        return _transpose(upstream, not self.to_last, self.source)


def _transpose(x: Var, to_last: bool, dtype: str) -> Var:
    n, *sides = x.shape
    shape = (n, *sides[1:], sides[0]) if to_last else (n, sides[2], *sides[:2])
    return kernels.run("maps_to_last" if to_last else "maps_to_first", [(shape, dtype)], [x])[0]


def to_last(x: Var) -> Var:
    """Maps (N, H, W, C) of `kernels.dtype()` from (N, C, H, W) float32."""
    y: Var = _Transpose(True, kernels.dtype())(x)
    return y


def to_first(x: Var) -> Var:
    """(N, C, H, W) float32 from maps (N, H, W, C)."""
    y: Var = _Transpose(False, "float32")(x)
    return y


def plane(x: Var) -> Var:
    """(N, 1, H, W) float32 of maps with one channel."""
    if not _state["last"]:
        return x
    n, height, width, _ = x.shape
    return x.reshape(n, 1, height, width) if str(x.dtype) == "float32" else to_first(x)


def enter(x: Var) -> tuple[Var, Callable[[Var], Var]]:
    """What an operator on the GPU kernels works with: maps (N, H, W, C), and a function that turns back what it gives.

    Within `channels_last()` nothing is to do; outside, x is (N, C, H, W) float32, and so is the result.
    """
    return (x, _same) if _state["last"] else (to_last(x), to_first)


def enter_or_leave(x: Var) -> tuple[Var, Callable[[Var], Var]]:
    """The same for an operator that a GPU has for maps (N, H, W, C), and a CPU for (N, C, H, W) float32."""
    if kernels.active():
        return enter(x)
    return (to_first(x), to_last) if _state["last"] else (x, _same)


def _same(x: Var) -> Var:
    return x


class _Join(Function):
    def execute(self, *parts: Var) -> Var:
        self.shapes = [part.shape for part in parts]
        shape = (*parts[0].shape[:3], sum(part.shape[3] for part in parts))
        return kernels.run("maps_join", [(shape, parts[0].dtype)], parts, count=len(parts))[0]

    def grad(self, upstream: Var) -> tuple[Var, ...]:
        outputs = [(shape, upstream.dtype) for shape in self.shapes]
        return tuple(kernels.run("maps_split", outputs, [upstream], count=len(outputs)))


class _Split(Function):
    def __init__(self, width: int) -> None:
        self.width = width

    def execute(self, x: Var) -> tuple[Var, ...]:
        *front, channels = x.shape
        count = channels // self.width
        self.shape, self.dtype = x.shape, x.dtype
        return tuple(kernels.run("maps_split", [((*front, self.width), x.dtype)] * count, [x], count=count))

    def grad(self, *upstream: Var | None) -> Var:
        unused = jt.zeros((*self.shape[:3], self.width), self.dtype)
        parts = [unused if part is None else part for part in upstream]
        return kernels.run("maps_join", [(self.shape, self.dtype)], parts, count=len(parts))[0]


def concat(parts: Sequence[Var]) -> Var:
    """Up to 8 maps of one size, their channels behind each other."""
    y: Var = _Join.apply(*parts) if _state["last"] else jt.concat(list(parts), 1)
    return y


def split(x: Var, width: int) -> Sequence[Var]:
    """Maps of `width` channels each, at most 8, of one whose channels are a multiple of it."""
    parts: Sequence[Var] = _Split(width)(x) if _state["last"] else jt.split(x, width, 1)
    return parts


class _Modulate(Function):
    def __init__(self, sign: float) -> None:
        self.sign = sign

    def execute(self, x: Var, factor: Var) -> Var:
        self.x, self.factor = x, factor
        return kernels.run("maps_modulate", [(x.shape, x.dtype)], [x, factor], sign=self.sign)[0]

    def grad(self, upstream: Var) -> tuple[Var, Var]:
        x, factor = self.x, self.factor
        outputs = [(x.shape, x.dtype), (factor.shape, "float32")]
        first, second = kernels.run("maps_modulate_gradient", outputs, [x, factor, upstream], sign=self.sign)
        return first, second


def modulate(x: Var, factor: Var, sign: float) -> Var:
    """Maps x times 1 + sign * factor, the factor (N, 1, H, W) float32."""
    if _state["last"]:
        y: Var = _Modulate(sign)(x, factor)
        return y
    weighted = x * factor
    return x + weighted if sign > 0 else x - weighted


def add_relu(a: Var, b: Var) -> Var:
    """max(a + b, 0) of two maps, without a gradient on the GPU kernels."""
    if _state["last"]:
        return kernels.run("maps_add_relu", [(a.shape, a.dtype)], [a, b])[0]
    y: Var = jt.maximum(a + b, 0.0)
    return y


class _Add(Function):
    def execute(self, a: Var, b: Var) -> Var:
        return kernels.run("maps_add", [(a.shape, a.dtype)], [a, b])[0]

    def grad(self, upstream: Var) -> tuple[Var, Var]:
        return upstream, upstream


class _Fork(Function):
    def execute(self, x: Var) -> tuple[Var, Var]:
        return x.clone(), x.clone()

    def grad(self, *upstream: Var | None) -> Var | None:
        given = [part for part in upstream if part is not None]
        if len(given) < 2:
            return given[0] if given else None
        return kernels.run("maps_add", [(given[0].shape, given[0].dtype)], given)[0]


class _Relu(Function):
    def execute(self, x: Var) -> Var:
        (self.y,) = kernels.run("maps_relu", [(x.shape, x.dtype)], [x])
        return self.y

    def grad(self, upstream: Var) -> Var:
        return kernels.run("maps_relu_gradient", [(upstream.shape, upstream.dtype)], [upstream, self.y])[0]


def _rounds() -> bool:
    """Whether maps are of 16 bits that Jittor's own operators would cut off instead of rounding: on a CPU."""
    return _state["last"] and not kernels.active()


def add(a: Var, b: Var) -> Var:
    """The sum of two maps."""
    y: Var = _Add()(a, b) if _rounds() else a + b
    return y


def fork(x: Var) -> tuple[Var, Var]:
    """The same maps twice, for two users whose gradients are to be added up with rounding."""
    if not _rounds():
        return x, x
    first, second = _Fork()(x)
    return first, second


def relu(x: Var) -> Var:
    """max(x, 0) of maps."""
    if _rounds():
        y: Var = _Relu()(x)
        return y
    zero = jt.zeros_like(x)  # bfloat16 is not compared with a float32
    return jt.ternary(x > zero, x, zero)


class _ScaleChannels(Function):
    def execute(self, x: Var, factors: Var) -> Var:
        self.factors = factors
        return kernels.run("maps_scale_channels", [(x.shape, x.dtype)], [x, factors])[0]

    def grad(self, upstream: Var) -> tuple[Var, None]:
        inputs = [upstream, self.factors]
        return kernels.run("maps_scale_channels", [(upstream.shape, upstream.dtype)], inputs)[0], None


def scale_channels(x: Var, factors: Var) -> Var:
    """Maps x times constants (N, C) float32."""
    factors = factors.stop_grad()
    if _state["last"]:
        y: Var = _ScaleChannels()(x, factors)
        return y
    return x * factors.broadcast(x, [2, 3])
