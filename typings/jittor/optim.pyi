from collections.abc import Sequence
from typing import Any

from jittor import Var

class Optimizer:
    lr: float
    param_groups: list[dict[str, Any]]
    n_step: int
    def pre_step(self, loss: Var | None) -> None: ...
    def post_step(self) -> None: ...
    def step(self, loss: Var | None = ...) -> None: ...
    def backward(self, loss: Var, retain_graph: bool = ...) -> None: ...
    def zero_grad(self) -> None: ...
    def clip_grad_norm(self, max_norm: float, norm_type: int = ...) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        params: Sequence[Var] | Sequence[dict[str, Any]],
        lr: float,
        momentum: float = ...,
        weight_decay: float = ...,
        dampening: float = ...,
        nesterov: bool = ...,
    ) -> None: ...

class Adam(Optimizer):
    def __init__(
        self,
        params: Sequence[Var] | Sequence[dict[str, Any]],
        lr: float,
        eps: float = ...,
        betas: tuple[float, float] = ...,
        weight_decay: float = ...,
    ) -> None: ...

class AdamW(Adam): ...
