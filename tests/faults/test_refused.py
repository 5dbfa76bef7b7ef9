"""What the server refuses, and what its settings change: exit 4 or 5 where only a person can help, 3 where a retry may."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

import adbc_driver_manager
import psycopg
import pytest

import etl
from etl.errors import ConnectError, DataError, EtlError, SchemaError
from etl.pipeline.database import apply_schema, check_schema, synth, validate_database
from etl.postgres import connection as database
from etl.postgres.connection import ConflictError, connect, require_supported
from etl.postgres.transaction import transaction
from etl.postgres.url import parse_url
from etl.settings.sources import load_settings
from tests.faults.tls_server import tls_server
from tests.states import database_state, folder_state

SHADOW = """(SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-'))"""
RAISES = (
    "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'kept for audit' {} ; END $$"
)
DELETES = 'CREATE TRIGGER no BEFORE DELETE ON "RankingEvent" FOR EACH ROW EXECUTE FUNCTION no()'
DEFERRED = (
    'CREATE CONSTRAINT TRIGGER no AFTER INSERT ON "RankingEvent" DEFERRABLE INITIALLY DEFERRED '
    "FOR EACH ROW EXECUTE FUNCTION no()"
)
FEEDBACK = """CREATE TABLE "Feedback" ("eventId" text REFERENCES "RankingEvent"("id") DEFERRABLE INITIALLY DEFERRED)"""
REFERS = f'INSERT INTO "Feedback" SELECT "id" FROM "RankingEvent" WHERE "userId" IN {SHADOW} LIMIT 1'


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for each in statements:
            connection.execute(each)


def setting(url: str, what: str) -> None:
    """What every later connection to the database begins with."""
    change(url, f'ALTER DATABASE "{urlsplit(url).path[1:]}" SET {what}')


def refused(settings, kind: type[EtlError]) -> str:
    """A run after a good one is refused, and leaves all as it was; gives what it says."""
    state = database_state(settings.database_url), folder_state(Path(settings.out))
    with pytest.raises(EtlError) as raised:
        etl.run(settings)
    assert type(raised.value) is kind, raised.value
    assert (database_state(settings.database_url), folder_state(Path(settings.out))) == state
    return str(raised.value)


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (
            [RAISES.format(""), DELETES],
            "A trigger or function of the database refused: kept for audit. Nothing was written.",
        ),
        ([RAISES.format("USING ERRCODE = 'A0001'"), DELETES], "(SQLSTATE A0001): kept for audit. Nothing was written."),
        ([RAISES.format("USING ERRCODE = '0A000'"), DELETES], "(SQLSTATE 0A000): kept for audit. Nothing was written."),
        ([RAISES.format("USING ERRCODE = '23514'"), DELETES], "The database refused a row"),
        ([RAISES.format(""), DEFERRED], "refused: kept for audit. Nothing was written."),
        ([FEEDBACK, REFERS], "lists the foreign keys that point at the tables which a run writes"),
    ],
)
def test_what_a_trigger_or_a_constraint_refuses_is_no_bug_and_no_reason_to_run_again(
    small_world, settings_for, statements, said
):
    etl.run(settings_for(small_world))
    change(small_world, *statements)
    message = refused(settings_for(small_world, seed=5), DataError)
    assert said in message
    assert "un again" not in message
    assert "\n" not in message


@pytest.mark.parametrize("code", ["55000", "58030", "XX001", "40002", "53400"])
def test_what_may_be_gone_at_the_next_try_is_exit_3(small_world, settings_for, code):
    etl.run(settings_for(small_world))
    change(small_world, RAISES.format(f"USING ERRCODE = '{code}'"), DELETES)
    message = refused(settings_for(small_world, seed=5), ConnectError)
    assert "kept for audit" in message
    assert "again" in message


def test_a_table_without_replica_identity_that_is_published(small_world, settings_for):
    etl.run(settings_for(small_world))
    change(small_world, 'ALTER TABLE "RankingEvent" REPLICA IDENTITY NOTHING', "CREATE PUBLICATION p FOR ALL TABLES")
    message = refused(settings_for(small_world, seed=5), SchemaError)
    assert 'ALTER TABLE "public"."RankingEvent" REPLICA IDENTITY FULL' in message
    assert etl.export(settings_for(small_world)).snapshot  # which writes nothing


def test_transactions_that_are_read_only_by_default(small_world, settings_for):
    etl.run(settings_for(small_world))
    setting(small_world, "default_transaction_read_only = on")
    message = refused(settings_for(small_world, seed=5), ConnectError)
    assert "default_transaction_read_only is on" in message
    assert "SET default_transaction_read_only = off" in message
    assert "standby" not in message
    assert etl.export(settings_for(small_world)).snapshot


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("idle_in_transaction_session_timeout = 50", "Raise idle_in_transaction_session_timeout"),
        # Where we write at the moment in which the server hangs up, its last words are lost.
        (
            "transaction_timeout = 100",
            "Raise transaction_timeout|The connection to the database was lost: server closed",
        ),
        ("statement_timeout = 3", "Raise statement_timeout"),
    ],
)
def test_a_limit_of_the_server_is_named_wherever_it_is_met(small_world, settings_for, limit, said):
    etl.run(settings_for(small_world))
    try:
        setting(small_world, limit)
    except psycopg.errors.UndefinedObject:
        pytest.skip("this server does not know the setting")
    with pytest.raises(ConnectError, match=said):
        etl.run(settings_for(small_world, seed=5))


@pytest.mark.parametrize(
    ("limit", "within", "said"),
    [
        ("idle_session_timeout", False, "Raise idle_session_timeout"),
        ("idle_in_transaction_session_timeout", True, "Raise idle_in_transaction_session_timeout"),
        ("transaction_timeout", True, "Raise transaction_timeout"),
    ],
)
def test_a_limit_that_is_met_by_begin_or_commit(small_world, limit, within, said):
    """There the driver gives no SQLSTATE, only the server's words."""
    with connect(parse_url(small_world, {})) as connection:
        if not connection.fetch_rows(f"SELECT FROM pg_settings WHERE name = '{limit}'"):
            pytest.skip("this server does not know the setting")
        connection.fetch_rows(f"SELECT set_config('{limit}', '80ms', false)")
        if within:
            connection.begin("READ ONLY")
        time.sleep(0.4)
        with pytest.raises(ConnectError, match=said):
            connection.commit() if within else connection.begin("READ ONLY")


@pytest.mark.parametrize(
    "what",
    [
        *("extra_float_digits = -15", "quote_all_identifiers = on", "standard_conforming_strings = off"),
        *(
            "DateStyle = 'SQL, DMY'",
            "TimeZone = 'Asia/Kolkata'",
            "IntervalStyle = 'sql_standard'",
            "bytea_output = escape",
        ),
    ],
)
def test_settings_that_change_texts_change_nothing(small_world, settings_for, what):
    plain = etl.run(settings_for(small_world))
    rows = database_state(small_world)
    setting(small_world, what)
    again = etl.run(settings_for(small_world))
    assert again.snapshot.rpartition("-")[2] == plain.snapshot.rpartition("-")[2]  # the hash of what is in it
    assert validate_database(settings_for(small_world)).broken == []
    assert [each for each in check_schema(settings_for(small_world)) if each.severity == "blocking"] == []
    change(small_world, f'ALTER DATABASE "{urlsplit(small_world).path[1:]}" RESET ALL')
    assert database_state(small_world) == rows


def test_emails_with_a_collation_that_has_no_prefixes(tmp_path):
    """A nondeterministic collation needs a server with ICU, which the embedded one lacks."""
    with tls_server() as server:
        url = server.url(sslmode="require")
        synth(load_settings({"database_url": url, "scale": 0.02}, {}))
        plain = etl.run(load_settings({"database_url": url, "out": str(tmp_path / "a")}, {}))
        try:
            server.admin("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        except AssertionError as error:
            pytest.skip(f"this server has no ICU: {error}")
        server.admin('DROP INDEX "User_email_key"')
        server.admin('ALTER TABLE "User" ALTER "email" TYPE text COLLATE ci')
        server.admin("""INSERT INTO "User" ("id", "email") VALUES ('real', 'SHADOW-1@example.test')""")
        settings = load_settings(
            {"database_url": url, "out": str(tmp_path / "b"), "shadow_domain": "overplanned.test"}, {}
        )
        ran = etl.run(settings)
        assert ran.counts["shadow_users"] == plain.counts["shadow_users"]
        assert validate_database(settings).broken == []
        # By this collation, another user's id equals a shadow user's. By its bytes it does not.
        server.admin(
            """INSERT INTO "User" SELECT upper("id"), 'real-2@example.test' FROM "User" WHERE "email" COLLATE "C" LIKE 'shadow-%' LIMIT 1"""
        )
        server.admin("""INSERT INTO "BehavioralSignal" ("id", "userId", "signalType") SELECT 'hers', "id", 'view' FROM "User"
            WHERE "email" = 'real-2@example.test'""")
        for table in ("BehavioralSignal", "Trip", "RankingEvent", "PersonaDimension"):
            server.admin(f'ALTER TABLE "{table}" ALTER "userId" TYPE text COLLATE ci')
        again = etl.run(settings)
        assert again.counts["ranking_events"] == ran.counts["ranking_events"]
        assert {(each["inserted"], each["deleted"]) for each in again.counts["written"].values()} == {(0, 0)}
        assert "hers" in server.admin(
            """SELECT "id" FROM "BehavioralSignal" WHERE "modelVersion" IS NULL AND "id" = 'hers'"""
        )


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        ("1 / (100000 - n)", DataError, r"refused a value: division by zero\. Nothing was written"),
        ("pg_temp.late(n, 'P0001')", DataError, r"trigger or function of the database refused: kept for audit\."),
        ("pg_temp.late(n, '58030')", ConnectError, r"The server failed \(SQLSTATE 58030\): kept for audit\. Run again"),
        ("pg_temp.late(n, '40001')", ConflictError, r"Another transaction"),
    ],
)
def test_what_the_server_raises_while_rows_are_fetched_has_its_own_exit_code(database_url, raised, kind, said):
    """A view's function may fail at any row."""
    with connect(parse_url(database_url, {})) as connection:
        connection.execute(
            "CREATE FUNCTION pg_temp.late(n int, state text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN "
            "IF n = 100000 THEN RAISE EXCEPTION USING ERRCODE = state, MESSAGE = 'kept for audit'; END IF; RETURN n; END $$"
        )
        with pytest.raises(kind, match=said), transaction(connection):
            list(connection.iter_frames(f"SELECT {raised} AS x FROM generate_series(1, 200000) n"))


def test_a_time_limit_that_passes_while_rows_are_fetched(database_url):
    setting(database_url, "statement_timeout = 200")
    slow = "SELECT pg_catalog.pg_sleep(0.0001) AS x FROM generate_series(1, 200000) n"
    address, says = parse_url(database_url, {}), "Raise statement_timeout"
    with pytest.raises(ConnectError, match=says), connect(address) as connection, transaction(connection):
        list(connection.iter_frames(slow))


def test_a_server_that_is_too_old_is_named():
    require_supported("UTF8", "14.0", 140_000)
    with pytest.raises(SchemaError, match=r"PostgreSQL 13\.14 \(Debian\).*needs 14 or newer"):
        require_supported("UTF8", "13.14 (Debian)", 130_014)


def test_every_command_that_connects_asks_how_old_the_server_is(small_world, settings_for, monkeypatch):
    """There is no server of before 14 to be had: the oldest supported one is moved up instead."""
    monkeypatch.setattr(database, "OLDEST", 99)
    settings = settings_for(small_world)
    for command in (
        etl.run,
        etl.export,
        validate_database,
        check_schema,
        apply_schema,
        synth,
    ):
        with pytest.raises(SchemaError, match="needs 99 or newer"):
            command(settings)


FATAL = 'connection to server at "127.0.0.1", port 5432 failed: FATAL:  '


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (FATAL + "sorry, too many clients already", "has no connection left"),
        (FATAL + 'too many connections for role "etl"', "has no connection left"),
        (
            FATAL + "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            "has no connection left",
        ),
        (FATAL + "the database system is starting up", "takes no connections yet"),
        (FATAL + "the database system is shutting down", "takes no connections yet"),
        (FATAL + 'database "app" is not currently accepting connections', "takes no connections yet"),
        (FATAL + 'permission denied for database "app"', "lacks a privilege"),
        (FATAL + 'no pg_hba.conf entry for host "10.0.0.7", user "etl", database "app", no encryption', "pg_hba.conf"),
        (FATAL + 'role "etl" is not permitted to log in', "refuses the login"),
        (FATAL + 'Peer authentication failed for user "etl"', "refuses the login"),
        (FATAL + 'database "nowhere" does not exist', "Check the URL's database"),
        ("connection to server failed: server does not support SSL, but SSL was required", "Check sslmode"),
        ("connection to server failed: SSL error: certificate verify failed", "Check sslmode"),
        ("connection to server failed: Connection refused", "Cannot reach the database"),
        ("connection to server failed: server closed the connection unexpectedly", "Cannot reach the database"),
        ("connection to server failed: timeout expired", "Cannot reach the database"),
    ],
)
def test_a_connection_that_does_not_come_about_says_why(words, said):
    """For libpq gives no SQLSTATE there; all of it is exit 3."""
    error = adbc_driver_manager.OperationalError(f"IO: [libpq] Failed to connect: {words}\n", status_code=0)
    told = database._map_error(error, parse_url("postgresql://etl@127.0.0.1/app", {}))
    assert said in str(told)
    assert told.exit_code == 3
