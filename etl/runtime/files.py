"""Files: their checksums, small ones replaced atomically, and the folder for temporary ones."""

from __future__ import annotations

import hashlib
import os
import resource
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from etl.errors import ConnectError, SettingsError


@dataclass(frozen=True)
class FileInfo:
    """A file as it lies on disk: rows, bytes, SHA-256."""

    path: Path
    rows: int
    bytes: int
    sha256: str


MIN_OPEN_FILES = 32
"""Files and connections that a run has open at once, with some to spare."""


def require_open_files() -> None:
    """Raise ConnectError if this process may open too few files: drivers then hang or fail with unclear messages."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < MIN_OPEN_FILES:
        raise ConnectError(
            f"This process may have {limit} files open at once, and a run needs {MIN_OPEN_FILES}. Raise the limit (ulimit -n)."
        )


def put(target: Path, content: bytes, passing: str, mode: int | None = None) -> None:
    """Write a file, or replace it: readers see the old content or the new one. Raises OSError.

    `passing` is the prefix of the temporary name. `mode` is the file's mode, by default what the umask says.
    """
    # A random name, opened with O_EXCL: a user who may write to the folder can't put a link there that leads elsewhere.
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
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_folder() -> Path:
    """Returns the machine's folder for temporary files. Raises SettingsError where there is none that can be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # in some containers
        raise SettingsError(
            "There is no folder for temporary files: none of $TMPDIR, /tmp, /var/tmp and the working folder can be written. "
            "Set TMPDIR to one that can."
        ) from None
