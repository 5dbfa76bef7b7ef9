"""Publish what was staged as a snapshot: its manifest, and the switch of LATEST (CONTRACT, section 3).

Staged in a folder of its own, checked as it lies on disk, then renamed and named in LATEST: a reader sees the snapshot
before or the one after.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from etl.errors import ConnectError, LockedError, SettingsError
from etl.parquet import file_sha256
from etl.snapshot import LATEST, MANIFEST, SNAPSHOTS, Snapshot
from etl.stage import FileEntry, Staged

FORMAT = 1
STAGING = ".staging-"
PROBE = "probe.json"


class Store:
    """A local folder that snapshots are published to, held by one writer at a time. See `open_store`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def latest(self) -> dict[str, Any] | None:
        """The manifest of the snapshot that LATEST names; None where there is none, or none that is whole."""
        try:
            name = (self.root / LATEST).read_text(encoding="utf-8").strip()
            manifest: dict[str, Any] = json.loads((self.root / SNAPSHOTS / name / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        return manifest

    @contextmanager
    def staging(self, run_id: str) -> Iterator[tuple[Path, Path]]:
        """A fresh folder to stage a snapshot in, and one for what has to wait on the way; gone at the end of the block.

        What was staged stays if it was published.
        """
        folders = self.root / f"{STAGING}{run_id}", self.root / f"{STAGING}{run_id}-scratch"
        try:
            for folder in folders:
                folder.mkdir()
            yield folders
        finally:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, name: str) -> Path:
        """Make a staged snapshot the newest: rename it, then name it in LATEST. Each step is atomic and on disk."""
        snapshots = self.root / SNAPSHOTS
        snapshots.mkdir(exist_ok=True)
        _sync_tree(staged)
        final = snapshots / name
        staged.rename(final)
        _sync(snapshots)
        _write_synced(self.root / f"{STAGING}{LATEST}", name)
        (self.root / f"{STAGING}{LATEST}").replace(self.root / LATEST)
        _sync(self.root)
        return final


@contextmanager
def open_store(out: str) -> Iterator[Store]:
    """Hold `out` for writing: made when it isn't there, cleared of what a killed run left.

    Raises SettingsError for what is not a local folder, LockedError when another run writes there.
    """
    if "://" in out:
        raise SettingsError(f"--out {out.split('://', maxsplit=1)[0]}://... is not supported yet; give a local folder.")
    root = Path(out)
    with writing(out):
        root.mkdir(parents=True, exist_ok=True)
        # The lock is on the folder itself, so that no lock file stays behind; it ends with the process.
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"Another run is publishing to {root}. Wait for it to end, or give another --out."
            ) from None
        for litter in root.glob(f"{STAGING}*"):
            shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
        yield Store(root)
    finally:
        os.close(handle)


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Turns an OSError into ConnectError: the output folder can't be reached, or takes no more."""
    try:
        yield
    except OSError as error:
        raise ConnectError(
            f"Cannot write to {out}: {error.strerror or error}. Check the path, its rights and the disk."
        ) from error


def write_manifest(staged: Path, facts: Mapping[str, Any], account: Staged, now: datetime) -> str:
    """Write the manifest, last in the snapshot, and give the snapshot's name: `<UTC time>-<short content hash>`."""
    content = account.content_sha256
    name = f"{now:%Y%m%dT%H%M%S%f}Z-{content[:12]}"
    manifest = {
        "format": FORMAT,
        "snapshot": name,
        "content_sha256": content,
        **facts,
        "cities": account.folders,
        "files": [asdict(entry) for entry in [*account.files, *account.beside]],
    }
    _write_synced(staged / MANIFEST, _json(manifest))
    return name


def write_probe(folder: Path, facts: Mapping[str, Any]) -> FileEntry:
    """Write what a probe found beside the data of a snapshot, staged or published; gives its entry in the manifest."""
    path = folder / PROBE
    _write_synced(folder / f"{STAGING}{PROBE}", _json(facts))
    (folder / f"{STAGING}{PROBE}").replace(path)
    return FileEntry(PROBE, 0, path.stat().st_size, file_sha256(path))


def add_probe(snapshot: Snapshot, facts: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """Write what a probe found into a published snapshot, and its line into the manifest. Its data stay as they are.

    Raises LockedError when a run writes to the folder that the snapshot is in.
    """
    folder = snapshot.folder.resolve().parent
    published = folder.name == SNAPSHOTS  # a copy elsewhere is nobody's to hold
    with open_store(str(folder.parent)) if published else nullcontext(), writing(str(snapshot.folder)):
        entry = asdict(write_probe(snapshot.folder, facts))
        files = [each for each in snapshot.manifest["files"] if each["path"] != PROBE]
        manifest = {**snapshot.manifest, "probe": dict(line), "files": [*files, entry]}
        _write_synced(snapshot.folder / f"{STAGING}{MANIFEST}", _json(manifest))
        (snapshot.folder / f"{STAGING}{MANIFEST}").replace(snapshot.folder / MANIFEST)
        _sync(snapshot.folder)


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    """Files first, then the folders that name them, the innermost first: power may go at any time."""
    for base, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(base) / name)
        _sync(Path(base))
