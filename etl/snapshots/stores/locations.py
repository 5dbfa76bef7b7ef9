"""Open the store, or one snapshot, at a location as it is given on the command line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.errors import ConnectError, SettingsError
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import temporary_folder
from etl.settings.sources import process_environment
from etl.settings.values import parse_location
from etl.snapshots.reading.snapshot import LATEST, MANIFEST, SNAPSHOTS, Snapshot
from etl.snapshots.reading.snapshot import open_snapshot as open_folder
from etl.snapshots.stores.store import LocalStore, Store

if TYPE_CHECKING:
    from etl.snapshots.stores.object_store import ObjectStore


def is_url(location: str) -> bool:
    """Whether a location is in an object store. Raises SettingsError if snapshots can't be there."""
    try:
        return "://" in parse_location(location)
    except SettingsError as error:
        raise SettingsError(f"Where snapshots lie {error}.") from None


def open_store(out: str, environ: Mapping[str, str] | None = None, stop: CancelToken | None = None) -> Store:
    """Open the store at `out` for reading; `publish.locked_store` locks it for writing.

    Credentials come from `environ`. Raises SettingsError if snapshots can't be there.
    """
    if is_url(out):
        from etl.snapshots.stores.object_store import ObjectStore  # noqa: PLC0415 - a local folder needs no object store

        return ObjectStore(out, environ or {}, stop)
    return LocalStore(Path(out), stop)


def open_snapshot(location: str | Path) -> Snapshot:
    """Open the snapshot at a local folder or a URL, or the newest of an `--out` there.

    From an object store, only the manifest is read now, and the data when they are used. Credentials come from the
    environment.

    Raises ConnectError if there is none or it can't be read, DataError if its manifest is damaged or lists something
    that is not a file, SettingsError if snapshots can't be there.
    """
    if isinstance(location, Path) or "://" not in location or not is_url(location):
        return open_folder(location)
    store, name, manifest = _find_in_object_store(location, process_environment())
    return Snapshot(Path(name), manifest, store.location_of(name), remote=True)


@contextmanager
def local_snapshot(
    location: str,
    environ: Mapping[str, str] | None = None,
    kinds: Sequence[str] | None = None,
    stop: CancelToken | None = None,
) -> Iterator[Snapshot]:
    """Open the snapshot at a location, or the newest of an --out, as local files for the length of the block.

    From an object store, the files are downloaded whose path begins with one of `kinds` (by default all). Raises ConnectError
    if there is no snapshot, DataError if its manifest can't be read.
    """
    if not is_url(location):
        yield open_folder(Path(location))
        return
    store, found, content = _find_in_object_store(location, environ or {}, stop)
    with tempfile.TemporaryDirectory(prefix="bpr-etl-snapshot-", dir=temporary_folder()) as folder:
        (Path(folder) / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
        wanted = [
            entry["path"] for entry in content["files"] if kinds is None or entry["path"].startswith(tuple(kinds))
        ]
        store.fetch(f"{SNAPSHOTS}/{found}", wanted, Path(folder))
        yield Snapshot(Path(folder), content, store.location_of(found))


def _find_in_object_store(
    location: str, environ: Mapping[str, str], stop: CancelToken | None = None
) -> tuple[ObjectStore, str, dict[str, Any]]:
    """The store at a location, the name of the snapshot there, and its manifest."""
    from etl.snapshots.stores.object_store import ObjectStore  # noqa: PLC0415

    root, separator, name = location.rstrip("/").rpartition(f"/{SNAPSHOTS}/")
    store = ObjectStore(root if separator else location, environ, stop)
    found = name if separator else store.latest_name()
    if not found:
        raise ConnectError(
            f"{location} has no {LATEST}: nothing was published there. Give an --out, or a snapshot in it."
        )
    return store, found, store.manifest(found)
