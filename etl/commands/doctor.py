"""`doctor`: checks everything that a run needs, and says what to do about what fails. Leaves nothing behind."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from etl.commands.doctor_checks import Check, catch_errors, clock_skew, database_checks, failed, ok, skipped, warning
from etl.errors import ConnectError, LockedError, SettingsError
from etl.pipeline.context import Clock
from etl.postgres.url import schema_of, target_of
from etl.reporting import history
from etl.reporting.wording import format_bytes
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import temporary_folder
from etl.runtime.resources import tested_versions
from etl.settings.model import Settings
from etl.settings.sources import env_variable_for
from etl.snapshots.reading.snapshot import SNAPSHOTS, STAGING
from etl.snapshots.stores.locations import is_url, open_store
from etl.snapshots.stores.lock import LEASE, LOCK, folder_lock
from etl.snapshots.stores.store import LocalStore, Store, UnlistableError, require_publishable

_NAME = "bpr-etl"
_OLD_HOURS = 48.0
_ROOM_FACTOR = 2.0
"""The next snapshot needs its own size, and about as much for temporary files."""
_MIN_FREE_BYTES = 1 << 30
_MAKE_ROOM = "Make room: `bpr-etl prune --keep N` takes old snapshots away."


def run_checks(settings: Settings, clock: Clock, stop: CancelToken | None = None) -> Iterator[Check]:
    """Yield every check in order as soon as it is done. Checks that depend on a failed one are skipped."""
    yield from machine_checks()
    address = list(catch_errors("address", lambda: _address(settings)))
    yield from address
    if all(check.state == "ok" for check in address):
        yield from database_checks(settings, clock, stop or CancelToken())
    else:
        yield skipped("connection", "there is no address")
    yield from catch_errors("store", partial(_store, settings, clock))
    yield _temporary(settings)


def _address(settings: Settings) -> Iterator[Check]:
    address = target_of(settings)
    parts = address.parts
    variable = env_variable_for("database_url", settings.environ)
    said = variable is not None and settings.environ[variable] == settings.database_url
    where = f"from {variable}" if said else "from --database-url or the settings file"
    user = f"{parts['user']}@" if "user" in parts else ""
    port = f":{parts['port']}" if "port" in parts else ""
    host = parts.get("host", "(libpq's default host)")
    place = f"{user}{host}{port}, database {parts.get('dbname', '(the role' + chr(39) + 's name)')}"
    yield ok("address", f"{place}, schema {schema_of(settings, address)}; {where}")


def _temporary(settings: Settings) -> Check:
    """Look for a folder for temporary files. A run with a local --out works without one."""
    try:
        return ok("temporary files", f"{temporary_folder()} can be written to")
    except SettingsError as error:
        if is_url(settings.out) or settings.engine != "local":
            return failed("temporary files", SettingsError, str(error))
        return warning("temporary files", str(error), "A run works without; --dry-run, object stores and Ray do not.")


def machine_checks() -> Iterator[Check]:
    """Yield the checks of Python and the libraries against what bpr-etl requires."""
    python = platform.python_version()
    needed = str(metadata(_NAME)["Requires-Python"] or "")
    if SpecifierSet(needed).contains(python, prereleases=True):
        yield ok("Python", python)
    else:
        yield failed("Python", SettingsError, f"{python}, needed is {needed}", "Install bpr-etl with another Python.")
    yield _libraries(requires(_NAME) or [])


def _libraries(needed: list[str]) -> Check:
    wrong, others, count = [], [], 0
    tested = {canonicalize_name(name): pinned for name, pinned in tested_versions().items()}
    for requirement in map(Requirement, needed):
        if requirement.marker is not None:  # an extra's, which a run does not need
            continue
        name, bounds = requirement.name, str(requirement.specifier)
        count += 1
        try:
            have = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed (needed: {bounds})")
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{name} is {have} (needed: {bounds})")
        elif (pinned := tested.get(canonicalize_name(name), have)) != have:
            others.append(f"{name} {have} (tested: {pinned})")
    if wrong:
        return failed("libraries", SettingsError, "; ".join(wrong), f"Install again: pip install --upgrade {_NAME}.")
    more = f"; others than those tested: {', '.join(others)}" if others else ""
    return ok("libraries", f"{_NAME} {version(_NAME)}, all {count} libraries are of supported releases{more}")


def _store(settings: Settings, clock: Clock) -> Iterator[Check]:
    store = open_store(settings.out, settings.environ)
    if isinstance(store, LocalStore):
        place = list(catch_errors("store", partial(_folder, store.root)))
        place += catch_errors("store's lock", partial(_folder_lock, store.root, can_be_written=place[0].state == "ok"))
    else:
        place = list(catch_errors("store", partial(_objects, store, clock)))
    yield from place
    if any(check.name == "store" and check.state == "failed" for check in place):
        yield skipped("snapshots", "the store can't be used")
        return
    snapshots = list(catch_errors("snapshots", partial(_snapshots, store, clock)))
    yield from snapshots
    if isinstance(store, LocalStore) and all(check.state != "failed" for check in snapshots):
        yield from catch_errors("disk", partial(_disk, store))


def _folder(root: Path) -> Iterator[Check]:
    """Write a file without a name, and move an empty folder to where snapshots are. Both are gone at once."""
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
    """Return the folder itself if it exists, else the nearest parent that does."""
    place = root.absolute()
    return root if root.exists() else next(each for each in place.parents if each.exists())


def _folder_lock(root: Path, *, can_be_written: bool) -> Iterator[Check]:
    """Look up the lock's holder in /proc/locks. Taking the lock, even for a moment, could turn a run away.

    Whether the file system has locks is tried on a folder of our own.
    """
    if can_be_written:
        with (
            tempfile.TemporaryDirectory(
                prefix=STAGING, dir=_existing_ancestor(root), ignore_cleanup_errors=True
            ) as folder,
            folder_lock(Path(folder), place=root) as try_lock,
        ):
            try_lock()
    try:
        locks, found = Path("/proc/locks").read_text(encoding="ascii"), root.stat()
    except OSError:
        yield ok("store's lock", "not held, as far as this system tells")
        return
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    held = [line.split() for line in locks.splitlines() if "FLOCK" in line and place in line and "->" not in line]
    if held:
        remedy = "Wait for it (--wait-lock), or give another --out."
        yield failed("store's lock", LockedError, f"a run holds {root} (process {held[0][4]})", remedy)
    else:
        yield ok("store's lock", "not held")


def _objects(store: Store, clock: Clock) -> Iterator[Check]:
    """Write, read and delete a small object, try writes that must be refused, and look at the lock."""
    from etl.snapshots.stores.object_store import ObjectStore  # noqa: PLC0415 - only of an object store

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
    # Object stores give whole seconds.
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
        yield ok("store's lock", "not held" + (": the lock object there is a dead run's" if held else ""))


def _snapshots(store: Store, clock: Clock) -> Iterator[Check]:
    try:
        latest, names = store.latest_name(), store.names()
    except UnlistableError as error:
        yield warning("snapshots", str(error), "A run publishes all the same.")
        return
    if latest is None:
        yield ok("snapshots", f"{len(names):,} there; LATEST names none yet")
    elif latest not in names:
        yield warning(
            "snapshots", f"LATEST names {latest}, which is no complete snapshot", "Run again: that publishes a new one."
        )
    else:
        yield _age(store, latest, len(names), clock)
    if odd := history.misdated(store, clock()):
        yield warning(
            "snapshots",
            odd,
            "Set this machine's clock; if another machine's was wrong, remove them when they are not read any more.",
        )
    if strays := store.strays():
        said = f"{', '.join(strays[:3])}{f' and {len(strays) - 3:,} more' if len(strays) > 3 else ''} in {SNAPSHOTS}/"
        yield warning(
            "snapshots", f"{said}: no snapshot and no part of one", "It is left alone: delete it if nothing needs it."
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
    if hours >= 0:  # otherwise it is dated after now, which is a check of its own
        said += f", {hours:,.0f} h old"
    return (
        warning("snapshots", said, "See why no run published since.") if hours > _OLD_HOURS else ok("snapshots", said)
    )


def _disk(store: LocalStore) -> Iterator[Check]:
    free = shutil.disk_usage(_existing_ancestor(store.root)).free
    latest = store.latest()
    size = sum(entry["bytes"] for entry in latest["files"]) if latest else _MIN_FREE_BYTES / _ROOM_FACTOR
    need = size * _ROOM_FACTOR
    said = f"{format_bytes(free)} free" + (f", the newest snapshot has {format_bytes(size)}" if latest else "")
    if free < size:
        yield failed("disk", ConnectError, said, _MAKE_ROOM)
    elif free < need:
        yield warning("disk", said, _MAKE_ROOM)
    else:
        yield ok("disk", said)
