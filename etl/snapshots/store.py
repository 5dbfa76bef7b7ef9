"""Where snapshots lie: a local folder or an object store, with the same few operations on either (CONTRACT, section 3).

What differs is how a file is put there, and who holds the place: `LocalStore` here, `ObjectStore` in
`etl.snapshots.object_store`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from etl.errors import ConnectError, DataError, LockedError, escape_control_characters
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import put
from etl.snapshots.manifest import parse_manifest
from etl.snapshots.reader import (
    LATEST,
    MANIFEST,
    SNAPSHOTS,
    STAGING,
    folded,
    named_by,
    read_small,
)

SNAPSHOT_NAME = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{12}")
"""How we name snapshots."""


class Store(ABC):
    """A place that snapshots are published to. Paths are relative to it, with `/`; `location` is how a person names it."""

    def __init__(self, location: str) -> None:
        self.location = location

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """A small file's content; None where there is none."""

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Put a small file there, or replace it: readers see the old one or the new one, and it stays whatever happens then."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names under snapshots/, sorted; not all of them need be snapshots."""

    @abstractmethod
    def is_complete(self, name: str) -> bool:
        """Whether a folder under snapshots/ is a snapshot: whether it has a manifest."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take away a snapshot, its manifest first: from then on it is none, whatever happens."""

    @abstractmethod
    def lock(self, wait: float) -> AbstractContextManager[None]:
        """Hold it for writing: made when it isn't there, cleared of what a killed run left.

        Raises LockedError when another run writes there for longer than `wait` seconds; ConnectError, StoppedError.
        """

    @abstractmethod
    def staging(self, run_id: str) -> AbstractContextManager[tuple[Path, Path]]:
        """A fresh local folder to stage a snapshot in, and one for what waits on the way; gone at the end of the block."""

    @abstractmethod
    def persist(self, staged: Path, name: str) -> None:
        """Have the staged data files where they can't be lost, before COMMIT, since it takes time. Nobody sees them yet."""

    @abstractmethod
    def publish(self, staged: Path, name: str) -> None:
        """Make a secured snapshot, whose manifest has been written, the newest: LATEST names it, last of all."""

    def location_of(self, name: str) -> str:
        """Where a snapshot is, as a person names it."""
        return f"{self.location.rstrip('/')}/{SNAPSHOTS}/{name}"

    def latest_name(self) -> str | None:
        """The name in LATEST; None where nothing was published yet. Raises DataError where it holds none."""
        return named_by(self.read(LATEST), self.location)

    def manifest(self, name: str) -> dict[str, Any]:
        """A snapshot's manifest. Raises ConnectError where there is none, DataError where it can't be read."""
        content = self.read(f"{SNAPSHOTS}/{name}/{MANIFEST}")
        if content is None:
            raise ConnectError(f"{self.location_of(name)} is no snapshot: it has no {MANIFEST}.")
        return parse_manifest(content, f"{self.location_of(name)}/{MANIFEST}")

    def latest(self) -> dict[str, Any] | None:
        """The manifest of the snapshot that LATEST names; None where there is none, or none that is whole."""
        name = self.latest_name()
        if name is None:
            return None
        with suppress(ConnectError, DataError):
            return self.manifest(name)
        return None

    def names(self) -> list[str]:
        """The snapshots that are whole, oldest first."""
        return [name for name in self.folders() if self.is_complete(name)]

    def incomplete(self, after: str | None = None) -> list[str]:
        """What is no snapshot any more, or not yet, and never will be while this is held; only names after `after`."""
        ours = (name for name in self.folders() if self.ours(name))
        return [name for name in ours if (after is None or name > after) and not self.is_complete(name)]

    def ours(self, name: str) -> bool:
        """Whether a folder under snapshots/ has a name that we give: no other is ever taken away."""
        return SNAPSHOT_NAME.fullmatch(name) is not None


class LocalStore(Store):
    """A folder of this machine. What is staged lies inside of it, so that publishing is to rename."""

    def __init__(self, root: Path, stop: CancelToken | None = None) -> None:
        super().__init__(str(root))
        self.root = root
        self._stop = stop or CancelToken()

    def read(self, path: str) -> bytes | None:
        """See Store."""
        return read_small(self.root / path)

    def write(self, path: str, content: bytes) -> None:
        """See Store."""
        target = self.root / path
        put(target, content, STAGING)
        _sync(target.parent)

    def folders(self) -> list[str]:
        """See Store."""
        try:
            return sorted(entry.name for entry in os.scandir(self.root / SNAPSHOTS) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def is_complete(self, name: str) -> bool:
        """See Store."""
        return (self.root / SNAPSHOTS / name / MANIFEST).is_file()

    def ours(self, name: str) -> bool:
        """See Store. What a link leads to lies elsewhere, and is somebody else's."""
        return super().ours(name) and not (self.root / SNAPSHOTS / name).is_symlink()

    def remove(self, name: str) -> None:
        """See Store."""
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
    def lock(self, wait: float) -> Iterator[None]:
        """See Store. The lock is on the folder itself, so that no lock file stays behind; it ends with the process."""
        with translate_os_errors(self.location):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not self._stop.poll(lambda: try_flock(handle, self.root), wait):
                raise locked_error(self.location, wait)
            with translate_os_errors(self.location):
                clear(self.root)
                clear(self.root / SNAPSHOTS)
                with suppress(FileExistsError):
                    (self.root / SNAPSHOTS).mkdir()
                require_publishable(self.root)
            self.latest_name()
            yield
        finally:
            os.close(handle)

    @contextmanager
    def staging(self, run_id: str) -> Iterator[tuple[Path, Path]]:
        """See Store."""
        with staging_in(self.root, run_id) as folders:
            yield folders

    def persist(self, staged: Path, name: str) -> None:
        """Files first, then the folders that name them, the innermost first: power may go at any time."""
        del name
        for base, _, files in os.walk(staged, topdown=False):
            for file in files:
                _sync(Path(base) / file)
            _sync(Path(base))

    def publish(self, staged: Path, name: str) -> None:
        """Rename it, then name it in LATEST. Each step is atomic and on disk."""
        snapshots = self.root / SNAPSHOTS
        _sync(self.root)
        staged.rename(snapshots / name)
        _sync(snapshots)
        self.write(LATEST, name.encode())


@contextmanager
def staging_in(root: Path, run_id: str) -> Iterator[tuple[Path, Path]]:
    """Two fresh folders for a run, gone at the end of the block, but for one that was renamed into its place."""
    folders = root / f"{STAGING}{run_id}", root / f"{STAGING}{run_id}-scratch"
    try:
        for folder in folders:
            folder.mkdir()
        yield folders
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def require_publishable(root: Path) -> None:
    """Raise ConnectError where no folder can be moved into `root`/snapshots, which is what publishing does, after COMMIT.

    Only a rename itself tells: a link or a mount may lead to another file system.
    """
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
    """Take away what a killed run left in a folder that is held; of a link the link. What somebody else put there may stay."""
    for litter in root.glob(f"{STAGING}*"):
        if litter.is_dir() and not litter.is_symlink():
            shutil.rmtree(litter, ignore_errors=True)
        else:
            with suppress(OSError):
                litter.unlink()


def try_flock(handle: int, folder: Path) -> bool:
    """Take the lock of an open folder if nobody has it. Raises ConnectError where its file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConnectError(
            f"{folder} can't be locked ({error.strerror}), and without a lock two runs could write there at once. "
            "Use a folder on a file system that knows flock, or mount this one with locks."
        ) from None
    return True


def locked_error(place: str, waited: float) -> LockedError:
    """The error of one who comes second."""
    return LockedError(
        f"Another run is publishing to {place}{f', and did for {waited:g} s' if waited else ''}. "
        "Wait for it to end (--wait-lock), or give another --out."
    )


def lying(folder: Path) -> Iterator[tuple[str, int]]:
    """What lies in a folder: every file's path there and its bytes. What is no file, as a link, has -1."""
    for path in folder.rglob("*"):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            yield path.relative_to(folder).as_posix(), found.st_size if stat.S_ISREG(found.st_mode) else -1


def other_files(there: Iterable[tuple[str, int]], meant: Iterable[tuple[str, int]]) -> str | None:
    """Which files, of (path, bytes), differ: missing, not meant, or of another size. None where none does.

    A path may come back as a file system keeps it, which need not be as it was written.
    """
    found, wanted = (Counter((folded(path), size) for path, size in files) for files in (there, meant))
    paths = sorted({path for path, _ in (found - wanted) + (wanted - found)})
    return (
        f"{', '.join(map(escape_control_characters, paths[:3]))} ({len(paths):,} of {wanted.total():,})"
        if paths
        else None
    )


@contextmanager
def translate_os_errors(out: str) -> Iterator[None]:
    """Turns an OSError into ConnectError: the output folder can't be reached, or takes no more."""
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
