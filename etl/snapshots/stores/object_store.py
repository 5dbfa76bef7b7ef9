"""Publish snapshots to an object store (S3, Google's, Azure's).

There is no rename. The data files are uploaded before COMMIT into the snapshot's folder, which is no snapshot as long as it has
no manifest. The manifest and LATEST follow after COMMIT. What a killed run leaves is deleted by the next one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError

from etl.errors import ConnectError, EtlError, SettingsError, escape_control_characters
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import temporary_folder
from etl.settings.permissions import writable_by_others
from etl.snapshots.reading.snapshot import LATEST, MANIFEST, SNAPSHOTS
from etl.snapshots.stores.lock import LOCK, Lease, ObjectVersion, folder_lock, owner, read_owner
from etl.snapshots.stores.object_store_client import (
    open_object_store,
    reraise_if_bucket_missing,
    servers,
    translate_errors,
)
from etl.snapshots.stores.store import Store, UnlistableError, clear, lying, other_files, staging_in

PART_BYTES = 8 * 1024 * 1024
"""Bytes of one part of a multipart upload. Smaller files are uploaded in one request."""

log = logging.getLogger(__name__)

CONCURRENCY = 4
"""Files that are transferred at a time, and parts of each."""


class ObjectStore(Store):
    """A prefix of a bucket. Publishing needs the lock."""

    def __init__(self, url: str, environ: Mapping[str, str], stop: CancelToken | None = None) -> None:
        super().__init__(url.rstrip("/"), stop)
        self._lease: Lease | None = None
        self._place: Path | None = None
        self._uploaded: set[str] = set()
        self._latest: ObjectVersion | None = None
        self._store = open_object_store(self.location, environ)

    def read(self, path: str) -> bytes | None:
        with translate_errors(self.location):
            try:
                return bytes(obstore.get(self._store, path).bytes())
            except FileNotFoundError as error:
                reraise_if_bucket_missing(error)
                return None

    def write(self, path: str, content: bytes) -> None:
        with translate_errors(self.location):
            obstore.put(self._store, path, content)

    def fetch(self, folder: str, paths: Sequence[str], to: Path) -> None:
        """Download files of a folder, some at a time. Missing ones are skipped; reading them raises later."""

        def one(path: Path) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                chunks = obstore.get(self._store, f"{folder}/{_key(to, path)}").stream(PART_BYTES)
                with path.open("wb") as file:
                    for chunk in chunks:
                        self._stop.raise_if_cancelled()
                        file.write(chunk)

        with translate_errors(self.location):
            self._run_concurrently(one, [to / path for path in paths])

    def folders(self) -> list[str]:
        with translate_errors(self.location):
            found = obstore.list_with_delimiter(self._store, SNAPSHOTS)
            return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])

    def size(self, name: str) -> int:
        with translate_errors(self.location):
            return sum(entry["size"] for entry in self._listed(name))

    def strays(self) -> list[str]:
        with translate_errors(self.location):
            files = obstore.list_with_delimiter(self._store, SNAPSHOTS)["objects"]
        others = [name for name in self.folders() if not self.is_complete(name)]
        folders = [f"{name}/" for name in others if not self.ours(name) or self._is_marker(name)]
        names = [entry["path"].rpartition("/")[2] for entry in files if entry["path"] != SNAPSHOTS]
        return sorted([*folders, *names])

    def incomplete(self, after: str | None = None) -> list[str]:
        return [name for name in super().incomplete(after) if not self._is_marker(name)]

    def _is_marker(self, name: str) -> bool:
        """Whether a folder holds nothing but objects without content: the markers of consoles, whose keys end with a slash.

        obstore drops that slash, so it can't delete them.
        """
        with suppress(UnlistableError):
            return self.size(name) == 0
        return False

    def is_complete(self, name: str) -> bool:
        return self.state(f"{SNAPSHOTS}/{name}/{MANIFEST}") is not None

    def remove(self, name: str) -> None:
        self.delete(f"{SNAPSHOTS}/{name}/{MANIFEST}")
        with translate_errors(self.location):
            paths = [entry["path"] for entry in self._listed(name)]
            if paths:
                obstore.delete(self._store, paths)

    @contextmanager
    def staging(self, run_id: str) -> Iterator[tuple[Path, Path]]:
        assert self._place is not None  # noqa: S101 - the lock is held
        try:
            with staging_in(self._place, run_id) as folders:
                yield folders
        finally:
            for name in self._uploaded:  # and not published
                with suppress(EtlError):  # the next run deletes it, as after a crash
                    self.remove(name)

    def persist(self, staged: Path, name: str) -> None:
        self._uploaded.add(name)
        files = sorted(lying(staged))
        with translate_errors(self.location):
            self._run_concurrently(
                lambda path: self._upload(path, f"{SNAPSHOTS}/{name}/{_key(staged, path)}"),
                [staged / path for path, _ in files],
            )
        self._require_all(name, files)

    def publish(self, staged: Path, name: str) -> None:
        assert self._lease is not None  # noqa: S101 - the lock is held
        self._lease.assert_held()
        manifest = (staged / MANIFEST).read_bytes()
        self._require_all(name, [(entry["path"], entry["bytes"]) for entry in json.loads(manifest)["files"]])
        self.write(f"{SNAPSHOTS}/{name}/{MANIFEST}", manifest)
        self._uploaded.discard(name)
        self.write_latest(name)

    def write_latest(self, name: str) -> None:
        """Make LATEST name a snapshot. Raises ConnectError if it was written since the lock was taken."""
        # Compare-and-swap: a run that lost its lock unnoticed must not overwrite what another one has published since.
        content = name.encode()
        old = self._latest
        new = self.create(LATEST, content) if old is None else self.replace(LATEST, content, old)
        # If the reply to a write was lost, its retry fails although it succeeded. The name of a snapshot is unique.
        if new is None and self.read(LATEST) != content:
            raise ConnectError(
                f"{LATEST} in {self.location} was changed since this run began: another run has published there, or it was "
                "written by hand. Run again."
            )

    @contextmanager
    def _lock(self) -> Iterator[Callable[[], bool]]:
        with _staging_folder(self.location + servers()) as (place, try_folder):
            lease: Lease | None = None

            def try_lock() -> bool:
                nonlocal lease
                if lease is None and try_folder():
                    self.require_conditions(f"{LOCK}-probe-{_token(place)}")
                    lease = Lease(self, owner(_token(place), platform.node(), self.location))
                if lease is None or not lease.acquire():
                    return False
                self._lease, self._place = lease, place
                return True

            try:
                yield try_lock
            finally:
                if self._lease is not None:
                    self._lease.release()
                    self._lease = None

    def _prepare(self) -> None:
        assert self._place is not None  # noqa: S101 - the lock is held
        clear(self._place)
        found = self.state(LATEST)
        self._latest = found[0] if found else None
        try:
            for name in self.incomplete(after=self.latest_name()):
                self.remove(name)
        except UnlistableError as error:  # what a killed run has left stays until that object is gone
            log.warning("%s", error)

    def _holder(self) -> str:
        host = escape_control_characters(str(read_owner(self).get("host", "")))
        return f"{self.location}{f' (on {host})' if host else ''}"

    def require_conditions(self, name: str) -> None:
        """Raise ConnectError if the store accepts a write whose condition does not hold: its lock would exclude no other run.

        The test uses an object of that name, which may exist and is deleted afterwards.
        """
        try:
            self.create(name, b"1")
            ignored = "If-None-Match" if self.create(name, b"2") is not None else None
            if ignored is None and (found := self.state(name)) is not None:
                self.replace(name, b"3", found[0])
                ignored = "If-Match" if self.replace(name, b"4", found[0]) is not None else None
        finally:
            self.delete(name)
        if ignored is not None:
            raise ConnectError(
                f"{self.location} ignores the conditions of writes ({ignored}): it accepted a write that it had to refuse, so "
                "two runs could publish there at once. Use a store that has conditional writes."
            )

    def create(self, path: str, content: bytes) -> ObjectVersion | None:
        """See `ConditionalStore`. Raises ConnectError if the store has no conditional writes."""
        with translate_errors(self.location):
            try:
                return _tag(obstore.put(self._store, path, content, mode="create", use_multipart=False))
            except AlreadyExistsError:
                return None
            except NotSupportedError:
                raise ConnectError(
                    f"{self.location} has no conditional writes (If-None-Match), without which two runs could write there "
                    "at once. Use a store that has them."
                ) from None

    def replace(self, path: str, content: bytes, tag: ObjectVersion) -> ObjectVersion | None:
        """See `ConditionalStore`. If the store has no If-Match (501), the version is compared before the write."""
        still: Any = {name: value for name, value in asdict(tag).items() if value is not None}
        with translate_errors(self.location):
            try:
                put = obstore.put(self._store, path, content, mode=still, use_multipart=False)
            except (PreconditionError, FileNotFoundError):
                return None
            except BaseError as error:
                if " 501 " not in str(error) and not isinstance(error, NotSupportedError):
                    raise
                found = self.state(path)
                if found is None or found[0] != tag:
                    return None
                put = obstore.put(self._store, path, content, use_multipart=False)
            return _tag(put)

    def state(self, path: str) -> tuple[ObjectVersion, datetime] | None:
        with translate_errors(self.location):
            try:
                found = obstore.head(self._store, path)
            except FileNotFoundError as error:
                reraise_if_bucket_missing(error)
                return None
            return _tag(found), found["last_modified"]

    def delete(self, path: str) -> None:
        with translate_errors(self.location), suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    def _require_all(self, name: str, files: Sequence[tuple[str, int]]) -> None:
        """Raise ConnectError unless a snapshot's folder has exactly these files, by path and bytes."""
        with translate_errors(self.location):
            there = [
                (entry["path"].removeprefix(f"{SNAPSHOTS}/{name}/"), entry["size"]) for entry in self._listed(name)
            ]
        if wrong := other_files(there, files):
            raise ConnectError(
                f"The files in {self.location_of(name)} are not those that were uploaded: {wrong}. Run again."
            )

    def _listed(self, name: str) -> list[Any]:
        return [entry for page in obstore.list(self._store, f"{SNAPSHOTS}/{name}") for entry in page]

    def _upload(self, path: Path, key: str) -> None:
        if path.stat().st_size <= PART_BYTES:
            obstore.put(self._store, key, path.read_bytes(), use_multipart=False)
        else:
            obstore.put(self._store, key, self._chunks(path), chunk_size=PART_BYTES, max_concurrency=CONCURRENCY)

    def _chunks(self, path: Path) -> Iterator[bytes]:
        """Yield a file part by part. An exception in between aborts the upload."""
        with path.open("rb") as file:
            while chunk := file.read(PART_BYTES):
                self._stop.raise_if_cancelled()
                yield chunk

    def _run_concurrently(self, work: Callable[[Path], None], paths: Sequence[Path]) -> None:
        """Process all paths, some at a time. Raises the first error, CancelledError as soon as the run is cancelled."""
        pool = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="store")
        try:
            for future in [pool.submit(work, path) for path in paths]:
                self._stop.poll(future.done, float("inf"))
                future.result()
        finally:
            # A hanging request is not waited for: its thread ends with it, or with the process.
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _staging_folder(what: str) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """The local folder where snapshots for a store are staged, and a function that tries to lock it.

    It is the same for every run, so that the next run deletes what a killed one left, and knows that its lease is dead.
    """
    name = f"bpr-etl-{os.getuid()}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    place = temporary_folder() / name
    with ExitStack() as stack:
        try:
            with suppress(FileExistsError):
                place.mkdir(mode=0o700)
            try_lock = stack.enter_context(folder_lock(place, os.O_NOFOLLOW))
            why = writable_by_others(place)
        except OSError as error:
            raise SettingsError(
                f"The staging folder for uploads, {place}, can't be used: {error.strerror}. Set TMPDIR."
            ) from None
        if why is not None:
            raise SettingsError(
                f"The staging folder for uploads, {place}, is not this user's alone: {why}. Set TMPDIR."
            )
        yield place, try_lock


def _token(place: Path) -> str:
    """The token of a staging folder, unique among all machines: the owner of a lease is identified by it."""
    file = place / "token"
    if not file.exists():
        file.write_text(uuid.uuid4().hex, encoding="ascii")
    return file.read_text(encoding="ascii")


def _tag(found: Mapping[str, Any]) -> ObjectVersion:
    return ObjectVersion(found["e_tag"], found["version"])


def _key(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
