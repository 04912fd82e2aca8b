"""What every segmentation network is made of: a backbone, whose feature maps a head turns into logits.

Each is exchanged by one YAML file and one module. Shapes: image (N, 3, H, W) float32, normalised; K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

from pfseg.errors import ConfigError
from pfseg.ops import maps
from pfseg.ops.convolution import PackedWeights
from pfseg.ops.resampling import plane_resize, resize_to_image
from pfseg.runtime import Var, jt

_LAYERS = ("layer0", "layer1", "layer2", "layer3", "layer4")
_BACKBONE = "backbone."  # before the names of its weights, where published files have nothing


class Points(NamedTuple):
    """Points of an image that a head has classified by themselves, as PointRend does in training.

    Attributes:
        coordinates: (N, P, 2) float32, x and y in [0, 1] of the image's width and height.
        logits: (N, K, P) float32.
    """

    coordinates: Var
    logits: Var


class HeadOutput(NamedTuple):
    """What a head returns, of any size; a tuple of the first values will do.

    Attributes:
        logits: (N, K, h, w).
        edge_logits: (N, 1, h_i, w_i) each, coarse to fine; empty for a head without edges.
        aux_logits: (N, K, h_i, w_i) each: further logits, which training alone uses.
        points: points that training alone uses.
    """

    logits: Var
    edge_logits: tuple[Var, ...] = ()
    aux_logits: tuple[Var, ...] = ()
    points: Points | None = None


@dataclass(frozen=True)
class SegOutput:
    """What a segmentation network returns, in training and in evaluation mode.

    Attributes:
        logits: (N, K, H, W) float32 at the input's size.
        edge_logits: (N, 1, H, W) float32 each, coarse to fine; empty for a head without edges.
        aux_logits: (N, K, H, W) float32 each, of auxiliary heads; empty for a network without them.
        points: of a head that classifies points in training; otherwise None.
    """

    logits: Var
    edge_logits: tuple[Var, ...] = ()
    aux_logits: tuple[Var, ...] = ()
    points: Points | None = None


class Backbone(jt.nn.Module):
    """A feature extractor: `execute` maps an image (N, 3, H, W) to a list of maps (N, C_i, H / s_i, W / s_i).

    Attributes:
        out_channels: channels C_i of the maps, from fine to coarse.
        feature_strides: strides s_i of the maps in pixels, ascending.
        channels_last: whether it is made of the operators of `pfseg.ops` alone, so that on a GPU it can be given maps
            (N, H, W, C); see `pfseg.ops.maps`. Others get (N, C, H, W) float32 on every device.
        fresh: modules that files of trained weights lack, which then start as they are.
        segments: parts from one map to one each, within which `trainer.checkpointing` keeps no maps; here `layer0` ..
            `layer4`, if it has them.
    """

    out_channels: tuple[int, ...]
    feature_strides: tuple[int, ...]
    channels_last = False
    fresh: tuple[str, ...] = ()

    @property
    def output_stride(self) -> int:
        """Stride of the coarsest map in pixels."""
        return self.feature_strides[-1]

    @property
    def segments(self) -> list[jt.nn.Module]:
        """See above."""
        return layers_of(self)

    @staticmethod
    def rename_pretrained(key: str, keys: Collection[str]) -> str:
        """The name in this backbone of the weight `key` of a published file, whose names are `keys`; here the same."""
        return key


def layers_of(backbone: object) -> list[jt.nn.Module]:
    """The modules `layer0` .. `layer4` of a backbone, as far as it has them."""
    return [getattr(backbone, name) for name in _LAYERS if hasattr(backbone, name)]


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
    """A decoder: `execute` maps the backbone's maps to a `HeadOutput`.

    It is built with the keywords `in_channels` (those of the maps), `num_classes`, and its settings.

    Attributes:
        channels_last: as of `Backbone`; logits and auxiliary logits are then maps too, edge logits never.
        align_corners: how its logits are resized to the image.
        strides: of the maps that it takes, in pixels; None: any.
        backbone_options: settings of a ResNet in the published network, for those that are null.
    """

    channels_last = False
    align_corners = True
    strides: tuple[int, ...] | None = None
    backbone_options: ClassVar[Mapping[str, Any]] = {"output_stride": 32, "dilation": "none"}

    def auxiliary(self, in_channels: int, num_classes: int) -> jt.nn.Module | None:
        """A second head for the map before the coarsest, which training alone uses; its weights are `aux.*`."""
        return None


class SegmentationNetwork(jt.nn.Module):
    """A backbone and a head. Weights have the names of the published checkpoints: the backbone's stand beside `head.*`.

    A backbone of the user's own needs the attributes of `Backbone`, not the class, and instead of `execute` may have
    `layer0` .. `layer4` (see `LayeredBackbone`). Raises ValueError if the head takes maps of other strides.

    Attributes:
        aux: auxiliary head (see `Head.auxiliary`), or None.
        num_classes: K.
        min_size: smallest side of the input in pixels.
        output_stride: stride of the backbone's coarsest map; sides of batches are multiples of it.
        in_channels: bands of the images, which whoever builds the network sets.
    """

    in_channels = 3

    def __init__(self, backbone: Backbone, head: Head, num_classes: int) -> None:
        super().__init__()
        strides, needed = tuple(backbone.feature_strides), getattr(head, "strides", None)
        if needed is not None and strides != needed:
            raise ValueError(
                f"{type(head).__name__} takes maps at strides {needed}, but {type(backbone).__name__} gives {strides}: "
                "choose another backbone or model.backbone.output_stride (config: model.head, model.backbone)"
            )
        self.backbone = backbone
        self.head = head
        self.aux = head.auxiliary(backbone.out_channels[-2], num_classes) if isinstance(head, Head) else None
        self.num_classes = num_classes
        self.output_stride = self.min_size = backbone.feature_strides[-1]
        self._packed = PackedWeights()

    def features(self, image: Var) -> Sequence[Var]:
        """The backbone's maps of an image (N, 3, H, W), fine to coarse; raises ConfigError below `min_size`."""
        with self._packed.of(self):
            return self._maps(image, last=False)

    def execute(self, image: Var) -> SegOutput:
        """Segment an image (N, 3, H, W); raises ConfigError below `min_size`."""
        size = image.shape[2:]
        logits, edges, aux, points = self._outputs(image, auxiliary=True)
        return SegOutput(logits, tuple(plane_resize(edge, size) for edge in edges), aux, points)

    def predict(self, image: Var) -> Var:
        """Logits (N, K, H, W) alone, without the work of auxiliary heads and of resizing the edge maps."""
        return self._outputs(image, auxiliary=False).logits

    def _outputs(self, image: Var, *, auxiliary: bool) -> HeadOutput:
        """The head's outputs, logits (N, K, H, W) at the image's size; without auxiliary ones unless `auxiliary`."""
        last = getattr(self.head, "channels_last", False)
        align_corners = getattr(self.head, "align_corners", True)

        def to_image(logits: Var) -> Var:
            return resize_to_image(logits, image.shape[2:], align_corners)

        with self._packed.of(self):
            features = self._maps(image, last)
            with maps.channels_last(last):
                output = HeadOutput(*self.head(features))
                aux = output.aux_logits if auxiliary else ()
                if auxiliary and self.aux is not None:
                    aux = (*aux, self.aux(features[-2]))
                return output._replace(logits=to_image(output.logits), aux_logits=tuple(map(to_image, aux)))

    def _maps(self, image: Var, last: bool) -> Sequence[Var]:
        """The backbone's maps, on a GPU (N, H, W, C) with `last`."""
        height, width = image.shape[2:]
        if min(height, width) < self.min_size:
            raise ConfigError(
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
