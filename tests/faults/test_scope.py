"""Whose rows: the shadow users', by plain characters; before COMMIT the database itself says that nobody else's were written."""

from __future__ import annotations

import psycopg
import pytest
from typer.testing import CliRunner

import cli
from etl import pipeline, privileges
from etl.config import resolve
from etl.database import ConflictError, connect
from etl.errors import ConnectError, DataError
from etl.prisma import Naming
from etl.privileges import needed
from etl.queries import Scope
from tests.states import database_state, folder_state

EMAILS = (
    *(
        "shadow-1@overplanned.test",
        "Shadow-1@overplanned.test",
        "SHADOW-2@overplanned.test",
        "shadow_3@overplanned.test",
    ),
    *(
        "shadow%4@overplanned.test",
        "shadow\\5@overplanned.test",
        "xshadow-6@overplanned.test",
        "shadow-7@OverPlanned.Test",
    ),
    *("shadow-8@overplanned.test.evil.test", "shadow-9@evil.test", "shadow-10@notoverplanned.test", "shadow-11", ""),
    *("\u0455hadow-12@overplanned.test", "shadow\u200b-13@overplanned.test", "\uff53hadow-14@overplanned.test"),
    *(
        "shadow-15@over\u212alanned.test",
        "shadow-16@overplanned.test@evil.test",
        "shadow-17@evil.test@overplanned.test",
    ),
    *("shadow-é18@overplanned.test", "shadow-e\u030119@overplanned.test", "shadow-20@k.test", "shadow-21@\u212a.test"),
    *('\'; DROP TABLE "User"; --', "shadow-22@overplanned.tes\u0165", "shadow-23@overplanned.test\n"),
)
SCOPES = (
    *(("shadow-", None), ("shadow-", "overplanned.test"), ("shadow-", "OVERPLANNED.test"), ("shadow-", "evil.test")),
    *(("shadow_", None), ("shadow%", None), ("%", None), ("_", None), ("\\", None), ("shadow\\", None), ("'", None)),
    *(
        ("shadow-é", None),
        ("shadow-e\u0301", None),
        ("\u0455", None),
        ("s", "k.test"),
        ("s", "\u212a.test"),
        ("shadow-", "test"),
    ),
)


def lowered(text: str) -> str:
    """ASCII letters alone have a case here."""
    return "".join(c.lower() if c.isascii() else c for c in text)


@pytest.mark.parametrize(("prefix", "domain"), SCOPES)
def test_a_prefix_and_a_domain_are_plain_characters(database_url, prefix, domain, tally):
    with psycopg.connect(database_url) as connection:
        connection.execute('CREATE TABLE "User" ("id" text, "email" text)')
        for number, email in enumerate((*EMAILS, None)):
            connection.execute('INSERT INTO "User" VALUES (%s, %s)', (str(number), email))
    meant = {
        str(number)
        for number, email in enumerate(EMAILS)
        if email.startswith(prefix) and (domain is None or lowered(email).endswith("@" + lowered(domain)))
    }
    scope = Scope(Naming("model", "public"), prefix, domain)
    settings = resolve({"database_url": database_url}, {})
    with connect(settings.address()) as connection:
        found = {row[0] for row in connection.rows(scope.shadow_ids())}
    assert found == meant
    tally("emails judged against a prefix or a domain", len(EMAILS))


def test_a_domain_narrows_the_scope(small_world, settings_for):
    """Users of another domain keep what a wider night gave them: they are nobody's business now."""
    first = pipeline.run(settings_for(small_world))
    with psycopg.connect(small_world) as connection:
        moved = connection.execute(
            """UPDATE "User" SET "email" = replace("email", '@', '@else.') WHERE "id" IN
            (SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-') ORDER BY "id" LIMIT 3) RETURNING "id" """
        ).fetchall()
        domain = connection.execute(
            """SELECT split_part("email", '@', 2) FROM "User" WHERE starts_with("email", 'shadow-')
            AND "email" NOT LIKE '%@else.%'"""
        ).fetchone()[0]
        kept = connection.execute(
            'SELECT md5(string_agg(x::text, \'\' ORDER BY "id")) FROM "RankingEvent" x WHERE "userId" = ANY(%s)',
            ([user for (user,) in moved],),
        ).fetchone()
    wide = pipeline.run(settings_for(small_world, seed=1, dry_run=True))
    assert any(f"are of 2 domains ({domain}" in warning for warning in wide.warnings)
    narrow = pipeline.run(settings_for(small_world, seed=1, shadow_domain=domain.upper()))
    assert narrow.counts["shadow_users"] == first.counts["shadow_users"] - 3
    assert not any("domains" in warning for warning in narrow.warnings)
    with psycopg.connect(small_world) as connection:
        assert (
            kept
            == connection.execute(
                'SELECT md5(string_agg(x::text, \'\' ORDER BY "id")) FROM "RankingEvent" x WHERE "userId" = ANY(%s)',
                ([user for (user,) in moved],),
            ).fetchone()
        )
    assert pipeline.validate(settings_for(small_world, shadow_domain=domain)).broken == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--expect-users", "5000±10%"), "--expect-users says 5,000±10%"),
        (("--max-shadow-share", "1%"), "--max-shadow-share allows 1.0%"),
        (("--max-bad", "0.1%"), "--max-bad allows 0.10%"),
    ],
)
def test_a_limit_stops_the_night(small_world, tmp_path, options, said):
    with psycopg.connect(small_world) as connection:
        connection.execute("""UPDATE "Trip" SET "startDate" = 'infinity' WHERE "id" < '3'""")
    rows = database_state(small_world)
    arguments = ["run", "--database-url", small_world, "--out", str(tmp_path / "out")]
    stopped = CliRunner().invoke(cli.app, [*arguments, *options])
    assert stopped.exit_code == 5
    assert said in stopped.stderr
    assert database_state(small_world) == rows
    assert folder_state(tmp_path / "out") == {}
    loose = {"--expect-users": "25±99%", "--max-shadow-share": "100%", "--max-bad": "99%"}[options[0]]
    assert CliRunner().invoke(cli.app, [*arguments, options[0], loose]).exit_code == 0


TRIGGERS = {
    "the rows of a real user": (
        """UPDATE "BehavioralSignal" SET "modelVersion" = 'x' WHERE "userId" = 'real-1'""",
        DataError,
        "BehavioralSignal",
    ),
    "a persona row of a real user": (
        """INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "updatedAt")
        VALUES (gen_random_uuid()::text, 'real-1', gen_random_uuid()::text, 'x', now())""",
        DataError,
        "PersonaDimension",
    ),
    "a table that is nobody's": ("""INSERT INTO audit VALUES (1)""", None, '"public"."audit"'),
    "a user": ("""UPDATE "User" SET "email" = "email" || 'x' WHERE "id" = 'real-1'""", DataError, '"User"'),
    "a trip of a real user": ("""DELETE FROM "Trip" WHERE "userId" = 'real-1'""", DataError, '"Trip"'),
}


@pytest.mark.parametrize("what", TRIGGERS)
def test_a_trigger_that_writes_to(small_world, settings_for, tmp_path, tally, what):
    """Counted by PostgreSQL in the transaction itself; what belongs to somebody is rolled back, the rest is said."""
    statement, error, named = TRIGGERS[what]
    with psycopg.connect(small_world) as connection:
        connection.execute("""INSERT INTO "User" ("id", "email") VALUES ('real-1', 'real-1@example.test')""")
        connection.execute(
            """INSERT INTO "BehavioralSignal" ("id", "userId", "signalType") SELECT 'g-1', 'real-1', "signalType"
            FROM "BehavioralSignal" LIMIT 1"""
        )
        connection.execute(
            """INSERT INTO "Trip" ("id", "userId", "city", "startDate") VALUES ('t-1', 'real-1', 'Nowhere', now())"""
        )
        connection.execute("CREATE TABLE audit (n int)")
        connection.execute(
            f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NULL; END $$"
        )
        connection.execute(
            'CREATE TRIGGER meddle AFTER DELETE OR INSERT ON "RankingEvent" FOR EACH STATEMENT EXECUTE FUNCTION meddle()'
        )
    rows = database_state(small_world)
    if error is None:
        report = pipeline.run(settings_for(small_world))
        assert any(named in warning for warning in report.warnings)
    else:
        with pytest.raises(error, match="so nothing was kept") as refused:
            pipeline.run(settings_for(small_world))
        assert named in str(refused.value)
        assert database_state(small_world) == rows
        assert folder_state(tmp_path / "out") == {}
    tally("triggers that write where they should not")


def test_a_trigger_that_gives_a_row_to_somebody_else(small_world, settings_for, tmp_path):
    """As many rows as meant, and one of them has another owner now: it bears the transaction's number."""
    with psycopg.connect(small_world) as connection:
        connection.execute("""INSERT INTO "User" ("id", "email") VALUES ('real-1', 'real-1@example.test')""")
        connection.execute(
            """CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW."id" = (SELECT max("id") FROM "BehavioralSignal" WHERE "userId" = NEW."userId")
            THEN NEW."userId" := 'real-1'; END IF; RETURN NEW; END $$"""
        )
        connection.execute(
            'CREATE TRIGGER meddle BEFORE UPDATE ON "BehavioralSignal" FOR EACH ROW EXECUTE FUNCTION meddle()'
        )
    rows = database_state(small_world)
    with pytest.raises(DataError, match=r'rows of "public"."BehavioralSignal" that belong to no shadow user'):
        pipeline.run(settings_for(small_world))
    assert database_state(small_world) == rows
    assert folder_state(tmp_path / "out") == {}


def test_a_server_that_does_not_count_is_looked_at_row_by_row(small_world, settings_for):
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute("""INSERT INTO "User" ("id", "email") VALUES ('real-1', 'real-1@example.test')""")
        connection.execute("ALTER ROLE CURRENT_USER IN DATABASE " + connection.info.dbname + " SET track_counts = off")
    report = pipeline.run(settings_for(small_world))
    assert any("track_counts is off" in warning for warning in report.warnings)
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "updatedAt")
            VALUES ('p-1', 'real-1', 'pace_preference', 'x', now()); RETURN NULL; END $$"""
        )
        connection.execute(
            'CREATE TRIGGER meddle AFTER DELETE ON "RankingEvent" FOR EACH STATEMENT EXECUTE FUNCTION meddle()'
        )
    with pytest.raises(DataError, match=r'1 rows of "public"."PersonaDimension" that belong to no shadow user'):
        pipeline.run(settings_for(small_world))


def test_counts_of_an_earlier_attempt_do_not_confuse_the_ledger(small_world, settings_for, monkeypatch):
    """A session hands its counts over a second late: a retried night still sees those of the attempt before."""
    original, done = pipeline.load.backfill, []

    def conflict(connection, scope):
        if not done:
            done.append(True)
            raise ConflictError("Somebody else changed the same rows.")
        return original(connection, scope)

    monkeypatch.setattr(pipeline.load, "backfill", conflict)
    assert pipeline.run(settings_for(small_world)).retries == 1


def test_the_main_path_under_a_role_that_may_do_no_more(role, small_world, tmp_path):
    """What `schema print --role` prints is enough for run, export, validate and schema check."""
    name, url = role
    printed = CliRunner().invoke(cli.app, ["schema", "print", "--role", name])
    assert printed.exit_code == 0
    assert "ALL" not in printed.stdout
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(printed.stdout)
    env = {"BPR_ETL_DATABASE_URL": url}
    for command in (
        ["run", "--out", str(tmp_path / "out")],
        ["run", "--out", str(tmp_path / "out"), "--audience", "all", "--seed", "2"],
        ["export", "--out", str(tmp_path / "out"), "--audience", "real"],
        ["validate"],
        ["schema", "check"],
    ):
        done = CliRunner().invoke(cli.app, command, env=env)
        assert done.exit_code == 0, done.output
    with psycopg.connect(url) as connection:
        for statement in (
            'DELETE FROM "Trip"',
            'UPDATE "User" SET "email" = NULL',
            'DELETE FROM "BehavioralSignal"',
            """UPDATE "BehavioralSignal" SET "userId" = 'x'""",
            'TRUNCATE "RankingEvent"',
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(statement)


@pytest.mark.parametrize("privilege", needed(writes=True), ids=lambda p: f"{p.verb} {p.model}")
def test_a_privilege_that_is_missing_is_named(role, small_world, settings_for, tmp_path, privilege, tally):
    """Before anything is read: a plain sentence with the privilege, the table, and what to do."""
    name, url = role
    columns = f" ({', '.join(chr(34) + column + chr(34) for column in privilege.columns)})" if privilege.columns else ""
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(privileges.grants(Naming("model", "public"), name))
        connection.execute(f'REVOKE {privilege.verb}{columns} ON "{privilege.model}" FROM {name}')
    rows = database_state(small_world)
    with pytest.raises(ConnectError) as refused:
        pipeline.run(settings_for(url))
    assert f"The role {name} lacks" in str(refused.value)
    assert privilege.verb in str(refused.value)
    assert f'"{privilege.model}"' in str(refused.value)
    assert f"schema print --role {name}" in str(refused.value)
    assert database_state(small_world) == rows
    assert not (tmp_path / "out").exists()
    tally("missing privileges named")


def test_a_schema_that_may_not_be_used_is_named(role, small_world, settings_for):
    _, url = role
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(ConnectError, match='USAGE on schema "public"'):
        pipeline.run(settings_for(url))


def test_row_security_that_hides_rows_is_no_smaller_night(role, small_world, settings_for):
    """It would look like a night with few users; it is a role that is not shown all of them."""
    name, url = role
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(privileges.grants(Naming("model", "public"), name))
        connection.execute('ALTER TABLE "Trip" ENABLE ROW LEVEL SECURITY')
    with pytest.raises(ConnectError, match=r'Row security hides rows of "public"."Trip" from the role'):
        pipeline.run(settings_for(url))
    assert pipeline.run(settings_for(small_world)).committed
