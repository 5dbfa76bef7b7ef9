"""Exceptions: one class for each thing that a caller can do about an error.

Each class has the exit code of the command line (docs/contract.md). A message is one or two plain sentences: what happened,
where (table, column, count), what to do. It never contains a password or a row's personal values.
"""

from __future__ import annotations


def escape_control_characters(text: str) -> str:
    """Return a text with control characters escaped, so that names in it can't control a terminal or forge a log line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def unreadable(error: OSError) -> str:
    """Return a message about a file or folder that this user may not enter, read or write."""
    where = f"{error.filename} can't be used" if error.filename else "A file or folder can't be used"
    shown = escape_control_characters(where)
    return f"{shown}: {error.strerror or error}. Check its rights, and those of the folders that it is in."


class EtlError(Exception):
    """Something that a caller can understand and act on; anything else that is raised is a bug (exit code 1)."""

    exit_code: int = 1


class SettingsError(EtlError):
    """An option, an environment variable or the settings file is wrong: correct it and call again."""

    exit_code = 2


class ConnectError(EtlError):
    """The database or the store can't be reached or refuses access: check the server, the network and the rights."""

    exit_code = 3


class SchemaError(EtlError):
    """The schema does not fit: migrate it (`bpr-etl schema apply`), or say `--schema` or `--naming`."""

    exit_code = 4


class DataError(EtlError):
    """The data failed a check or exceeded a limit: nothing was committed or published."""

    exit_code = 5


class LockedError(EtlError):
    """Another run holds the lock: wait for it, or stop it."""

    exit_code = 6


class NothingToDo(EtlError):  # noqa: N818 - not an error, an outcome with an exit code of its own
    """All that was asked for is there already."""

    exit_code = 99
