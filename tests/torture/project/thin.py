"""A network of two convolutions: what surrounds a network is tortured, not the network."""

from typing import Any

from pfseg import SegOutput
from pfseg.runtime import jt

nn = jt.nn


class Thin(nn.Module):
    """Classifies patches of 4 px a side by their neighbourhood."""

    output_stride = 4

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv(3, width, 4, stride=4), nn.BatchNorm(width), nn.ReLU())
        self.conv_seg = nn.Conv(width, num_classes, 3, padding=1)

    def predict(self, image: Any) -> Any:
        """Logits (N, K, H, W) of (N, 3, H, W)."""
        return nn.resize(self.conv_seg(self.stem(image)), image.shape[2:], mode="bilinear")

    def execute(self, image: Any) -> SegOutput:
        """Logits alone."""
        return SegOutput(self.predict(image))
