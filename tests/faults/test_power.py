"""Power may go at any time: nothing is named before what it names is on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest

import etl
from etl.pipeline import database
from etl.pipeline import run as pipeline
from etl.postgres import embedded
from etl.postgres.connection import connect
from etl.postgres.transaction import transaction
from etl.postgres.url import target_of
from etl.settings.sources import load_settings
from etl.snapshots.reading.snapshot import LATEST
from tests.faults.test_server import cut_power
from tests.states import database_state


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
    report = etl.run(settings_for(small_world))
    snapshot, root = Path(report.snapshot), tmp_path / "out"
    named = disk.index(("rename", f".staging-{report.run_id}", snapshot.name))
    latest = next(n for n, event in enumerate(disk) if event[0] == "rename" and event[-1] == LATEST)
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
    report = etl.run(settings_for(small_world))
    committed = disk.index(("commit",))
    for path in Path(report.snapshot).rglob("*"):
        assert ("sync", path.stat().st_ino) in disk[:committed]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("off", "on"),
        ("local", "local"),
        ("on", "on"),
        ("remote_write", "remote_write"),
        ("remote_apply", "remote_apply"),
    ],
)
def test_commit_waits_for_the_disk_whatever_the_role_says(small_world, settings_for, asked, found):
    """What is stronger stays, and what waits for the disk of this server alone, too; a trigger can't take it back."""
    shown = "SELECT current_setting('synchronous_commit')"
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE \"{connection.info.dbname}\" SET synchronous_commit = '{asked}'")
        connection.execute("CREATE TABLE noted (at_commit text)")
        connection.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN UPDATE public.noted SET at_commit = current_setting('synchronous_commit'); RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON noted DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
            "EXECUTE FUNCTION note()"
        )
    with connect(target_of(settings_for(small_world))) as connection:
        with transaction(connection):
            assert connection.fetch_rows(shown) == [(found,)]
            connection.execute("INSERT INTO public.noted VALUES ('')")
            if asked == "off":
                connection.execute("SET LOCAL synchronous_commit = off")
        assert connection.fetch_rows("SELECT at_commit FROM public.noted") == [(found,)]
        assert connection.fetch_rows(shown) == [(asked,)]


def test_the_folder_is_not_ahead_of_a_server_that_answers_before_it_is_on_disk():
    """synchronous_commit = off, and the power goes right after a run: what it has published is in the database."""
    unsafe = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "0", "fsync": "on"}
    folder = Path(tempfile.mkdtemp(prefix="bpr-test-"))
    folder.chmod(0o755)
    try:
        server = embedded.start(folder / "pg", parameters=unsafe)
        given = {"database_url": server.url(), "out": str(folder / "out")}
        database.synth(load_settings({**given, "scale": 0.02}, {}))
        etl.run(load_settings(given, {}))
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CHECKPOINT")
        assert etl.run(load_settings({**given, "seed": 1}, {})).committed
        cut_power(server.data_dir)
        after = embedded.start(folder / "pg", parameters=unsafe)
        state = database_state(after.url())
        assert etl.run(load_settings({**given, "seed": 1}, {})).committed
        assert database_state(after.url()) == state
    finally:
        embedded.stop(folder / "pg")
        shutil.rmtree(folder, ignore_errors=True)
