"""Schemas of the commands that do their work in the process that they are started in, without ranks.

As in `pfseg.config.schema`, the YAML files hold every default and say what each key means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pfseg.config.schema import Contrast, Count, FolderData, Model, Natural, Percent, PFNet, Positive, Size, Train
from pfseg.config.validate import Kinds, Limit


@dataclass
class Preview(Train):
    """conf/preview.yaml."""

    job: Literal["preview"]  # type: ignore[assignment]
    out: str
    rows: Count
    samples: Count


@dataclass
class PrepareJob:
    """conf/prepare.yaml."""

    job: Literal["prepare"]
    src: str
    out: str
    overwrite: bool
    verify: bool | Literal["only"]
    compression: Annotated[int, Limit(least=0, most=3)]
    workers: Literal["auto"] | Count
    dataset: Annotated[FolderData, Kinds("_target_", {"pfseg.data.folder.FolderDataset": FolderData}, FolderData)]


@dataclass
class Predict:
    """conf/predict.yaml."""

    job: Literal["predict"]
    checkpoint: str
    input: str
    output: str
    overwrite: bool
    outputs: list[Literal["classes", "color", "overlay", "probabilities", "polygons", "geopackage"]]
    format: Literal["auto", "png", "tif"]
    window: Size | None
    overlap: Annotated[float, Limit(least=0, below=1)]
    resize: Size | None
    scales: list[Positive]
    flips: Literal["none", "h", "v", "hv", "d4"]
    batch_size: Count
    bands: tuple[Natural, Natural, Natural] | None
    stretch: tuple[Percent, Percent] | None
    contrast: Contrast | Literal["own"] | None
    nodata: bool
    trust: bool


@dataclass
class Profile:
    """conf/profile.yaml."""

    job: Literal["profile"]
    size: Size
    batch_size: Count
    classes: Count
    rounds: Count
    fold: bool
    model: Annotated[Model, Kinds("_target_", {"pfseg.models.pfnet.PFNet": PFNet}, Model)]
