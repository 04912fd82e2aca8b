"""The temperature of a checkpoint, in a file beside it: `best.calibration.json` of `best.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfseg.errors import CheckpointError
from pfseg.files import write_atomic


def digest_of(checkpoint: Path) -> str:
    """SHA-256 of a file, which the temperature is bound to."""
    with checkpoint.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def calibration_file(checkpoint: Path) -> Path:
    """Where the temperature of a checkpoint is kept."""
    return checkpoint.with_suffix(".calibration.json")


def save_calibration(checkpoint: Path, found: Mapping[str, Any]) -> Path:
    """Keep a temperature and how it was found; returns the file, or raises WriteError."""
    path = calibration_file(checkpoint)
    write_atomic(path, json.dumps({"sha256": digest_of(checkpoint), **found}, indent=1, allow_nan=False))
    return path


def load_temperature(checkpoint: Path) -> float | None:
    """The temperature that was found for a checkpoint; None if none was.

    Raises:
        CheckpointError: the file is damaged, or of another checkpoint of the same name.
    """
    path = calibration_file(checkpoint)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        theirs, temperature = str(found["sha256"]), float(found["temperature"])
        assert temperature > 0
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}): remove it, or write it again by pfseg evaluate "
            "calibrate=true"
        ) from error
    if theirs != digest_of(checkpoint):
        raise CheckpointError(
            f"{path} is of another {checkpoint.name}, which was written over since: calibrate again by pfseg evaluate "
            "calibrate=true, or give temperature=1"
        )
    return temperature
