"""Train: `python train.py [key=value ...]`; see conf/train.yaml, and `python train.py --help` for all choices."""

from __future__ import annotations

from typing import Any

from pfseg.config.compose import main


def train(config: dict[str, Any]) -> float | None:
    """Train as configured; the best validation mIoU in percent."""
    from pfseg.commands import jobs as driver

    return driver.train(config)


if __name__ == "__main__":
    main(train, "train")
