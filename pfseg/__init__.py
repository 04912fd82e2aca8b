"""pfseg: PFNet (PointFlow, CVPR 2021) for aerial image segmentation, in Jittor.

Importing this package loads neither Jittor nor OpenCV; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SegOutput", "__version__", "create_model"]

if TYPE_CHECKING:
    from pfseg.build import create_model
    from pfseg.models import SegOutput


def __getattr__(name: str) -> Any:
    """Import the model API on first use."""
    if name == "create_model":
        from pfseg.build import create_model

        return create_model
    if name == "SegOutput":
        from pfseg.models import SegOutput

        return SegOutput
    raise AttributeError(f"module 'pfseg' has no attribute {name!r}")
