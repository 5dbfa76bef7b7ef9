"""Whose rows: the shadow users', by plain characters; before COMMIT the database itself says that nobody else's were written."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

import cli
import etl
from etl.errors import ConnectError, DataError, SchemaError, SettingsError
from etl.pipeline import database
from etl.pipeline import run as pipeline
from etl.postgres.connection import ConflictError, connect
from etl.postgres.naming import Naming
from etl.postgres.schema import privileges
from etl.postgres.schema.privileges import required
from etl.postgres.scope import Scope
from etl.postgres.url import target_of
from etl.settings.sources import load_settings
from tests.states import TABLES, database_state, folder_state

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
    settings = load_settings({"database_url": database_url}, {})
    with connect(target_of(settings)) as connection:
        found = {row[0] for row in connection.fetch_rows(scope.shadow_ids())}
    assert found == meant
    tally("emails judged against a prefix or a domain", len(EMAILS))


def test_a_domain_narrows_the_scope(small_world, settings_for):
    """Users of another domain keep what a wider night gave them: they are nobody's business now."""
    first = etl.run(settings_for(small_world))
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
    wide = etl.run(settings_for(small_world, seed=1, dry_run=True))
    assert any(f"have 2 domains ({domain}" in warning for warning in wide.warnings)
    narrow = etl.run(settings_for(small_world, seed=1, shadow_domain=domain.upper()))
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
    assert database.validate_database(settings_for(small_world, shadow_domain=domain)).broken == []


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


REAL = (
    """INSERT INTO "User" ("id", "email") SELECT 'real-' || n, 'real-' || n || '@example.test' FROM generate_series(1, 3) n""",
    """INSERT INTO "BehavioralSignal" ("id", "userId", "signalType") SELECT 'g-' || u.n, 'real-' || u.n, s."signalType"
    FROM generate_series(1, 3) u(n), (SELECT "signalType" FROM "BehavioralSignal" LIMIT 1) s""",
    """INSERT INTO "RankingEvent" ("id", "userId", "tripId", "dayNumber", "modelName", "modelVersion", "surface")
    SELECT 'e-' || n, 'real-' || n, 't-1', 1, 'llm_ranker', '0.0.9', 'itinerary' FROM generate_series(1, 3) n""",
    """INSERT INTO "Trip" ("id", "userId", "city", "startDate") VALUES ('t-1', 'real-1', 'Nowhere', now())""",
    "CREATE TABLE audit (n int)",
    "INSERT INTO audit VALUES (0)",
    "CREATE SCHEMA other",
    'CREATE TABLE other."Log.s" (n int) PARTITION BY RANGE (n)',
    'CREATE TABLE other.part PARTITION OF other."Log.s" FOR VALUES FROM (0) TO (9)',
)
SHADOW = """(SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-'))"""


@pytest.fixture
def real_users(small_world) -> str:
    """The small world with three real users, whom no trigger may touch, and tables of the application's own."""
    execute(small_world, *REAL)
    return small_world


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def function(body: str, name: str = "meddle", settings: str = "") -> str:
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql {settings} AS $$ BEGIN {body} RETURN NULL; END $$"
    )


def trigger(on: str, each: str = "STATEMENT", deferred: str = "", name: str = "meddle") -> str:
    constraint = "CONSTRAINT " if deferred else ""
    return f"CREATE {constraint}TRIGGER {name} {on} {deferred} FOR EACH {each} EXECUTE FUNCTION {name}()"


def everything(url: str) -> list[tuple[str, int, str]]:
    """Every table of every schema: its rows, with who wrote them."""
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname !~ '^(pg_|information_)' ORDER BY 1"
        ).fetchall()
        return [
            (
                name,
                *connection.execute(
                    f"SELECT count(*), md5(string_agg(x.xmin || x::text, '' ORDER BY x::text)) FROM {name} x"
                ).fetchone(),
            )
            for (name,) in names
        ]


def refused(settings, said: str, url: str | None = None) -> str:
    """A run ends with exit 5 and a sentence, and leaves every row and the folder as they were."""
    url = url or settings.database_url
    rows, files = everything(url), folder_state(Path(settings.out))
    with pytest.raises(DataError, match="nothing was kept") as error:
        etl.run(settings)
    assert said in str(error.value)
    assert everything(url) == rows
    assert folder_state(Path(settings.out)) == files
    return str(error.value)


TRIGGERS = {
    "the rows of a real user": (
        """UPDATE "BehavioralSignal" SET "modelVersion" = 'x' WHERE "userId" = 'real-1'""",
        "BehavioralSignal",
    ),
    "a persona row of a real user": (
        """INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "updatedAt")
        VALUES (gen_random_uuid()::text, 'real-1', gen_random_uuid()::text, 'x', now())""",
        "PersonaDimension",
    ),
    "a table that is nobody's": ("INSERT INTO audit VALUES (1)", "public.audit: 2 inserted, 0 updated, 0 deleted"),
    "a partition in another schema": ("INSERT INTO other.part VALUES (1), (2)", 'other."Log.s": 4 inserted'),
    "a table that is emptied": ("TRUNCATE audit", "public.audit: 0 inserted, 0 updated, 0 deleted, emptied"),
    "a table that is dropped": (
        "DROP TABLE IF EXISTS audit",
        "public.audit: 0 inserted, 0 updated, 0 deleted, dropped",
    ),
    "a table of ours that is emptied": ('TRUNCATE "BehavioralSignal"', "BehavioralSignal"),
    "a user": ("""UPDATE "User" SET "email" = "email" || 'x' WHERE "id" = 'real-1'""", 'public."User"'),
    "a trip of a real user": (
        """DELETE FROM "Trip" WHERE "userId" = 'real-1'""",
        'public."Trip": 0 inserted, 0 updated, 1 deleted',
    ),
    "a real user's event, within an exception block": (
        """BEGIN DELETE FROM "RankingEvent" WHERE "userId" = 'real-1'; EXCEPTION WHEN OTHERS THEN NULL; END""",
        "RankingEvent",
    ),
    "a table, within an exception block": (
        "BEGIN INSERT INTO audit VALUES (1); EXCEPTION WHEN OTHERS THEN NULL; END",
        "public.audit: 2 inserted",
    ),
    "the registry": ("""UPDATE "ModelRegistry" SET "description" = 'x'""", "ModelRegistry"),
}


@pytest.mark.parametrize("write", ["changes", "replace"])
@pytest.mark.parametrize("what", TRIGGERS)
def test_a_trigger_that_writes_to(real_users, settings_for, tally, what, write):
    """Counted by PostgreSQL in the transaction itself; where it was not meant, all is rolled back."""
    statement, said = TRIGGERS[what]
    etl.run(settings_for(real_users, seed=1))
    execute(real_users, function(f"{statement};"), trigger('AFTER DELETE OR INSERT ON "RankingEvent"'))
    refused(settings_for(real_users, write=write), said)
    tally("triggers that write where they should not")


def test_a_trigger_whose_writes_are_undone_or_its_own_has_no_side_effect(real_users, settings_for):
    """A subtransaction that is rolled back, and a temporary table."""
    execute(
        real_users,
        function(
            """BEGIN INSERT INTO audit VALUES (1); RAISE EXCEPTION 'no'; EXCEPTION WHEN OTHERS THEN NULL; END;
            CREATE TEMPORARY TABLE IF NOT EXISTS mine (n int); INSERT INTO mine VALUES (1); DROP TABLE mine;"""
        ),
        trigger('AFTER DELETE OR INSERT ON "RankingEvent"'),
    )
    assert not any("made this run write" in warning for warning in etl.run(settings_for(real_users)).warnings)


@pytest.mark.parametrize("name", ["audit", "AUDIT", "public.audit", '"audit"', '"public"."audit"', "Public.Audit"])
def test_a_side_effect_that_is_allowed_is_a_warning(real_users, settings_for, name):
    execute(real_users, function("INSERT INTO audit VALUES (1);"), trigger('AFTER DELETE ON "RankingEvent"'))
    report = etl.run(settings_for(real_users, allow_side_effects=name, write="replace"))
    assert [each for each in report.warnings if "made this run write" in each] == [
        "A foreign key, a trigger or a rule has made this run write to public.audit: 1 inserted, 0 updated, 0 deleted."
    ]
    with psycopg.connect(real_users) as connection:
        assert connection.execute("SELECT array_agg(n ORDER BY n) FROM audit").fetchone() == ([0, 1],)


def test_several_side_effects_are_named_and_allowed_together(real_users, settings_for):
    """A model's own name is not folded, a partition stands for its table, and what the message says can be given as it is."""
    execute(
        real_users,
        function(
            """UPDATE "Trip" SET "city" = "city" WHERE "userId" = 'real-1'; INSERT INTO other.part VALUES (1);
            INSERT INTO audit VALUES (1);"""
        ),
        trigger('AFTER DELETE ON "RankingEvent"'),
    )
    settings_for = partial(settings_for, write="replace")  # deletes, also where there is no row
    said = refused(settings_for(real_users, allow_side_effects=("Trip",)), "--allow-side-effects 'public.audit'")
    assert "--allow-side-effects 'other.\"Log.s\"'" in said
    assert "Trip" not in said
    for names in (
        ("Trip", 'other."Log.s"', "public.audit"),
        'Trip,other."Log.s", audit',
        ["other.part", "audit", "trip", "Trip"],
    ):
        if "trip" in names:
            with pytest.raises(SettingsError, match="'trip', and there is no such table in schema 'public'"):
                etl.run(settings_for(real_users, allow_side_effects=names))
            continue
        assert etl.run(settings_for(real_users, allow_side_effects=names)).committed
    assert etl.run(settings_for(real_users, allow_side_effects=("other.part", "audit", "Trip"))).committed


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "there is no such table in schema 'public'"),
        ("nowhere.audit", "there is no such table."),
        ('"AUDIT"', "there is no such table"),
        ("RankingEvent", "which a run itself writes"),
        ("public.BehavioralSignal", "which a run itself writes"),
    ],
)
def test_a_name_that_allows_nothing_is_refused(real_users, settings_for, tmp_path, name, said):
    with pytest.raises(SettingsError, match=said):
        etl.run(settings_for(real_users, allow_side_effects=(name,)))
    assert not folder_state(tmp_path / "out")


ACTIONS = {
    "CASCADE": "0 inserted, 0 updated, 10 deleted",
    "SET NULL": "0 inserted, 10 updated, 0 deleted",
    "SET DEFAULT": "0 inserted, 10 updated, 0 deleted",
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("partitioned", ["", "PARTITION BY HASH (f)"])
def test_rows_of_the_application_that_refer_to_ours(real_users, settings_for, action, partitioned):
    """They are neither deleted nor changed, unless that is allowed, and are found beforehand. A steady run touches no row."""
    etl.run(settings_for(real_users))
    execute(
        real_users,
        f"""CREATE TABLE other."Feedback" ("f" text PRIMARY KEY, "event" text REFERENCES "RankingEvent"("id") ON DELETE {action})
        {partitioned}""",
        *(
            f'CREATE TABLE other.f{n} PARTITION OF other."Feedback" FOR VALUES WITH (MODULUS 2, REMAINDER {n})'
            for n in range(2 if partitioned else 0)
        ),
        f"""INSERT INTO other."Feedback" SELECT "id", "id" FROM "RankingEvent" WHERE "userId" IN {SHADOW} LIMIT 10""",
    )
    refused(settings_for(real_users, write="replace"), f'other."Feedback": {ACTIONS[action]}')
    (finding,) = database.check_schema(settings_for(real_users))
    assert (finding.kind, finding.severity) == ("foreign_key", "advice")
    assert (
        f'other."Feedback" refer to "public"."RankingEvent" by "Feedback_event_fkey" (ON DELETE {action})'
        in finding.detail
    )
    referring = everything(real_users)
    assert etl.run(settings_for(real_users)).committed
    assert everything(real_users) == referring
    report = etl.run(settings_for(real_users, allow_side_effects=("other.Feedback",), write="replace"))
    assert any(f'write to other."Feedback": {ACTIONS[action]}.' in warning for warning in report.warnings)


def test_a_reference_that_is_checked_before_commit(real_users, settings_for):
    """Rows that come back under the same ids are referred to again; one that does not ends the run, and nothing is kept."""
    etl.run(settings_for(real_users))
    execute(
        real_users,
        """CREATE TABLE "Feedback" ("event" text REFERENCES "RankingEvent"("id") DEFERRABLE INITIALLY DEFERRED)""",
        f"""INSERT INTO "Feedback" SELECT "id" FROM "RankingEvent" WHERE "userId" IN {SHADOW} LIMIT 10""",
    )
    assert etl.run(settings_for(real_users, write="replace")).committed
    rows = everything(real_users)
    with pytest.raises(DataError, match="violates foreign key"):
        etl.run(settings_for(real_users, seed=1))
    assert everything(real_users) == rows


def test_a_deferred_trigger_is_seen(real_users, settings_for):
    """It would fire in COMMIT, when nobody looks any more."""
    execute(
        real_users,
        function("""UPDATE "BehavioralSignal" SET "modelVersion" = 'meddled' WHERE "userId" = 'real-1';"""),
        trigger('AFTER INSERT ON "RankingEvent"', "ROW", "DEFERRABLE INITIALLY DEFERRED"),
    )
    refused(settings_for(real_users), '"BehavioralSignal": 0 inserted')


def test_a_deferred_trigger_that_defers_another_is_seen(real_users, settings_for):
    """An allowed table's own deferred trigger would else fire in COMMIT."""
    deferred = "DEFERRABLE INITIALLY DEFERRED"
    execute(
        real_users,
        function("SET CONSTRAINTS ALL DEFERRED; INSERT INTO audit VALUES (1);"),
        trigger('AFTER INSERT ON "RankingEvent"', "ROW", deferred),
        function("""DELETE FROM "BehavioralSignal" WHERE "userId" = 'real-1';""", "second"),
        trigger("AFTER INSERT ON audit", "ROW", deferred, "second"),
    )
    refused(settings_for(real_users, allow_side_effects=("audit",)), '"BehavioralSignal": 0 inserted')


def test_deferred_triggers_that_never_end_are_refused(real_users, settings_for):
    execute(
        real_users,
        function("SET CONSTRAINTS ALL DEFERRED; INSERT INTO audit VALUES (1);"),
        trigger('AFTER INSERT ON "RankingEvent"', "ROW", "DEFERRABLE INITIALLY DEFERRED"),
        trigger("AFTER INSERT ON audit", "ROW", "DEFERRABLE INITIALLY DEFERRED"),
    )
    refused(settings_for(real_users, allow_side_effects=("audit",)), "still write after 10 rounds")


def test_a_rule_that_deletes_other_rows_in_place_of_ours(real_users, settings_for):
    """The server's count of such a DELETE holds the rule's rows: it can't say how many were meant."""
    execute(
        real_users,
        'ALTER TABLE "RankingEvent" RENAME TO old',
        'CREATE TABLE "RankingEvent" (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH ("id")',
        'CREATE TABLE part PARTITION OF "RankingEvent" FOR VALUES WITH (MODULUS 1, REMAINDER 0)',
        'INSERT INTO "RankingEvent" SELECT * FROM old',
        "DROP TABLE old",
    )
    etl.run(settings_for(real_users))
    execute(
        real_users,
        """CREATE RULE instead AS ON DELETE TO "RankingEvent" DO INSTEAD
        DELETE FROM part WHERE "tripId" = OLD."tripId" OR "userId" LIKE 'real-%'""",
    )
    refused(settings_for(real_users, seed=5), '"RankingEvent": ')


MEDDLED = {
    "another version": ("""NEW."modelVersion" := 'HACK'; RETURN NEW;""", "and 0 have it now"),
    "no version": ("""NEW."modelVersion" := NULL; RETURN NEW;""", "and 0 have it now"),
    "another type": (
        """NEW."signalType" := (enum_range(NULL::"SignalType"))[1 + (NEW."signalType" = (enum_range(NULL::"SignalType"))[1])::int];
        RETURN NEW;""",
        'column "signalType"',
    ),
    "a column of the application's own": ("""NEW."note" := 'x'; RETURN NEW;""", 'column "note"'),
    "two rows' values, swapped": (
        """IF NEW."note" IN ('1', '2') THEN NEW."note" := (3 - NEW."note"::int)::text; END IF; RETURN NEW;""",
        'column "note"',
    ),
    "nothing: the rows are skipped": ("RETURN NULL;", "0 were changed and 0 have it now"),
    "another owner": ("""NEW."userId" := 'real-1'; RETURN NEW;""", "and 0 have it now"),
    "one row instead of another": (
        """IF pg_trigger_depth() = 1 AND NEW."note" = '1' THEN
        BEGIN UPDATE "BehavioralSignal" SET "modelVersion" = 'x' WHERE "id" = 'g-1'; EXCEPTION WHEN OTHERS THEN NULL; END;
        RETURN NULL; END IF; RETURN NEW;""",
        "were changed and",
    ),
}


@pytest.mark.parametrize("what", MEDDLED)
def test_a_trigger_that_makes_of_a_backfilled_signal(real_users, settings_for, what):
    """The rows are read back, and compared with what they were, but for the one column."""
    body, said = MEDDLED[what]
    execute(
        real_users,
        'ALTER TABLE "BehavioralSignal" ADD COLUMN "note" text',
        f"""UPDATE "BehavioralSignal" b SET "modelVersion" = NULL, "note" = x.n::text
        FROM (SELECT "id", row_number() OVER (ORDER BY "id") AS n FROM "BehavioralSignal" WHERE "userId" IN {SHADOW}) x
        WHERE x."id" = b."id" """,
        function(body),
        trigger('BEFORE UPDATE ON "BehavioralSignal"', "ROW"),
    )
    refused(settings_for(real_users), said)
    execute(real_users, 'DROP TRIGGER meddle ON "BehavioralSignal"')
    assert etl.run(settings_for(real_users)).counts["signals_backfilled"] > 2
    execute(real_users, trigger('BEFORE UPDATE ON "BehavioralSignal"', "ROW"))
    assert etl.run(settings_for(real_users)).counts["signals_backfilled"] == 0  # nothing is left to meddle with


def test_a_side_effect_under_a_role_that_may_do_no_more(role, real_users, settings_for):
    """The audit needs no privilege, sees what a SECURITY DEFINER function writes, and reads back the columns that are granted."""
    name, url = role
    execute(
        real_users,
        privileges.grants(Naming("model", "public"), name),
        'ALTER TABLE "BehavioralSignal" ADD COLUMN "note" text',
        f"""UPDATE "BehavioralSignal" SET "modelVersion" = NULL WHERE "userId" IN {SHADOW}""",
        function("INSERT INTO audit VALUES (1); INSERT INTO other.part VALUES (1);", settings="SECURITY DEFINER"),
        trigger('AFTER UPDATE ON "BehavioralSignal"'),
    )
    refused(settings_for(url), "public.audit: 1 inserted", real_users)
    report = etl.run(settings_for(url, allow_side_effects=("audit", "other.part")))
    assert report.counts["signals_backfilled"] > 0


def test_tables_of_ours_that_are_partitioned(real_users, settings_for):
    """Partitions count as their table, also where the run writes itself."""
    execute(
        real_users,
        'ALTER TABLE "BehavioralSignal" RENAME TO old',
        'CREATE TABLE "BehavioralSignal" (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH ("id")',
        *(
            f'CREATE TABLE s{n} PARTITION OF "BehavioralSignal" FOR VALUES WITH (MODULUS 2, REMAINDER {n})'
            for n in range(2)
        ),
        f"""INSERT INTO "BehavioralSignal" SELECT "id", "userId", "tripId", "slotId", "activityNodeId", "signalType"
        FROM old WHERE "userId" IN {SHADOW}""",
        "DROP TABLE old",
        """INSERT INTO "BehavioralSignal" ("id", "userId", "signalType") SELECT 'g-1', 'real-1', "signalType" FROM s0 LIMIT 1""",
        function("""UPDATE "BehavioralSignal" SET "modelVersion" = 'x' WHERE "userId" = 'real-1';"""),
        trigger('AFTER INSERT ON "RankingEvent"'),
    )
    refused(settings_for(real_users), '"public"."BehavioralSignal": 0 inserted')
    execute(real_users, "DROP FUNCTION meddle CASCADE")
    assert etl.run(settings_for(real_users)).counts["signals_backfilled"] > 0


@pytest.mark.parametrize(
    ("write", "said"), [("replace", "is not what was sent"), ("changes", "were to be deleted and are still there")]
)
def test_a_real_user_s_event_for_one_that_is_left_as_it_was(real_users, settings_for, write, said):
    """As many rows as meant were inserted, and all that should stand there do: one of them is not new, and one is another's."""
    etl.run(settings_for(real_users))
    with psycopg.connect(real_users) as connection:
        (kept,) = connection.execute(f'SELECT min("id") FROM "RankingEvent" WHERE "userId" IN {SHADOW}').fetchone()
        connection.execute('UPDATE "RankingEvent" SET "latencyMs" = 1 WHERE "id" = %s', (kept,))
    execute(
        real_users,
        function(
            f"""IF TG_OP = 'DELETE' THEN IF OLD."id" = '{kept}' THEN RETURN NULL; END IF; RETURN OLD; END IF;
            IF NEW."id" = '{kept}' THEN BEGIN NEW."id" := 'e-9'; NEW."userId" := 'real-1';
            INSERT INTO "RankingEvent" VALUES (NEW.*); EXCEPTION WHEN unique_violation THEN NULL; END; RETURN NULL; END IF;
            RETURN NEW;"""
        ),
        trigger('BEFORE DELETE OR INSERT ON "RankingEvent"', "ROW"),
    )
    rows = everything(real_users)
    with pytest.raises(DataError, match=said):
        etl.run(settings_for(real_users, write=write))
    assert everything(real_users) == rows


@pytest.mark.parametrize("body", ["""NEW."stage" := 'archived'; RETURN NEW;""", "RETURN NULL;"])
def test_the_registry_s_rows_are_read_back(real_users, settings_for, body):
    execute(
        real_users,
        'DELETE FROM "ModelRegistry"',
        function(body.replace("'archived'", """(enum_range(NULL::"ModelStage"))[1]""")),
        trigger('BEFORE INSERT ON "ModelRegistry"', "ROW"),
    )
    rows = everything(real_users)
    with pytest.raises(DataError, match=r'"public"\."ModelRegistry" holds . of the 2 models that it needs'):
        etl.run(settings_for(real_users))
    assert everything(real_users) == rows


def not_counted(url: str, role: str = "CURRENT_USER") -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {role} IN DATABASE {connection.info.dbname} SET track_counts = off")


def test_a_server_that_does_not_count_is_made_to(real_users, settings_for):
    """For this transaction, where the role may; a delete leaves no row that could be looked at."""
    not_counted(real_users)
    assert etl.run(settings_for(real_users)).committed
    execute(
        real_users,
        function("""DELETE FROM "RankingEvent" WHERE "userId" = 'real-1';"""),
        trigger('AFTER DELETE ON "PersonaDimension"'),
    )
    refused(settings_for(real_users, seed=1), "RankingEvent")


def test_a_server_that_does_not_count_and_can_t_be_made_to_is_refused(role, small_world, settings_for, tmp_path):
    name, url = role
    execute(small_world, privileges.grants(Naming("model", "public"), name))
    not_counted(small_world, name)
    rows = everything(small_world)
    with pytest.raises(SchemaError, match=f"ALTER ROLE {name} SET track_counts = on"):
        etl.run(settings_for(url))
    assert everything(small_world) == rows
    assert not folder_state(tmp_path / "out")


def test_a_function_that_is_not_counted_is_refused(real_users, settings_for):
    execute(real_users, function("", settings="SET track_counts = off"))
    with pytest.raises(SchemaError, match=r"meddle\(\)"):
        etl.run(settings_for(real_users))
    execute(
        real_users,
        "DROP FUNCTION meddle",
        function("PERFORM set_config('track_counts', 'off', true);"),
        trigger('AFTER DELETE ON "PersonaDimension"'),
    )
    refused(settings_for(real_users, write="replace"), "switched track_counts off")


def test_counts_of_an_earlier_attempt_do_not_confuse_the_ledger(small_world, settings_for, monkeypatch):
    """A session hands its counts over a second late: a retried night still sees those of the attempt before."""
    original, done = pipeline.load.backfill, []

    def conflict(connection, scope, signals):
        if not done:
            done.append(True)
            raise ConflictError("Somebody else changed the same rows.")
        return original(connection, scope, signals)

    monkeypatch.setattr(pipeline.load, "backfill", conflict)
    assert etl.run(settings_for(small_world)).retries == 1


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


@pytest.mark.parametrize("privilege", required(Naming("model"), writes=True), ids=lambda p: f"{p.verb} {p.model}")
def test_a_privilege_that_is_missing_is_named(role, small_world, settings_for, tmp_path, privilege, tally):
    """Before anything is read: a plain sentence with the privilege, the table, and what to do."""
    name, url = role
    columns = f" ({', '.join(chr(34) + column + chr(34) for column in privilege.columns)})" if privilege.columns else ""
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(privileges.grants(Naming("model", "public"), name))
        connection.execute(f'REVOKE {privilege.verb}{columns} ON "{privilege.model}" FROM {name}')
    rows = database_state(small_world)
    with pytest.raises(ConnectError) as refused:
        etl.run(settings_for(url))
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
        etl.run(settings_for(url))


def secure(url: str, name: str, *statements: str) -> None:
    """The role's privileges, row security on all tables, and more."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(privileges.grants(Naming("model", "public"), name))
        for table in TABLES:
            connection.execute(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY')
        for statement in statements:
            connection.execute(statement.replace("ROLE_", name))


def policies(clauses: str) -> list[str]:
    return [f'CREATE POLICY "p {table}" ON "{table}" {clauses}' for table in TABLES]


def test_row_security_that_shows_everything_is_no_obstacle(role, small_world, settings_for):
    """COPY can't write to such a table: the rows go another way, and are the same, also when they are replaced."""
    name, url = role
    secure(small_world, name, *policies("TO ROLE_ USING (true) WITH CHECK (true)"))
    assert etl.run(settings_for(url)).committed
    again = etl.run(settings_for(url))
    assert again.counts["ranking_events"] > 0
    secured = database_state(small_world)
    assert etl.run(settings_for(small_world)).committed
    assert database_state(small_world) == secured
    assert database.validate_database(settings_for(url)).broken == []


ALL = policies("TO PUBLIC USING (true) WITH CHECK (true)")
READ_ALL = policies("FOR SELECT TO ROLE_ USING (true)")
HIDING = {
    "no policy": [],
    "some rows": [
        *policies("TO ROLE_ USING (true)")[1:],
        """CREATE POLICY own ON "User" TO ROLE_ USING ("id" < 'z')""",
    ],
    "another role's": policies("TO postgres USING (true)"),
    "a restrictive one": [*ALL, """CREATE POLICY less ON "Trip" AS RESTRICTIVE TO ROLE_ USING ("city" <> '')"""],
    "reading alone": READ_ALL,
}


@pytest.mark.parametrize("what", HIDING)
def test_row_security_that_may_hide_rows_is_no_smaller_night(role, small_world, settings_for, what):
    """It would look like a night with few users; it is a role that is not shown all of them. The remedies work."""
    name, url = role
    secure(small_world, name, *HIDING[what])
    with pytest.raises(SchemaError, match="Row security may hide or refuse rows of") as refused:
        etl.run(settings_for(url))
    if what == "reading alone":
        assert "RankingEvent" in str(refused.value)
        assert "Trip" not in str(refused.value)
        assert etl.export(settings_for(url, audience="all")).snapshot
    statement = re.search(r"CREATE POLICY .*\(true\)(?=\.$)", str(refused.value))[0]
    bypass = re.search(r"\((ALTER ROLE .*?)\)", str(refused.value))[1]
    tables = re.search(r"rows of (.*) for the role", str(refused.value))[1].split(", ")
    with psycopg.connect(small_world, autocommit=True) as connection:
        if what == "a restrictive one":
            connection.execute(bypass)
        else:
            for table in tables:
                connection.execute(statement.replace(f"ON {tables[0]} ", f"ON {table} "))
    assert etl.run(settings_for(url)).committed
