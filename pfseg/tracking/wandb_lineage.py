"""What a W&B run uses: the index of its data and the checkpoint that it starts from, as input artifacts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb

from pfseg.data.cache import cache_folder


def use_inputs(run: wandb.Run, settings: Mapping[str, Any], data: Mapping[str, str | None] | None) -> None:
    """Declare the inputs of an online run; raises what W&B raises, whose artifacts may take a while.

    `settings` are those of the run, `data` is that of `pfseg.launch.provenance.Data`.

    Files are named by path and checksum, and not uploaded. A checkpoint that W&B has is used by its name there, which
    links the run with the one that made it.
    """
    if data and data["root"] and data["index"]:
        index = Path(data["root"], "index.json").absolute()
        run.use_artifact(_reference(f"data-{index.parent.name}", "dataset", index, {**data}))
    start = settings.get("checkpoint") or (settings.get("model") or {}).get("init")
    if start is None:
        return
    file = Path(start)
    if name := artifact_of(file):
        with suppress(wandb.errors.CommError, ValueError):  # it was never uploaded
            run.use_artifact(name, type="model")
            return
    run.use_artifact(_reference(f"weights-{file.stem}", "model", file, {}))


def artifact_of(checkpoint: Path) -> str | None:
    """The name of the artifact that a checkpoint is a download of, or may have been uploaded as; None: neither."""
    downloads = cache_folder() / "wandb"
    if checkpoint.is_relative_to(downloads):  # <entity>/<project>/<name>/<version>/<file>
        *path, version, _ = checkpoint.relative_to(downloads).parts
        return f"{'/'.join(path)}:{version}"
    run = checkpoint.parent.parent / "wandb" / "run_id"
    return f"checkpoint-{run.read_text().strip()}:{checkpoint.stem}" if run.is_file() else None


def _reference(name: str, kind: str, file: Path, metadata: dict[str, object]) -> wandb.Artifact:
    """An artifact that names a file by path and checksum, without its content."""
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name, flags=re.ASCII), kind, metadata=metadata)
    artifact.add_reference(file.absolute().as_uri())
    return artifact
