"""The settings of the commands that do their work in the process that they are started in, without ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from pfseg.config import types as t
from pfseg.config.data_settings import DatasetSettings, FolderData
from pfseg.config.model_settings import ModelSettings
from pfseg.config.run_settings import Mpi, Slurm
from pfseg.config.schema import Application, DataChanges, Evaluate, EvaluateData, Train, TrainBase
from pfseg.config.settings import KINDS, Settings, setting

Output = Literal[
    "classes", "color", "overlay", "probabilities", "polygons", "geopackage", "confidence", "entropy", "margin",
    "disagreement",
]  # fmt: skip


class Preview(TrainBase):
    """Show training samples as the network would get them; takes every setting of a training."""

    job: Literal["preview"] = setting("the command")
    out: str = setting("picture to write, a .png file")
    rows: t.Count = setting("samples in the picture")
    samples: t.Count = setting("samples that the shares of the classes are counted on")


class PrepareJob(Settings):
    """Cut whole scenes into patches to train on, or check an earlier result."""

    job: Literal["prepare"] = setting("the command")
    src: str = setting("folder of the unpacked archive or of the scenes; never written to")
    out: str = setting("folder for the patches: new, empty, or that of an earlier start of the same preparation")
    overwrite: bool = setting("whether to remove first what an earlier preparation wrote into out")
    verify: bool | Literal["only"] = setting("whether to read back what was written; only: check an earlier result")
    compression: Annotated[int, Field(ge=0, le=3)] = setting("0 (fastest) to 3 (smallest files)")
    workers: Literal["auto"] | t.Count = setting("threads that write patches; auto: one per core")
    dataset: FolderData


class Predict(Application):
    """Make maps of any image, from a PNG to a GeoTIFF that doesn't fit into memory."""

    job: Literal["predict"] = setting("the command")
    launch: Annotated[Mpi | Slurm, KINDS]
    input: str = setting("image, folder, pattern in quotes such as 'scenes/*.tif', URL (https, s3) or STAC item")
    asset: str | None = setting("asset to take of a STAC item; null: its only image")
    region: t.Bounds | str | None = setting(
        "what to map: [left,bottom,right,top] in the image's CRS, or a GeoJSON file of polygons; null: all"
    )
    scale_to: t.Positive | None = setting("metres of a pixel to map at, resampling the image; null: its own")
    output: str = setting("folder for the maps, beside the images")
    overwrite: bool = setting("whether to make maps again that are there already")
    outputs: list[Output] = setting("what to write of each image")
    format: Literal["auto", "png", "tif"] = setting("auto: GeoTIFFs of TIFFs, PNGs of other images")
    window: t.Size | None = setting("window in pixels, or [height, width]; null: as in validation, or else training")
    resize: t.Size | None = setting("instead of windows: size that the whole image is resized to")
    batch_size: t.Count = setting("windows at a time")
    bands: t.Bands | None = setting("bands that the network gets, from 0; null: as in training or the file")
    stretch: t.Stretch | None = setting("black and white beyond 8 bits, as dataset.stretch; null: as in training")
    nodata: bool = setting("whether pixels without data have none in the map, instead of being predicted")
    temperature: t.Positive | None = setting("what logits are divided by; null: as calibrated by pfseg evaluate, or 1")
    percent: bool = setting("whether confidence, entropy, margin and disagreement are whole percents in 8 bits")
    dataset: DataChanges


class Export(Settings):
    """Write a trained network as one ONNX file, for ONNX Runtime and QGIS, or as a folder to share."""

    job: Literal["export"] = setting("the command")
    checkpoint: str = setting("run folder (its best checkpoint) or .safetensors file")
    out: str = setting("file to write, *.onnx, or folder")
    format: Literal["onnx", "folder"] = setting("folder: also weights, settings, scores and a model card, to share")
    size: t.Count | None = setting("side of its input in pixels; null: as in validation, or else training")
    dynamic_batch: bool = setting("whether any number of images goes in at once; some programs take one only")
    overlap: t.Decay = setting("share of a tile that the next one covers too, for programs that cut tiles")
    ground_resolution: t.Positive | None = setting("metres that a pixel covers; null: as the training images say")
    precision: Literal["fp32", "fp16", "int8"] = setting("of the convolutions: int8 needs images")
    images: str | None = setting("image, folder or pattern: images whose values int8 has to hold")
    split: t.Split = setting("split of dataset.root that fp16 and int8 are scored on, beside fp32")
    push: str | None = setting("repository owner/name on the Hugging Face Hub that a folder is uploaded to")
    trust: bool = setting("whether to run code that the checkpoint names and that isn't pfseg's own")
    dataset: EvaluateData


class Profile(Settings):
    """Measure parameters, multiply-adds, time and memory of a network."""

    job: Literal["profile"] = setting("the command")
    size: t.Size = setting("side of the image in pixels, or [height, width]")
    batch_size: t.Count = setting("images at a time")
    classes: t.Count = setting("number of classes")
    bands: t.Count = setting("bands of the images")
    rounds: t.Count = setting("forward passes, of which medians are shown, after one that compiles")
    fold: bool = setting("whether BatchNorm becomes part of the convolutions, as in prediction")
    model: ModelSettings


class Convert(Settings):
    """Show what a weights file holds, or convert it; nothing in it is executed."""

    job: Literal["convert"] = setting("the command")
    file: str = setting(".pth (zip or legacy), .pkl of Jittor, or .safetensors")
    to: Literal["safetensors", "pth"] | None = setting("format to convert to; null: only show the file")
    out: str | None = setting("file to write; null: beside the given one")
    variant: t.Variant | None = setting("family that the weights belong to, which the file can't tell")
    dataset: DatasetSettings | None = setting("data set that the weights were trained on, which the file can't tell")


class Report(Settings):
    """Compare runs in a table, and in files where asked for."""

    job: Literal["report"] = setting("the command")
    runs: list[str] = setting("run folders, folders above them, or patterns")
    html: str | None = setting("file for a page with curves, classes, confusion matrices and pictures")
    csv: str | None = setting("file for the table in full precision")
    markdown: str | None = setting("file for the table as Markdown")
    latex: str | None = setting("file for the table as LaTeX (booktabs)")
    where: list[str] = setting("only runs with these settings, such as ['seed=1']")
    sort: str | None = setting("column or setting to sort by, with :asc or :desc; null: mIoU:desc")


class Dashboard(Settings):
    """Save a W&B workspace with panels for what the given runs have logged."""

    job: Literal["dashboard"] = setting("the command")
    runs: list[str] = setting("run folders, folders above them, or patterns")
    entity: str | None = setting("user or team; null: as in the runs' settings, or the key's own")
    project: str | None = setting("project; null: as in the runs' settings")
    json_file: str | None = Field(alias="json", description="file to write the workspace to; needs no key or network")


class Reproduce(Settings):
    """Print the command that repeats a run, and what differs from when it ran; or start it."""

    job: Literal["reproduce"] = setting("the command")
    run: str = setting("run folder, outputs/<name>/<date>/<time>")
    start: bool = setting("whether to start it, in a new folder")
    force: bool = setting("whether to start it although code, settings or data differ")


_SCHEMAS = (Train, Evaluate, Predict, PrepareJob, Preview, Profile, Convert, Export, Report, Reproduce, Dashboard)
SCHEMAS: dict[str, type[Settings]] = {get_args(each.model_fields["job"].annotation)[0]: each for each in _SCHEMAS}


def load(settings: Mapping[str, Any]) -> Settings:
    """Typed settings from what `dump` returned; they were checked before."""
    return SCHEMAS[settings["job"]].model_validate_json(json.dumps(settings))
