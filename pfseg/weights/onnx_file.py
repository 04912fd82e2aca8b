"""What an ONNX file written by `pfseg export` says about itself, read without running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfseg.errors import CheckpointError, MissingPackage, one_line
from pfseg.files import parse_json

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

SUFFIX = ".onnx"
_OWN = ("bands", "stretch", "mean", "std", "classes")
NEEDED = (*_OWN, "pfseg")  # entries of the metadata, each JSON
_AGAIN = "export the checkpoint again, by pfseg export"


@dataclass(frozen=True)
class OnnxFile:
    """An exported network.

    Attributes:
        header: metadata of the checkpoint that was exported, as JSON; see `pfseg.weights.checkpoint`.
        mean: mean of each channel, of images scaled to 0..1, which the graph subtracts.
        std: standard deviation of each channel, which it divides by.
        num_classes: K.
        size: side of its input in pixels.
        batch: images that go in at once; None for any number.
        opset: version of ONNX's operators.
    """

    path: Path
    header: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    size: int
    batch: int | None
    opset: int


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file, all but its weights.

    Raises:
        CheckpointError: missing, damaged, without pfseg's metadata, or not of one square image and its probabilities.
        ConfigError: the package onnx isn't installed.
    """
    model = _load(path)
    found = _metadata(path, {entry.key: entry.value for entry in model.metadata_props})
    given, told = [[*each] for each in (model.graph.input, model.graph.output)]
    if len(given) != 1 or len(told) != 1:
        raise _unfit(path, f"{len(given)} inputs and {len(told)} outputs")
    shape, out = _shape(given[0]), _shape(told[0])
    expected = [len(found["mean"]), shape[-1], shape[-1]], [found["classes"], shape[-1], shape[-1]]
    if (shape[1:], out[1:]) != expected or shape[-1] is None:
        raise _unfit(path, f"an input of {_shown(shape)} and an output of {_shown(out)}")
    return OnnxFile(
        path=path,
        header=found["pfseg"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        num_classes=found["classes"],
        size=int(shape[-1]),
        batch=shape[0],
        opset=max((each.version for each in model.opset_import if not each.domain), default=0),
    )


def _load(path: Path) -> ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingPackage(str(path), str(error.name), "onnx") from error
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist") from error
    except (DecodeError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete ONNX file ({one_line(error)}); {_AGAIN}") from error
    if not model.graph.node:
        raise CheckpointError(f"{path} is not a complete ONNX file (it holds no graph); {_AGAIN}")
    return model


def _metadata(path: Path, texts: dict[str, str]) -> dict[str, Any]:
    if missing := [key for key in NEEDED if key not in texts]:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)} in its metadata, without which no image can be prepared for it: give "
            "a file that pfseg export has written"
        )
    try:
        found = {key: parse_json(texts[key]) for key in _OWN}
        if len({len(found["mean"]), len(found["std"])}) == 1 and all(
            isinstance(each, float | int) for each in found["mean"] + found["std"]
        ):
            return found | {"classes": len(found["classes"]), "pfseg": texts["pfseg"]}
        fault = "mean and std are not equally many numbers"
    except (ValueError, TypeError) as error:
        fault = one_line(error)
    raise CheckpointError(f"{path} has damaged metadata ({fault}); {_AGAIN}")


def _shape(value: ValueInfoProto) -> list[int | None]:
    sides = value.type.tensor_type.shape.dim
    return [side.dim_value if side.HasField("dim_value") else None for side in sides] or [None]


def _shown(shape: list[int | None]) -> str:
    return f"({', '.join('N' if side is None else str(side) for side in shape)})"


def _unfit(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} has {what}, expected one square image (N, C, S, S) and its probabilities (N, K, S, S) for the "
        f"channels and classes of its metadata; {_AGAIN}"
    )
