"""Settings of the group `model`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pfseg.config import types as t
from pfseg.config.settings import KINDS, CustomTarget, Target, setting


class ResNetSettings(Target, shipped="pfseg.models.resnet.ResNet"):
    """ResNet."""

    depth: Literal[18, 50, 101] = setting("number of layers")
    stem: Literal["deep", "plain", "v1c"] = setting(
        "first convolutions: three of 64, 64, 128 channels; one 7x7 as torchvision's; three of 32, 32, 64 as mmseg's"
    )
    output_stride: Literal[8, 16, 32] | None = setting("stride of the coarsest map in pixels; null: the head's")
    dilation: Literal["none", "full", "contracted"] | None = setting(
        "dilation of layer3 and layer4; contracted: half of it in their first blocks; null: the head's"
    )


class Res2NetSettings(Target, shipped="pfseg.models.res2net.Res2Net"):
    """Res2Net 26w x 4s."""

    depth: Literal[101] = setting("number of layers")


class MSCANSettings(Target, shipped="pfseg.models.mscan.MSCAN"):
    """MSCAN, the backbone of SegNeXt."""

    size: Literal["t", "s", "b"] = setting("tiny, small or base")
    drop_path: t.Decay = setting("share of samples for which training leaves out the last block's branches")


class ConvNeXtSettings(Target, shipped="pfseg.models.convnext.ConvNeXt"):
    """ConvNeXt."""

    size: Literal["t", "s"] = setting("tiny or small")
    drop_path: t.Decay = setting("share of samples for which training leaves out the last block's branches")


Backbone: TypeAlias = Annotated[
    ResNetSettings | Res2NetSettings | MSCANSettings | ConvNeXtSettings | CustomTarget, KINDS
]


class Model(Target, extra="allow"):
    """What every network has; one of the user's own may have further keys."""

    name: str = setting("name of the network, also part of the run folder's")
    num_classes: t.Count | None = setting("number of classes; null: as many as the data set has")
    pretrained: str | None = setting(
        "trained backbone to start from: imagenet, or a weights file (.pth, .pkl or .safetensors)"
    )
    init: str | None = setting("weights or checkpoint of a whole network to start from, with any number of classes")


class PFNetSettings(Model, extra="forbid", shipped="pfseg.models.pfnet.PFNet"):
    """PFNet (Li et al., CVPR 2021)."""

    variant: t.Variant = setting("family of published checkpoints that the network equals")
    num_edge_points: t.Natural = setting("boundary points per level; 0: no flow through them")
    match_dim: t.Count = setting("channels of the point matcher")
    fpn_dim: t.Count = setting("channels of the feature pyramid")
    edge_pool: t.Count = setting("side of the pooled map that boundary points are chosen from")
    salient_pool: t.Natural = setting("salient_pool² salient points per level; 0: no flow through them")
    pool_sizes: list[t.Count] | None = setting("sizes of the pyramid pooling; null: the variant's")
    dropout: t.Decay = setting("share of channels that are dropped in training")
    backbone: Backbone


class HeadSettings(Model, extra="forbid"):
    """What every network made of a head and a backbone has."""

    backbone: Backbone


class PyramidSettings(HeadSettings):
    """What semantic FPN has, and what is built on it."""

    fpn_dim: t.Count = setting("channels of the feature pyramid")
    dim: t.Groups = setting("channels that the pyramid's levels are reduced to before their sum, a multiple of 32")


class FPNSettings(PyramidSettings, shipped="pfseg.models.fpn.FPNHead"):
    """Semantic FPN (Kirillov et al., CVPR 2019)."""


class PointRendSettings(PyramidSettings, shipped="pfseg.models.pointrend.PointRendHead"):
    """PointRend on semantic FPN (Kirillov et al., CVPR 2020)."""

    point_dim: t.Count = setting("channels of the layers that classify points")
    train_points: t.Count = setting("points of an image that training classifies")
    points: t.Count = setting("points that prediction classifies anew in each of two doublings of the logits")


class UPerNetSettings(HeadSettings, shipped="pfseg.models.upernet.UPerNetHead"):
    """UPerNet (Xiao et al., ECCV 2018)."""

    fpn_dim: t.Count = setting("channels of the feature pyramid")
    pool_dim: t.Count = setting("channels of each pooled map")
    pool_sizes: list[t.Count] = setting("sizes of the pyramid pooling")


class PSPNetSettings(HeadSettings, shipped="pfseg.models.pspnet.PSPNetHead"):
    """PSPNet (Zhao et al., CVPR 2017)."""

    dim: t.Count = setting("channels before the classifier")
    pool_sizes: list[t.Count] = setting("sizes of the pyramid pooling")
    align_corners: bool = setting("whether resizing keeps the corner pixels' centres in place; false: as mmseg's")
    aux_dim: t.Count | None = setting("channels of the auxiliary head; null: none")
    dropout: t.Decay = setting("share of channels that are dropped in training")


class DeepLabV3PlusSettings(HeadSettings, shipped="pfseg.models.deeplab.DeepLabV3PlusHead"):
    """DeepLabV3+ (Chen et al., ECCV 2018)."""

    dim: t.Count = setting("channels of the context and before the classifier")
    fine_dim: t.Count = setting("channels of the finest map")
    dilations: t.Dilations = setting("dilations of the separable convolutions on the coarsest map")
    aux_dim: t.Count | None = setting("channels of the auxiliary head; null: none")
    dropout: t.Decay = setting("share of channels that are dropped in training")


class CCNetSettings(HeadSettings, shipped="pfseg.models.ccnet.CCNetHead"):
    """CCNet (Huang et al., ICCV 2019)."""

    dim: t.Count = setting("channels of the attention")
    aux_dim: t.Count | None = setting("channels of the auxiliary head; null: none")
    dropout: t.Decay = setting("share of channels that are dropped in training")


class SFNetSettings(HeadSettings, shipped="pfseg.models.sfnet.SFNetHead"):
    """SFNet (Li et al., ECCV 2020)."""

    fpn_dim: t.Count | None = setting(
        "channels of the pyramid; null: 128 on a backbone of at most 512 channels, or 256"
    )
    pool_sizes: list[t.Count] = setting("sizes of the pyramid pooling")
    dropout: t.Decay = setting("share of channels that are dropped in training")
    dsn: bool = setting("whether each finer level has an auxiliary head")


class FarSegSettings(HeadSettings, shipped="pfseg.models.farseg.FarSegHead"):
    """FarSeg (Zheng et al., CVPR 2020)."""

    fpn_dim: t.Count = setting("channels of the feature pyramid")
    dim: t.Count = setting("channels of the decoder")


class LightHamSettings(HeadSettings, shipped="pfseg.models.lightham.LightHam"):
    """LightHam, the head of SegNeXt (Guo et al., NeurIPS 2022)."""

    channels: t.Count = setting("channels of the head, a multiple of 32")
    rank: t.Count = setting("number of vectors whose combinations stand for all positions")
    dropout: t.Decay = setting("share of channels that are dropped in training")


class UPerHeadSettings(HeadSettings, shipped="pfseg.models.uperhead.UPerHead"):
    """UPerHead of mmsegmentation, UPerNet as ConvNeXt's authors use it."""

    channels: t.Count = setting("channels of the head; its auxiliary head has half of them")
    dropout: t.Decay = setting("share of channels that are dropped in training")


ModelSettings: TypeAlias = Annotated[
    PFNetSettings
    | FPNSettings
    | PointRendSettings
    | UPerNetSettings
    | PSPNetSettings
    | DeepLabV3PlusSettings
    | CCNetSettings
    | SFNetSettings
    | FarSegSettings
    | LightHamSettings
    | UPerHeadSettings
    | Model,
    KINDS,
]
