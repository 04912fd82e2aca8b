"""Exported networks in half precision and in 8-bit integers, whose points and probabilities stay float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

_HALF = {"Conv", "Relu", "Add", "Mul", "Concat", "MaxPool", "AveragePool", "Split"}
_FEWEST = 16  # output channels of a convolution in integers: those that choose points have one


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn convolutions and what surrounds them into float16; input and output stay float32."""
    others = sorted({node.op_type for node in model.graph.node} - _HALF)
    half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True, op_block_list=others)
    return half


def to_integers(model: onnx.ModelProto, images: Iterator[np.ndarray]) -> onnx.ModelProto:
    """Turn convolutions into 8-bit integers, whose ranges are those that occur on images (1, C, size, size)."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    narrow = [node.name for node in model.graph.node if node.op_type == "Conv" and weights[node.input[1]][0] < _FEWEST]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises to preprocess, which folding has done
    try:
        with tempfile.TemporaryDirectory(prefix="pfseg-") as name:
            given, made = Path(name, "float.onnx"), Path(name, "integer.onnx")
            given.write_bytes(model.SerializeToString())
            quantize_static(
                given,
                made,
                _Images(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=narrow,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            quantised = onnx.load(made)
    finally:
        root.setLevel(level)
    helper.set_model_props(quantised, {entry.key: entry.value for entry in model.metadata_props})
    return quantised


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Iterator[np.ndarray]) -> None:
        self._images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image}
