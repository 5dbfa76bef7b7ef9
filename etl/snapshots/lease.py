"""One writer at a time in an object store: a lock object with an owner, renewed as long as its owner lives.

An object store has no lock that ends with its holder. So who holds it renews it every RENEW seconds; one that has not been
renewed for LEASE seconds, by the store's own clock, is nobody's any more. It is made by a conditional write
(`If-None-Match: *`): of two that come at once one gets it. Whoever has lost it finds out before it makes anything the newest.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from etl.errors import ConnectError, EtlError

LOCK = ".lock"
RENEW, LEASE = 20.0, 120.0
"""Seconds. LEASE is for how long a machine that died keeps others waiting; RENEW leaves room for a few lost requests."""


@dataclass(frozen=True)
class ObjectVersion:
    """Which writing of an object this is: some stores tell it by an ETag, Google's by a version."""

    e_tag: str | None
    version: str | None = field(compare=False)


class ConditionalStore(Protocol):
    """What a lease needs of a store."""

    def create(self, path: str, content: bytes) -> ObjectVersion | None:
        """Write an object that is not there yet; gives its tag, None where there is one."""

    def replace(self, path: str, content: bytes, tag: ObjectVersion) -> ObjectVersion | None:
        """Write it anew if its tag is still this one; gives the new tag, None where it is not."""

    def state(self, path: str) -> tuple[ObjectVersion, datetime] | None:
        """An object's tag and when the store says that it was written; None where there is none."""

    def read(self, path: str) -> bytes | None:
        """Its content."""

    def delete(self, path: str) -> None:
        """Take it away."""


class Lease:
    """The lock object of one store, ours or not. `owner` says who asks, see there."""

    def __init__(
        self, store: ConditionalStore, owner: dict[str, str], renew: float = RENEW, lease: float = LEASE
    ) -> None:
        self._store, self._owner = store, owner
        self._renew_after, self._lease = renew, lease
        self._tag: ObjectVersion | None = None
        self._count = 0
        self._lost = False
        self._one_at_a_time = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew_loop, daemon=True, name="lease")

    def acquire(self) -> bool:
        """Take it if nobody has it; a dead owner's counts as nobody's."""
        self._tag = self._store.create(LOCK, self._content())
        if self._tag is None and (dead := self._expired()):
            self._tag = self._store.replace(LOCK, self._content(), dead)
        if self._tag is not None:
            self._thread.start()
        return self._tag is not None

    def assert_held(self) -> None:
        """Raise ConnectError where it is not ours any more."""
        if not self._renew():
            raise ConnectError(
                f"The lock of {self._owner['out']} was lost: the store could not be reached for more than "
                f"{self._lease:g} s, and another run may have begun there. Run again."
            )

    def release(self) -> None:
        """Give it back, if it is ours."""
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
        """The tag of a dead owner's lock: this machine's, where we hold the owner's place, or one not renewed in time."""
        found = self._store.state(LOCK)
        if found is None:
            return None
        tag, written = found
        if read_owner(self._store).get("place") == self._owner["place"]:
            return tag
        now = self._store_time()
        return tag if now is not None and (now - written).total_seconds() > self._lease else None

    def _store_time(self) -> datetime | None:
        """What the store's clock says: when it writes something of ours."""
        name = f"{LOCK}-clock-{self._owner['place']}"
        self._store.create(name, b"")
        found = self._store.state(name)
        self._store.delete(name)
        return found[1] if found else None

    def _renew(self) -> bool:
        """Renew it; False where somebody else has it."""
        assert self._tag is not None  # noqa: S101 - nobody renews what was not taken
        with self._one_at_a_time:  # the thread that keeps it, and whoever has to be sure of it
            content = self._content()
            tag = None if self._lost else self._store.replace(LOCK, content, self._tag) or self._verify_write(content)
            self._lost, self._tag = tag is None, tag or self._tag
            return tag is not None

    def _verify_write(self, content: bytes) -> ObjectVersion | None:
        """The tag of what was written all the same: the reply was lost, and the library's second try found the tag changed."""
        found = self._store.state(LOCK)
        return found[0] if found is not None and self._store.read(LOCK) == content else None

    def _renew_loop(self) -> None:
        while not self._end.wait(self._renew_after):
            with suppress(EtlError):  # a store that does not answer now may do so in time
                if not self._renew():
                    return


def owner(place: str, host: str, out: str) -> dict[str, str]:
    """Who asks for a lock: the token of a folder that it alone holds, and for people its machine and what the lock is for."""
    return {"place": place, "host": host, "out": out}


def read_owner(store: ConditionalStore) -> dict[str, Any]:
    """Who has the lock, as far as that can be read."""
    with suppress(ValueError, TypeError):
        return dict(json.loads(store.read(LOCK) or b"{}"))
    return {}
