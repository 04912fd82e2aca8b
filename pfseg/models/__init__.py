"""Networks: backbones, the PointFlow module and PFNet. Knows neither losses nor data."""

from pfseg.models.network import SegOutput

__all__ = ["SegOutput"]
