"""What loggers have written, read back from their files."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event


def wandb_records(folder: Path) -> list[list[dict[str, Any]]]:
    """Records of each offline W&B run in a run folder, oldest run first."""
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    leet = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json"]
    texts = [subprocess.run([*leet, str(run)], capture_output=True, text=True, check=True).stdout for run in runs]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def wandb_history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Logged values of each step of a W&B run."""
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def wandb_rows(records: list[dict[str, Any]], key: str) -> list[list[Any]]:
    """Rows of a table that was logged once, with its pictures, as the artifact of the table has them."""
    tables = [record["artifact"] for record in records if record["type"] == "artifact"]
    (table,) = (each for each in tables if each["name"].partition("-")[2].partition("-")[2].startswith(f"{key}-"))
    (entry,) = (entry for entry in table["manifest"]["contents"] if entry["path"].endswith(".table.json"))
    return json.loads(Path(entry["local_path"]).read_text())["data"]


def tensorboard_events(file: Path) -> Iterator[Any]:
    """Each event of a file: length, checksum, content, checksum."""
    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        checksum = crc32c(data)
        masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked,)
        yield Event.FromString(data)
        content = content[16 + length :]


def tensorboard_values(folder: Path) -> dict[tuple[str, int], Any]:
    """Summary values of a run with their times, by (tag, step)."""
    files = sorted((folder / "tensorboard").iterdir())
    found = [event for file in files for event in tensorboard_events(file)]
    return {(value.tag, event.step): (value, event.wall_time) for event in found for value in event.summary.value}
