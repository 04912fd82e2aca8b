"""Evaluate: `python evaluate.py checkpoint=<run folder or .safetensors file>`; see conf/evaluate.yaml."""

from __future__ import annotations

from typing import Any

from pfseg.config.compose import main


def evaluate(config: dict[str, Any]) -> float | None:
    """Score a checkpoint; the mIoU in percent."""
    from pfseg.commands import jobs as driver

    return driver.evaluate(config)


if __name__ == "__main__":
    main(evaluate, "evaluate")
