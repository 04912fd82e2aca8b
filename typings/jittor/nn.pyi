from collections.abc import Iterator, Sequence
from typing import Any

from jittor import Module as Module
from jittor import Var
from jittor import init as init

class Identity(Module): ...

class Pool(Module):
    def __init__(
        self, kernel_size: int, stride: int = ..., padding: int = ..., *, op: str, count_include_pad: bool = ...
    ) -> None: ...
    def __call__(self, x: Var) -> Var: ...

class Conv(Module):
    weight: Var
    bias: Var | None
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = ...,
        padding: int = ...,
        dilation: int = ...,
        groups: int = ...,
        bias: bool = ...,
    ) -> None: ...
    def __call__(self, x: Var) -> Var: ...

class Sequential(Module):
    def __init__(self, *modules: Module | Sequence[Module]) -> None: ...
    def __call__(self, x: Var) -> Var: ...
    def __getitem__(self, index: int) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...

ModuleList = Sequential

def bmm(a: Var, b: Var) -> Var: ...
def relu(x: Var) -> Var: ...
def softmax(x: Var, dim: int) -> Var: ...
