"""Pages of the site that other files provide: the settings, the API, the contribution guide and the changelog.

MkDocs calls the functions `on_*`. No page is written to disk: each is generated while the site is built.
"""

from __future__ import annotations

import html
import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/pfseg/pfseg"
ROOMS = {  # in the order of the menu; the other modules of pfseg/ come first
    "models": "Networks",
    "ops": "Operators",
    "metrics": "Metrics",
    "data": "Data",
    "engine": "Engine",
    "inference": "Inference",
    "prediction": "Prediction",
    "weights": "Weights",
    "config": "Configuration",
    "launch": "Launching",
    "jobs": "Jobs",
    "tracking": "Tracking",
    "reporting": "Reporting",
    "commands": "Commands",
}
COPIES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the API to the menu."""
    entry = {"API": [{"Overview": "api/index.md"}, *({title: f"api/{room}.md"} for room, title in ROOMS.items())]}
    reference: list[Any] = next(section["Reference"] for section in config.nav or [] if "Reference" in section)
    if entry not in reference:
        reference.append(entry)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {"settings.md": "# Settings", "api/index.md": api_page(None)}
    pages |= {f"api/{room}.md": api_page(room) for room in ROOMS}
    pages |= {page: site_links((ROOT / source).read_text(encoding="utf-8")) for source, page in COPIES.items()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def site_links(text: str) -> str:
    """Turn the links of a file at the top of the repository into links of a page of the site."""

    def replace(match: re.Match[str]) -> str:
        target = match[1]
        if target.startswith(("http", "#")):
            return f"]({target})"
        if target.startswith("docs/"):
            return f"]({target.removeprefix('docs/')})"
        return f"]({COPIES.get(target, f'{REPOSITORY}/blob/main/{target}')})"

    return re.sub(r"\]\(([^)\s]+)\)", replace, text)


def api_page(room: str | None) -> str:
    """Markdown of the page of a folder of `pfseg/`; None: the modules that lie in none."""
    package = ROOT / "pfseg"
    if room is None:
        files, names = sorted(package.glob("*.py")), "A page for each folder of `pfseg/`; here are the modules outside them."
        title = "API"
    else:
        files, names = sorted((package / room).rglob("*.py")), f"Modules of `pfseg.{room}`."
        title = ROOMS[room]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    blocks = [f"::: {name}" for name in modules if not name.endswith(("__init__", "__main__"))]
    return "\n\n".join([f"# {title}", names, *blocks]) + "\n"


def settings_page() -> str:
    """Markdown of the settings: for each command a table of key, type, default and meaning."""
    from pfseg.config.reference import reference

    return settings_markdown(reference())


def settings_markdown(rows: list[Any]) -> str:
    """Tables of `rows`, which come command by command."""
    raise NotImplementedError
