"""Items of SpatioTemporal Asset Catalogs (STAC 1.0): which file of an item is the image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.error import URLError
from urllib.parse import urljoin
from urllib.request import urlopen

from pfseg.data.source import Remote
from pfseg.errors import ConfigError, DataError

_SECONDS = 30.0
_IMAGES = ("image/tiff", "image/jp2", "image/vnd")  # beginnings of media types that GDAL reads


def find_asset(item: str, name: str | None) -> PurePath:
    """The image of an item, a .json file or URL: the asset `name`, or the only one that is an image of data.

    Raises:
        DataError: the item can't be read, or is none.
        ConfigError: no such asset, or several to choose from.
    """
    assets = _assets(item)
    if name is None:
        images = [key for key, asset in assets.items() if str(asset.get("type", "")).startswith(_IMAGES)]
        data = [key for key in images if "data" in asset_roles(assets[key])]
        chosen = data or images
        if len(chosen) != 1:
            raise ConfigError(
                f"input={item} has {len(chosen)} images: choose one by asset=<name>, of {', '.join(sorted(assets))}"
            )
        (name,) = chosen
    if name not in assets:
        raise ConfigError(f"asset={name} is not in {item}: choose one of {', '.join(sorted(assets))}")
    href = str(assets[name].get("href", ""))
    if "://" in href:
        return Remote(href)
    return Remote(urljoin(item, href)) if "://" in item else (Path(item).expanduser().absolute().parent / href)


def asset_roles(asset: Mapping[str, Any]) -> list[str]:
    """What an asset is for: data, overview, thumbnail, metadata, ..."""
    roles = asset.get("roles")
    return list(map(str, roles)) if isinstance(roles, list) else []


def _assets(item: str) -> dict[str, Mapping[str, Any]]:
    try:
        if "://" in item:
            with urlopen(item, timeout=_SECONDS) as answer:
                text = answer.read()
        else:
            text = Path(item).expanduser().read_bytes()
        found = json.loads(text)["assets"]
        return {str(key): dict(asset) for key, asset in found.items()}
    except (URLError, OSError) as error:
        raise DataError(f"{item} cannot be read: {error}; check the address and the network") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise DataError(f"{item} is no STAC item ({fault}): expected JSON with assets") from error
