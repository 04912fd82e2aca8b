"""Settings of the groups `dataset` and `augment`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from pfseg.config import types as t
from pfseg.config.settings import KINDS, CustomTarget, Settings, Target, setting


class Edge(Settings):
    """Edge labels."""

    rule: Literal["class", "foreground"] = setting("between any two classes, or around class 0, as published")
    thickness: t.Count = setting("thickness of the band in pixels")


class About(Settings):
    """Where a data set comes from, for whoever reads its file."""

    url: str | None = setting("page to get the data from")
    licence: str | None = setting("licence of the data")
    citation: str | None = setting("publication to cite")


class Reading(TypedDict):
    """How image files are read; see `FolderData`."""

    bands: t.Bands | None
    stretch: t.Stretch | None


class Dataset(Target, extra="allow"):
    """What every data set has; one of the user's own may have further keys."""

    name: str = setting("name of the data set, also part of the run folder's")
    about: About | None = Field(None, description="where the data set comes from")
    root: str | None = setting("folder of the data set")
    classes: list[Any] = setting('class table in order: {name, color: "3C1098" or [r, g, b], id: value in the masks}')
    on_error: Literal["raise", "skip"] = setting("what a damaged file does: end the run, or be skipped and counted")
    mean: t.BandMeans | None = setting("mean of each band of images scaled to 0..1; null: measured")
    std: t.BandDeviations | None = setting("standard deviation of each band; null: measured")
    display_bands: t.ThreeBands | None = Field(
        None, description="three of the bands to show as red, green and blue in pictures; null: the first three"
    )
    ignore_index: t.Ignored = setting("label of pixels without a class")
    crop_size: t.Size = setting("training crop in pixels, or [height, width]")
    eval_size: t.Size | None = setting("validation windows in pixels; null: whole images, 2 GiB per megapixel")
    eval_contrast: t.Contrast | None = setting(
        "standard deviation of grey levels in images to predict; null: their own"
    )
    scale: t.Positive = setting("factor that images are resized by; scores are on the masks' own size")
    scale_range: t.ScaleRange | None = setting("random scale before the crop; null: the whole image becomes crop_size")
    class_uniform: t.Share = setting("share of the samples that are drawn class by class")
    edge: Edge

    @property
    def num_bands(self) -> int:
        """Bands of the images that a network is given: as many as there are means."""
        return len(self.mean or (0, 1, 2))

    @property
    def reading(self) -> Reading:
        """How image files are read, for data sets that have such settings."""
        return {"bands": getattr(self, "bands", None), "stretch": getattr(self, "stretch", None)}


class Prepare(Settings):
    """How whole scenes are found and cut."""

    scenes: CustomTarget | None = setting(
        "function that finds the scenes of a published archive; null: the folders above"
    )
    size: t.Size | None = setting("window in pixels, or [height, width]; null: each scene as a whole")
    stride: t.Size | None = setting("distance between windows in pixels; null: the size, no overlap")
    expected: dict[str, int | list[int]] | None = setting(
        "{size, stride, train, val}: patches that a complete archive gives"
    )


class SyntheticData(Dataset, extra="forbid", shipped="pfseg.data.synthetic.SyntheticDataset"):
    """Procedural aerial scenes, drawn by seed and index."""

    size: Annotated[int, Field(ge=64)] = setting("side of a scene in pixels")
    train_images: t.Count = setting("number of training scenes")
    val_images: t.Count = setting("number of validation scenes")
    seed: t.Natural = setting("seed of the scenes, apart from the run's own")


class FolderData(Dataset, extra="forbid", shipped="pfseg.data.folder.FolderDataset"):
    """Folders of images and masks."""

    images: str = setting("name of the folders with images")
    masks: str = setting("name of the folders with masks, beside those of the images, with the same file stems")
    mask_suffix: str = setting("what stems of masks have after the image's, such as _label")
    splits: t.Splits | None = setting(
        "null: folders train, val, test; {train: [train, more], val: val.txt}; or a share: {val: 0.2, seed: 0}"
    )
    ignore: list[t.IgnoreEntry] = setting("colours and values in masks that mean 'no class', besides 255")
    bands: t.Bands | None = setting("bands that the network gets, from 0, any number; null: red, green, blue")
    stretch: t.Stretch | None = setting(
        "black and white beyond 8 bits: percentiles [2,98] of each image, {percentiles: [2,98]} of the training split, "
        "or {range: [low,high]}; null: the full range"
    )
    source: Literal["patches", "scenes"] = setting("patches: images as they are; scenes: windows cut while training")
    prepare: Prepare


DatasetSettings: TypeAlias = Annotated[SyntheticData | FolderData | Dataset, KINDS]


class AugmentSettings(Target, shipped="pfseg.data.transforms.Augment"):
    """Joint augmentation of image and mask."""

    scale_range: t.ScaleRange | None = setting("random scale before the crop; null: the whole image becomes crop_size")
    hflip: t.Share = setting("probability of a left-right flip")
    vflip: t.Share = setting("probability of an upside-down flip")
    rot90: bool = setting("whether to turn by a random multiple of 90 degrees")
    rotate: Annotated[float, Field(ge=0, le=180)] = setting("largest further rotation either way, in degrees")
    blur: t.ScaleRange | None = setting("sigma of a Gaussian blur in pixels, [low, high]; null: none")
    brightness: t.Share = setting("largest relative change of brightness")
    contrast: t.Share = setting("largest relative change of contrast")
    saturation: t.Share = setting("largest relative change of saturation")
    hue: t.Share = setting("largest shift of the hue, in turns of the colour wheel")
    max_class_share: t.Share | None = setting("share of one class above which a random crop is drawn again; null: any")
    cutmix: t.Share = setting("share of samples that get a rectangle of another one")


AnyAugment: TypeAlias = Annotated[AugmentSettings | CustomTarget, KINDS]
