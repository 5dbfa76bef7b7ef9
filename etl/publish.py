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
from etl.snapshot import LATEST, MANIFEST, PROBE, SNAPSHOTS, STAGING, Snapshot
from etl.stage import FileEntry, Staged
from etl.stopping import Stop

FORMAT = 1


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
        """Make a staged snapshot the newest: rename it, then name it in LATEST. Each step is atomic and on disk.

        `write_manifest` has put what was staged on disk.
        """
        snapshots = self.root / SNAPSHOTS
        snapshots.mkdir(exist_ok=True)
        _sync(self.root)
        final = snapshots / name
        staged.rename(final)
        _sync(snapshots)
        _replace_synced(self.root, LATEST, name)
        _sync(self.root)
        return final


@contextmanager
def open_store(out: str, wait: float = 0.0, stop: Stop | None = None) -> Iterator[Store]:
    """Hold `out` for writing: made when it isn't there, cleared of what a killed run left.

    Raises SettingsError for what is not a local folder, LockedError when another run writes there, and does so for longer
    than `wait` seconds; StoppedError.
    """
    if "://" in out:
        raise SettingsError(f"--out {out.split('://', maxsplit=1)[0]}://... is not supported yet; give a local folder.")
    root = Path(out)
    with writing(out):
        root.mkdir(parents=True, exist_ok=True)
        # The lock is on the folder itself, so that no lock file stays behind; it ends with the process.
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not (stop or Stop()).wait_for(lambda: _flock(handle), wait):
            raise LockedError(
                f"Another run is publishing to {root}{f', and did for {wait:g} s' if wait else ''}. "
                "Wait for it to end (--wait-lock), or give another --out."
            )
        for litter in root.glob(f"{STAGING}*"):
            shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
        yield Store(root)
    finally:
        os.close(handle)


def _flock(handle: int) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
    """Write the manifest, last in the snapshot, and put it all on disk: before COMMIT, since it takes time.

    Gives the snapshot's name: `<UTC time>-<short content hash>`.
    """
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
    _sync_tree(staged)
    return name


def write_probe(folder: Path, facts: Mapping[str, Any]) -> FileEntry:
    """Write what a probe found beside the data of a snapshot, staged or published; gives its entry in the manifest."""
    path = _replace_synced(folder, PROBE, _json(facts))
    _sync(folder)
    return FileEntry(PROBE, 0, path.stat().st_size, file_sha256(path))


def add_probe(snapshot: Snapshot, facts: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """Write what a probe found into a published snapshot, and its line into the manifest. Its data stay as they are.

    The manifest first forgets an earlier probe: whenever the power goes, what it lists is what lies there.
    Raises LockedError when a run writes to the folder that the snapshot is in.
    """
    folder = snapshot.folder.resolve().parent
    published = folder.name == SNAPSHOTS  # a copy elsewhere is nobody's to hold
    with open_store(str(folder.parent)) if published else nullcontext(), writing(str(snapshot.folder)):
        files = [each for each in snapshot.manifest["files"] if each["path"] != PROBE]
        without = {name: value for name, value in snapshot.manifest.items() if name != "probe"} | {"files": files}
        if without != snapshot.manifest:
            _replace_manifest(snapshot.folder, without)
        entry = asdict(write_probe(snapshot.folder, facts))
        _replace_manifest(snapshot.folder, {**without, "probe": dict(line), "files": [*files, entry]})


def _replace_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    _replace_synced(folder, MANIFEST, _json(manifest))
    _sync(folder)


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace_synced(folder: Path, name: str, text: str) -> Path:
    """Write a file anew: who reads it sees the old one or the new one."""
    _write_synced(folder / f"{STAGING}{name}", text)
    return (folder / f"{STAGING}{name}").replace(folder / name)


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
