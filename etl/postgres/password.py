"""Passwords that a command prints (`--password-command`): tokens of a cloud's IAM, or what a vault holds."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from etl.errors import ConnectError, SettingsError
from etl.runtime.cancellation import CancelToken
from etl.settings.redaction import hide_secrets

TIMEOUT = 60.0
"""Seconds after which the command is ended."""


@dataclass(frozen=True)
class PasswordCommand:
    """A command that is run, without a shell, for each new connection, because tokens expire.

    What it prints is never shown: `printed` are the passwords that messages must not repeat.
    """

    line: str = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    printed: list[str] = field(default_factory=list, repr=False)

    def run(self, stop: CancelToken) -> str:
        """Return the password: the only line that the command prints.

        Raises SettingsError if it can't be started or prints no password, ConnectError if it fails or takes too long,
        CancelledError.
        """
        words = shlex.split(self.line)
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                words,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise SettingsError(
                f"The password command {words[0]!r} can't be run: {error.strerror}. Correct --password-command."
            ) from None
        with process:
            try:
                if not stop.poll(lambda: process.poll() is not None, TIMEOUT):
                    raise ConnectError(
                        f"The password command {words[0]!r} has not ended after {TIMEOUT:g} s. Run it by hand to see why."
                    )
                output = process.stdout.read() if process.stdout else b""
            finally:
                if process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)  # and all that it has started
        if process.returncode:
            how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
            raise ConnectError(
                f"The password command {words[0]!r} failed ({how}). Run it by hand to see why: its output is not shown here."
            )
        password = _only_line(output)
        if password is None:
            raise SettingsError(
                f"The password command {words[0]!r} must print the password alone, on one line of UTF-8. Correct "
                "--password-command."
            )
        if password not in self.printed:
            self.printed.append(password)
            hide_secrets([password])
        return password


def _only_line(output: bytes) -> str | None:
    """Return the text of a single line, None if the output is something else."""
    with suppress(UnicodeDecodeError):
        text = output.decode().removesuffix("\n").removesuffix("\r")
        if text and text.isprintable():
            return text
    return None
