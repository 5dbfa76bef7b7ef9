"""A hot standby: `export` works there, `run` is refused, and what the primary makes it end is tried again.

The distribution's own server, with a standby made by pg_basebackup; both on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

import etl
from etl.postgres import transaction
from etl.postgres.connection import ConflictError, Connection, connect
from etl.postgres.url import parse_url
from etl.runtime.run_record import RunObserver, Step
from tests.faults.calling import call, said
from tests.faults.tls_server import _account, _free_port, _programs, _run

FOREVER = "ALTER SYSTEM SET max_standby_streaming_delay = {}"


@dataclass(frozen=True)
class Pair:
    """URLs of one database on the primary and on its standby."""

    primary: str
    standby: str

    def execute(self, url: str, *statements: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def caught_up(self) -> None:
        """Wait until the standby has applied all that the primary has written."""
        with psycopg.connect(self.primary) as one, psycopg.connect(self.standby, autocommit=True) as other:
            target = one.execute("SELECT pg_current_wal_lsn()").fetchone()[0]
            for _ in range(600):
                if other.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (target,)).fetchone()[0]:
                    return
                time.sleep(0.05)
        pytest.fail("the standby does not catch up")

    def readers(self) -> int:
        """The sessions that read on the standby, those that it has ended left out."""
        with psycopg.connect(self.standby, autocommit=True) as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'bpr-etl%' "
                "AND state IN ('active', 'idle in transaction')"
            )
            return int(found.fetchone()[0])

    def remove_versions(self) -> None:
        """Have the standby remove row versions that every snapshot taken before still needs."""
        self.execute(
            self.primary,
            "CREATE TABLE IF NOT EXISTS junk AS SELECT g FROM generate_series(1, 1000) g",
            "UPDATE junk SET g = g + 1",
            "VACUUM junk",
        )
        self.caught_up()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A primary with a small synthetic world after a run, and its standby, which waits 0.2 s for readers."""
    if not (_programs() / "pg_basebackup").exists():
        pytest.skip("no PostgreSQL server with pg_basebackup here")
    folder = Path(tempfile.mkdtemp(prefix="bpr-standby-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, _account().pw_uid, _account().pw_gid)
        ports = _free_port(), _free_port()
        _run(_programs() / "initdb", "-D", folder / "one", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8")
        # Without autovacuum, whose ANALYZE would keep versions that VACUUM is to remove.
        with _server(folder / "one", ports[0], "-c autovacuum=off"):
            primary, standby = (f"postgresql://postgres@127.0.0.1:{port}/postgres" for port in ports)
            assert call("synth", "--scale", "0.02", env={"DATABASE_URL": primary}).returncode == 0
            done = call("run", env={"DATABASE_URL": primary, "BPR_ETL_OUT": str(folder.parent / f"{folder.name}-out")})
            assert done.returncode == 0, said(done)
            copy = ["-h", "127.0.0.1", "-p", str(ports[0]), "-U", "postgres", "-R", "-X", "stream", "-c", "fast"]
            _run(_programs() / "pg_basebackup", "-D", folder / "two", *copy)
            with _server(folder / "two", ports[1], "-c hot_standby_feedback=off -c max_standby_streaming_delay=200ms"):
                made = Pair(primary, standby)
                made.caught_up()
                yield made
    finally:
        for place in (folder, folder.parent / f"{folder.name}-out"):
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _server(data: Path, port: int, more: str = "") -> Iterator[None]:
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data.parent} -c fsync=off {more}"
    _run(_programs() / "pg_ctl", "start", "-D", data, "-w", "-t", "60", "-l", f"{data}.log", "-o", options)
    try:
        yield
    finally:
        _run(_programs() / "pg_ctl", "stop", "-D", data, "-w", "-t", "60", "-m", "immediate")


def test_export_and_validate_work_on_a_standby(pair, tmp_path):
    of = {
        url: call("export", "--json", "--out", str(tmp_path / str(number)), env={"DATABASE_URL": url})
        for number, url in enumerate((pair.primary, pair.standby))
    }
    for url, done in of.items():
        assert done.returncode == 0, said(done)
        assert call("validate", env={"DATABASE_URL": url}).returncode == 0
        assert "connectorx can't" not in done.stderr
    contents = [etl.open_snapshot(tmp_path / str(number)).manifest["content_sha256"] for number in range(2)]
    assert contents[0] == contents[1]


def test_run_is_refused_on_a_standby_and_finds_the_primary_as_the_message_says(pair, tmp_path):
    refused = call("run", "--out", str(tmp_path / "out"), env={"DATABASE_URL": pair.standby})
    assert refused.returncode == 3
    assert "The server is a standby and takes no writes." in refused.stderr
    assert "target_session_attrs=read-write" in refused.stderr
    doctor = call("doctor", "--json", "--out", str(tmp_path / "out"), env={"DATABASE_URL": pair.standby})
    assert doctor.returncode == 3
    failed = [each for each in json.loads(doctor.stdout)["checks"] if each["state"] == "failed"]
    assert [each["name"] for each in failed] == ["server"]
    hosts = [url.split("@")[1].split("/")[0] for url in (pair.standby, pair.primary)]
    both = f"postgresql://postgres@{','.join(hosts)}/postgres?target_session_attrs=read-write"
    done = call("run", "--out", str(tmp_path / "out"), env={"DATABASE_URL": both})
    assert done.returncode == 0, said(done)


class Meddler(RunObserver):
    """Removes what the reading needs, in so many attempts: after its first rows, while the transaction waits for more."""

    def __init__(self, pair: Pair, times: int) -> None:
        self._pair, self.times = pair, times

    def on_step_start(self, step: Step) -> None:
        if step.name == "read" and self.times:
            self.times -= 1
            for _ in range(20):  # on a busy machine VACUUM may meet an older snapshot, and remove nothing
                self._pair.remove_versions()
                if not self._pair.readers():
                    return


def test_a_session_that_the_standby_ends_is_opened_again(pair, settings_for, caplog):
    expected = etl.export(settings_for(pair.standby)).counts
    done = etl.export(settings_for(pair.standby), progress=Meddler(pair, 2))
    assert done.retries == 2
    assert done.counts == expected
    assert "conflict with recovery" in caplog.text
    assert "hot_standby_feedback" in caplog.text


def test_a_standby_that_always_ends_the_reading_has_its_sentence_and_the_remedy_works(pair, settings_for, monkeypatch):
    monkeypatch.setattr(transaction, "RETRIES", 2)
    with pytest.raises(ConflictError, match="Raise max_standby_streaming_delay there") as refused:
        etl.export(settings_for(pair.standby), progress=Meddler(pair, 100))
    assert "Tried 2 times" in str(refused.value)
    assert refused.value.exit_code == 3
    pair.execute(pair.standby, FOREVER.format("'30s'"), "SELECT pg_reload_conf()")
    try:
        pair.execute(pair.primary, "UPDATE junk SET g = g + 1")
        reading = etl.export(settings_for(pair.standby), progress=Vacuum(pair, 1))
        assert reading.retries == 0
    finally:
        pair.execute(pair.standby, "ALTER SYSTEM RESET max_standby_streaming_delay", "SELECT pg_reload_conf()")


class Vacuum(Meddler):
    """Has the primary remove row versions, and does not wait for the standby, which waits for the reader."""

    def on_step_start(self, step: Step) -> None:
        if step.name == "read" and self.times:
            self.times -= 1
            self._pair.execute(self._pair.primary, "VACUUM junk")


def test_a_statement_that_the_standby_cancels_is_a_conflict_whatever_the_driver_says_of_it(pair):
    """While rows are being sent, the driver gives no SQLSTATE."""
    for read in (
        lambda connection: connection.fetch_rows("SELECT pg_sleep(10)::text"),
        lambda connection: list(
            connection.iter_frames("SELECT g, pg_sleep(0.001)::text FROM generate_series(1, 10000) g")
        ),
    ):
        with connect(parse_url(pair.standby, {"HOME": "/nonexistent"})) as connection:
            with pytest.raises(ConflictError, match="The standby ended the reading"):
                _read_meanwhile(connection, read, pair)
            assert transaction.is_open(connection)


def _read_meanwhile(connection: Connection, read: Callable[[Connection], object], pair: Pair) -> None:
    """Read in a transaction, and have what it needs removed in the middle."""
    meddling = threading.Timer(0.3, pair.remove_versions)
    with transaction.transaction(connection, read_only=True):
        connection.fetch_rows('SELECT count(*) FROM public."Trip"')
        meddling.start()
        try:
            read(connection)
        finally:
            meddling.join()
