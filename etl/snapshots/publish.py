"""Publish a staged snapshot: its manifest, its sidecar files, and the lock of the output location (docs/contract.md).

A snapshot is staged in a folder of its own, checked on disk, moved to its place, and then named in LATEST: a reader sees the
snapshot before or the one after. `etl.snapshots.stores.store` does that in a folder and in an object store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from etl.errors import DataError, SettingsError
from etl.runtime.cancellation import CancelToken
from etl.snapshots.manifest import DataSummary, FileEntry, build_manifest, to_json
from etl.snapshots.reading.snapshot import LATEST, MANIFEST, PROBE, SNAPSHOTS, Snapshot
from etl.snapshots.stores.locations import open_store
from etl.snapshots.stores.store import LocalStore, Store, lying, other_files, translate_os_errors


@contextmanager
def locked_store(
    out: str, wait: float = 0.0, stop: CancelToken | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[Store]:
    """Open the store at `out` and hold its lock. It is created if it doesn't exist, and cleared of what a killed run left.

    Raises LockedError if another run holds it for longer than `wait` seconds, SettingsError if snapshots can't be there,
    ConnectError if it can't be reached, CancelledError.
    """
    store = open_store(out, environ, stop)
    if isinstance(store, LocalStore):
        _require_outside_snapshots(store.root)
    with store.lock(wait):
        yield store


def _require_outside_snapshots(root: Path) -> None:
    """Raise SettingsError if a folder is inside a snapshot, or among the snapshots of another output folder."""
    root = root.absolute()
    for folder in (root, *root.parents):
        if folder.name == SNAPSHOTS and (folder.parent / LATEST).is_file():
            raise SettingsError(
                f"{root} is among the snapshots of {folder.parent}, which never change. Give another --out."
            )


def snapshot_name(account: DataSummary, now: datetime) -> str:
    """`<UTC time>-<short content hash>`."""
    return f"{now:%Y%m%dT%H%M%S%f}Z-{account.content_sha256[:12]}"


def write_manifest(staged: Path, name: str, facts: Mapping[str, Any], account: DataSummary) -> None:
    """Write the manifest, last in the snapshot. Raises DataError if the files on disk are not those that it lists."""
    if wrong := other_files(lying(staged), [(each.path, each.bytes) for each in [*account.files, *account.sidecars]]):
        raise DataError(
            f"The files on disk are not those that were written: {wrong}. Nothing was published; run again."
        )
    LocalStore(staged).write(MANIFEST, to_json(build_manifest(name, facts, account)))


def write_sidecar(folder: Path, name: str, content: bytes) -> FileEntry:
    """Write a small file about the data into a staged snapshot. Returns its entry in the manifest."""
    LocalStore(folder).write(name, content)
    return _entry(name, content)


def write_probe(folder: Path, facts: Mapping[str, Any]) -> FileEntry:
    """Write the result of a probe into a staged snapshot. Returns its entry in the manifest."""
    return write_sidecar(folder, PROBE, to_json(facts))


def add_probe(
    snapshot: Snapshot, facts: Mapping[str, Any], line: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> Snapshot:
    """Write the result of a probe into a published snapshot, and its `line` into the manifest. Returns the changed snapshot."""
    return add_sidecars(snapshot, {PROBE: to_json(facts)}, {"probe": dict(line)}, environ)


def add_sidecars(
    snapshot: Snapshot,
    files: Mapping[str, bytes],
    facts: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
) -> Snapshot:
    """Write or replace files about the data in a published snapshot, and facts in its manifest. Returns the changed snapshot.

    Raises LockedError if a run holds the lock of the output location.
    """
    with _held(snapshot, environ) as (store, folder):
        others = [each for each in snapshot.manifest["files"] if each["path"] not in files]
        without = {name: value for name, value in snapshot.manifest.items() if name not in facts} | {"files": others}
        if without != snapshot.manifest:  # whenever the power fails, the files are what the manifest lists
            store.write(f"{folder}{MANIFEST}", to_json(without))
        for name, content in files.items():
            store.write(f"{folder}{name}", content)
        entries = [asdict(_entry(name, content)) for name, content in files.items()]
        manifest = {**without, **facts, "files": [*others, *entries]}
        store.write(f"{folder}{MANIFEST}", to_json(manifest))
    return replace(snapshot, manifest=manifest)


def split_location(snapshot: Snapshot) -> tuple[str, str] | None:
    """The --out of a snapshot, and its name there; None for a copy elsewhere."""
    where = snapshot.url or str(snapshot.folder.resolve())
    root, separator, name = where.rpartition(f"{os.sep}{SNAPSHOTS}{os.sep}")
    return (root or os.sep, name) if separator else None


@contextmanager
def _held(snapshot: Snapshot, environ: Mapping[str, str] | None) -> Iterator[tuple[Store, str]]:
    """The locked store of a snapshot, and its folder there. A copy elsewhere needs no lock."""
    place = split_location(snapshot)
    with translate_os_errors(snapshot.url or str(snapshot.folder)):
        if place is None:
            yield LocalStore(snapshot.folder), ""
            return
        root, name = place
        with locked_store(root, environ=environ) as store:
            yield store, f"{SNAPSHOTS}/{name}/"


def _entry(name: str, content: bytes) -> FileEntry:
    return FileEntry(name, 0, len(content), sha256(content).hexdigest())
