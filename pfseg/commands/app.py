"""The command `pfseg`: start-up, errors and exit codes that all commands share.

Each command raises PfsegError for what the user can mend. What is wrong with the settings is said in one line before
Hydra writes anything, and before anything heavy is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from pfseg.errors import ConfigError, PfsegError

_WORDS = {"convert": "file", "report": "runs", "reproduce": "run", "dashboard": "runs"}  # what bare words are values of
_HELP = """usage: pfseg <command> [key=value ...]

{rows}
pfseg <command> --help lists its choices and settings; pfseg settings explains all settings.
"""


def main(command: str | None = None, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process.

    Args:
        command: its name; None takes the first argument.
        argv: arguments; None takes those of the process.
    """
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, _leave)
    try:
        code = run(command, list(sys.argv[1:] if argv is None else argv))
    except PfsegError as error:
        prefix = "error: " if error.exit_code in (1, 2) else ""  # others say that a job was stopped
        sys.stderr.write(f"{prefix}{' '.join(str(error).splitlines())}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `pfseg settings | head`
        sys.stderr.close()
        code = 141
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(code)


def commands() -> dict[str, str]:
    """What each command does, by its name."""
    from pfseg.config.commands import SCHEMAS

    summaries = {name: (schema.__doc__ or "").splitlines()[0] for name, schema in SCHEMAS.items()}
    return summaries | {"settings": "Print all settings with types, ranges and documentation."}


def _leave(number: int, _: object) -> None:
    """End on Ctrl-C before a command has begun: an import would hide a KeyboardInterrupt behind its own error."""
    os._exit(128 + number)


def run(command: str | None, arguments: list[str]) -> int:
    """Run a command; returns the exit code, and raises PfsegError for what the user can mend."""
    if command is None:
        first = arguments[0] if arguments else "--help"
        if first in ("-h", "--help"):
            rows = "".join(f"  {name:<10} {summary}\n" for name, summary in commands().items())
            sys.stdout.write(_HELP.format(rows=rows))
            return 0
        if first == "--version":
            from pfseg import __version__

            sys.stdout.write(f"pfseg {__version__}\n")
            return 0
        if first in ("-sc", "--shell-completion"):
            return _complete(arguments)
        command, *arguments = arguments
    if command not in (known := commands()):
        from pfseg.config.validation import nearest

        hint = nearest(command, known, "pfseg {}")
        raise ConfigError(f"unknown command `{command}`: {hint}commands: {', '.join(known)}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules in the working folder are found by a console script as by `python -m`
    if command == "settings":
        from pfseg.commands.settings import run as show_settings

        return show_settings(arguments)
    from pfseg.commands.hydra_app import run as run_hydra

    return run_hydra(command, arguments, _WORDS.get(command))


def _complete(arguments: list[str]) -> int:
    """Install completion in a shell, or complete the line that the shell has put into COMP_LINE.

    Hydra knows no commands, so the command is taken out of the line.
    """
    from pfseg.commands.hydra_app import run as run_hydra

    if not any(text.startswith("query=") for text in arguments):
        return run_hydra("train", arguments, None)
    program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    command, typed, settings = rest.partition(" ")
    if not typed:
        sys.stdout.write("".join(f"{name}\n" for name in commands() if name.startswith(command)))
        return 0
    if command not in commands() or command == "settings":
        return 0
    os.environ["COMP_LINE"] = f"{program} {settings}"
    os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    return run_hydra(command, arguments, None)
