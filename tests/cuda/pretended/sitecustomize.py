"""Lets pfseg find the pretended device, in every Python that has this folder on PYTHONPATH."""

from dataclasses import replace
from pathlib import Path

import pfseg.devices
import pfseg.toolkit

HERE = Path(__file__).parent
find_sources = pfseg.toolkit.find_sources


def with_pretended_libraries() -> pfseg.toolkit.Sources:
    sources = find_sources()
    return replace(sources, libraries=(HERE, *sources.libraries))


pfseg.devices.visible_gpus = lambda: ["0"]
pfseg.toolkit.find_driver = lambda: HERE / "libcuda.so.1"
pfseg.toolkit.find_sources = with_pretended_libraries
