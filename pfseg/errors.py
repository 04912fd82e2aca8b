"""Errors that a user can cause and mend: each is shown as its one line, without a traceback."""

from __future__ import annotations


class PfsegError(Exception):
    """Base of all errors meant for the user; `exit_code` is what the command ends with."""

    exit_code = 1


class ConfigError(PfsegError):
    """A setting is misspelt, of a wrong type or does not fit another one."""

    exit_code = 2


class MissingPackage(ConfigError):
    """An optional package that `what` needs is not installed; `pfseg[extra]` brings it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs the package {package}: run `pip install 'pfseg[{extra}]'`")


class DataError(PfsegError):
    """Image, mask, list or folder that is missing, unreadable or does not fit the class table."""


class CheckpointError(PfsegError):
    """A weights file or checkpoint that is missing, damaged, unsafe or of another model."""


class WriteError(PfsegError):
    """A file that cannot be written: the disk is full, or there is no permission."""


class JobError(PfsegError):
    """A training or evaluation job ended before its end."""


def one_line(error: object) -> str:
    """What a library says, in one line of bearable length: a CRS may take 100 of them."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def unforeseen(what: object, error: Exception) -> str:
    """One line about a fault that no code of ours expected, in the work on one file."""
    return f"{what}: unforeseen {type(error).__name__} ({one_line(error)}); please report it"
