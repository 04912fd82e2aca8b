"""What weights files hold: which network of pfseg is the same, and its names of the weights.

Networks are recognised by names and shapes: published PFNets and their backbones, mmsegmentation's (whose names SegNeXt
and ConvNeXt share) and FarSeg's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pfseg.errors import CheckpointError

Weights = Mapping[str, np.ndarray]
_Names = Sequence[tuple[str, str]]  # pattern at the start of a name, and what replaces it

_BACKBONE: _Names = (
    (r"backbone\.stem\.7\.", "layer0.1."),
    (r"backbone\.stem\.", "layer0.0."),
    (r"backbone\.conv1\.", "layer0.0."),
    (r"backbone\.bn1\.", "layer0.1."),
    (r"backbone\.(.*\.mlp\.dwconv)\.(?!dwconv\.)", r"\1.dwconv."),
    (r"backbone\.", ""),
)
_MMSEG: _Names = (
    *_BACKBONE,
    (r"decode_head\.cca\.gamma\.scale$", "head.cca.gamma"),
    (r"decode_head\.", "head."),
    (r"auxiliary_head\.", "aux."),
)
_PSPNET: _Names = (
    *_BACKBONE,
    (r"decode_head\.psp_modules\.(\d)\.1\.conv\.", r"head.ppm.features.\1.1."),
    (r"decode_head\.psp_modules\.(\d)\.1\.bn\.", r"head.ppm.features.\1.2."),
    (r"decode_head\.bottleneck\.conv\.", "head.cls.0."),
    (r"decode_head\.bottleneck\.bn\.", "head.cls.1."),
    (r"decode_head\.conv_seg\.", "head.cls.4."),
    (r"auxiliary_head\.convs\.0\.conv\.", "aux.0."),
    (r"auxiliary_head\.convs\.0\.bn\.", "aux.1."),
    (r"auxiliary_head\.conv_seg\.", "aux.4."),
)
_FARSEG: _Names = (
    (r"en\.resnet\.conv1\.", "layer0.0."),
    (r"en\.resnet\.bn1\.", "layer0.1."),
    (r"en\.resnet\.", ""),
    (r"(?=(fpn|sr|decoder|cls_pred_conv)\.)", "head."),
)
_CLASSIFIERS = ("decode_head.conv_seg.weight", "cls_pred_conv.weight")
_RESNETS = {6: "r50", 23: "r101"}  # by the number of blocks in layer3
_MSCAN = {(32, 5): "t", (64, 4): "s", (64, 12): "b"}  # by the channels of stage 1 and the number of blocks in stage 3
_CONVNEXT = {9: "convnext_t", 27: "convnext_s"}  # by the number of blocks in stage 2


# (kind of block, number of blocks in layer1..layer4) -> choice of model, backbone
_PFNETS: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {
    ("basic", (2, 2, 2, 2)): ("pfnet_r18", "ResNet-18, deep stem"),
    ("bottleneck", (3, 4, 6, 3)): ("pfnet_r50", "ResNet-50, deep stem"),
    ("bottleneck", (3, 4, 23, 3)): ("pfnet_r101", "ResNet-101, deep stem"),
    ("res2net", (3, 4, 23, 3)): ("pfnet_r2n101", "Res2Net-101 26w x 4s"),
}
_CLASSIFIER = "head.conv_last.1.weight"
_MATCHER = "head.fpn_out_align.0.down_h.weight"
_PFNET = "PFNet"


class Contents(NamedTuple):
    """What weights are of, as far as names and shapes tell.

    Attributes:
        title: network in words, or the backbone.
        model: choice of `model` that builds it, with `settings`; None for a network that pfseg can't build.
        settings: that differ from the choice's, or that the shapes tell.
        num_classes: K; None for a backbone alone.
        names: what makes another project's names of weights ours.
    """

    title: str
    model: str | None
    settings: dict[str, object]
    num_classes: int | None
    names: _Names = ()

    @property
    def is_pfnet(self) -> bool:
        """Whether it is a PFNet, whose variant no file tells."""
        return self.title.startswith(_PFNET)

    def rename(self, key: str) -> str:
        """Our name of a weight."""
        for pattern, ours in self.names:
            if found := re.match(pattern, key):
                return found.expand(ours) + key[found.end() :]
        return key


def recognise(weights: Weights) -> Contents:
    """Tell what a weights file holds.

    Raises CheckpointError for another project's network that pfseg has the head of, but not the backbone.
    """
    classifier = next((weights[name] for name in _CLASSIFIERS if name in weights), None)
    head = next((head for mark, head in _HEADS.items() if mark in weights), None)
    if classifier is None or head is None:
        return _pfnet(weights)
    title, model, names = head
    backbone, settings = _backbone(weights, title)
    if model == "pspnet":
        settings |= {"align_corners": False}
    if model in ("pspnet", "deeplabv3plus", "ccnet"):
        settings |= {"backbone.dilation": "contracted"}
    choice = f"{model}_{backbone}"
    if model == "lightham":
        choice = backbone.replace("mscan", "segnext")
    return Contents(title, choice, settings, classifier.shape[0], names)


def _pfnet(weights: Weights) -> Contents:
    """What PFNet's own names, which those of its backbones are too, tell."""
    blocks = [{name.split(".")[1] for name in weights if name.startswith(f"layer{index}.")} for index in range(1, 5)]
    kind = "basic"
    if any(name.startswith("layer1.0.conv3.") for name in weights):
        kind = "res2net" if any(name.startswith("layer1.0.convs.") for name in weights) else "bottleneck"
    deep = "layer0.0.0.weight" in weights or "conv1.0.weight" in weights
    known = _PFNETS.get((kind, tuple(map(len, blocks)))) if deep != (kind == "res2net") else None
    model, backbone = known or (None, "a backbone that pfseg lacks")
    classifier, matcher = weights.get(_CLASSIFIER), weights.get(_MATCHER)
    if classifier is None or matcher is None or classifier.ndim < 2:
        return Contents(backbone, model, {}, None)
    settings: dict[str, object] = {"fpn_dim": classifier.shape[1], "match_dim": matcher.shape[0]}
    return Contents(f"{_PFNET} on {backbone}", model, settings, classifier.shape[0])


# name of a weight that tells a head -> title, choice of model/head, names
_HEADS: dict[str, tuple[str, str, _Names]] = {
    "decode_head.hamburger.ham_in.conv.weight": ("SegNeXt", "lightham", _MMSEG),
    "decode_head.c1_bottleneck.conv.weight": ("mmsegmentation's DeepLabV3+", "deeplabv3plus", _MMSEG),
    "decode_head.cca.gamma.scale": ("mmsegmentation's CCNet", "ccnet", _MMSEG),
    "decode_head.fpn_bottleneck.conv.weight": ("mmsegmentation's UPerNet", "uperhead", _MMSEG),
    "decode_head.psp_modules.0.1.conv.weight": ("mmsegmentation's PSPNet", "pspnet", _PSPNET),
    "sr.scene_encoder.0.0.weight": ("FarSeg", "farseg", _FARSEG),
}


def _backbone(weights: Weights, title: str) -> tuple[str, dict[str, object]]:
    """A backbone's ending in names of networks, and settings that differ from that choice's."""
    prefix = "en.resnet." if "en.resnet.conv1.weight" in weights else "backbone."

    def blocks(layer: str) -> int:
        start = f"{prefix}{layer}."
        return len({key.removeprefix(start).partition(".")[0] for key in weights if key.startswith(start)})

    stem = weights.get("backbone.patch_embed1.proj.3.weight")
    if stem is not None and (size := _MSCAN.get((stem.shape[0], blocks("block3")))):
        return f"mscan_{size}", {}
    if "backbone.downsample_layers.0.0.weight" in weights and (name := _CONVNEXT.get(blocks("stages.2"))):
        return name, {}
    if f"{prefix}layer1.0.conv3.weight" in weights and (name := _RESNETS.get(blocks("layer3"))):
        return name, {"backbone.stem": "v1c" if "backbone.stem.0.weight" in weights else "plain"}
    raise CheckpointError(
        f"{title} with a backbone that pfseg lacks, or builds otherwise (as ResNet-18, which mmsegmentation dilates at "
        "other convolutions): expected ResNet-50 or -101, MSCAN or ConvNeXt"
    )
