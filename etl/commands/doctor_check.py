"""What a check of `doctor` comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from etl.errors import ConnectError, EtlError, unreadable
from etl.runtime.cancellation import CancelledError

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, how it stands, what was found in plain words, and what to do.

    `exit_code` is that of the kind of error which a failed one means (CONTRACT, section 4).
    """

    name: str
    state: State
    found: str
    remedy: str = ""
    exit_code: int = 0


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Check:
    """A night would go through, but somebody should know."""
    return Check(name, "warning", found, remedy)


def failed(name: str, kind: type[EtlError], found: str, remedy: str = "") -> Check:
    """A night would fail by it, with an error of this kind."""
    return Check(name, "failed", found, remedy, kind.exit_code)


def catch_errors(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What a look finds; where it fails itself, that is what was found, in the words of the error."""
    try:
        yield from look()
    except CancelledError:
        raise
    except EtlError as error:
        yield Check(name, "failed", str(error), exit_code=error.exit_code)
    except OSError as error:  # rights, or a working folder that was deleted
        yield failed(name, ConnectError, unreadable(error))


def exit_code(checks: list[Check]) -> int:
    """That of the first check that failed: it is the one to mend first. 0 where none did, whatever the warnings."""
    return next((check.exit_code for check in checks if check.state == "failed"), 0)
