"""No name of ours ever means a function or an operator of somebody else's, and the application's triggers find their own."""

from __future__ import annotations

import itertools

import psycopg
import pytest

import etl
from etl.commands.doctor import run_checks
from etl.pipeline import database
from etl.pipeline.context import utc_now
from etl.postgres.connection import connect
from etl.postgres.transaction import transaction
from etl.postgres.url import target_of

TEXTS = ("varchar", "text")
FUNCTIONS = (
    *(f"starts_with({a}, {b})" for a, b in itertools.product(TEXTS, TEXTS)),
    *(f"{name}(varchar)" for name in ("lower", "md5", "length")),
    *(f'"{name}"(varchar, int4)' for name in ("right", "left", "substr")),
    *(f"concat_ws({', '.join(['text'] * n)})" for n in range(2, 20)),
    "array_to_string(text[], text)",
    "array_length(text[], int4)",
    "array_position(text[], text)",
    "cardinality(text[])",
    "set_config(text, text, bool)",
    "current_setting(text)",
    "current_schema()",
    "version()",
)
"""Each would be taken before the one of pg_catalog, whose arguments have other types; the last ones where public comes first."""

OPERATORS = (
    *(
        (name, a, b)
        for name in ("=", "<>", "~~", "||")
        for a, b in [("varchar", "text"), ("text", "varchar"), ("varchar", "varchar")]
    ),
    *((name, "numeric", "int4") for name in ("*", "+", "-")),
    *((name, "float8", "numeric") for name in ("=", "<>", "<")),
    ("<>", "regproc", "int4"),  # in what the driver asks when it connects
    ("=", "oid", "oid"),
    (">", "int2", "int4"),
)


@pytest.fixture
def trapped(small_world):
    """A world with varchar columns, in which another role has laid a trap for every name."""
    with psycopg.connect(small_world, autocommit=True) as connection:
        for table, column in (
            ("User", "email"),
            ("User", "id"),
            ("Trip", "userId"),
            ("Trip", "city"),
            ("RankingEvent", "userId"),
        ):
            connection.execute(f'ALTER TABLE "{table}" ALTER "{column}" TYPE varchar(255)')
        connection.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        connection.execute("DO $$ BEGIN CREATE ROLE mallory; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        connection.execute("SET ROLE mallory")
        trap = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the trap'; END $$"
        for signature in FUNCTIONS:
            gives = "text" if signature.startswith(("concat", "set_", "current", "version", "array_to")) else "bool"
            connection.execute(f"CREATE FUNCTION public.{signature} RETURNS {gives} {trap}")
        for n, (name, left, right) in enumerate(OPERATORS):
            connection.execute(f"CREATE FUNCTION public.trap_{n}({left}, {right}) RETURNS bool {trap}")
            connection.execute(
                f"CREATE OPERATOR public.{name} (FUNCTION = public.trap_{n}, LEFTARG = {left}, RIGHTARG = {right})"
            )
    yield small_world
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute("DROP OWNED BY mallory CASCADE")


@pytest.mark.parametrize("path", ['"$user", public', "public, pg_catalog"])
def test_functions_and_operators_of_another_role_are_not_called(trapped, settings_for, caplog, path):
    caplog.set_level("INFO")
    with psycopg.connect(trapped, autocommit=True) as connection:
        for sql in (
            """SELECT starts_with("email", 'x') FROM "User\"""",
            "SELECT oid FROM pg_proc WHERE proname::regproc <> 0",
        ):
            with pytest.raises(psycopg.errors.RaiseException, match="the trap"):
                connection.execute(sql)
        connection.execute(f'ALTER DATABASE "{connection.info.dbname}" SET search_path = {path}')
    settings = settings_for(trapped, shadow_domain="overplanned.test")
    assert database.check_schema(settings) == []
    assert database.apply_schema(settings) == []
    assert etl.run(settings).committed
    assert "ADBC" not in caplog.text  # connectorx has read all
    through_adbc = f"{trapped}{'&' if '?' in trapped else '?'}options=-c%20work_mem%3D8MB"
    assert etl.run(settings_for(through_adbc, seed=1)).committed
    assert "Reading through ADBC" in caplog.text
    assert etl.export(settings).snapshot is not None
    assert database.validate_database(settings).broken == []
    assert {check.state for check in run_checks(settings, utc_now)} <= {"ok", "warning"}


def test_the_application_s_triggers_find_what_they_name(small_world, settings_for):
    """A trigger, a constraint's and a deferred one, whose functions qualify nothing, in a schema of the application's path."""
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{connection.info.dbname}" SET search_path = private, public')
        connection.execute("CREATE SCHEMA private")
        connection.execute("CREATE TABLE private.rules (word text)")
        connection.execute("INSERT INTO private.rules VALUES ('yes')")
        connection.execute("CREATE TABLE private.calls (n serial)")
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION allowed() RETURNS bool LANGUAGE sql AS $$ SELECT word = 'yes' FROM rules $$"
        )
        connection.execute(
            "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NOT allowed() THEN RAISE 'no'; "
            "END IF; PERFORM nextval('calls_n_seq'); RETURN COALESCE(NEW, OLD); END $$"
        )
        for table in ("PersonaDimension", "RankingEvent", "BehavioralSignal", "ModelRegistry"):
            connection.execute(
                f'CREATE TRIGGER look BEFORE INSERT OR UPDATE OR DELETE ON "{table}" FOR EACH ROW EXECUTE FUNCTION look()'
            )
            connection.execute(
                f'CREATE CONSTRAINT TRIGGER later AFTER INSERT OR UPDATE OR DELETE ON "{table}" DEFERRABLE INITIALLY DEFERRED '
                "FOR EACH ROW EXECUTE FUNCTION look()"
            )
        connection.execute('ALTER TABLE "PersonaDimension" ADD CHECK (allowed())')
    report = etl.run(settings_for(small_world))
    assert report.committed
    rows = report.counts["persona_rows"] + report.counts["ranking_events"] + report.counts["signals_backfilled"] + 2
    with psycopg.connect(small_world) as connection:
        assert connection.execute("SELECT last_value FROM private.calls_n_seq").fetchone() == (2 * rows,)
    assert etl.run(settings_for(small_world, seed=1)).committed  # which deletes


def test_only_what_writes_runs_under_the_role_s_own_path(small_world, settings_for):
    shown = "SELECT current_setting('search_path')"
    with connect(target_of(settings_for(small_world))) as connection:
        own = connection.fetch_rows(shown)
        with transaction(connection, commit=False):
            assert connection.fetch_rows(shown) == [("pg_catalog, pg_temp",)]
            connection.execute("CREATE TABLE made_here AS SELECT current_setting('search_path') AS path")
            assert connection.fetch_rows("SELECT path FROM public.made_here") == own
            assert connection.fetch_rows(shown) == [("pg_catalog, pg_temp",)]
        assert connection.fetch_rows(shown) == own
