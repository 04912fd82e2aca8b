"""pfseg: PFNet (PointFlow, CVPR 2021) for aerial image segmentation, in Jittor.

Importing this package loads neither Jittor nor OpenCV; the names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SegOutput", "__version__", "create_model"]

if TYPE_CHECKING:
    from pfseg.build import create_model
    from pfseg.models import SegOutput


def __getattr__(name: str) -> Any:
    """Import the model API on first use."""
    module = {"SegOutput": "pfseg.models", "create_model": "pfseg.build"}.get(name)
    if module is None:
        raise AttributeError(f"module 'pfseg' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
