"""Behind a pooler: a transaction pooler is told by its name before anything is set or held, a session pooler serves.

With the real PgBouncer where there is one (these tests skip without its executable), and with a small pooler of our own.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest

import etl
from etl.commands.doctor import run_checks
from etl.errors import ConnectError, LockedError
from etl.pipeline.context import utc_now
from etl.pipeline.database import check_schema, validate_database
from etl.postgres import transaction as database
from etl.postgres.connection import connect
from etl.postgres.transaction import advisory_lock, goes_through_transaction_pooler
from etl.postgres.url import target_of
from tests.faults.nights import call, start
from tests.faults.poolers import PGBOUNCER, pgbouncer, transaction_pool
from tests.faults.proxy import proxy
from tests.states import database_state, folder_state

Pool = Callable[..., str]
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer on this machine")

TRANSACTIONS = [
    pytest.param("own", {"ignores_options": False}, id="our own"),
    pytest.param("own", {"ignores_options": True}, id="our own, options ignored"),
    *(
        pytest.param("pgbouncer", {"pool_mode": "transaction", **settings}, id=name, marks=needs_pgbouncer)
        for name, settings in {
            "pgbouncer": {"default_pool_size": 5},
            "pgbouncer, options ignored": {"default_pool_size": 5, "ignore_startup_parameters": "options"},
            "pgbouncer, first in first out": {"default_pool_size": 5, "server_round_robin": 1},
            "pgbouncer, a pool of one": {"default_pool_size": 1},
        }.items()
    ),
]


@pytest.fixture
def pool(small_world, tmp_path) -> Iterator[Pool]:
    """Starts a pooler before the small world; gives the URL through it."""
    if "host=" not in small_world:
        pytest.skip("the server is not on a unix socket")
    with ExitStack() as stack:

        def begin(kind: str, settings: dict[str, object]) -> str:
            folder = tmp_path / "pooler"
            folder.mkdir()
            folder.chmod(0o755)
            made = (
                transaction_pool(small_world, **settings)
                if kind == "own"
                else pgbouncer(small_world, folder, **settings)
            )
            return stack.enter_context(made)

        yield begin


@contextmanager
def busy(url: str) -> Iterator[None]:
    """Other clients use the pooler all the time."""
    ended = threading.Event()

    def work() -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            while not ended.is_set():
                connection.execute("SELECT pg_sleep(0.02)")

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)


def advisory_locks(url: str) -> int:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()[0]


def require_clean(direct: str, pooled: str, sessions: int = 1) -> None:
    """No session of the pool holds or has set anything of ours, whichever of them the application gets."""
    assert advisory_locks(direct) == 0
    with ExitStack() as stack:
        for _ in range(sessions):
            session = stack.enter_context(psycopg.connect(pooled, prepare_threshold=None))
            changed = session.execute(
                "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name NOT IN "
                "('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings', "
                "'transaction_isolation', 'transaction_read_only', 'transaction_deferrable')"
            ).fetchall()
            assert changed == []
    with psycopg.connect(pooled, prepare_threshold=None) as application:
        application.execute("""INSERT INTO "User" ("id", "email") VALUES ('a-person', 'a-person@example.test')""")
        application.rollback()


@pytest.mark.parametrize(("kind", "given"), TRANSACTIONS)
@pytest.mark.parametrize("others", [False, True], ids=["quiet", "busy"])
def test_a_transaction_pooler_is_named_and_nothing_is_left(
    pool, small_world, settings_for, tmp_path, kind, given, others
):
    url = pool(kind, given)
    before = database_state(small_world), folder_state(tmp_path / "out")
    with busy(url) if others else ExitStack():
        for _ in range(2):  # the second one meets what the first one left
            with pytest.raises(ConnectError, match=r"through a transaction pooler.*Give the direct URL"):
                etl.run(settings_for(url))
        found = {check.name: check for check in run_checks(settings_for(url), utc_now)}
    assert found["pooler"].state == "failed"
    assert "transaction pooler" in found["pooler"].found
    assert (found["pooler"].exit_code, found["schema"].state) == (3, "ok")
    assert (database_state(small_world), folder_state(tmp_path / "out")) == before
    require_clean(small_world, url, 1 if given.get("default_pool_size") == 1 else 3)
    assert etl.run(settings_for(small_world)).committed


@pytest.mark.parametrize(("kind", "given"), TRANSACTIONS[:3])
def test_a_transaction_pooler_that_nobody_noticed_keeps_no_lock(
    pool, small_world, settings_for, monkeypatch, kind, given
):
    """As where two sessions meet two poolers of a row: the lock is the transaction's, so the run is right, and leaves none."""
    monkeypatch.setattr(database, "goes_through_transaction_pooler", lambda _: False)
    url = pool(kind, given)
    assert etl.run(settings_for(url)).committed
    require_clean(small_world, url, 3)
    with (
        connect(target_of(settings_for(small_world))) as holder,
        advisory_lock(holder, "public"),
        pytest.raises(LockedError, match="Another bpr-etl run is at work"),
    ):
        etl.run(settings_for(url))


@pytest.mark.parametrize(("kind", "given"), [TRANSACTIONS[0], TRANSACTIONS[2]])
@pytest.mark.parametrize("others", [False, True], ids=["quiet", "busy"])
def test_what_takes_no_lock_works_through_a_transaction_pooler(pool, small_world, settings_for, kind, given, others):
    """An export, a validation and a look at the schema are one transaction each."""
    etl.run(settings_for(small_world))
    url = pool(kind, given)
    with busy(url) if others else ExitStack():
        assert etl.export(settings_for(url)).snapshot is not None
        assert validate_database(settings_for(url)).broken == []
        assert check_schema(settings_for(url)) == []
    require_clean(small_world, url)


@needs_pgbouncer
def test_statement_pooling_is_named(pool, settings_for):
    url = pool("pgbouncer", {"pool_mode": "statement"})
    for command in (etl.run, etl.export, validate_database):
        with pytest.raises(ConnectError, match=r"transaction pooler.*statement pooling mode.*Give the direct URL"):
            command(settings_for(url))
    checks = list(run_checks(settings_for(url), utc_now))
    assert next(check for check in checks if check.state == "failed").exit_code == 3


@needs_pgbouncer
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_session_pooler_serves(pool, small_world, settings_for, caplog, size):
    """Also one that has a place for one session: then nothing waits for a second one for long."""
    caplog.set_level("INFO")
    url = pool("pgbouncer", {"pool_mode": "session", "default_pool_size": size})
    began = time.monotonic()
    report = etl.run(settings_for(url))
    assert report.committed
    assert time.monotonic() - began < 30  # of the 120 s that PgBouncer has a client wait
    assert "Reading through ADBC" in caplog.text
    found = {check.name: check for check in run_checks(settings_for(url), utc_now)}
    assert (found["pooler"].state, found["other run"].state) == ("ok", "ok")
    require_clean(small_world, url)
    assert validate_database(settings_for(small_world)).broken == []


@needs_pgbouncer
def test_a_pool_without_a_place_is_named(pool, settings_for):
    url = pool("pgbouncer", {"pool_mode": "session", "default_pool_size": 1, "query_wait_timeout": 2})
    with psycopg.connect(url) as application:
        application.execute("SELECT 1")
        with pytest.raises(ConnectError, match=r"A pooler .* refuses .*query_wait_timeout.*Give the direct URL"):
            etl.run(settings_for(url))


@needs_pgbouncer
def test_a_run_that_is_killed_leaves_no_lock_on_a_session_pooler(pool, small_world, settings_for, tmp_path):
    """Not even where the pooler does not clear a session up that it hands on."""
    url = pool("pgbouncer", {"pool_mode": "session", "server_reset_query": ""})
    command = ("run", "--out", str(tmp_path / "out"), "--quiet")
    for step in ("write personas", "backfill"):
        ended = call(command, url, {"at": "step", "name": step, "edge": "begin", "signal": "SIGKILL"})
        assert ended.code == -signal.SIGKILL, ended
        deadline = time.monotonic() + 12
        while advisory_locks(small_world):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        require_clean(small_world, url)
    assert etl.run(settings_for(url)).committed


@needs_pgbouncer
def test_runs_exclude_each_other_through_a_session_pooler_too(pool, small_world, settings_for, tmp_path):
    url = pool("pgbouncer", {"pool_mode": "session"})
    with (
        connect(target_of(settings_for(small_world))) as holder,
        advisory_lock(holder, "public"),
        pytest.raises(LockedError, match="Another bpr-etl run is at work"),
    ):
        etl.run(settings_for(url))
    command = ("run", "--out", str(tmp_path / "out"), "--quiet")
    process = start(command, url, {"at": "step", "name": "backfill", "edge": "begin", "signal": "SIGSTOP"})
    try:
        while not advisory_locks(small_world):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        with pytest.raises(LockedError):
            etl.run(settings_for(small_world, out=str(tmp_path / "elsewhere")))
    finally:
        process.kill()
        process.communicate()


def test_a_forwarder_is_no_pooler(small_world, settings_for):
    """A line that only passes on what it gets is as direct as any."""
    with proxy(small_world) as line, connect(target_of(settings_for(line.url(small_world)))) as connection:
        assert connection.direct
        assert not goes_through_transaction_pooler(connection)


def test_the_url_s_own_options_are_kept(small_world, settings_for):
    sep = "&" if "?" in small_world else "?"
    shown = "SELECT current_setting('work_mem'), current_setting('bpr_etl.other', true)"
    url = f"{small_world}{sep}options=-c%20work_mem%3D7MB%20-c%20bpr_etl.other%3Da%5C%20b"
    with connect(target_of(settings_for(url))) as connection:
        assert connection.direct
        assert connection.fetch_rows(shown) == [("7MB", "a b")]
