"""Logs what C libraries write to file descriptor 2, above all the server's notices at connect.

libpq prints what a server says before a connection is ready (a changed collation version, a login trigger's notice), and its
driver has no hook for that; it drops later notices. So the command line replaces the descriptor by a pipe.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

log = logging.getLogger(__name__)

MAX_CHARACTERS = 2_000
"""Longer notices are cut."""

_END = b"\0the end of the notices\n"
_NOTICE = re.compile(r"(?!DETAIL|HINT|QUERY|CONTEXT|LOCATION)[^\W\d_]+:  ")
"""The beginning of a notice: its severity, which may be in the server's language."""


@contextmanager
def as_log_lines() -> Iterator[None]:
    """Log what is written to descriptor 2 during the block, at level info.

    sys.stderr gets another descriptor of the same file, for good. Does nothing where sys.stderr is not descriptor 2.
    """
    stderr = _duplicate_stderr()
    if stderr is None:
        yield
        return
    sys.stderr = stderr
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    reader = threading.Thread(target=_read, args=(reading,), name="notices", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(stderr.fileno(), 2)
        os.write(writing, _END)  # closing is not enough: a child process may hold the pipe open
        os.close(writing)
        reader.join()


def _duplicate_stderr() -> TextIO | None:
    """Returns a stream like sys.stderr on a new descriptor; None where sys.stderr is not descriptor 2."""
    with suppress(AttributeError, OSError, ValueError):  # sys.stderr is None, or no file, or closed
        if sys.stderr.fileno() == 2:
            sys.stderr.flush()
            return open(os.dup(2), "w", 1, sys.stderr.encoding, "backslashreplace")  # noqa: PTH123 - for good
    return None


def _read(descriptor: int) -> None:
    """Log notices until the end. Most arrive in one piece; the rest of one that does not is logged as another line."""
    seen: set[str] = set()
    text = b""
    while not text.endswith(_END):
        text += os.read(descriptor, 65_536)
        if text.endswith(b"\n"):
            ends = text.endswith(_END)
            for notice in _notices(text.removesuffix(_END).decode("utf-8", "replace")):
                _log_once(notice, seen)
            text = _END if ends else b""
    os.close(descriptor)


def _notices(text: str) -> Iterator[str]:
    """Yields the notices in a text, each as one line."""
    lines: list[str] = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        if lines and _NOTICE.match(line):
            yield " ".join(lines)
            lines = []
        lines.append(line)
    if lines:
        yield " ".join(lines)


def _log_once(notice: str, seen: set[str]) -> None:
    """Log a notice, unless it was logged before: each connection receives the same ones."""
    said = notice if len(notice) <= MAX_CHARACTERS else f"{notice[:MAX_CHARACTERS]}..."
    if said not in seen:
        seen.add(said)
        log.info("%s %s", "The server says:" if _NOTICE.match(said) else "A library says:", said)
