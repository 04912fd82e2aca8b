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

    from pfseg.config.reference import Row

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/pfseg/pfseg"
ROOMS = {  # in the order of the menu; the other modules of pfseg/ come first
    "models": "Networks",
    "losses": "Losses",
    "ops": "Operators",
    "metrics": "Metrics",
    "data": "Data",
    "engine": "Engine",
    "export": "Export",
    "inference": "Inference",
    "prediction": "Prediction",
    "weights": "Weights",
    "config": "Configuration",
    "launch": "Launching",
    "toolkit": "CUDA toolkit",
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

    pages = {"settings.md": settings_page(), "api/index.md": api_page(None)}
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
        files, names = (
            sorted(package.glob("*.py")),
            "A page for each folder of `pfseg/`; here are the modules outside them.",
        )
        title = "API"
    else:
        files, names = sorted((package / room).rglob("*.py")), f"Modules of `pfseg.{room}`."
        title = ROOMS[room]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    blocks = [f"::: {name}" for name in modules if not name.endswith(("__init__", "__main__"))]
    return "\n\n".join([f"# {title}", names, *blocks]) + "\n"


def settings_page() -> str:
    """Markdown of all settings, from their declaration in `pfseg.config.schema`."""
    from pfseg.config.commands import SCHEMAS
    from pfseg.config.reference import reference

    return settings_markdown(reference(), {name: schema.__doc__ or "" for name, schema in SCHEMAS.items()})


def settings_markdown(rows: list[Row], summaries: dict[str, str]) -> str:
    """For each command a section, in it for each group of settings a table.

    Args:
        rows: settings with command, choice, key, type, value and doc; those of a command follow one another.
        summaries: what each command does.
    """
    parts = [
        "# Settings",
        "Every setting with its type, its value in `conf/` and its meaning, as `pfseg settings` prints them. Where a "
        "group has several kinds, the values are those of the choice named above the table; other choices of the group "
        "may set others.",
    ]
    known: set[Any] = set()
    for command, group in groupby(rows, key=lambda row: row.command):
        parts += [f"## pfseg {command}", summaries[command].strip().splitlines()[0]]
        own = [row for row in group if row[1:] not in known and row.key != "job"]
        if command == "train":
            known = {row[1:] for row in own if row.choice}
        elif command == "preview":
            parts.append("All settings of [pfseg train](#pfseg-train), and:")
        elif shared := sorted(
            {row.key.partition(".")[0] for row in rows if row.command == command and row[1:] in known}
        ):
            names = " and ".join(f"`{name}`" for name in shared)
            parts.append(f"The settings of {names} are those of [pfseg train](#pfseg-train).")
        for (choice, top), part in groupby(
            own, key=lambda row: (row.choice, row.key.rpartition(".")[0] and top_of(row))
        ):
            if title := choice or top:
                parts.append(f"### `{title}` {{: #{anchor(command, title)} }}")
            lines = ["| setting | type | value | meaning |", "|---|---|---|---|"]
            lines += [f"| `{row.key}` | {cell(row.type)} | {code(row.value)} | {cell(row.doc)} |" for row in part]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def top_of(row: Row) -> str:
    """The group of a setting, such as optimizer."""
    return row.key.partition(".")[0]


def anchor(*names: str) -> str:
    """An id for a heading."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(filter(None, names)).lower()).strip("-")


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def code(text: str) -> str:
    """A value for a cell of a table."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if text else "must be given"
