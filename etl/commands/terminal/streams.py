"""Stdout and stderr that never raise: a full disk or a closed pipe must not end a command or change its exit code."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast


class Stream:
    """A text stream that does not raise if it can't be written; `lost` is then the last error.

    Each write tries again: a full disk may have room later.
    """

    buffer = None
    """Hidden: with an ASCII encoding Typer would write to the buffer, past this stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the encoding may lack a character of a city's name

    def write(self, text: str) -> int:
        """Write the text, if possible."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, if possible."""
        self._attempt(self._stream.flush)

    def end(self) -> None:
        """Flush, and discard what can't be written: the interpreter would try again at exit and end with code 120."""
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
    """Stdout and stderr as streams that do not raise. Call `open_closed` first."""
    streams = _stream(sys.stdout, 1), _stream(sys.stderr, 2)
    for stream in streams:
        atexit.register(stream.end)
    return cast(tuple[TextIO, TextIO], streams)


def open_closed() -> None:
    """Occupy those descriptors 0 to 2 that the caller closed. Else the next file or socket would get a library's messages.

    They are read-only, so that writing fails as it does on a closed descriptor.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # the lowest free number


def _stream(stream: TextIO | None, number: int) -> Stream:
    """Wrap a stream. Python has None for a descriptor that was closed at its start."""
    return Stream(stream or open(number, "w", encoding="utf-8", closefd=False))
