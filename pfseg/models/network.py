"""What every segmentation network is made of: a backbone, whose feature maps a head turns into logits.

Each is exchanged by one YAML file and one module. Shapes: image (N, 3, H, W) float32, normalised; K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pfseg.ops import maps
from pfseg.ops.convolution import PackedWeights
from pfseg.ops.resampling import plane_resize, resize_to_image
from pfseg.runtime import Var, jt

_BACKBONE = "backbone."  # before the names of its weights, where published files have nothing


@dataclass(frozen=True)
class SegOutput:
    """What a segmentation network returns, in training and in evaluation mode.

    Attributes:
        logits: (N, K, H, W) float32 at the input's size.
        edge_logits: (N, 1, H, W) float32 each, coarse to fine; empty for a head without edges.
    """

    logits: Var
    edge_logits: tuple[Var, ...] = ()


class Backbone(jt.nn.Module):
    """A feature extractor: `execute` maps an image (N, 3, H, W) to a list of maps (N, C_i, H / s_i, W / s_i).

    Attributes:
        out_channels: channels C_i of the maps, from fine to coarse.
        feature_strides: strides s_i of the maps in pixels, ascending.
        channels_last: whether it is made of the operators of `pfseg.ops` alone, so that on a GPU it can be given maps
            (N, H, W, C); see `pfseg.ops.maps`. Others get (N, C, H, W) float32 on every device.
    """

    out_channels: tuple[int, ...]
    feature_strides: tuple[int, ...]
    channels_last = False

    @property
    def output_stride(self) -> int:
        """Stride of the coarsest map in pixels."""
        return self.feature_strides[-1]

    @staticmethod
    def rename_pretrained(key: str) -> str:
        """The name in this backbone of the weight `key` of a published file; here the same."""
        return key


class LayeredBackbone(Backbone):
    """A backbone of five layers: `layer0`, the stem, and `layer1` .. `layer4`, each of which gives a map."""

    layer0: jt.nn.Module
    layer1: jt.nn.Module
    layer2: jt.nn.Module
    layer3: jt.nn.Module
    layer4: jt.nn.Module

    def execute(self, image: Var) -> list[Var]:
        """Map an image (N, 3, H, W) to c1..c4."""
        c1 = self.layer1(self.layer0(image))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return [c1, c2, c3, self.layer4(c3)]


class Head(jt.nn.Module):
    """A decoder: `execute` maps the backbone's maps to logits and edge logits, of any size.

    It returns the logits (N, K, h, w) and a tuple of edge logits (N, 1, h_i, w_i), coarse to fine, empty without edges.

    Attributes:
        channels_last: as of `Backbone`; the logits are then maps too, the edge logits never.
    """

    channels_last = False


class SegmentationNetwork(jt.nn.Module):
    """A backbone and a head. Weights have the names of the published checkpoints: the backbone's stand beside `head.*`.

    A backbone of the user's own needs the attributes of `Backbone`, not the class, and instead of `execute` may have
    `layer0` .. `layer4` (see `LayeredBackbone`).

    Attributes:
        num_classes: K.
        min_size: smallest side of the input in pixels.
        output_stride: stride of the backbone's coarsest map; sides of batches are multiples of it.
    """

    def __init__(self, backbone: Backbone, head: Head, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_classes = num_classes
        self.output_stride = self.min_size = backbone.feature_strides[-1]
        self._packed = PackedWeights()

    def features(self, image: Var) -> Sequence[Var]:
        """The backbone's maps of an image (N, 3, H, W), fine to coarse; raises ValueError below `min_size`."""
        with self._packed.of(self):
            return self._maps(image, last=False)

    def execute(self, image: Var) -> SegOutput:
        """Segment an image (N, 3, H, W); raises ValueError below `min_size`."""
        logits, edges = self._logits(image)
        return SegOutput(logits, tuple(plane_resize(edge, image.shape[2:]) for edge in edges))

    def predict(self, image: Var) -> Var:
        """Logits (N, K, H, W) alone, without the work of resizing the edge maps."""
        return self._logits(image)[0]

    def _logits(self, image: Var) -> tuple[Var, tuple[Var, ...]]:
        """Logits (N, K, H, W), and the head's edge logits."""
        last = getattr(self.head, "channels_last", False)
        with self._packed.of(self):
            features = self._maps(image, last)
            with maps.channels_last(last):
                logits, edges = self.head(features)
                return resize_to_image(logits, image.shape[2:]), edges

    def _maps(self, image: Var, last: bool) -> Sequence[Var]:
        """The backbone's maps, on a GPU (N, H, W, C) with `last`."""
        height, width = image.shape[2:]
        if min(height, width) < self.min_size:
            raise ValueError(
                f"input of {height}x{width} px is too small: {self._describe()} needs at least {self.min_size} px a "
                "side; pad the image or use a larger crop (config: dataset.crop_size)"
            )
        with maps.channels_last(getattr(self.backbone, "channels_last", False)):
            if maps.is_last():
                image = maps.to_last(image)
            if type(self.backbone).execute is jt.nn.Module.execute:  # any module with layer0 .. layer4
                features: Sequence[Var] = LayeredBackbone.execute(cast(LayeredBackbone, self.backbone), image)
            else:
                features = self.backbone(image)
            given = maps.is_last()
        with maps.channels_last(last):
            wanted = maps.is_last()
        if wanted == given:
            return features
        return [maps.to_last(x) if wanted else maps.to_first(x) for x in features]

    def state_dict(self, to: str | None = None, recurse: bool = True) -> dict[str, Var]:
        """Weights by published name."""
        state = super().state_dict(to, recurse)
        return {key.removeprefix(_BACKBONE): var for key, var in state.items()}

    def load_parameters(self, params: Mapping[str, Any]) -> None:
        """Take weights by published name, as Jittor's `load` and `load_state_dict` do."""
        own = super().state_dict()
        super().load_parameters({key if key in own else _BACKBONE + key: value for key, value in params.items()})

    def _describe(self) -> str:
        return type(self).__name__
