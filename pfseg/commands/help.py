"""`pfseg <command> --help`: the groups of settings that a command has, with their choices, and its own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from pfseg.config.commands import SCHEMAS
from pfseg.config.compose import choices, compose
from pfseg.config.settings import CUSTOM, members
from pfseg.config.validation import as_typed, field_type
from pfseg.tracking import terminal

_FLAGS = {
    "--cfg job": "print the settings as composed, with what else is given; -p <group> prints one group",
    "--info defaults": "print which YAML files are composed",
    "--config-dir <folder>": "also look for YAML files in this folder",
    "-m, --multirun": "run every combination of values: optimizer.lr=1e-3,1e-4 seed=0,1",
}


def show(command: str, config_name: str, folder: Path | None, config_path: Path | None) -> None:
    """Print the help of a command, whose settings are composed as by `pfseg.config.compose.compose`."""
    schema = SCHEMAS[command]
    composed = compose(config_name, folder=folder, config_path=config_path)
    values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=False))
    groups = choices(config_name, folder=folder, config_path=config_path)
    fields = {field.alias or name: field for name, field in schema.model_fields.items()}
    settings = {}
    for key, value in values.items():  # in the order of the file
        if key in fields and key not in groups and not members(field_type(fields[key])).keys() - {CUSTOM}:
            settings[f"{key}={'<must be given>' if value == '???' else as_typed(value)}"] = (
                fields[key].description or ""
            )
    del settings[f"job={command}"]
    console = terminal.console()
    chosen = " [group=choice ...]" if groups else ""
    terminal.line(console, f"usage: pfseg {command}{chosen} [setting=value ...]\n\n{schema.__doc__}")
    for title, rows in (("Groups", groups), ("Settings", settings), ("Flags", _FLAGS)):
        if rows:
            terminal.line(console, f"\n{title}", "bold")
            grid = Table.grid(padding=(0, 1))
            grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold")
            for name, text in rows.items():
                grid.add_row(Text(f"  {name}", "cyan"), Text(text))
            console.print(grid)
    terminal.line(console, f"\nAll settings, explained: pfseg settings {command}")
