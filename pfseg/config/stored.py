"""Settings of earlier runs, from checkpoints and run folders: old names, later keys, and runs that are resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pfseg.config.compose import quote
from pfseg.config.schema import Train
from pfseg.config.validation import validate
from pfseg.errors import CheckpointError, ConfigError
from pfseg.files import load_yaml
from pfseg.weights.checkpoint import load_meta

_RENAMED = {  # by group
    "dataset": {"resolution": "scale"},
    "launch": {"heartbeat": "timeout"},
    "loss": {"over_ranks": "global_reduction"},
}
_MOVED = {  # classes by `_target_`
    "pfseg.data.isaid.find_scenes": "pfseg.data.archives.isaid.find_scenes",
    "pfseg.data.isprs.find_potsdam": "pfseg.data.archives.isprs.find_potsdam",
    "pfseg.data.isprs.find_vaihingen": "pfseg.data.archives.isprs.find_vaihingen",
}
# Settings that came later, with the value that means what was done before.
_LATER: dict[str, dict[str, object]] = {
    "dataset": {"eval_contrast": None, "class_uniform": 0.0},
    "loss": {"global_reduction": False},
    "trainer": {
        "log_grad_norm": False,
        "bn_batches": 0,
        "checkpointing": False,
        "deterministic": False,
        "freeze_backbone": 0,
        "overfit": False,
    },
    "optimizer": {"decay_norms": True, "lr_factors": {}},
    "logger.wandb": {"registry": None, "alerts": [], "fork": False},
    "": {"pruner": None, "resume": None, "precision": "fp32"},
}
_LATER_OF: dict[str, dict[str, object]] = {  # the same by `_target_`
    "pfseg.losses.PFNetLoss": {
        "class_weights": None,
        "label_smoothing": 0.0,
        "terms": {},
        "aux_weight": 0.4,
        "aux_min_kept": None,
        "point_weight": 1.0,
    },
    "pfseg.models.resnet.ResNet": {"stem": "deep", "output_stride": None, "dilation": None},
}
_NEEDED = {
    ".hydra/overrides.yaml": "is not a run folder (no .hydra/overrides.yaml): give outputs/<name>/<date>/<time>",
    "resolved.yaml": "has no resolved.yaml: it never started; start a new run",
    "checkpoints/last.safetensors": "has no checkpoints/last.safetensors to go on from: start a new run",
}
_OWN = ("pfseg.models.", "pfseg.data.")  # what a checkpoint may name without trust


def current_key(override: str) -> str:
    """An override with the present name of its key."""
    key, sign, value = override.partition("=")
    group, _, name = key.rpartition(".")
    new = _RENAMED.get(group.lstrip("+~").partition(".")[0], {}).get(name)
    return f"{group}.{new}{sign}{value}" if new else override


def current(settings: Mapping[str, object]) -> dict[str, Any]:
    """Stored settings under their present names, later ones filled in; nothing is checked."""
    renamed = _rename(settings, "")
    for group, later in _LATER.items():
        node: Any = renamed
        for key in filter(None, group.split(".")):
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.update(later | node)
    return renamed


def training_settings(path: Path, dataset: Mapping[str, object] | None = None, *, trust: bool = False) -> Train:
    """The settings that a checkpoint was trained with, but for those in `dataset`.

    Args:
        path: of the checkpoint.
        dataset: settings of the data set that replace the stored ones.
        trust: whether the checkpoint may name classes that aren't pfseg's own.

    Raises:
        CheckpointError: unreadable, damaged, or it names code that isn't trusted.
        ConfigError: a key or value of `dataset` doesn't fit.
    """
    stored = current(load_meta(path)["config"])
    if not trust:
        _reject_foreign(path, {key: stored.get(key) for key in ("model", "dataset")})
    try:
        settings = validate(stored, Train, targets=False)
    except ConfigError as error:
        raise CheckpointError(f"{path} doesn't say how it was trained ({error}); use another checkpoint") from error
    if not dataset:
        return settings
    merged = OmegaConf.to_container(OmegaConf.merge(stored["dataset"], dataset))
    return validate(stored | {"dataset": merged}, Train, targets=False)


def check_fits(path: Path, stored: Train, settings: Train) -> None:
    """Raise CheckpointError if a checkpoint to resume is of another network or optimizer, naming the first setting."""
    theirs, ours = _kept(stored), _kept(settings)
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            raise CheckpointError(
                f"{path} was trained with {key}={theirs.get(key)}, this run has {ours.get(key)}; "
                "resume without this change, or start a new run"
            )


def _kept(settings: Train) -> dict[str, object]:
    """The settings that a resumed run may not change, by dotted key."""
    model = settings.model.dump()
    backbone = model.get("backbone") or {}  # a network of the user's own may have none
    model |= {f"backbone.{key}": value for key, value in backbone.items()}
    free = {"name", "pretrained", "init", "dropout", "num_edge_points", "backbone"}
    kept = {f"model.{key}": value for key, value in model.items() if key not in free}
    return kept | {"optimizer.name": settings.optimizer.name}


def _rename(node: Mapping[str, object], group: str) -> dict[str, object]:
    renamed = {}
    for key, value in node.items():
        if key == "_target_" and isinstance(value, str):
            value = _MOVED.get(value, value)
        elif isinstance(value, Mapping):
            value = _rename(value, group or key)
        renamed[_RENAMED.get(group, {}).get(key, key)] = value
    return _LATER_OF.get(str(node.get("_target_")), {}) | renamed


def _reject_foreign(path: Path, node: object) -> None:
    """Raise CheckpointError for a `_target_` outside pfseg: building it would run whatever the file says."""
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not str(target).startswith(_OWN):
            raise CheckpointError(
                f"{path} names {target}, which isn't part of pfseg: rejected, nothing was executed; "
                "add trust=true if you know where the file comes from"
            )
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _reject_foreign(path, part)


def expand_resume(overrides: Sequence[str], *, multirun: bool = False) -> list[str]:
    """Replace `resume=<run>` by the run's own overrides that aren't given anew, its folder, and those given now.

    Raises ConfigError for a folder that can't be resumed, and for several runs (`multirun`).
    """
    given = [override for override in overrides if override.startswith("resume=")]
    value = given[-1].partition("=")[2].strip("'\"") if given else ""
    if value in ("", "null"):
        return list(overrides)
    if multirun:
        raise ConfigError("resume continues one run: leave out -m (--multirun)")
    folder = resumable(value)
    now = [override for override in overrides if not override.startswith(("resume=", "hydra.run.dir="))]
    keys = {override.partition("=")[0] for override in now}
    try:
        saved = load_yaml(folder / ".hydra" / "overrides.yaml")
        assert isinstance(saved, list) and all(isinstance(old, str) for old in saved)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"resume={value}: .hydra/overrides.yaml is damaged; start a new run") from error
    saved = [current_key(old) for old in saved]
    kept = [old for old in saved if (key := old.partition("=")[0]) not in keys and key != "resume"]
    return [*kept, *now, f"resume={quote(str(folder))}", f"hydra.run.dir={quote(str(folder))}"]


def resumable(resume: str) -> Path:
    """The run folder that `resume` names; raises ConfigError if it can't be continued."""
    folder = Path(resume).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"resume={resume} does not exist (looked in {folder}): give outputs/<name>/<date>/<time>")
    for file, fault in _NEEDED.items():
        if not (folder / file).is_file():
            raise ConfigError(f"resume={resume} {fault}")
    return folder
