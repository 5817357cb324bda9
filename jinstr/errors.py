"""Errors that a user can act on: a stable code, one line, and the exit status of the process."""

from __future__ import annotations


class JinstrError(Exception):
    """An error meant for the user. `code` is stable across releases, `exit_code` goes to the shell."""

    exit_code = 1

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self):
        # Between processes of one pool: by default an exception is made again from its text alone, which fails here.
        return type(self), (self.code, self.message)


class ConfigError(JinstrError):
    """A setting is wrong, unknown, unused or missing."""

    exit_code = 78


class DataError(JinstrError):
    """Input data does not have the shape that was promised."""

    exit_code = 65


class StorageError(JinstrError):
    """A file cannot be written, read back or verified."""

    exit_code = 74


class RunInUseError(JinstrError):
    """Another process holds the run directory."""

    exit_code = 73


class PreemptedError(JinstrError):
    """A signal asked the run to stop; it saved, and the same command goes on."""

    exit_code = 75


class NonFiniteError(JinstrError):
    """Loss or gradient norm stopped being finite."""

    exit_code = 70


class AuditError(JinstrError):
    """The log of a run does not say what its steps compute."""


class PeerError(JinstrError):
    """A device or process is lost, or no longer computes what the others do."""

    exit_code = 76


class MachineError(JinstrError):
    """The machine ran out of memory or of file handles."""

    exit_code = 71
