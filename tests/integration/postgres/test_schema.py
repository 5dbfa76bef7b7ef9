"""What is found in a catalogue, what stops a run, and what is created."""

from __future__ import annotations

import psycopg
import pytest

import etl
from etl.errors import SchemaError
from etl.pipeline import database
from etl.postgres.naming import Naming
from etl.postgres.schema import side_effects as schema
from tests.states import database_state


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def applied(database_url, settings_for):
    database.apply_schema(settings_for(database_url))
    return database_url


def details(url, settings_for) -> dict[str, str]:
    return {finding.kind: finding.detail for finding in database.check_schema(settings_for(url))}


def test_a_fresh_schema_lacks_nothing(applied, settings_for):
    assert details(applied, settings_for) == {}


@pytest.mark.parametrize(
    ("statement", "kind", "said"),
    [
        ('DROP TABLE "ModelRegistry"', "table", '"ModelRegistry" is missing'),
        ('ALTER TABLE "Trip" DROP COLUMN "personaSeed"', "column", 'has no column "personaSeed"'),
        (
            'ALTER TABLE "RankingEvent" ALTER COLUMN "dayNumber" TYPE text',
            "type",
            "has type text, needed is one of: int4, int8, numeric.",
        ),
        (
            'ALTER TABLE "ItinerarySlot" ALTER COLUMN "status" DROP DEFAULT, ALTER COLUMN "status" TYPE bytea USING NULL',
            "type",
            "has type bytea, needed is one of: an enum, text,",
        ),
        ('ALTER TABLE "RankingEvent" ADD COLUMN "tenant" text NOT NULL', "not_null", 'Column "tenant"'),
        ('ALTER TABLE "RankingEvent" ALTER COLUMN "sessionId" SET NOT NULL', "not_null", "writes NULL there"),
        (
            'DROP INDEX "ModelRegistry_modelName_modelVersion_key"',
            "unique",
            "no unique index on (modelName, modelVersion)",
        ),
        (
            """ALTER TYPE "ModelStage" RENAME VALUE 'production' TO 'live'""",
            "enum_value",
            "without 'production'",
        ),
    ],
)
def test_what_stops_a_run_is_said_with_table_and_column(applied, settings_for, statement, kind, said):
    execute(applied, statement)
    assert said in details(applied, settings_for)[kind]
    with pytest.raises(SchemaError, match="does not fit"):
        etl.run(settings_for(applied))


def test_further_columns_with_a_default_and_further_values_are_the_application_s(applied, settings_for):
    execute(
        applied,
        'ALTER TABLE "RankingEvent" ADD COLUMN "note" text, ADD COLUMN "at" timestamp NOT NULL DEFAULT now()',
        """ALTER TYPE "ActivityCategory" ADD VALUE 'space_travel'""",
        'CREATE TABLE "Other" (id int)',
    )
    assert details(applied, settings_for) == {}
    assert etl.run(settings_for(applied, allow_empty=True)).committed


def test_the_missing_index_is_advice(applied, settings_for):
    execute(applied, 'DROP INDEX "ItinerarySlot_tripId_dayNumber_idx"')
    assert "no index on (tripId, dayNumber)" in details(applied, settings_for)["index"]
    assert "no index" in etl.run(settings_for(applied, allow_empty=True)).notes[0]
    execute(applied, 'CREATE INDEX mine ON "ItinerarySlot" ("tripId", "dayNumber", "status")')
    assert details(applied, settings_for) == {}


def test_both_namings_or_neither_is_a_clear_error(database_url, settings_for):
    settings = settings_for(database_url)
    with pytest.raises(SchemaError, match="none of the source tables"):
        etl.run(settings)
    database.apply_schema(settings)
    database.apply_schema(settings_for(database_url, schema="other", naming="mapped"))
    execute(database_url, "ALTER TABLE other.trips SET SCHEMA public")
    with pytest.raises(SchemaError, match=r"--naming"):
        etl.run(settings)
    assert etl.run(settings_for(database_url, naming="model", allow_empty=True)).committed


def test_a_schema_of_one_s_own_by_option_or_by_url(database_url, settings_for):
    settings = settings_for(database_url, schema="tenant", naming="mapped", scale=0.02)
    assert "itinerary_slots_tripId_dayNumber_idx" in database.apply_schema(settings)
    database.synth(settings)
    by_url = settings_for(f"{database_url}{'&' if '?' in database_url else '?'}schema=tenant&connection_limit=5")
    assert etl.run(by_url).counts["ranking_events"] > 0
    assert database.validate_database(by_url).broken == []
    with pytest.raises(SchemaError, match='no schema "nowhere"'):
        etl.run(settings_for(database_url, schema="nowhere"))


def test_apply_adds_ours_to_an_application_s_tables_and_alters_none(small_world, settings_for):
    execute(
        small_world,
        'DROP TABLE "RankingEvent"',
        'DROP TABLE "PersonaDimension"',
        'CREATE TABLE "ranking_events" (x int)',
    )
    kept = {
        table: digest for table, digest in _state(small_world).items() if table in {"User", "Trip", "BehavioralSignal"}
    }
    created = database.apply_schema(settings_for(small_world))
    assert {"RankingEvent", "PersonaDimension"} <= set(created)
    assert kept.items() <= database_state(small_world).items()
    assert etl.run(settings_for(small_world)).committed


def _state(url: str) -> dict[str, str]:
    execute(url, 'CREATE TABLE "RankingEvent" ()', 'CREATE TABLE "PersonaDimension" ()')
    state = database_state(url)
    execute(url, 'DROP TABLE "RankingEvent"', 'DROP TABLE "PersonaDimension"')
    return state


def test_apply_does_not_mend_an_application(applied, settings_for):
    execute(applied, 'ALTER TABLE "User" DROP COLUMN "email"')
    with pytest.raises(SchemaError, match='no column "email"'):
        database.apply_schema(settings_for(applied))
    execute(applied, 'DROP TABLE "BehavioralSignal"')
    with pytest.raises(SchemaError, match="nothing was created"):
        database.apply_schema(settings_for(applied))


def test_the_names_of_a_naming():
    naming = Naming("mapped", "s")
    assert naming.table("Trip") == '"s"."trips"'
    assert naming.constraint("ItinerarySlot", "tripId_dayNumber", "idx") == "itinerary_slots_tripId_dayNumber_idx"
    assert schema.Finding("index", "Trip", "x").severity == "blocking"


@pytest.mark.parametrize(
    ("index", "serves"),
    [
        ('("tripId", "dayNumber", "id")', True),
        ('("tripId", "dayNumber") INCLUDE ("status")', True),
        ('("dayNumber", "tripId")', False),
        ('("tripId") INCLUDE ("dayNumber")', False),
        ('("tripId", ("dayNumber" + 1))', False),
        ('("tripId", "dayNumber") WHERE "dayNumber" > 1', False),
        ('USING brin ("tripId", "dayNumber")', False),
    ],
)
def test_an_index_serves_when_it_leads_with_the_two_columns_and_has_every_row(applied, settings_for, index, serves):
    execute(
        applied,
        'DROP INDEX "ItinerarySlot_tripId_dayNumber_idx"',
        f'CREATE INDEX mine ON "ItinerarySlot" {index}',
    )
    assert ("index" in details(applied, settings_for)) is not serves


def test_a_deferrable_constraint_is_not_what_on_conflict_needs(applied, settings_for):
    execute(
        applied,
        'DROP INDEX "ModelRegistry_modelName_modelVersion_key"',
        'ALTER TABLE "ModelRegistry" ADD UNIQUE ("modelName", "modelVersion") DEFERRABLE',
    )
    assert "unique" in details(applied, settings_for)
    execute(applied, 'CREATE UNIQUE INDEX mine ON "ModelRegistry" ("modelVersion", "modelName")')
    assert details(applied, settings_for) == {}


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (
            ('DROP TABLE "RankingEvent"', 'CREATE VIEW "RankingEvent" AS SELECT 1 AS id'),
            "is a view, and a run writes there: needed is a table",
        ),
        (
            (
                'DROP INDEX "ItinerarySlot_tripId_dayNumber_idx"',
                'CREATE INDEX "ItinerarySlot_tripId_dayNumber_idx" ON "ItinerarySlot" ("dayNumber")',
            ),
            "an index of that name exists",
        ),
        (('DROP TABLE "BehavioralSignal"',), '"BehavioralSignal" is missing'),
        (
            ('DROP TABLE "ModelRegistry"', """ALTER TYPE "ModelStage" RENAME VALUE 'production' TO 'live'"""),
            "without 'production'",
        ),
    ],
)
def test_apply_names_what_stands_in_the_way_and_leaves_the_database_as_it_was(applied, settings_for, statements, said):
    execute(applied, *statements)
    before = relations(applied)
    with pytest.raises(SchemaError, match=said):
        database.apply_schema(settings_for(applied))
    assert relations(applied) == before


def relations(url: str) -> list[tuple[str, str]]:
    """Every relation and type of the schema."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT relname, relkind::text FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "UNION ALL SELECT typname, 'type' FROM pg_type WHERE typnamespace = 'public'::regnamespace ORDER BY 1, 2"
        ).fetchall()


def test_a_second_set_of_tables_is_not_created_beside_the_first(applied, settings_for):
    with pytest.raises(SchemaError, match="second set"):
        database.apply_schema(settings_for(applied, naming="mapped"))


def test_a_nullable_source_column_is_advice(applied, settings_for):
    execute(applied, 'ALTER TABLE "Trip" ALTER COLUMN "city" DROP NOT NULL')
    (finding,) = database.check_schema(settings_for(applied))
    assert (finding.kind, finding.severity) == ("not_null", "advice")


def test_a_schema_s_name_may_hold_anything(database_url, settings_for):
    settings = settings_for(database_url, schema="o'{x}\\ \"d")
    assert database.apply_schema(settings)[0] == "o'{x}\\ \"d"
    assert database.apply_schema(settings) == []
    assert database.check_schema(settings) == []


RETURNS_NULL = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"


def side_effects(url, settings_for) -> list[tuple[str, str, str]]:
    """Kind, model and severity of each finding that is a side effect."""
    return [
        (each.kind, each.model, each.severity)
        for each in database.check_schema(settings_for(url))
        if each.kind in schema.SIDE_EFFECTS
    ]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ('"RankingEvent"("id")', "(ON DELETE NO ACTION): a run that deletes such a row is refused by the server"),
        ('"RankingEvent"("id") ON DELETE RESTRICT', "(ON DELETE RESTRICT): a run that deletes such a row is refused"),
        (
            '"RankingEvent"("id") DEFERRABLE INITIALLY DEFERRED',
            "(ON DELETE NO ACTION DEFERRABLE INITIALLY DEFERRED): a run that leaves such a row out is refused",
        ),
        ('"PersonaDimension"("id") ON DELETE CASCADE DEFERRABLE', "(ON DELETE CASCADE DEFERRABLE): a run that deletes"),
        (
            '"PersonaDimension"("id") ON DELETE SET NULL',
            "sets these to NULL, and ends with exit 5 unless --allow-side-effects",
        ),
        ('"ModelRegistry"("id") ON DELETE CASCADE', "a run deletes nothing there"),
    ],
)
def test_a_foreign_key_that_points_at_our_tables(applied, settings_for, reference, said):
    """What it will do is said, whatever schema it is of; of a partitioned table it comes once, and a run is not kept from it."""
    execute(
        applied,
        "CREATE SCHEMA app",
        f'CREATE TABLE app."Some" (n int, "ref" text REFERENCES {reference}) PARTITION BY RANGE (n)',
        'CREATE TABLE app.one PARTITION OF app."Some" FOR VALUES FROM (1) TO (2)',
        'CREATE TABLE app.two PARTITION OF app."Some" FOR VALUES FROM (2) TO (3)',
        'CREATE TABLE app.user (n text REFERENCES "User"("id") ON DELETE CASCADE)',
    )
    (finding,) = database.check_schema(settings_for(applied))
    assert (finding.kind, finding.severity) == ("foreign_key", "advice")
    assert finding.detail.startswith('Rows of app."Some" refer to "public"."')
    assert said in finding.detail
    report = etl.run(settings_for(applied, allow_empty=True))
    assert report.committed
    assert report.notes == []


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ('TRIGGER t AFTER DELETE ON "RankingEvent" EXECUTE FUNCTION f()', [("trigger", "RankingEvent", "advice")]),
        (
            'TRIGGER t BEFORE INSERT ON "PersonaDimension" FOR EACH ROW EXECUTE FUNCTION f()',
            [("trigger", "PersonaDimension", "advice")],
        ),
        (
            'CONSTRAINT TRIGGER t AFTER INSERT ON "ModelRegistry" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f()',
            [("trigger", "ModelRegistry", "advice")],
        ),
        (
            'TRIGGER t BEFORE UPDATE ON "BehavioralSignal" EXECUTE FUNCTION f()',
            [("trigger", "BehavioralSignal", "advice")],
        ),
        (
            'TRIGGER t BEFORE UPDATE OF "modelVersion" ON "BehavioralSignal" EXECUTE FUNCTION f()',
            [("trigger", "BehavioralSignal", "advice")],
        ),
        ('TRIGGER t BEFORE UPDATE OF "signalType" ON "BehavioralSignal" EXECUTE FUNCTION f()', []),
        ('TRIGGER t BEFORE INSERT OR DELETE ON "BehavioralSignal" EXECUTE FUNCTION f()', []),
        ('TRIGGER t AFTER UPDATE OR TRUNCATE ON "RankingEvent" EXECUTE FUNCTION f()', []),
        ('TRIGGER t AFTER INSERT ON "Trip" EXECUTE FUNCTION f()', []),
        ('RULE r AS ON DELETE TO "RankingEvent" DO ALSO NOTHING', [("rule", "RankingEvent", "advice")]),
        ('RULE r AS ON UPDATE TO "BehavioralSignal" DO ALSO NOTHING', [("rule", "BehavioralSignal", "advice")]),
        ('RULE r AS ON INSERT TO "RankingEvent" DO ALSO NOTHING', []),
    ],
)
def test_a_trigger_or_a_rule_that_a_run_meets(applied, settings_for, statement, found):
    execute(applied, RETURNS_NULL, f"CREATE {statement}")
    assert side_effects(applied, settings_for) == found
    if "TRIGGER" in statement:
        table = statement.split(" ON ")[1].split()[0]
        execute(applied, f"ALTER TABLE {table} DISABLE TRIGGER t")
        assert side_effects(applied, settings_for) == []
        execute(applied, f"ALTER TABLE {table} ENABLE REPLICA TRIGGER t")
        assert side_effects(applied, settings_for) == []


def test_a_trigger_of_a_partitioned_table_comes_once(applied, settings_for):
    execute(
        applied,
        RETURNS_NULL,
        'ALTER TABLE "RankingEvent" RENAME TO old',
        'CREATE TABLE "RankingEvent" (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH ("id")',
        'CREATE TABLE one PARTITION OF "RankingEvent" FOR VALUES WITH (MODULUS 2, REMAINDER 0)',
        'CREATE TABLE two PARTITION OF "RankingEvent" FOR VALUES WITH (MODULUS 2, REMAINDER 1)',
        'CREATE TRIGGER t AFTER INSERT ON "RankingEvent" FOR EACH ROW EXECUTE FUNCTION f()',
    )
    assert side_effects(applied, settings_for) == [("trigger", "RankingEvent", "advice")]
    execute(applied, "CREATE TRIGGER own AFTER DELETE ON two FOR EACH ROW EXECUTE FUNCTION f()")
    assert side_effects(applied, settings_for) == [("trigger", "RankingEvent", "advice")] * 2
    assert etl.run(settings_for(applied, allow_empty=True)).committed


@pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
def test_a_rule_that_on_conflict_can_t_do_with_stops_a_run(applied, settings_for, event):
    execute(applied, f'CREATE RULE r AS ON {event} TO "ModelRegistry" DO ALSO NOTHING')
    assert side_effects(applied, settings_for) == [("rule", "ModelRegistry", "blocking")]
    with pytest.raises(SchemaError, match=r'Rule "r" on "public"\."ModelRegistry"'):
        etl.run(settings_for(applied))
    execute(applied, 'DROP RULE r ON "ModelRegistry"')
    assert etl.run(settings_for(applied, allow_empty=True)).committed


CHANGES = (
    'DELETE FROM "PersonaDimension"',
    'DELETE FROM "RankingEvent"',
    """UPDATE "BehavioralSignal" SET "modelVersion" = ''""",
)
NO_IDENTITY = 'ALTER TABLE "RankingEvent" REPLICA IDENTITY NOTHING'
NO_KEY = 'ALTER TABLE "RankingEvent" DROP CONSTRAINT "RankingEvent_pkey"'
EVERYTHING = "CREATE PUBLICATION everything FOR ALL TABLES"
PARTITIONED = (
    'ALTER TABLE "RankingEvent" RENAME TO old',
    'CREATE TABLE "RankingEvent" (LIKE old) PARTITION BY RANGE ("createdAt")',
    """CREATE TABLE "Before" PARTITION OF "RankingEvent" FOR VALUES FROM (MINVALUE) TO ('2020-01-01')""",
    'CREATE TABLE "Since" PARTITION OF "RankingEvent" DEFAULT',
    'ALTER TABLE "Since" ADD PRIMARY KEY ("id")',
)


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ([EVERYTHING], ""),
        (
            [NO_IDENTITY, EVERYTHING],
            'ALTER TABLE "public"."RankingEvent" REPLICA IDENTITY FULL, or give it a primary key',
        ),
        ([NO_IDENTITY, f"{EVERYTHING} WITH (publish = 'insert, update')"], ""),
        ([NO_IDENTITY, 'CREATE PUBLICATION p FOR TABLE "RankingEvent"'], 'publication "p" sends deletes'),
        ([NO_IDENTITY, 'CREATE PUBLICATION p FOR TABLE "Trip"'], ""),
        ([NO_IDENTITY, "CREATE PUBLICATION p FOR TABLES IN SCHEMA public"], "no replica identity"),
        ([NO_KEY, EVERYTHING], "no replica identity"),
        ([NO_KEY, 'ALTER TABLE "RankingEvent" ADD PRIMARY KEY (id) DEFERRABLE', EVERYTHING], "no replica identity"),
        (
            [
                NO_KEY,
                'CREATE UNIQUE INDEX one ON "RankingEvent"("id")',
                'ALTER TABLE "RankingEvent" REPLICA IDENTITY USING INDEX one',
                EVERYTHING,
            ],
            "",
        ),
        (['ALTER TABLE "RankingEvent" SET UNLOGGED', NO_IDENTITY, EVERYTHING], ""),
        (
            ['ALTER TABLE "BehavioralSignal" REPLICA IDENTITY NOTHING', EVERYTHING],
            'updates of "public"."BehavioralSignal"',
        ),
        (['CREATE PUBLICATION p FOR TABLE "RankingEvent" ("surface")'], "not all columns of its replica identity"),
        (['CREATE PUBLICATION p FOR TABLE "RankingEvent" ("surface", "id")'], ""),
        (
            [
                'ALTER TABLE "RankingEvent" REPLICA IDENTITY FULL',
                'CREATE PUBLICATION p FOR TABLE "RankingEvent" ("surface", "id")',
            ],
            "Drop the column list",
        ),
        (["""CREATE PUBLICATION p FOR TABLE "RankingEvent" WHERE ("surface" = 'id')"""], 'filtered by "surface"'),
        (["""CREATE PUBLICATION p FOR TABLE "RankingEvent" WHERE ("id" <> '"surface')"""], ""),
        ([*PARTITIONED, EVERYTHING], 'ALTER TABLE "public"."Before" REPLICA IDENTITY FULL'),
        (
            [*PARTITIONED, 'CREATE PUBLICATION p FOR TABLE "RankingEvent" WITH (publish_via_partition_root)'],
            '"public"."Before"',
        ),
        ([*PARTITIONED, 'CREATE PUBLICATION p FOR TABLE "Since"'], ""),
    ],
)
def test_what_a_publication_forbids_is_found_exactly_where_the_server_refuses(applied, settings_for, statements, said):
    with psycopg.connect(applied, autocommit=True) as connection:
        try:
            for each in statements:
                connection.execute(each)
        except psycopg.errors.SyntaxError:
            pytest.skip("this server's publications have no filters")
        refused = 0
        for each in CHANGES:
            try:
                connection.execute(each)
            except (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.InvalidColumnReference):
                refused += 1
    found = [each.detail for each in database.check_schema(settings_for(applied)) if each.kind == "publication"]
    assert len(found) == refused == bool(said)
    assert said in "".join(found)
