"""Where snapshots are published: a local folder or an object store, with the same operations.

This module has what both share, and `LocalStore`. `ObjectStore` is in `etl.snapshots.stores.object_store`, their locks are in
`etl.snapshots.stores.lock`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from etl.errors import ConnectError, DataError, escape_control_characters
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import put
from etl.snapshots.manifest import parse_manifest
from etl.snapshots.reading.snapshot import (
    LATEST,
    MANIFEST,
    SNAPSHOTS,
    STAGING,
    folded,
    named_by,
    read_small,
)
from etl.snapshots.stores.lock import folder_lock, locked_error

SNAPSHOT_NAME = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{12}")
"""The names that this tool gives to snapshots. No folder with another name is ever deleted."""


class UnlistableError(ConnectError):
    """An object's key can't be read, so nothing that lies next to it can be listed: delete or rename the object."""


class Store(ABC):
    """A place that snapshots are published to; `location` is its name in messages. Paths are relative to it, with `/`."""

    def __init__(self, location: str, stop: CancelToken | None = None) -> None:
        self.location = location
        self._stop = stop or CancelToken()

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """The content of a small file; None if it doesn't exist."""

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Write or replace a small file, atomically and durably."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names under snapshots/, sorted; not all of them need be snapshots."""

    @abstractmethod
    def is_complete(self, name: str) -> bool:
        """Whether a folder under snapshots/ is a snapshot: whether it has a manifest."""

    @abstractmethod
    def size(self, name: str) -> int:
        """The bytes of all files in a folder under snapshots/."""

    @abstractmethod
    def strays(self) -> list[str]:
        """Names under snapshots/ that are not snapshots, complete or not, sorted. They are never touched."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a snapshot, its manifest first: without that it is no snapshot, even if the rest can't be deleted."""

    @abstractmethod
    def staging(self, run_id: str) -> AbstractContextManager[tuple[Path, Path]]:
        """Create an empty local folder to stage a snapshot in, and one for temporary files, for the length of a block."""

    @abstractmethod
    def persist(self, staged: Path, name: str) -> None:
        """Make the staged data files durable. This takes time, so it comes before COMMIT; readers don't see them yet."""

    @abstractmethod
    def publish(self, staged: Path, name: str) -> None:
        """Publish a persisted snapshot, whose manifest has been written; LATEST names it, last of all."""

    @abstractmethod
    def _lock(self) -> AbstractContextManager[Callable[[], bool]]:
        """Yield a function that tries to take the lock, which is released at the end of the block."""

    @abstractmethod
    def _prepare(self) -> None:
        """Delete what a killed run left, and check that snapshots can be published. The lock is held."""

    def _holder(self) -> str:
        """What is locked, for a message; with its holder if that is known."""
        return self.location

    @contextmanager
    def lock(self, wait: float) -> Iterator[None]:
        """Hold the store for writing. It is created if it doesn't exist.

        Raises LockedError if another run holds it for longer than `wait` seconds; ConnectError, CancelledError.
        """
        with self._lock() as try_lock:
            if not self._stop.poll(try_lock, wait):
                raise locked_error(self._holder(), wait)
            self._prepare()
            yield

    def location_of(self, name: str) -> str:
        """The location of a snapshot, for messages."""
        return f"{self.location.rstrip('/')}/{SNAPSHOTS}/{name}"

    def latest_name(self) -> str | None:
        """The name in LATEST; None if nothing was published yet. Raises DataError if it holds no name."""
        return named_by(self.read(LATEST), self.location)

    def manifest(self, name: str) -> dict[str, Any]:
        """Read a snapshot's manifest. Raises ConnectError if there is none, DataError if it can't be parsed."""
        content = self.read(f"{SNAPSHOTS}/{name}/{MANIFEST}")
        if content is None:
            raise ConnectError(f"{self.location_of(name)} is no snapshot: it has no {MANIFEST}.")
        return parse_manifest(content, f"{self.location_of(name)}/{MANIFEST}")

    def latest(self) -> dict[str, Any] | None:
        """The manifest of the snapshot that LATEST names; None if there is none, or it is damaged."""
        name = self.latest_name()
        if name is None:
            return None
        with suppress(ConnectError, DataError):
            return self.manifest(name)
        return None

    def names(self) -> list[str]:
        """The complete snapshots, oldest first."""
        return [name for name in self.folders() if self.is_complete(name)]

    def incomplete(self, after: str | None = None) -> list[str]:
        """Folders of this tool without a manifest, only names after `after`. No run completes them while the lock is held."""
        ours = (name for name in self.folders() if self.ours(name))
        return [name for name in ours if (after is None or name > after) and not self.is_complete(name)]

    def ours(self, name: str) -> bool:
        """Whether a folder under snapshots/ may be deleted: it has a name that this tool gives."""
        return SNAPSHOT_NAME.fullmatch(name) is not None


class LocalStore(Store):
    """A local folder. Snapshots are staged inside it, so that publishing is a rename."""

    def __init__(self, root: Path, stop: CancelToken | None = None) -> None:
        super().__init__(str(root), stop)
        self.root = root

    def read(self, path: str) -> bytes | None:
        return read_small(self.root / path)

    def write(self, path: str, content: bytes) -> None:
        target = self.root / path
        put(target, content, STAGING)
        _sync(target.parent)

    def folders(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root / SNAPSHOTS) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def is_complete(self, name: str) -> bool:
        return (self.root / SNAPSHOTS / name / MANIFEST).is_file()

    def ours(self, name: str) -> bool:
        # A link leads to a folder elsewhere, which is not this tool's.
        return super().ours(name) and not (self.root / SNAPSHOTS / name).is_symlink()

    def size(self, name: str) -> int:
        return sum(max(0, size) for _, size in lying(self.root / SNAPSHOTS / name))

    def strays(self) -> list[str]:
        try:
            names = [entry.name for entry in os.scandir(self.root / SNAPSHOTS)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        known = {name for name in self.folders() if self.ours(name) or self.is_complete(name)}
        return sorted(name for name in names if name not in known and not name.startswith("."))

    def remove(self, name: str) -> None:
        folder = self.root / SNAPSHOTS / name
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            with suppress(FileNotFoundError):
                os.unlink(MANIFEST, dir_fd=handle)
            os.fsync(handle)
        finally:
            os.close(handle)
        shutil.rmtree(folder)

    @contextmanager
    def _lock(self) -> Iterator[Callable[[], bool]]:
        with ExitStack() as stack:
            with translate_os_errors(self.location):
                self.root.mkdir(parents=True, exist_ok=True)
                try_lock = stack.enter_context(folder_lock(self.root))
            yield try_lock

    def _prepare(self) -> None:
        with translate_os_errors(self.location):
            clear(self.root)
            clear(self.root / SNAPSHOTS)
            with suppress(FileExistsError):
                (self.root / SNAPSHOTS).mkdir()
            require_publishable(self.root)
        self.latest_name()

    def staging(self, run_id: str) -> AbstractContextManager[tuple[Path, Path]]:
        return staging_in(self.root, run_id)

    def persist(self, staged: Path, name: str) -> None:
        del name
        # Files first, then the folders that name them, the innermost first: power may fail at any time.
        for base, _, files in os.walk(staged, topdown=False):
            for file in files:
                _sync(Path(base) / file)
            _sync(Path(base))

    def publish(self, staged: Path, name: str) -> None:
        # Each step is atomic, and on disk before the next one.
        snapshots = self.root / SNAPSHOTS
        _sync(self.root)
        staged.rename(snapshots / name)
        _sync(snapshots)
        self.write(LATEST, name.encode())


@contextmanager
def staging_in(root: Path, run_id: str) -> Iterator[tuple[Path, Path]]:
    """Create two folders for a run, and delete them at the end of the block, unless they were renamed."""
    folders = root / f"{STAGING}{run_id}", root / f"{STAGING}{run_id}-scratch"
    try:
        for folder in folders:
            folder.mkdir()
        yield folders
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def require_publishable(root: Path) -> None:
    """Raise ConnectError if no folder can be renamed into `root`/snapshots, which is what publishing does, after COMMIT."""
    # Only a rename can tell: a link or a mount may lead to another file system.
    snapshots = root / SNAPSHOTS
    probe = Path(tempfile.mkdtemp(prefix=STAGING, dir=root))
    try:
        probe = probe.rename(snapshots / probe.name)
    except OSError as error:
        raise ConnectError(
            f"{snapshots} takes no snapshots: {error.strerror or error}. It must be a folder that you can write to, on the "
            f"same file system as {root}."
        ) from None
    finally:
        probe.rmdir()


def clear(root: Path) -> None:
    """Delete what a killed run left in a locked folder; of a link, the link. What can't be deleted stays."""
    for litter in root.glob(f"{STAGING}*"):
        if litter.is_dir() and not litter.is_symlink():
            shutil.rmtree(litter, ignore_errors=True)
        else:
            with suppress(OSError):
                litter.unlink()


def lying(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the relative path and size of everything in a folder except folders; size -1 if it is no regular file."""
    for path in folder.rglob("*"):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            yield path.relative_to(folder).as_posix(), found.st_size if stat.S_ISREG(found.st_mode) else -1


def other_files(there: Iterable[tuple[str, int]], meant: Iterable[tuple[str, int]]) -> str | None:
    """Describe the files, as (path, bytes), that are missing, unexpected, or of another size; None if there are none."""
    # A file system may return a path in another case than it was written in.
    found, wanted = (Counter((folded(path), size) for path, size in files) for files in (there, meant))
    paths = sorted({path for path, _ in (found - wanted) + (wanted - found)})
    return (
        f"{', '.join(map(escape_control_characters, paths[:3]))} ({len(paths):,} of {wanted.total():,})"
        if paths
        else None
    )


@contextmanager
def translate_os_errors(out: str) -> Iterator[None]:
    """Raise OSErrors as ConnectError: the output folder can't be reached or written."""
    try:
        yield
    except OSError as error:
        few = error.errno in (errno.EMFILE, errno.ENFILE)
        remedy = "Raise the limit of open files (ulimit -n)." if few else "Check the path, its rights and the disk."
        raise ConnectError(f"Cannot write to {out}: {error.strerror or error}. {remedy}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
