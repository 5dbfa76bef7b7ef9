"""Locks that let one run at a time write to an output location: `flock` on a folder, and a lease in an object store.

An object store has no lock that ends with its holder. The holder of a lease renews it every RENEW seconds; a lease that has
not been renewed for LEASE seconds, by the store's own clock, is free. It is taken by a conditional write
(`If-None-Match: *`), so only one of two simultaneous runs gets it. A run that has lost its lease notices before it
publishes.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from etl.errors import ConnectError, EtlError, LockedError

LOCK = ".lock"
RENEW, LEASE = 20.0, 120.0
"""Seconds. LEASE is how long a machine that died keeps others waiting; RENEW leaves room for a few lost requests."""


@contextmanager
def folder_lock(folder: Path, flags: int = 0, place: Path | None = None) -> Iterator[Callable[[], bool]]:
    """Open a folder and yield a function that tries to lock it. The lock ends with the block or process, without a file.

    `flags` are further flags of `os.open`; messages name `place`, by default the folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | flags)
    try:
        yield lambda: _try_flock(handle, place or folder)
    finally:
        os.close(handle)


def _try_flock(handle: int, place: Path) -> bool:
    """Take the lock of an open folder if it is free. Raises ConnectError if its file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConnectError(
            f"{place} can't be locked ({error.strerror}), and without a lock two runs could write there at once. "
            "Use a folder on a file system that knows flock, or mount this one with locks."
        ) from None
    return True


def locked_error(place: str, waited: float) -> LockedError:
    """The error if another run holds the lock."""
    return LockedError(
        f"Another run is publishing to {place}{f', and still was after {waited:g} s' if waited else ''}. "
        "Wait for it to end (--wait-lock), or give another --out."
    )


@dataclass(frozen=True)
class ObjectVersion:
    """Identifies one version of an object: by its ETag, or by a version number in Google's store."""

    e_tag: str | None
    version: str | None = field(compare=False)


class ConditionalStore(Protocol):
    """What a lease needs of a store."""

    def create(self, path: str, content: bytes) -> ObjectVersion | None:
        """Write an object unless it exists. Returns its version, None if it exists."""

    def replace(self, path: str, content: bytes, tag: ObjectVersion) -> ObjectVersion | None:
        """Replace an object if it still has this version. Returns the new version, None if it has another."""

    def state(self, path: str) -> tuple[ObjectVersion, datetime] | None:
        """An object's version, and when it was written by the store's clock; None if it doesn't exist."""

    def read(self, path: str) -> bytes | None:
        """An object's content; None if it doesn't exist."""

    def delete(self, path: str) -> None:
        """Delete an object, if it exists."""


class Lease:
    """The lock object of a store. `owner` identifies this run, see `owner`."""

    def __init__(
        self, store: ConditionalStore, owner: dict[str, str], renew: float = RENEW, lease: float = LEASE
    ) -> None:
        self._store, self._owner = store, owner
        self._renew_after, self._lease = renew, lease
        self._tag: ObjectVersion | None = None
        self._count = 0
        self._lost = False
        self._renewing = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew_loop, daemon=True, name="lease")

    def acquire(self) -> bool:
        """Take the lease if it is free, or if its owner is dead."""
        self._tag = self._store.create(LOCK, self._content())
        if self._tag is None and (dead := self._expired()):
            self._tag = self._store.replace(LOCK, self._content(), dead)
        if self._tag is not None:
            self._thread.start()
        return self._tag is not None

    def assert_held(self) -> None:
        """Raise ConnectError if the lease was lost."""
        if not self._renew():
            raise ConnectError(
                f"The lock of {self._owner['out']} was lost: the store could not be reached for more than "
                f"{self._lease:g} s, and another run may have begun there. Run again."
            )

    def release(self) -> None:
        """Give the lease back, unless it was lost."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._tag is not None and self._renew():
            with suppress(EtlError):
                self._store.delete(LOCK)

    def _content(self) -> bytes:
        self._count += 1
        return json.dumps({**self._owner, "renewed": self._count}).encode()

    def _expired(self) -> ObjectVersion | None:
        """The version of a lease whose owner is dead: it was not renewed in time, or it has this run's staging folder.

        This run holds that folder, so the process that took the lease has ended.
        """
        found = self._store.state(LOCK)
        if found is None:
            return None
        tag, written = found
        if read_owner(self._store).get("place") == self._owner["place"]:
            return tag
        now = self._store_time()
        return tag if now is not None and (now - written).total_seconds() > self._lease else None

    def _store_time(self) -> datetime | None:
        """The time by the store's clock: when it writes an object."""
        name = f"{LOCK}-clock-{self._owner['place']}"
        self._store.create(name, b"")
        found = self._store.state(name)
        self._store.delete(name)
        return found[1] if found else None

    def _renew(self) -> bool:
        """Renew the lease. False if another run has it."""
        assert self._tag is not None  # noqa: S101 - for the type checker: it was acquired
        with self._renewing:  # The thread that keeps the lease and `assert_held` must not overtake each other.
            content = self._content()
            tag = None if self._lost else self._store.replace(LOCK, content, self._tag) or self._verify_write(content)
            self._lost, self._tag = tag is None, tag or self._tag
            return tag is not None

    def _verify_write(self, content: bytes) -> ObjectVersion | None:
        """The version of a write that succeeded, although its reply was lost and the retry found another version."""
        found = self._store.state(LOCK)
        return found[0] if found is not None and self._store.read(LOCK) == content else None

    def _renew_loop(self) -> None:
        while not self._end.wait(self._renew_after):
            with suppress(EtlError):  # a store that does not answer now may do so in time
                if not self._renew():
                    return


def owner(place: str, host: str, out: str) -> dict[str, str]:
    """Identify a run: the token of its staging folder, and its machine and output location for messages."""
    return {"place": place, "host": host, "out": out}


def read_owner(store: ConditionalStore) -> dict[str, Any]:
    """The owner of the lease, as far as it can be read."""
    with suppress(ValueError, TypeError):
        return dict(json.loads(store.read(LOCK) or b"{}"))
    return {}
