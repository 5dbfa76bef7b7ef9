"""What C libraries write to file descriptor 2 becomes log lines: the server's notices at connect, above all.

libpq prints what a server says before a connection is ready (that a collation's version is another one, a login trigger's
notice), and its driver has no hook for that; later notices it drops. So the command line, whose process is its own, puts a
pipe in the descriptor's place.
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

LONGEST = 2_000
"""Characters of a notice that are logged at most."""

_END = b"\0the end of the notices\n"
_NOTICE = re.compile(r"(?!DETAIL|HINT|QUERY|CONTEXT|LOCATION)[^\W\d_]+:  ")
"""How libpq begins a notice: with its severity, which may be in the server's language."""


@contextmanager
def as_log_lines() -> Iterator[None]:
    """Log what is written to descriptor 2 during the block, as information: `--quiet` does not show it.

    sys.stderr writes to where it did, from now on through a descriptor of its own. Nothing is done where it writes elsewhere.
    """
    stderr = _apart()
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
        os.write(writing, _END)  # the pipe itself may not end: a child process that lives on has it, too
        os.close(writing)
        reader.join()


def _apart() -> TextIO | None:
    """A stream like sys.stderr on a descriptor of its own; None where that is not descriptor 2."""
    with suppress(AttributeError, OSError, ValueError):  # sys.stderr is None, or no file, or closed
        if sys.stderr.fileno() == 2:
            sys.stderr.flush()
            return open(os.dup(2), "w", 1, sys.stderr.encoding, "backslashreplace")  # noqa: PTH123 - for good
    return None


def _read(descriptor: int) -> None:
    """Log notices until the end. One comes in one piece, mostly; where one does not, its rest is a line of its own."""
    told: set[str] = set()
    text = b""
    while not text.endswith(_END):
        text += os.read(descriptor, 65_536)
        if text.endswith(b"\n"):
            ends = text.endswith(_END)
            for notice in _notices(text.removesuffix(_END).decode("utf-8", "replace")):
                _tell(notice, told)
            text = _END if ends else b""
    os.close(descriptor)


def _notices(text: str) -> Iterator[str]:
    """The notices in what was written, each as one line."""
    lines: list[str] = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        if lines and _NOTICE.match(line):
            yield " ".join(lines)
            lines = []
        lines.append(line)
    if lines:
        yield " ".join(lines)


def _tell(notice: str, told: set[str]) -> None:
    """Log it, unless it was logged before: each connection is told the same."""
    said = notice if len(notice) <= LONGEST else f"{notice[:LONGEST]}..."
    if said not in told:
        told.add(said)
        log.info("%s %s", "The server says:" if _NOTICE.match(said) else "A library says:", said)
