"""HTML from the templates beside this module, with nothing outside the page: style, script and pictures are inside."""

from __future__ import annotations

import base64
import time
from functools import cache
from pathlib import Path

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from pfseg.tracking.terminal import number

_PICTURE_WIDTH = 1100  # pixels


def render(template: str, **values: object) -> Markup:
    """Fill in a template of `templates/`; texts among `values` are escaped."""
    return Markup(_environment().get_template(template).render(values))


def picture(path: Path) -> str | None:
    """A picture as a data URI, scaled down; None if it can't be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        return None
    if (width := image.shape[1]) > _PICTURE_WIDTH:
        size = (_PICTURE_WIDTH, round(image.shape[0] * _PICTURE_WIDTH / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 85])
    assert done, "OpenCV encodes any picture that it has decoded"
    return f"data:image/webp;base64,{base64.b64encode(encoded.tobytes()).decode()}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"zip": zip, "now": lambda: time.strftime("%Y-%m-%d %H:%M %Z")}
    environment.filters["number"] = number
    return environment
