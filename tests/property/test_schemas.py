"""The same rows in any schema give the same snapshot; what can't work ends with exit 4 and names table and column."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import etl
from etl.errors import DataError, SchemaError, SettingsError
from etl.pipeline import database
from etl.postgres.naming import MODELS
from etl.settings.sources import load_settings
from tests.property import shapes


@pytest.fixture(scope="module")
def expected(make_database, small_world_template, tmp_path_factory) -> str:
    """The content hash of a run on Prisma's own schema."""
    out = str(tmp_path_factory.mktemp("expected"))
    run = etl.run(load_settings({"database_url": make_database(small_world_template), "out": out}, {}))
    return content_hash(run)


class OneDatabase:
    """Fresh databases with the small world, of which only the last one is kept."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server, self._template = server_url, urlsplit(template).path.lstrip("/")

    def fresh(self) -> str:
        """The URL of the next one."""
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS shaped WITH (FORCE)")
            connection.execute(f'CREATE DATABASE shaped TEMPLATE "{self._template}"')
        return urlunsplit(urlsplit(self._server)._replace(path="/shaped"))


@pytest.fixture
def databases(server_url, small_world_template) -> OneDatabase:
    return OneDatabase(server_url, small_world_template)


def content_hash(run: etl.RunResult) -> str:
    return json.loads((Path(str(run.snapshot)) / "manifest.json").read_text(encoding="utf-8"))["content_sha256"]


def reshaped(url: str, shape: shapes.Shape) -> None:
    with psycopg.connect(url) as connection:
        for statement in shapes.statements(shape):
            connection.execute(statement)


def test_the_same_rows_in_any_schema_give_the_same_snapshot(databases, expected, tmp_path, effort, tally):
    @given(shapes.shapes())
    @settings(max_examples=effort(12, 400), phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def check(shape: shapes.Shape) -> None:
        url = databases.fresh()
        reshaped(url, shape)
        options = {"database_url": url, "out": str(tmp_path / "out"), "map": shapes.mapping(shape) or None}
        assert content_hash(etl.run(load_settings(options, {}))) == expected
        again = etl.run(load_settings(options, {}))
        assert content_hash(again) == expected
        assert {(each["inserted"], each["deleted"]) for each in again.counts["written"].values()} == {(0, 0)}
        assert database.validate_database(load_settings(options, {})).broken == []
        exported = etl.export(load_settings(options, {}))
        assert content_hash(exported) == expected
        tally("schemas drawn")
        if not shape.city_by_id and not any(table.own_names for table in shape.tables.values()):
            pasted = tmp_path / "bpr-etl.toml"
            proposal = database.propose_map(load_settings({"database_url": url}, {}))
            pasted.write_text(re.sub(r"^# (?=where = )", "", proposal, flags=re.MULTILINE))
            options = {"database_url": url, "out": str(tmp_path / "out"), "config": str(pasted)}
            assert content_hash(etl.run(load_settings(options, {}))) == expected, proposal
            tally("schemas mapped by `schema map`")

    check()


def test_the_types_that_are_drawn_belong_to_columns_of_the_contract():
    assert set(shapes.READ_TYPES) | set(shapes.WRITTEN_TYPES) == set(MODELS)


NEWEST = (
    # Snake-case tables by @@map, columns by model; a trip has legs with a city each, and no city of its own.
    """CREATE TABLE trip_legs ("id" text PRIMARY KEY, "tripId" text NOT NULL REFERENCES "trips"("id") ON DELETE CASCADE,
       "position" int4 NOT NULL, "city" text NOT NULL, "country" text, "startDate" timestamp(3), "endDate" timestamp(3))""",
    """INSERT INTO trip_legs SELECT 'leg-' || "id", "id", 0, "city", 'JP', "startDate", "startDate" FROM "trips\"""",
    'ALTER TABLE "trips" DROP COLUMN "city", ADD "mode" text NOT NULL DEFAULT \'solo\', ADD "updatedAt" timestamp(3)',
    'ALTER TABLE "itinerary_slots" ADD "tripLegId" text REFERENCES trip_legs("id") ON DELETE SET NULL',
    """UPDATE "itinerary_slots" SET "tripLegId" = 'leg-' || "tripId\"""",
    """ALTER TYPE "SlotStatus" ADD VALUE 'swapped'""",
    """ALTER TYPE "ActivityCategory" ADD VALUE 'spa'""",
    """ALTER TYPE "SignalType" ADD VALUE 'share'""",
    'ALTER TABLE "behavioral_signals" ADD "weight" float8, ADD "createdAt" timestamp(3) NOT NULL DEFAULT now()',
    'ALTER TABLE "ranking_events" ADD "weatherContext" jsonb, ADD "acceptedCount" int4 NOT NULL DEFAULT 0',
    'CREATE INDEX ON "behavioral_signals" ("userId", "createdAt")',
    'CREATE INDEX ON "behavioral_signals" ("signalType", "createdAt")',
)


def test_the_application_s_newest_shape_runs_without_a_settings_file(database_url, settings_for, expected):
    """The same rows: one leg a trip, with the city that the trip had."""
    database.synth(settings_for(database_url, scale=0.03, naming="mapped"))
    with psycopg.connect(database_url) as connection:
        for statement in NEWEST:
            connection.execute(statement)
    run = etl.run(settings_for(database_url))
    assert content_hash(run) == expected
    assert run.counts["days_in_several_cities"] == 0
    assert database.validate_database(settings_for(database_url)).broken == []
    assert [each for each in database.check_schema(settings_for(database_url)) if each.severity == "blocking"] == []
    assert content_hash(etl.export(settings_for(database_url))) == expected


BROKEN = {
    "column missing": ('ALTER TABLE "Trip" DROP COLUMN "userId"', {}, ('"Trip"', '"userId"')),
    "city missing": ('ALTER TABLE "ActivityNode" DROP COLUMN city', {}, ('"ActivityNode"', '"city"')),
    "no cast": ('ALTER TABLE "Trip" ALTER "startDate" TYPE text', {}, ('"startDate"', '"Trip"', "text", "timestamptz")),
    "found twice": ('ALTER TABLE "Trip" ADD user_id text', {}, ('"Trip"', '"userId"', '"user_id"', "[map.Trip]")),
    "too short for our ids": (
        'ALTER TABLE "RankingEvent" ALTER id TYPE varchar(30) USING left(id, 30)',
        {},
        ('"id"', '"RankingEvent"', "30", "36"),
    ),
    "too short for the users' ids": (
        """ALTER TABLE "RankingEvent" ALTER "userId" TYPE varchar(36);
        UPDATE "User" SET id = id || '-x' WHERE id = (SELECT max(id) FROM "User" WHERE email LIKE 'shadow-%')""",
        {},
        ('"userId"', '"RankingEvent"', "36"),
    ),
    "too short for the nodes' ids": (
        'ALTER TABLE "RankingEvent" ALTER "candidateIds" TYPE varchar(35)[] USING NULL',
        {},
        ('"candidateIds"', "35"),
    ),
    "too short for the affinities": (
        'ALTER TABLE "PersonaDimension" ALTER "value" TYPE varchar(191) USING left("value", 191)',
        {},
        ('"value"', '"PersonaDimension"', "191"),
    ),
    "made by the server": (
        'ALTER TABLE "PersonaDimension" DROP COLUMN source, ADD source text GENERATED ALWAYS AS (id) STORED',
        {},
        ('"source"', '"PersonaDimension"', "generated"),
    ),
    "a view that a run writes": (
        'ALTER TABLE "RankingEvent" RENAME TO events; CREATE VIEW "RankingEvent" AS SELECT * FROM events',
        {},
        ('"RankingEvent"', "a view", "[map.RankingEvent]"),
    ),
    "a view of the signals": (
        'ALTER TABLE "BehavioralSignal" RENAME TO s; CREATE VIEW "BehavioralSignal" AS SELECT * FROM s',
        {},
        ('"BehavioralSignal"', "a view"),
    ),
    "users that repeat": (
        'ALTER TABLE "User" RENAME TO u; CREATE VIEW "User" AS SELECT * FROM u UNION ALL (SELECT * FROM u LIMIT 1)',
        {},
        ('"User"', "1 ids"),
    ),
    "a label missing": (
        """ALTER TYPE "SlotStatus" RENAME VALUE 'confirmed' TO 'sure'""",
        {},
        ('"status"', '"ItinerarySlot"', "'confirmed'"),
    ),
    "not filled": (
        'DELETE FROM "RankingEvent"; ALTER TABLE "RankingEvent" ADD tenant text NOT NULL',
        {},
        ('"tenant"', '"RankingEvent"'),
    ),
    "a table that is not there": (
        "SELECT",
        {"Trip": {"table": "planner.journeys"}},
        ('"planner"."journeys"', "missing"),
    ),
    "a column that is not there": (
        "SELECT",
        {"Trip": {"userId": "owner_id"}},
        ('"owner_id"', '"Trip"', "[map.Trip] userId"),
    ),
    "SQL that fails": ("SELECT", {"Trip": {"city": "(SELECT nope FROM nothing)"}}, ("nothing", "[map.Trip]")),
    "a condition that fails": ("SELECT", {"User": {"where": '"deletedAt" IS NULL'}}, ("deletedAt", "[map.User]")),
    "a condition that is none": ("SELECT", {"User": {"where": "email"}}, ("[map.User]", "boolean")),
}


CURES = {
    "column missing": ("", {"Trip": {"userId": '(SELECT u."id" FROM "User" u ORDER BY u."id" LIMIT 1)'}}),
    "city missing": ("", {"ActivityNode": {"city": "'Tokyo'"}}),
    "no cast": ("", {"Trip": {"startDate": '("startDate"::timestamp)'}}),
    "found twice": ("", {"Trip": {"userId": '"userId"'}}),
    "too short for our ids": ('ALTER TABLE "RankingEvent" ALTER COLUMN id TYPE text', {}),
    "too short for the users' ids": ('ALTER TABLE "RankingEvent" ALTER COLUMN "userId" TYPE text', {}),
    "too short for the nodes' ids": ('ALTER TABLE "RankingEvent" ALTER COLUMN "candidateIds" TYPE text[]', {}),
    "too short for the affinities": ('ALTER TABLE "PersonaDimension" ALTER COLUMN "value" TYPE text', {}),
    "a view that a run writes": ("", {"RankingEvent": {"table": "public.events"}}),
    "a view of the signals": ("", {"BehavioralSignal": {"table": "public.s"}}),
    "users that repeat": ("", {"User": {"table": "public.u"}}),
    "a label missing": ("""ALTER TYPE "SlotStatus" ADD VALUE 'confirmed'""", {}),
    "not filled": ("ALTER TABLE \"RankingEvent\" ALTER tenant SET DEFAULT 'one'", {}),
    "a table that is not there": ("", {}),
    "SQL that fails": ("", {"Trip": {"city": '(SELECT t.city FROM "Trip" t WHERE t.id = "Trip".id)'}}),
    "a condition that fails": ("", {"User": {"where": '"email" IS NOT NULL'}}),
}
"""What the sentences say to do: SQL, or another mapping. After it a run works."""


@pytest.mark.parametrize(("sql", "given", "said"), BROKEN.values(), ids=BROKEN)
def test_what_can_not_work_is_refused_before_anything_is_read(request, databases, settings_for, sql, given, said):
    url = databases.fresh()
    with psycopg.connect(url) as connection:
        for statement in (*shapes.DROP_KEYS, *sql.split(";")):
            connection.execute(statement)
    with pytest.raises(SchemaError) as refused:
        etl.run(settings_for(url, map=given or None))
    assert all(each in str(refused.value) for each in said), refused.value
    assert not (Path(settings_for(url).out) / "snapshots").exists()
    cure, mapped = CURES.get(request.node.callspec.id, ("", None))
    if mapped is not None:
        with psycopg.connect(url) as connection:
            connection.execute(cure or "SELECT")
        assert etl.run(settings_for(url, map=mapped or None, allow_empty=True)).committed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"Tripp": {"city": "town"}}, "did you mean 'Trip'?"),
        ({"Trip": {"cty": "town"}}, "did you mean 'city'?"),
        ({"RankingEvent": {"where": "true"}}, "[map.RankingEvent] has SQL for where"),
        ({"RankingEvent": {"surface": "lower(kind)"}}, "only table and names of columns"),
    ],
)
def test_what_the_contract_does_not_know_is_a_wrong_setting(databases, settings_for, given, said):
    with pytest.raises(SettingsError) as refused:
        etl.run(settings_for(databases.fresh(), map=given))
    assert said in str(refused.value)


def test_a_proposal_names_what_is_not_found_by_itself(database_url, settings_for):
    """Another application's tables: what is likely stands as a setting, what is not known waits for a decision."""
    with psycopg.connect(database_url) as connection:
        for statement in (
            "CREATE SCHEMA planner",
            "CREATE TABLE planner.accounts (id uuid PRIMARY KEY, email varchar(255), deleted_at timestamptz)",
            """CREATE TABLE planner.journeys (id uuid PRIMARY KEY, captain uuid REFERENCES planner.accounts, destination text,
               starts_on date, created_at timestamptz, persona jsonb, is_deleted bool)""",
            """CREATE TABLE planner.slots (id uuid PRIMARY KEY, journey uuid REFERENCES planner.journeys, place_id uuid,
               "Day" int2, position int2, state text)""",
            "CREATE TABLE planner.places (id uuid PRIMARY KEY, town text, title text, lat numeric, lng numeric, state text)",
        ):
            connection.execute(statement)
    proposal = database.propose_map(settings_for(database_url))
    said = tomllib.loads(proposal)["map"]
    assert said == {
        "User": {"table": "planner.accounts"},
        "Trip": {
            "table": "planner.journeys",
            "userId": "captain",
            "city": "destination",
            "startDate": "starts_on",
            "personaSeed": "persona",
        },
        "ItinerarySlot": {
            "table": "planner.slots",
            "tripId": "journey",
            "activityNodeId": "place_id",
            "dayNumber": '"Day"',
            "sortOrder": "position",
            "status": "state",
        },
        "ActivityNode": {
            "table": "planner.places",
            "city": "town",
            "status": "state",
            "name": "title",
            "latitude": "lat",
            "longitude": "lng",
        },
    }
    asked = [line for line in proposal.splitlines() if "DECIDE" in line]
    assert len(asked) == proposal.count("# DECIDE:") == 4
    assert asked[0] == "# where = '\"deleted_at\" IS NULL'  # DECIDE: leaves out what the application has deleted"
    assert [line.partition(" = ")[0] for line in asked] == ["# where", "# where", "# category", "# table"]
    assert "[map.BehavioralSignal]" in proposal
    assert "# RankingEvent: missing; `bpr-etl schema apply` creates it." in proposal


def test_rows_that_are_marked_as_deleted_are_pointed_out_until_a_condition_is_set(databases, settings_for):
    url = databases.fresh()
    with psycopg.connect(url) as connection:
        connection.execute('ALTER TABLE "Trip" ADD "deletedAt" timestamp(3)')
        marked = connection.execute("""UPDATE "Trip" SET "deletedAt" = now() WHERE id < '8'""").rowcount
    run = etl.run(settings_for(url))
    (note,) = [note for note in run.notes if "deletedAt" in note]
    assert "set where = " in note
    mapped = {"Trip": {"where": json.loads(note.partition("set where = ")[2].partition(" in [map.")[0])}}
    run = etl.run(settings_for(url, map=mapped))
    assert run.counts["filtered"] == {"Trip": marked}
    assert not any("deletedAt" in note for note in run.notes)
    trips = pl.read_parquet(Path(str(run.snapshot)) / "trips.parquet")
    assert trips.filter(pl.col("trip_id") < "8").is_empty()


def test_signals_that_the_backfill_moves_to_another_partition_are_updated_ones(databases, settings_for, expected):
    url = databases.fresh()
    with psycopg.connect(url) as connection:
        for statement in (
            'ALTER TABLE "BehavioralSignal" RENAME TO old',
            'CREATE TABLE "BehavioralSignal" (LIKE old) PARTITION BY LIST ("modelVersion")',
            """CREATE TABLE without PARTITION OF "BehavioralSignal" FOR VALUES IN (NULL)""",
            'CREATE TABLE others PARTITION OF "BehavioralSignal" DEFAULT',
            'INSERT INTO "BehavioralSignal" SELECT * FROM old',
            "DROP TABLE old",
        ):
            connection.execute(statement)
        pending = connection.execute("""SELECT count(*) FROM "BehavioralSignal" s JOIN "User" u ON u.id = s."userId"
            WHERE s."modelVersion" IS NULL AND u.email LIKE 'shadow-%'""").fetchone()[0]
    run = etl.run(settings_for(url))
    assert run.counts["signals_backfilled"] == pending > 0
    assert content_hash(run) == expected
    with psycopg.connect(url) as connection:
        connection.execute('UPDATE "BehavioralSignal" SET "modelVersion" = NULL WHERE "modelVersion" IS NOT NULL')
        connection.execute(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN DELETE FROM without WHERE id = (SELECT min(id) FROM without WHERE id <> OLD.id); RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE TRIGGER meddle AFTER DELETE ON without FOR EACH ROW WHEN (pg_trigger_depth() = 0) "
            "EXECUTE FUNCTION meddle()"
        )
    with pytest.raises(DataError):
        etl.run(settings_for(url))
