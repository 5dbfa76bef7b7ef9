"""An object store (S3, Google's, Azure's) as a place for snapshots.

There is no rename: a snapshot's data files are uploaded before COMMIT into its folder, which is no snapshot as long as
it has no manifest; that and LATEST follow after it. What an end in between leaves is cleared by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from etl.snapshots.lease import LOCK, Lease, ObjectVersion, owner, read_owner
from etl.snapshots.object_store_client import open_object_store, reraise_if_bucket_missing, servers, translate_errors
from etl.snapshots.reader import LATEST, MANIFEST, SNAPSHOTS
from etl.snapshots.store import Store, clear, locked_error, lying, other_files, staging_in, try_flock

PART_BYTES = 8 * 1024 * 1024
"""Bytes of one part of a multipart upload; a file of one part is put at once."""

CONCURRENCY = 4
"""Files on their way at a time, and parts of each."""


class ObjectStore(Store):
    """A prefix of a bucket. To write, it is held: see `hold`."""

    def __init__(self, url: str, environ: Mapping[str, str], stop: CancelToken | None = None) -> None:
        super().__init__(url.rstrip("/"))
        self._stop = stop or CancelToken()
        self._lease: Lease | None = None
        self._place: Path | None = None
        self._secured: set[str] = set()
        self._store = open_object_store(self.location, environ)

    def read(self, path: str) -> bytes | None:
        """See Store."""
        with translate_errors(self.location):
            try:
                return bytes(obstore.get(self._store, path).bytes())
            except FileNotFoundError as error:
                reraise_if_bucket_missing(error)
                return None

    def write(self, path: str, content: bytes) -> None:
        """See Store."""
        with translate_errors(self.location):
            obstore.put(self._store, path, content)

    def fetch(self, folder: str, paths: Sequence[str], to: Path) -> None:
        """Copy files of a folder to this machine, some at a time. One that is not there is left out: who needs it says so."""

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
        """See Store."""
        with translate_errors(self.location):
            found = obstore.list_with_delimiter(self._store, SNAPSHOTS)
            return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])

    def is_complete(self, name: str) -> bool:
        """See Store."""
        return self.state(f"{SNAPSHOTS}/{name}/{MANIFEST}") is not None

    def remove(self, name: str) -> None:
        """See Store."""
        self.delete(f"{SNAPSHOTS}/{name}/{MANIFEST}")
        with translate_errors(self.location):
            paths = [entry["path"] for entry in self._listed(name)]
            if paths:
                obstore.delete(self._store, paths)

    @contextmanager
    def staging(self, run_id: str) -> Iterator[tuple[Path, Path]]:
        """See Store. What was uploaded and did not become a snapshot goes, too."""
        assert self._place is not None  # noqa: S101 - only who holds it stages
        try:
            with staging_in(self._place, run_id) as folders:
                yield folders
        finally:
            for name in self._secured:
                with suppress(EtlError):  # the next run clears it, as it does after a crash
                    self.remove(name)

    def persist(self, staged: Path, name: str) -> None:
        """Upload all data files, and see that they are there."""
        self._secured.add(name)
        files = sorted(lying(staged))
        with translate_errors(self.location):
            self._run_concurrently(
                lambda path: self._upload(path, f"{SNAPSHOTS}/{name}/{_key(staged, path)}"),
                [staged / path for path, _ in files],
            )
        self._require_all(name, files)

    def publish(self, staged: Path, name: str) -> None:
        """The manifest makes it a snapshot, if all its files are there still; then LATEST names it."""
        assert self._lease is not None  # noqa: S101 - only who holds it publishes
        self._lease.assert_held()
        manifest = (staged / MANIFEST).read_bytes()
        self._require_all(name, [(entry["path"], entry["bytes"]) for entry in json.loads(manifest)["files"]])
        self.write(f"{SNAPSHOTS}/{name}/{MANIFEST}", manifest)
        self._secured.discard(name)
        self.write(LATEST, name.encode())

    @contextmanager
    def lock(self, wait: float) -> Iterator[None]:
        """See Store. What an end in mid-upload left is cleared."""
        with _staging_dir_for(self.location + servers()) as (place, free):
            lease: Lease | None = None

            def taken() -> bool:
                nonlocal lease
                if lease is None and free():
                    self.require_conditions(f"{LOCK}-probe-{_host_token(place)}")
                    lease = Lease(self, owner(_host_token(place), platform.node(), self.location))
                return lease is not None and lease.acquire()

            if not self._stop.poll(taken, wait) or lease is None:
                host = escape_control_characters(str(read_owner(self).get("host", "")))
                raise locked_error(f"{self.location}{f' (on {host})' if host else ''}", wait)
            self._lease, self._place = lease, place
            try:
                clear(place)
                for name in self.incomplete(after=self.latest_name()):
                    self.remove(name)
                yield
            finally:
                lease.release()

    def require_conditions(self, name: str) -> None:
        """Raise ConnectError where the store takes a write whose condition does not hold: its lock would keep nobody out.

        Tried on an object of that name, which is taken away. One that is there already is as good.
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
                f"{self.location} ignores the conditions of writes ({ignored}): a write that it had to refuse was taken, so "
                "two runs could publish there at once. Use a store that has conditional writes."
            )

    def create(self, path: str, content: bytes) -> ObjectVersion | None:
        """See Lease. Raises ConnectError where the store has no conditional writes."""
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
        """See Lease. Where the store knows no If-Match (501), the tag is looked at before, which is nearly as good."""
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
        """See Lease."""
        with translate_errors(self.location):
            try:
                found = obstore.head(self._store, path)
            except FileNotFoundError as error:
                reraise_if_bucket_missing(error)
                return None
            return _tag(found), found["last_modified"]

    def delete(self, path: str) -> None:
        """See Lease. That it is not there is no error."""
        with translate_errors(self.location), suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    def _require_all(self, name: str, files: Sequence[tuple[str, int]]) -> None:
        """Raise ConnectError where not these files, by path and bytes, lie in a snapshot's place, no fewer and no more."""
        with translate_errors(self.location):
            there = [
                (entry["path"].removeprefix(f"{SNAPSHOTS}/{name}/"), entry["size"]) for entry in self._listed(name)
            ]
        if wrong := other_files(there, files):
            raise ConnectError(f"What lies in {self.location_of(name)} is not what was sent there: {wrong}. Run again.")

    def _listed(self, name: str) -> list[Any]:
        return [entry for page in obstore.list(self._store, f"{SNAPSHOTS}/{name}") for entry in page]

    def _upload(self, path: Path, key: str) -> None:
        if path.stat().st_size <= PART_BYTES:
            obstore.put(self._store, key, path.read_bytes(), use_multipart=False)
        else:
            obstore.put(self._store, key, self._chunks(path), chunk_size=PART_BYTES, max_concurrency=CONCURRENCY)

    def _chunks(self, path: Path) -> Iterator[bytes]:
        """A file, part by part: what is raised in between abandons the upload, and the store forgets its parts."""
        with path.open("rb") as file:
            while chunk := file.read(PART_BYTES):
                self._stop.raise_if_cancelled()
                yield chunk

    def _run_concurrently(self, work: Callable[[Path], None], paths: Sequence[Path]) -> None:
        """Do it for all, some at a time. Raises the first that went wrong, StoppedError as soon as an end is asked for."""
        pool = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="store")
        try:
            for future in [pool.submit(work, path) for path in paths]:
                self._stop.poll(future.done, float("inf"))
                future.result()
        finally:
            # What hangs in a request is not waited for: its thread ends with it, or with the process.
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _staging_dir_for(what: str) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """The folder of this machine where snapshots for a store are staged, and what takes its lock if nobody has it.

    It is always the same, so that the next run clears what a killed one left, and knows that its lock is dead.
    """
    name = f"bpr-etl-{os.getuid()}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    place = temporary_folder() / name
    try:
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        why = writable_by_others(place)
    except OSError as error:
        raise SettingsError(
            f"{place}, where what is to be uploaded is staged, can't be used: {error.strerror}. Set TMPDIR."
        ) from None
    try:
        if why is not None:
            raise SettingsError(
                f"{place}, where what is to be uploaded is staged, is not this user's alone: {why}. Set TMPDIR."
            )
        yield place, lambda: try_flock(handle, place)
    finally:
        os.close(handle)


def _host_token(place: Path) -> str:
    """What tells this folder from every other, on whichever machine: who holds it knows whose lock it is that bears it."""
    file = place / "token"
    if not file.exists():
        file.write_text(uuid.uuid4().hex, encoding="ascii")
    return file.read_text(encoding="ascii")


def _tag(found: Mapping[str, Any]) -> ObjectVersion:
    return ObjectVersion(found["e_tag"], found["version"])


def _key(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
