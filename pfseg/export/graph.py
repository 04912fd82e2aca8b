"""An ONNX graph that grows node by node, and the table that says what each kind of module becomes in it.

A value stands for a tensor whose first axis is the batch; its `shape` leaves that axis out. All other sizes are known
while the graph is made, so that whatever follows from them alone becomes a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from pfseg.errors import ConfigError

Translator = Callable[..., Any]  # (graph, module, values ...) -> values
_FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: its name, and its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]


class Graph:
    """Nodes and constants of an ONNX graph.

    Args:
        translators: for each kind of module, a function of this graph, the module and the module's inputs that adds
            nodes and returns the module's outputs. A module of the user's own may have one as its method `to_onnx`.
    """

    def __init__(self, translators: Mapping[type, Translator]) -> None:
        self._translators = translators
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def add(self, op: str, *inputs: Value | np.ndarray, shape: Sequence[int] | None = None, **options: Any) -> Value:
        """Add a node with one output, of the first input's shape unless another is given; arrays become constants."""
        if shape is None:
            assert isinstance(inputs[0], Value)
            shape = inputs[0].shape
        return self.add_many(op, inputs, [shape], **options)[0]

    def add_many(
        self,
        op: str,
        inputs: Sequence[Value | np.ndarray],
        shapes: Sequence[Sequence[int]],
        name: str | None = None,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with an output of each shape."""
        given = [each.name if isinstance(each, Value) else self._constant(each) for each in inputs]
        name = name or f"{op.lower()}_{len(self._nodes)}"
        names = [name] if len(shapes) == 1 else [f"{name}_{output}" for output in range(len(shapes))]
        self._nodes.append(helper.make_node(op, given, names, name=name, **attributes))
        return [Value(each, tuple(shape)) for each, shape in zip(names, shapes, strict=True)]

    def call(self, module: Any, *values: Any) -> Any:
        """What a module becomes, given its inputs.

        Raises:
            ConfigError: no translator knows its kind.
        """
        if own := getattr(module, "to_onnx", None):
            return own(self, *values)
        for kind in type(module).__mro__:
            if kind in self._translators:
                return self._translators[kind](self, module, *values)
        raise ConfigError(
            f"{type(module).__module__}.{type(module).__name__} can't be exported to ONNX yet: give it a method "
            "to_onnx(graph, *values), or export a network that docs/export.md lists (config: model)"
        )

    def finish(self, given: Value, found: Value, batch: int | str) -> GraphProto:
        """The graph with its input and its output, which keep their names."""
        return helper.make_graph(
            self._nodes, "pfseg", [_described(given, batch)], [_described(found, batch)], self._constants
        )

    def _constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def _described(value: Value, batch: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, _FLOAT, [batch, *value.shape])
