"""Errors that a user can cause and mend: each is shown as its one line, without a traceback."""

from __future__ import annotations


class PfsegError(Exception):
    """Base of all errors meant for the user; `exit_code` is what the command ends with."""

    exit_code = 1


class ConfigError(PfsegError):
    """A setting is misspelt, of a wrong type or does not fit another one."""

    exit_code = 2


class DataError(PfsegError):
    """Image, mask, list or folder that is missing, unreadable or does not fit the class table."""


class CheckpointError(PfsegError):
    """A weights file or checkpoint that is missing, damaged, unsafe or of another model."""


class WriteError(PfsegError):
    """A file that cannot be written: the disk is full, or there is no permission."""


class JobError(PfsegError):
    """A training or evaluation job ended before its end."""
