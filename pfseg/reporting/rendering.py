"""HTML from the templates beside this module, with nothing outside the page: style, script and pictures are inside."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from pfseg.tracking.terminal import number

_PICTURE_WIDTH = 1100  # pixels
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals |= {"zip": zip, "now": lambda: time.strftime("%Y-%m-%d %H:%M %Z")}
_TEMPLATES.filters["number"] = number


def render(template: str, **values: object) -> Markup:
    """Fill in a template of `templates/`; texts among `values` are escaped."""
    return Markup(_TEMPLATES.get_template(template).render(values))


def picture(path: Path) -> str | None:
    """A picture as a data URI, scaled down; None if it can't be read."""
    content = io.BytesIO()
    try:
        image = Image.open(path)
        image.thumbnail((_PICTURE_WIDTH, image.height))
        image.save(content, "webp", quality=85)
    except (OSError, SyntaxError):  # Pillow's error for a damaged PNG file
        return None
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
