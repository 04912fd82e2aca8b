"""`pfseg settings`: all settings with their types, ranges and documentation."""

from __future__ import annotations

import sys
from itertools import groupby

from rich.console import Console
from rich.text import Text

from pfseg.config.commands import SCHEMAS
from pfseg.config.reference import Row, reference
from pfseg.config.validation import nearest
from pfseg.errors import ConfigError


def run(arguments: list[str]) -> int:
    """Print the settings of all commands, or those whose command or key starts with one of the arguments."""
    if any(text.startswith("-") for text in arguments):
        sys.stdout.write("usage: pfseg settings [command or key ...], such as `pfseg settings evaluate optimizer`\n")
        return 0
    words = [text.partition("=")[0].split(".")[0] if "=" in text else text for text in arguments]
    rows = reference()
    chosen = [row for row in rows if not words or any(_matches(row, word) for word in words)]
    for word in words:
        if not any(_matches(row, word) for row in rows):
            names = sorted({*SCHEMAS, *(row.key for row in rows), *(row.key.partition(".")[0] for row in rows)})
            hint = nearest(word, names)
            raise ConfigError(f"unknown command or setting `{word}`: {hint}commands: {', '.join(SCHEMAS)}")
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    for command, group in groupby(chosen, key=lambda row: row.command):
        console.print(Text(f"pfseg {command}", "bold underline"))
        console.print(Text(f"{(SCHEMAS[command].__doc__ or '').splitlines()[0]}\n", "dim"))
        for choice, part in groupby(group, key=lambda row: row.choice):
            if choice:
                console.print(Text(choice, "bold"))
            for row in part:
                value = f"={row.value or '<must be given>'}"
                console.print(Text("  ").append(row.key, "cyan").append(value, "green").append(f"  {row.type}", "dim"))
                if row.doc:
                    console.print(Text(f"      {row.doc}"))
            console.print()
    return 0


def _matches(row: Row, word: str) -> bool:
    return word == row.command or row.key == word or row.key.startswith(f"{word}.")
