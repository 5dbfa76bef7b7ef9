"""Stdout and stderr of the command line: whatever happens to them, a command does its work and ends with its own exit code."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast


class Stream:
    """A text stream that raises nothing where it can't be written to; `lost` is why the last attempt failed, if one did.

    Each write tries again: a disk that was full may have room later.
    """

    buffer = None
    """Hidden: Typer would write past this stream where the encoding is ASCII."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a city's name may not exist in the locale's encoding

    def write(self, text: str) -> int:
        """Write the text if that is possible."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        self._attempt(self._stream.flush)

    def end(self) -> None:
        """Flush; discard what can't be written, or the interpreter tries again at its own end and makes it exit code 120."""
        try:
            self._stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self.lost = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def standard() -> tuple[TextIO, TextIO]:
    """Make stdout and stderr usable, also those that the caller has closed; after `open_closed`."""
    streams = _stream(sys.stdout, 1), _stream(sys.stderr, 2)
    for stream in streams:
        atexit.register(stream.end)
    return cast(tuple[TextIO, TextIO], streams)


def open_closed() -> None:
    """Occupy the descriptors 0 to 2 that are closed: the next file or socket would get one, and a library's messages with it.

    Opened for reading only, so that writing fails as it does on a closed one.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # the lowest free number


def _stream(stream: TextIO | None, number: int) -> Stream:
    """Wrap a stream; Python has none for a descriptor that was closed when it began."""
    return Stream(stream or open(number, "w", encoding="utf-8", closefd=False))
