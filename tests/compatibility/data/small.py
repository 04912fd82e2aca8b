"""A user's backbone: four strided convolutions."""

from __future__ import annotations

from typing import Any

from pfseg.runtime import jt

nn = jt.nn


class Backbone(nn.Module):
    """Maps of `width`, 2, 3 and 4 times `width` channels at strides 4, 8, 16 and 32."""

    feature_strides = (4, 8, 16, 32)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = tuple(width * times for times in (1, 2, 3, 4))
        self.layer0 = nn.Conv(3, width, 4, stride=4)
        self.layer1 = nn.Conv(width, width, 3, padding=1)
        self.layer2 = strided(width, 2 * width)
        self.layer3 = strided(2 * width, 3 * width)
        self.layer4 = strided(3 * width, 4 * width)


def strided(channels: int, out: int) -> Any:
    """Halve the size."""
    return nn.Conv(channels, out, 3, stride=2, padding=1)
