"""Files: small ones put in place whole, and what is known of those on disk."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileInfo:
    """A file as it lies on disk: rows, bytes, SHA-256."""

    path: Path
    rows: int
    bytes: int
    sha256: str


def put(target: Path, content: bytes, passing: str, mode: int | None = None) -> None:
    """Write a file, or replace it: readers see the old one or the new one. Raises OSError.

    On its way it has a name that begins with `passing` and that nobody can guess, and it is made anew: who may write to the
    folder can't lay a link there that leads to another file. `mode` is said where the umask is not to decide.
    """
    staged = target.with_name(f"{passing}{target.name}-{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as it lies on disk, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
