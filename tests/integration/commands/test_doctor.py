"""`doctor`: what it finds where all is well, and where one thing is not; each with the exit code of that kind of error."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from typer.testing import CliRunner

import cli
import etl
from etl.commands.doctor import machine_checks, run_checks
from etl.commands.doctor_checks import Check, clock_skew, exit_code
from etl.pipeline.context import utc_now
from etl.postgres.connection import connect
from etl.postgres.transaction import advisory_lock
from etl.postgres.url import target_of
from etl.settings.sources import load_settings
from etl.snapshots.publish import locked_store
from tests.states import database_state, folder_state


@pytest.fixture(scope="module")
def world(make_database, small_world_template):
    """URL of a small world that no test of this module changes for good."""
    return make_database(small_world_template)


def examined(url: str | None, out: object, **options: object) -> list[Check]:
    return list(run_checks(load_settings({"database_url": url, "out": str(out), **options}, {}), utc_now))


def of(checks: list[Check], name: str) -> list[Check]:
    return [each for each in checks if each.name == name]


def bad(checks: list[Check]) -> dict[str, str]:
    return {each.name: each.state for each in checks if each.state in {"warning", "failed"}}


@contextmanager
def changed(url: str, do: str, undo: str):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(do)
        try:
            yield
        finally:
            connection.execute(undo)


def test_all_is_well_and_nothing_was_written(world, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    before = database_state(world), folder_state(out)
    checks = examined(world, out)
    assert bad(checks) == {}
    assert exit_code(checks) == 0
    assert (database_state(world), folder_state(out)) == before
    assert "overplanned.test" in of(checks, "shadow users")[0].found
    assert len(of(checks, "tables")) == 3


def test_an_out_that_is_not_there_is_not_made(world, tmp_path):
    checks = examined(world, tmp_path / "a" / "out")
    assert bad(checks) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        (None, 2, "No database was named"),
        ("postgresql://someone:s3cr3t-word@127.0.0.1:1/nothing", 3, "Cannot reach the database"),
        ("postgresql://someone:s3cr3t-word@127.0.0.1:1/nothing?sslmod=require", 2, "did you mean sslmode"),
    ],
)
def test_no_connection(tmp_path, url, code, said):
    checks = examined(url, tmp_path)
    assert exit_code(checks) == code
    assert any(said in each.found for each in checks if each.state == "failed")
    assert "s3cr3t-word" not in str(checks)
    assert of(checks, "store")[0].state == "ok"  # what can be looked at is


def as_role(url: str, name: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}"))


def test_a_role_with_a_wrong_password_and_one_without_rights(world, tmp_path):
    name = f"doctor_{os.getpid()}"
    with changed(world, f"CREATE ROLE {name} LOGIN PASSWORD 'secret'", f"DROP OWNED BY {name}; DROP ROLE {name}"):
        checks = examined(as_role(world, name, "s3cr3t-word"), tmp_path)
        assert exit_code(checks) == 3
        assert f'password authentication failed for user "{name}"' in of(checks, "connection")[0].found
        assert "s3cr3t-word" not in str(checks)
        assert [each.name for each in checks if each.state == "skipped"] == ["database"]
        checks = examined(as_role(world, name, "secret"), tmp_path)
        assert exit_code(checks) == 3
        assert f"bpr-etl schema print --role {name}" in of(checks, "rights")[0].found


def test_no_table_at_all(database_url, tmp_path):
    checks = examined(database_url, tmp_path)
    assert exit_code(checks) == 4
    assert "schema apply" in of(checks, "schema")[0].found


def test_a_missing_table_and_an_index(world, tmp_path):
    with changed(world, 'ALTER TABLE "RankingEvent" RENAME TO "Other"', 'ALTER TABLE "Other" RENAME TO "RankingEvent"'):
        checks = examined(world, tmp_path)
        assert exit_code(checks) == 4
        assert 'Table "public"."RankingEvent" is missing' in of(checks, "schema")[0].found
    index = 'INDEX "ItinerarySlot_tripId_dayNumber_idx"'
    with changed(world, f"DROP {index}", f'CREATE {index} ON "ItinerarySlot" ("tripId", "dayNumber")'):
        checks = examined(world, tmp_path)
        assert (exit_code(checks), bad(checks)) == (0, {"index": "warning"})


def test_no_shadow_users_and_more_than_allowed(world, tmp_path):
    checks = examined(world, tmp_path, shadow_prefix="nobody-")
    assert exit_code(checks) == 5
    assert bad(checks) == {"shadow users": "failed"}
    assert bad(examined(world, tmp_path, shadow_prefix="nobody-", expect_users="0")) == {}
    assert exit_code(examined(world, tmp_path, expect_users="3")) == 5
    two = "UPDATE \"User\" SET email = replace(email, '{}.test', '{}.test') WHERE id = (SELECT max(id) FROM \"User\" WHERE email LIKE 'shadow-%')"
    with changed(world, two.format("@overplanned", "@evil"), two.format("@evil", "@overplanned")):
        assert bad(examined(world, tmp_path)) == {"shadow users": "warning"}


def test_another_run_is_at_work(world, tmp_path):
    with (
        connect(target_of(load_settings({"database_url": world}, {}))) as connection,
        advisory_lock(connection, "public"),
    ):
        checks = examined(world, tmp_path)
    assert (exit_code(checks), bad(checks)) == (6, {"other run": "failed"})


def test_a_store_that_is_held(world, tmp_path):
    with locked_store(str(tmp_path / "out")):
        checks = examined(world, tmp_path / "out")
    assert (exit_code(checks), bad(checks)) == (6, {"store's lock": "failed"})
    assert bad(examined(world, tmp_path / "out")) == {}


def test_a_store_that_is_no_folder(world, tmp_path):
    (tmp_path / "file").write_text("")
    checks = examined(world, tmp_path / "file")
    assert exit_code(checks) == 3
    assert of(checks, "store")[0].state == "failed"


def test_time_limits_dead_rows_and_read_only(world, tmp_path):
    name = urlsplit(world).path.lstrip("/")
    alter = f'ALTER DATABASE "{name}" '
    with changed(world, f"{alter} SET statement_timeout = '500s'", f"{alter} RESET statement_timeout"):
        assert bad(examined(world, tmp_path)) == {"time limits": "warning"}
    with changed(
        world,
        f"{alter} SET default_transaction_read_only = on",
        f"SET default_transaction_read_only = off; {alter} RESET ALL",
    ):
        checks = examined(world, tmp_path)
        assert (exit_code(checks), bad(checks)) == (3, {"server": "failed"})
    table = 'ALTER TABLE "RankingEvent" '
    with changed(world, f"{table} SET (autovacuum_enabled = false)", f"{table} RESET (autovacuum_enabled)"):
        checks = examined(world, tmp_path)
        assert bad(checks) == {"tables": "warning"}
        assert any("VACUUM" in each.remedy for each in checks)


def test_what_a_run_sets_off(world, tmp_path):
    key = 'ALTER TABLE "Trip" ADD COLUMN "event" text REFERENCES "{}"("id") ON DELETE SET NULL'
    with changed(world, key.format("RankingEvent"), 'ALTER TABLE "Trip" DROP COLUMN "event"'):
        checks = examined(world, tmp_path)
        assert (exit_code(checks), bad(checks)) == (0, {"side effects": "warning"})
        assert 'Rows of public."Trip" refer to "public"."RankingEvent"' in of(checks, "side effects")[0].found
    with changed(world, key.format("ModelRegistry"), 'ALTER TABLE "Trip" DROP COLUMN "event"'):
        checks = examined(world, tmp_path)
        assert bad(checks) == {}
        assert "a run deletes nothing there" in of(checks, "side effects")[0].found


def test_a_server_that_does_not_count_rows(world, tmp_path):
    name, role = urlsplit(world).path.lstrip("/"), f"doctor_counts_{os.getpid()}"
    alter = f'ALTER DATABASE "{name}" '
    with (
        changed(world, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'", f"DROP OWNED BY {role}; DROP ROLE {role}"),
        changed(world, f"{alter} SET track_counts = off", f"{alter} RESET track_counts"),
    ):
        assert bad(examined(world, tmp_path)) == {}  # a superuser's run switches it on for itself
        (audit,) = of(examined(as_role(world, role, "secret"), tmp_path), "audit")
        assert (audit.state, audit.exit_code) == ("failed", 4)
        assert f"ALTER ROLE {role} SET track_counts = on" in audit.found


def test_clocks():
    now = datetime(2026, 11, 25, tzinfo=UTC)
    states = [
        clock_skew("clock", now, now, (now + timedelta(seconds=off)).timestamp(), "x").state for off in (4, -6, 61)
    ]
    assert states == ["ok", "warning", "failed"]


def test_an_old_library_and_a_missing_one(monkeypatch):
    assert all(each.state == "ok" for each in machine_checks())
    monkeypatch.setattr(
        "etl.commands.doctor.requires", lambda _: ["polars<1,>=0.1", "no-such-library>=1", "extra; extra == 'x'"]
    )
    (libraries,) = [each for each in machine_checks() if each.name == "libraries"]
    assert libraries.state == "failed"
    assert "no-such-library is not installed" in libraries.found
    assert "polars is" in libraries.found


def test_the_command(world, tmp_path):
    done = CliRunner().invoke(cli.app, ["doctor", "--database-url", world, "--out", str(tmp_path)])
    assert done.exit_code == 0
    assert "A run can start." in done.output
    done = CliRunner().invoke(
        cli.app, ["doctor", "--json", "--database-url", world, "--out", str(tmp_path), "--shadow-prefix", "nobody-"]
    )
    assert done.exit_code == 5
    assert [each["name"] for each in json.loads(done.stdout)["checks"] if each["state"] == "failed"] == ["shadow users"]


def test_a_failure_is_shown_with_quiet_too(world, tmp_path):
    call = ["doctor", "--quiet", "--database-url", world, "--out", str(tmp_path)]
    assert CliRunner().invoke(cli.app, call).output == ""
    done = CliRunner().invoke(cli.app, [*call, "--shadow-prefix", "nobody-"])
    assert done.exit_code == 5
    assert "FAILED" in done.output


def test_one_check_that_failed_and_several(world, tmp_path):
    call = ["doctor", "--database-url", world, "--out", str(tmp_path), "--shadow-prefix", "nobody-"]
    one = CliRunner().invoke(cli.app, call).output
    assert "1 check failed, 0 warnings: fix it, and check again." in one
    (tmp_path / "file").write_text("")
    two = CliRunner().invoke(cli.app, [*call, "--out", str(tmp_path / "file")]).output
    assert "2 checks failed, 0 warnings: fix the first that failed, and check again." in two


def test_rows_of_a_copied_database_are_not_said_to_be_none(make_database, small_world_template, settings_for, tmp_path):
    """A copy has no statistics of its own: there the last ANALYZE tells, and without one the number is unknown."""
    original = make_database(small_world_template)
    etl.run(settings_for(original))

    def said(url: str) -> dict[str, str]:
        return dict(each.found.split(", ")[0].split(": ", 1) for each in of(examined(url, tmp_path), "tables"))

    with psycopg.connect(original, autocommit=True) as connection:
        (events,) = connection.execute('SELECT count(*) FROM "RankingEvent"').fetchone()
        for table in ("PersonaDimension", "BehavioralSignal"):
            connection.execute(f'ALTER TABLE "{table}" SET (autovacuum_enabled = false)')
        connection.execute('ANALYZE "RankingEvent"')
        connection.execute('TRUNCATE "BehavioralSignal"')
        (known,) = connection.execute(
            "SELECT reltuples FROM pg_class WHERE oid = '\"PersonaDimension\"'::regclass"
        ).fetchone()
    found = said(make_database(original))
    assert found["RankingEvent"] == f"{events} rows"
    assert found["BehavioralSignal"] == "0 rows"
    assert found["PersonaDimension"] == ("rows not counted yet (ANALYZE does)" if known < 0 else f"{known:.0f} rows")


def test_a_table_that_a_publication_keeps_from_being_changed(world, tmp_path):
    table = 'ALTER TABLE "RankingEvent" REPLICA IDENTITY'
    do = f"{table} NOTHING; CREATE PUBLICATION everything FOR ALL TABLES"
    with changed(world, do, f"{table} DEFAULT; DROP PUBLICATION everything"):
        checks = examined(world, tmp_path)
    assert (exit_code(checks), bad(checks)) == (4, {"schema": "failed"})
    found = next(each for each in of(checks, "schema") if each.state == "failed")
    assert f'{table.replace("TABLE ", """TABLE "public".""")} FULL' in found.found
    assert "schema apply" not in found.remedy


def test_a_lock_timeout_is_short_only_where_it_would_end_a_run(world, tmp_path):
    alter = f"ALTER DATABASE {urlsplit(world).path[1:]}"
    with changed(world, f"{alter} SET lock_timeout = '10s'", f"{alter} RESET ALL"):
        assert bad(examined(world, tmp_path)) == {}
    with changed(world, f"{alter} SET lock_timeout = '100ms'", f"{alter} RESET ALL"):
        assert bad(examined(world, tmp_path)) == {"time limits": "warning"}


def test_time_limits_are_compared_with_the_steps_of_the_last_run(world, tmp_path):
    """A limit of 700 s is no obstacle for a new job, and one for a job whose last run had a longer step."""
    alter, out = f"ALTER DATABASE {urlsplit(world).path[1:]}", tmp_path / "out"
    limits = {"statement_timeout": "700s", "idle_in_transaction_session_timeout": "900s", "idle_session_timeout": "20s"}
    etl.export(load_settings({"database_url": world, "out": str(out), "audience": "all"}, {}))
    lift = f"{alter} RESET ALL; ALTER ROLE CURRENT_USER IN DATABASE {urlsplit(world).path[1:]} RESET ALL"
    with changed(world, "; ".join(f"{alter} SET {name} = '{value}'" for name, value in limits.items()), lift):
        assert bad(examined(world, out)) == {}
        manifest = etl.open_snapshot(out).folder / "manifest.json"
        content = json.loads(manifest.read_text(encoding="utf-8"))
        content["profile"] |= {"seconds": 2000.0, "steps": [{"step": "read", "seconds": 800.5, "rows": 1}]}
        manifest.write_text(json.dumps(content), encoding="utf-8")
        checks = examined(world, out)
        assert bad(checks) == {"time limits": "warning"}
        found = of(checks, "time limits")[0]
        assert "2000.0 s, of them 800.5 s in the step read" in found.found
        remedies = re.findall(r"ALTER ROLE \S+ IN DATABASE \S+ SET \w+ = 0", found.remedy)
        assert len(remedies) == 2
        with psycopg.connect(world, autocommit=True) as connection:
            for remedy in remedies:
                connection.execute(remedy)
        assert bad(examined(world, out)) == {}
        by_url = f"{world}{'&' if '?' in world else '?'}options=-c%20statement_timeout%3D700s"
        assert "take statement_timeout out of the URL's options" in of(examined(by_url, out), "time limits")[0].remedy
