"""Compile the operators that predictions need: `python warm_up.py <model> <side of the windows>`.

Jittor keeps what it compiles in ~/.cache/jittor, by operator and not by size, so one pass of each kind is enough.
"""

from __future__ import annotations

import sys

import numpy as np

from pfseg import create_model
from pfseg.inference.folding import JittorNetwork, fold_batchnorm


def main(names: list[str], side: int) -> None:
    """Send a batch of one and of two images through each network, as prediction does."""
    for name in names:
        for variant in ("pytorch", "jittor"):
            model = create_model(name, num_classes=2, variant=variant)
            fold_batchnorm(model)
            predict = JittorNetwork(model.predict)
            for batch in (1, 2):
                predict(np.zeros((batch, 3, side, side), np.float32))


if __name__ == "__main__":
    main(sys.argv[1:-1], int(sys.argv[-1]))
