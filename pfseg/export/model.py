"""A network as an ONNX file that needs nothing but its pixels: normalisation, network, resizing and softmax.

The input is `image` (N, C, size, size) float32, 8-bit values divided by 255; the output `probabilities`
(N, K, size, size) float32, which sum to 1 over the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from pfseg import __version__
from pfseg.export import backbones, heads, layers, points, pyramids
from pfseg.export.graph import Graph, Value
from pfseg.inference.folding import fold_batchnorm
from pfseg.models.network import SegmentationNetwork

OPSET = 17  # what the ONNX Runtime of QGIS's plugins reads
_IR_VERSION = 8  # the file format that came with it
_PARTS = (layers, backbones, points, heads, pyramids)
_TRANSLATORS = {kind: translate for part in _PARTS for kind, translate in part.TRANSLATORS.items()}


def to_onnx(
    model: SegmentationNetwork,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dynamic_batch: bool,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Turn a network into ONNX; its BatchNorm becomes part of the convolutions, so it can't be trained any further.

    Args:
        model: the network.
        size: side of its input in pixels.
        mean: mean of each of C channels, of images scaled to 0..1.
        std: standard deviation of each channel.
        dynamic_batch: whether any number of images goes in at once, rather than one.
        metadata: entries of the file beside the graph.

    Raises:
        ConfigError: a part of the network can't be exported.
    """
    fold_batchnorm(model)
    graph = Graph(_TRANSLATORS)
    image = Value("image", (len(mean), size, size))
    deviation = np.asarray(std, np.float64)
    x = layers.affine(graph, image, 1 / deviation, -np.asarray(mean, np.float64) / deviation)
    logits = graph.call(model, x)
    found = graph.add("Softmax", logits, axis=1, name="probabilities")
    made = helper.make_model(
        graph.finish(image, found, "batch" if dynamic_batch else 1),
        producer_name="pfseg",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
    )
    helper.set_model_props(made, dict(metadata))
    onnx.checker.check_model(made, full_check=True)
    return made
