"""A run for TensorBoard: files in `tensorboard/` of the run folder, written by the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import yaml

from pfseg.tracking.records import Sink

FLUSH_SECONDS = 2  # a killed driver loses no more


class TensorBoardLogger(Sink):
    """Writes rows of the records file as TensorBoard events.

    Args:
        folder: the run folder.
        config: the resolved configuration, shown as text.
        console: told where the files are.
    """

    def __init__(self, folder: Path, config: dict[str, Any], console: Sink) -> None:
        """Open a new events file; TensorBoard joins those of a resumed run."""
        self.folder, self._config, self._console = folder, config, console
        self._writer: Any = None
        self._names: list[str] = []

    def record(self, row: dict[str, Any]) -> None:
        """Write a training or validation row; the settings go with the start."""
        handler = getattr(self, f"_on_{row['event']}", None)
        if handler is not None:
            handler(row)

    def finish(self, exit_code: int = 0) -> None:
        """Write what is left; a second call does nothing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:  # the training itself has ended well
                self._console.message(f"TensorBoard's files lack their end: {error.strerror}", "warning")

    def _on_start(self, row: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        # What an earlier start wrote after the step that this one goes on from is dropped by TensorBoard.
        purge = row["step"] + 1 if row["step"] else None
        folder = self.folder / "tensorboard"
        self._writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS, purge_step=purge)
        self._names = row.get("classes") or []
        text = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
        self._writer.add_text("settings", f"```yaml\n{text}\n```", row["step"])

    def _on_train(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key.startswith(("train/", "data/")) and value is not None:
                self._writer.add_scalar(key, value, row["step"], walltime=row["time"])

    def _on_val(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key.startswith("val/") and value is not None:
                self._writer.add_scalar(key, value, row["step"], walltime=row["time"])
        if row.get("panels") and (picture := cv2.imread(str(self.folder / row["panels"]))) is not None:
            self._writer.add_image("val/samples", picture[..., ::-1], row["step"], dataformats="HWC")

    def _on_confusion(self, row: dict[str, Any]) -> None:
        lines = [["truth \\ predicted", *self._names], ["---"] * (len(self._names) + 1)]
        lines += [[name, *map(str, counts)] for name, counts in zip(self._names, row["confusion"], strict=True)]
        self._writer.add_text("val/confusion", "\n".join(f"| {' | '.join(line)} |" for line in lines), row["step"])
