"""The checks of `doctor` that look at --out: is it there, can it be written, is there room, is it held."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from etl.commands.doctor_check import Check, catch_errors, failed, ok, warning
from etl.commands.doctor_database import clock_skew
from etl.errors import ConnectError, LockedError
from etl.reporting import history
from etl.reporting.wording import format_bytes
from etl.settings.model import Settings
from etl.snapshots.locations import open_store
from etl.snapshots.reader import SNAPSHOTS, STAGING
from etl.snapshots.store import LocalStore, Store, require_publishable, try_flock

_OLD_HOURS = 48.0
_ROOM = 2.0
"""The next snapshot needs its own size, and about as much for what has to wait on the way."""

_LEAST_FREE = 1 << 30

Clock = Callable[[], datetime]


def store_checks(settings: Settings, clock: Clock) -> Iterator[Check]:
    """All that is to be said of the place that snapshots are published to."""
    yield from catch_errors("store", partial(_checks, settings, clock))


def _checks(settings: Settings, clock: Clock) -> Iterator[Check]:
    store = open_store(settings.out, settings.environ)
    if isinstance(store, LocalStore):
        place = list(catch_errors("store", partial(_folder, store.root)))
        place += catch_errors("store's lock", partial(_folder_lock, store.root, can_be_written=place[0].state == "ok"))
    else:
        place = list(catch_errors("store", partial(_objects, store, clock)))
    yield from place
    if any(check.name == "store" and check.state == "failed" for check in place):
        yield Check("snapshots", "skipped", "the store can't be used")
        return
    snapshots = list(catch_errors("snapshots", partial(_snapshots, store, clock)))
    yield from snapshots
    if isinstance(store, LocalStore) and all(check.state != "failed" for check in snapshots):
        yield from catch_errors("disk", partial(_disk, store))


def _folder(root: Path) -> Iterator[Check]:
    """Try with a file that has no name, and with an empty folder moved to where snapshots are: both are gone at once."""
    place = _existing_ancestor(root)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"doctor")
            file.flush()
    except OSError as error:
        remedy = "Give another --out, or have the folder's owner let you write there."
        yield failed("store", ConnectError, f"{place} can't be written to: {error.strerror or error}", remedy)
        return
    if os.path.lexists(root / SNAPSHOTS):
        require_publishable(root)
    yield ok("store", f"{root} can be written to" + ("" if place == root else ", and is made by the first run"))


def _existing_ancestor(root: Path) -> Path:
    """The folder itself, else the one above it that is there."""
    place = root.absolute()
    return root if root.exists() else next(each for each in place.parents if each.exists())


def _folder_lock(root: Path, *, can_be_written: bool) -> Iterator[Check]:
    """Looked up, not tried: to hold it for a moment could turn a run away. Linux says who holds what.

    That there are locks is tried on a folder of our own.
    """
    if can_be_written:
        with tempfile.TemporaryDirectory(
            prefix=STAGING, dir=_existing_ancestor(root), ignore_cleanup_errors=True
        ) as folder:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                try_flock(handle, root)
            finally:
                os.close(handle)
    try:
        locks, found = Path("/proc/locks").read_text(encoding="ascii"), root.stat()
    except OSError:
        yield ok("store's lock", "nobody holds it, as far as this system tells")
        return
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    held = [line.split() for line in locks.splitlines() if "FLOCK" in line and place in line and "->" not in line]
    if held:
        remedy = "Wait for it (--wait-lock), or give another --out."
        yield failed("store's lock", LockedError, f"a run holds {root} (process {held[0][4]})", remedy)
    else:
        yield ok("store's lock", "nobody holds it")


def _objects(store: Store, clock: Clock) -> Iterator[Check]:
    """Write a small object, ask when that was, try what must be refused, and take it away again; then look at the lock."""
    from etl.snapshots.lease import LEASE, LOCK  # noqa: PLC0415 - only of an object store
    from etl.snapshots.object_store import ObjectStore  # noqa: PLC0415

    assert isinstance(store, ObjectStore)  # noqa: S101 - there is no third kind
    name, before = f".doctor-{uuid.uuid4().hex}", clock()
    store.write(name, b"doctor")
    try:
        written = store.state(name)
        store.require_conditions(name)
    finally:
        store.delete(name)
    yield ok(
        "store", f"{store.location} can be read, written and cleared, and refuses writes whose condition does not hold"
    )
    now = written[1].timestamp() if written else before.timestamp()
    # Object stores tell whole seconds.
    yield clock_skew("store's clock", before.replace(microsecond=0), clock(), now, "the store")
    held = store.state(LOCK)
    if held is not None and now - held[1].timestamp() <= LEASE:
        age = now - held[1].timestamp()
        yield failed(
            "store's lock",
            LockedError,
            f"a run holds it (renewed {age:.0f} s ago)",
            f"Wait for it (--wait-lock); a dead run's ends {LEASE:g} s after its last renewal.",
        )
    else:
        yield ok("store's lock", "nobody holds it" + (": what lies there is a dead run's" if held else ""))


def _snapshots(store: Store, clock: Clock) -> Iterator[Check]:
    latest, names = store.latest_name(), store.names()
    if latest is None:
        yield ok("snapshots", f"{len(names):,} there; nothing was made the newest yet")
    elif latest not in names:
        yield warning(
            "snapshots", f"LATEST names {latest}, which is no whole snapshot", "Run again: that publishes a new one."
        )
    else:
        yield _age(store, latest, len(names), clock)
    if odd := history.misdated(store, clock()):
        yield warning(
            "snapshots", odd, "Set this machine's clock; if another's was wrong, remove them when nobody reads them."
        )
    if unfinished := history.incomplete(store):
        yield warning(
            "snapshots",
            f"{len(unfinished):,} unfinished folders",
            "A run is at work, or was killed: then the next run or `bpr-etl prune` takes them away.",
        )


def _age(store: Store, latest: str, count: int, clock: Clock) -> Check:
    ended = store.manifest(latest).get("ended_at")
    said = f"{count:,} there, {latest} the newest"
    try:
        hours = (clock() - datetime.fromisoformat(str(ended)).astimezone(UTC)).total_seconds() / 3600
    except ValueError:
        return ok("snapshots", said)
    if hours >= 0:  # else it is dated after now, which is said on its own
        said += f", {hours:,.0f} h old"
    return warning("snapshots", said, "See why no night came since.") if hours > _OLD_HOURS else ok("snapshots", said)


def _disk(store: LocalStore) -> Iterator[Check]:
    free = shutil.disk_usage(_existing_ancestor(store.root)).free
    latest = store.latest_name()
    lines = [line for line in history.list_snapshots(store) if line.name == latest and line.bytes is not None]
    need = int((lines[-1].bytes or 0) * _ROOM) if lines else _LEAST_FREE
    said = f"{format_bytes(free)} free" + (f", the newest snapshot has {format_bytes(need / _ROOM)}" if lines else "")
    if free < need / _ROOM:
        yield failed("disk", ConnectError, said, "Make room: `bpr-etl prune --keep N` takes old snapshots away.")
    elif free < need:
        yield warning("disk", said, "Make room: `bpr-etl prune --keep N` takes old snapshots away.")
    else:
        yield ok("disk", said)
