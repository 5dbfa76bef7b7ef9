"""Power may go at any time: nothing is named before what it names is on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from etl import pipeline
from etl.snapshot import LATEST


@pytest.fixture
def disk(monkeypatch):
    """What happens to files, in order: ("sync", inode) and ("rename", from, to)."""
    events: list[tuple] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def synced(handle):
        events.append(("sync", os.fstat(handle).st_ino))
        return fsync(handle)

    def renamed(self, target):
        events.append(("rename", self.name, Path(target).name))
        return rename(self, target)

    def replaced(self, target):
        events.append(("rename", self.name, Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    return events


def test_every_file_and_folder_is_on_disk_before_it_is_named(small_world, settings_for, disk, tmp_path):
    """Files, then the folders that name them, then the new name, then LATEST, each with the folder that it stands in."""
    report = pipeline.run(settings_for(small_world))
    snapshot, root = Path(report.snapshot), tmp_path / "out"
    named = disk.index(("rename", f".staging-{report.run_id}", snapshot.name))
    latest = disk.index(("rename", f".staging-{LATEST}", LATEST))
    assert named < latest

    def synced(path: Path, first: int, last: int) -> bool:
        return ("sync", path.stat().st_ino) in disk[first:last]

    inside = [snapshot, *snapshot.rglob("*")]
    assert len(inside) > 12
    assert [path for path in inside if not synced(path, 0, named)] == []
    assert synced(snapshot.parent, named, latest)
    assert synced(root / LATEST, named, latest)
    assert synced(root, latest, len(disk))


def test_what_was_staged_is_on_disk_before_commit(small_world, settings_for, disk, monkeypatch):
    """After COMMIT there is only a name to give: that takes no time, and needs no room."""
    original = pipeline.Connection.commit

    def commit(self):
        disk.append(("commit",))
        original(self)

    monkeypatch.setattr(pipeline.Connection, "commit", commit)
    report = pipeline.run(settings_for(small_world))
    committed = disk.index(("commit",))
    for path in Path(report.snapshot).rglob("*"):
        assert ("sync", path.stat().st_ino) in disk[:committed]
