"""Networks: backbones, the PointFlow module and PFNet. Knows neither losses nor data."""

from pfseg.models.pfnet import PFNet, SegOutput

__all__ = ["PFNet", "SegOutput"]
