"""From composed settings to checked, typed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pfseg.config.commands import SCHEMAS, Convert, Export, Predict, PrepareJob, Preview
from pfseg.config.compose import first_line
from pfseg.config.schema import Evaluate, Train
from pfseg.config.settings import Settings
from pfseg.config.trained_checks import check_convert, check_evaluate, check_export, check_predict
from pfseg.config.training_checks import check_prepare, check_preview, check_train
from pfseg.config.validation import description, validate
from pfseg.errors import ConfigError

S = TypeVar("S", bound=Settings)
# What can't go together, and what follows from several settings, which is filled in.
_CHECKS: dict[type[Settings], Callable[[Any], None]] = {
    Train: check_train,
    Preview: check_preview,
    PrepareJob: check_prepare,
    Evaluate: check_evaluate,
    Predict: check_predict,
    Convert: check_convert,
    Export: check_export,
}


def check(cfg: DictConfig) -> Settings:
    """Check and resolve settings that were composed from a command's file in conf/, such as train.yaml.

    Returns:
        Typed settings of the command, with what follows from other values filled in: `model.num_classes`, `ranks` as a
        number, absolute paths.

    Raises:
        ConfigError: an unknown or missing key, a wrong type or range, values that don't go together, or a file,
            folder or device that isn't there.
    """
    if cfg.get("verify") == "only" and OmegaConf.is_missing(cfg, "src") and not OmegaConf.is_missing(cfg, "out"):
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"src": cfg.out}))  # a check of patches needs no archive
    if cfg.get("job") == "convert" and "dataset.root" in OmegaConf.missing_keys(cfg):
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"dataset": {"root": None}}))  # nor does a checkpoint need data
    schema = SCHEMAS.get(cfg.get("job", ""), Train)
    try:
        raw = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'a value'} cannot be resolved: {first_line(error)}") from error
    for key in sorted(OmegaConf.missing_keys(OmegaConf.create(raw))):
        raise ConfigError(f"{key} is not set: add {key}=<{description(schema, raw, key)}>")
    if schema is PrepareJob and "prepare" not in raw["dataset"]:
        raise ConfigError(f"dataset={raw['dataset'].get('name')} has no files to cut: choose another data set")
    settings = validate(raw, schema)
    if schema in _CHECKS:
        _CHECKS[schema](settings)
    return settings


def checked(cfg: DictConfig, schema: type[S]) -> S:
    """Check composed settings that are of the class `schema`; see `check`."""
    settings = check(cfg)
    assert isinstance(settings, schema)
    return settings
