"""Files and folders that settings name, and sizes in messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfseg.config.data_settings import Dataset
from pfseg.config.schema import EvaluateData
from pfseg.config.validation import as_typed
from pfseg.errors import ConfigError


def find_data(data: Dataset | EvaluateData) -> None:
    """Make the folder of the data set absolute; raises ConfigError if there is none."""
    if data.root is not None:
        data.root = existing("dataset.root", data.root, "the folder of the data set", folder=True)


def existing(key: str, given: str, what: str, *, folder: bool = False) -> str:
    """Absolute path of a file or folder that the setting `key` names; raises ConfigError for any other."""
    path = Path(given).expanduser().absolute()
    if path.is_dir() if folder else path.is_file():
        return str(path)
    fault = f"is not a {'folder' if folder else 'file'}" if path.exists() else "does not exist"
    raise ConfigError(f"{key}={given} {fault} (looked in {path}): set {key}=<{what}>")


def absolute(path: str) -> str:
    """The absolute path that a setting names."""
    return str(Path(path).expanduser().absolute())


def shown_size(size: Sequence[int]) -> str:
    """A size (height, width) as on a command line."""
    return as_typed(size[0] if size[0] == size[1] else list(size))
