"""A run for TensorBoard: files in `tensorboard/` of the run folder, written by the driver."""

from __future__ import annotations

from typing import Any

import cv2
import yaml
from tensorboardX import SummaryWriter

from pfseg.tracking.loggers import RunContext
from pfseg.tracking.records import ConfusionRow, Row, Sink, StartRow, ValRow, numbers

FLUSH_SECONDS = 2  # a killed driver loses no more


class TensorBoardLogger(Sink):
    """Writes rows of the records file as TensorBoard events, and the settings of `run` as text."""

    def __init__(self, run: RunContext) -> None:
        self._context = run
        self._writer: Any = None  # a SummaryWriter from on_start on: only then the step is known to go on from
        self._names: list[str] = []

    def on_start(self, row: StartRow) -> None:
        """Open a new events file; TensorBoard joins those of a resumed run."""
        # What an earlier start wrote after the step that this one goes on from is dropped by TensorBoard.
        purge = row["step"] + 1 if row["step"] else None
        folder = str(self._context.folder / "tensorboard")
        self._writer = SummaryWriter(folder, flush_secs=FLUSH_SECONDS, purge_step=purge)
        self._names = row.get("classes") or []
        text = yaml.safe_dump(dict(self._context.settings), sort_keys=False, allow_unicode=True)
        self._writer.add_text("settings", f"```yaml\n{text}\n```", row["step"])

    def on_train(self, row: Row) -> None:
        """Write losses, speed and memory, or the scores of a validation."""
        for key, value in numbers(row, "train/", "data/", "val/").items():
            self._writer.add_scalar(key, value, row["step"], walltime=row["time"])

    def on_val(self, row: ValRow) -> None:
        """Write scores and the picture of the samples."""
        self.on_train(row)
        panels = row.get("panels")
        if panels and (picture := cv2.imread(str(self._context.folder / panels))) is not None:
            self._writer.add_image("val/samples", picture[..., ::-1], row["step"], dataformats="HWC")

    def on_confusion(self, row: ConfusionRow) -> None:
        """Write the confusion matrix as a table of text."""
        lines = [["truth \\ predicted", *self._names], ["---"] * (len(self._names) + 1)]
        lines += [[name, *map(str, counts)] for name, counts in zip(self._names, row["confusion"], strict=True)]
        self._writer.add_text("val/confusion", "\n".join(f"| {' | '.join(line)} |" for line in lines), row["step"])

    def finish(self, exit_code: int = 0) -> None:
        """Write what is left; a second call does nothing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:  # the training itself has ended well
                self._context.console.message(f"TensorBoard's files lack their end: {error.strerror}", "warning")
