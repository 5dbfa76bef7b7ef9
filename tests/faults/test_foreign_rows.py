"""Rows of shadow users that a run does not make, logged events whose selections are no choices, and what `validate` counts."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import etl
from etl.commands.doctor_checks import database_checks
from etl.pipeline import database
from etl.pipeline.context import utc_now
from etl.runtime.cancellation import CancelToken
from etl.snapshots.reading.snapshot import open_snapshot
from etl.transform.ranking_events import count_confirmed

SHADOW = """(SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-'))"""
ONE_PER_TRIP = f"""SELECT DISTINCT ON ("tripId") * FROM "RankingEvent" WHERE "userId" IN {SHADOW} ORDER BY "tripId", "dayNumber" """
EVENT = '"id", "userId", "tripId", "dayNumber", "modelName", "modelVersion", "candidateIds", "rankedIds", "selectedIds", "surface"'
ARRAYS = '"candidateIds", "rankedIds", "selectedIds"'
KINDS = """SELECT 'discovery', count(*) FROM "RankingEvent" WHERE "id" LIKE 'disc-%%' UNION ALL
  SELECT 'other model', count(*) FROM "RankingEvent" WHERE "id" LIKE 'model-%%' UNION ALL
  SELECT 'food', count(*) FROM "PersonaDimension" WHERE "dimension" = 'food_priority'"""


def query(url: str, sql: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(sql)
        return found.fetchall() if found.description else []


@pytest.fixture
def foreign(small_world, settings_for) -> tuple[str, int, int]:
    """A world after a run, with rows of three other kinds of shadow users: URL, trips with events, shadow users."""
    etl.run(settings_for(small_world))
    query(
        small_world,
        f"""INSERT INTO "RankingEvent" ({EVENT}) SELECT 'disc-' || "id", "userId", "tripId", 0, "modelName", "modelVersion",
        {ARRAYS}, 'discovery' FROM ({ONE_PER_TRIP}) e""",
    )
    query(
        small_world,
        f"""INSERT INTO "RankingEvent" ({EVENT}) SELECT 'model-' || "id", "userId", "tripId", "dayNumber", 'llm_ranker', '0.2.0',
        {ARRAYS}, 'itinerary' FROM ({ONE_PER_TRIP}) e""",
    )
    query(
        small_world,
        f"""INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "confidence", "source", "updatedAt")
        SELECT 'food-' || "id", "id", 'food_priority', 'food_driven', 0.7, 'inferred', now() FROM "User"
        WHERE "id" IN {SHADOW}""",
    )
    found = dict(query(small_world, KINDS))
    assert found["discovery"] == found["other model"] > 0 < found["food"]
    return small_world, found["discovery"], found["food"]


def state(url: str) -> list[tuple]:
    """Every row of the two tables, as text."""
    tables = ("RankingEvent", "PersonaDimension")
    return query(url, " UNION ALL ".join(f'SELECT md5(x::text) FROM "{name}" x' for name in tables) + " ORDER BY 1")


def check_of(settings, name: str):
    return next(each for each in database_checks(settings, utc_now, CancelToken()) if each.name == name)


def test_rows_that_a_run_does_not_make_are_deleted_and_counted(foreign, settings_for):
    url, trips, users = foreign
    settings = settings_for(url)
    expected = [
        {"model": "PersonaDimension", "dimension": "food_priority", "rows": users},
        {
            "model": "RankingEvent",
            "surface": "discovery",
            "modelName": "llm_ranker",
            "modelVersion": "0.1.0",
            "rows": trips,
        },
        {
            "model": "RankingEvent",
            "surface": "itinerary",
            "modelName": "llm_ranker",
            "modelVersion": "0.2.0",
            "rows": trips,
        },
    ]
    found = check_of(settings, "foreign rows")
    assert found.state == "warning"
    assert f"{trips:,} of RankingEvent (surface discovery, model llm_ranker 0.1.0)" in found.found
    assert "--keep-foreign-rows" in found.remedy
    before = state(url)
    dry = etl.run(settings_for(url, dry_run=True))
    assert (state(url), dry.counts["foreign_rows"]) == (before, {"kept": False, "kinds": expected})
    ran = etl.run(settings)
    assert ran.counts["foreign_rows"] == {"kept": False, "kinds": expected}
    assert any("are deleted" in each and "discovery" in each and "food_priority" in each for each in ran.warnings)
    assert open_snapshot(Path(settings.out)).manifest["foreign_rows"]["kinds"] == expected
    assert set(dict(query(url, KINDS)).values()) == {0}
    assert check_of(settings, "foreign rows").state == "ok"
    again = etl.run(settings)
    assert again.counts["foreign_rows"]["kinds"] == []
    assert not any("does not make" in each for each in again.warnings)


def test_rows_that_a_run_does_not_make_stay_where_that_is_asked_for(foreign, settings_for):
    """The warning's remedy: neither deleted nor exported, and `validate` and `doctor` go by the same rule."""
    url, trips, users = foreign
    settings = settings_for(url, keep_foreign_rows=True)
    plain = etl.run(settings_for(url, dry_run=True))
    before = state(url)
    ran = etl.run(settings)
    assert state(url) == before
    assert ran.counts["foreign_rows"]["kept"]
    assert sum(each["rows"] for each in ran.counts["foreign_rows"]["kinds"]) == 2 * trips + users
    assert any("left as they are" in each for each in ran.notes)
    assert not any("does not make" in each for each in ran.warnings)
    assert ran.counts["published"] == plain.counts["published"]
    assert check_of(settings, "foreign rows").found.startswith("left as they are")
    assert database.validate_database(settings).broken == []
    strict = {each.law: (each.broken, each.unit) for each in database.validate_database(settings_for(url)).broken}
    days = "every trip-day with a slot has one ranking event, and no other day has one"
    assert strict[days] == (2 * trips, "rows of RankingEvent")
    exported = etl.export(settings)
    assert exported.counts["published"]["events"] == ran.counts["published"]["events"]
    everybody = etl.run(settings_for(url, keep_foreign_rows=True, audience="all", dry_run=True))
    without = etl.run(settings_for(url, audience="all", dry_run=True))
    assert everybody.counts["published"]["events"] == without.counts["published"]["events"]


def test_only_events_of_a_surface_are_exported(foreign, settings_for):
    url, trips, _ = foreign
    every = etl.export(settings_for(url))
    itinerary = every.counts["surfaces"]["itinerary"]
    assert every.counts["surfaces"] == {"itinerary": itinerary, "discovery": trips}
    assert any(f"discovery {trips:,} of {trips:,}" in note for note in every.notes)
    some = etl.export(settings_for(url, surface=["discovery"]))
    assert (some.counts["surfaces"], some.counts["surfaces_excluded"]) == (
        {"discovery": trips},
        {"itinerary": itinerary},
    )
    assert sum(some.counts["published"]["events"].values()) == trips
    kept = etl.export(settings_for(url, surface=["discovery"], keep_foreign_rows=True, allow_empty=True))
    assert kept.counts["surfaces"] == {}
    mistyped = etl.export(settings_for(url, surface=["discovery", "itinery"]))
    assert any("'itinery', which no ranking event has; did you mean 'itinerary'?" in each for each in mistyped.warnings)


def log_placed(url: str) -> None:
    """What a planner logs that takes for selected what it has placed: a tenth of real users' slots is confirmed."""
    query(url, """DELETE FROM "RankingEvent" WHERE "userId" NOT IN """ + SHADOW)
    city = """(SELECT "city" FROM "ActivityNode" GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1)"""
    query(
        url,
        """INSERT INTO "User" ("id", "email") SELECT 'real-' || i, 'person' || i || '@invented.test' FROM generate_series(1, 20) i""",
    )
    query(
        url,
        f"""INSERT INTO "Trip" ("id", "userId", "city", "startDate", "createdAt") SELECT 'rt-' || i || '-' || k, 'real-' || i,
        {city}, '2026-04-01'::timestamp + k * interval '1 day', '2026-03-01' FROM generate_series(1, 20) i, generate_series(1, 3) k""",
    )
    query(
        url,
        """INSERT INTO "ItinerarySlot" ("id", "tripId", "activityNodeId", "dayNumber", "sortOrder", "status")
        SELECT 'rs-' || t."id" || n.o, t."id", n."id", 1, n.o, (CASE WHEN n.o = 1 THEN 'confirmed' ELSE 'proposed' END)::"SlotStatus"
        FROM "Trip" t, LATERAL (SELECT "id", row_number() OVER (ORDER BY md5("id" || t."id")) o FROM "ActivityNode"
          WHERE "city" = t."city") n WHERE t."id" LIKE 'rt-%' AND n.o <= 10""",
    )
    query(
        url,
        f"""INSERT INTO "RankingEvent" ({EVENT}) SELECT 're-' || t."id", t."userId", t."id", 1, 'deterministic_scorer', '1.0.0',
        (SELECT array_agg("id") FROM "ActivityNode" WHERE "city" = t."city"),
        array_agg(s."activityNodeId" ORDER BY s."sortOrder"), array_agg(s."activityNodeId" ORDER BY s."sortOrder"), 'itinerary'
        FROM "ItinerarySlot" s JOIN "Trip" t ON t."id" = s."tripId" WHERE t."id" LIKE 'rt-%' GROUP BY t."id", t."userId", t."city" """,
    )


def test_selections_that_no_slot_confirms_are_counted_and_warned_of(small_world, settings_for):
    etl.run(settings_for(small_world))
    log_placed(small_world)
    real = etl.export(settings_for(small_world, audience="real"))
    choices = real.counts["confirmed_positives"]
    assert (choices["positives"], choices["confirmed"], choices["share"]) == (600, 60, 0.1)
    warned = [each for each in real.warnings if "confirmed by a slot" in each]
    assert len(warned) == 1
    assert "deterministic_scorer 1.0.0 on the surface itinerary, 60 (10%)" in warned[0]
    # Among shadow users' events, whose selections are confirmed by construction, they are still told apart.
    everybody = etl.export(settings_for(small_world, audience="all"))
    shares = {
        each["model_name"]: each["confirmed"] / each["positives"]
        for each in everybody.counts["confirmed_positives"]["by_model"]
    }
    assert shares == {"deterministic_scorer": 0.1, "llm_ranker": 1.0}
    assert [each for each in everybody.warnings if "confirmed by a slot" in each] == warned
    # The remedies: other events, or what users confirm.
    shadow = etl.export(settings_for(small_world))
    query(small_world, """UPDATE "RankingEvent" SET "selectedIds" = "selectedIds"[1:1] WHERE "id" LIKE 're-%'""")
    confirmed = etl.export(settings_for(small_world, audience="real"))
    for each in (shadow, confirmed):
        assert each.counts["confirmed_positives"]["share"] == 1
        assert not any("confirmed by a slot" in warning for warning in each.warnings)


STATUSES = st.sampled_from(["proposed", "voted", "confirmed", "active", "completed", "skipped"])
SLOTS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 2), st.integers(0, 4), STATUSES), max_size=12)
EVENTS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 2), st.sets(st.integers(0, 5)), st.sampled_from(["x", "y"])),
    min_size=1,
    max_size=6,
)


@given(EVENTS, SLOTS)
def test_confirmed_positives_are_those_with_a_selected_slot_of_their_day(events, slots):
    taken = pl.DataFrame(
        [(t, d, sorted(nodes), m, m, m) for t, d, nodes, m in events],
        {
            "trip_id": pl.String,
            "day_number": pl.Int32,
            "selected_ids": pl.List(pl.UInt32),
            **dict.fromkeys(("surface", "model_name", "model_version"), pl.String),
        },
        orient="row",
    )
    held = pl.DataFrame(
        slots,
        {"trip_id": pl.String, "day_number": pl.Int32, "node_id": pl.UInt32, "status": pl.String},
        orient="row",
    )
    expected = {}
    for trip, day, nodes, model in events:
        got = expected.setdefault(model, [0, 0, 0])
        good = {n for t, d, n, s in slots if (t, d) == (trip, day) and s in {"confirmed", "active", "completed"}}
        for place, number in enumerate((1, len(nodes), len(nodes & good))):
            got[place] += number
    found = count_confirmed(taken, held)
    assert {row["surface"]: [row["events"], row["positives"], row["confirmed"]] for row in found.to_dicts()} == expected


BREAKING = {
    "the ranking falls with affinity, and no node left out is liked better than one inside": (
        'UPDATE "RankingEvent" e SET "rankedIds" = (SELECT array_agg(x ORDER BY o DESC) FROM unnest("rankedIds") '
        'WITH ORDINALITY u(x, o)) WHERE "id" = {one}'
    ),
    "a user has one ranking per city": (
        'UPDATE "RankingEvent" e SET "rankedIds" = (SELECT array_agg(x ORDER BY o DESC) FROM unnest("rankedIds") '
        'WITH ORDINALITY u(x, o)) WHERE "id" = {one}'
    ),
    "the ranking holds the candidates and nothing else": (
        'UPDATE "RankingEvent" SET "rankedIds" = "rankedIds"[2:] WHERE "id" = {one}'
    ),
    "the selected nodes are the day's confirmed, active and completed ones, in slot order": (
        'UPDATE "RankingEvent" SET "selectedIds" = ARRAY[\'x\'] WHERE "id" = {one}'
    ),
    "an event carries the bootstrap model's name, and a date that is its trip's day": (
        'UPDATE "RankingEvent" SET "latencyMs" = 1 WHERE "id" = {one}'
    ),
    "every trip-day with a slot has one ranking event, and no other day has one": (
        'DELETE FROM "RankingEvent" WHERE "id" = {one}'
    ),
}


@pytest.mark.parametrize("check", BREAKING)
def test_a_finding_counts_rows_of_its_table(small_world, settings_for, check):
    """One row is changed, and each check that names it counts one row; before, some counted places or users."""
    etl.run(settings_for(small_world))
    # A day of a user with several in a city, whose ranking does not consist of ties.
    one = f"""(SELECT min(e."id") FROM "RankingEvent" e WHERE "userId" IN {SHADOW} AND "rankedIds" <> "candidateIds"
      AND (SELECT count(*) FROM "RankingEvent" o WHERE o."tripId" = e."tripId") > 2)"""
    query(small_world, BREAKING[check].format(one=one))
    broken = {each.law: each for each in database.validate_database(settings_for(small_world)).broken}
    assert check in broken
    assert {(each.broken, each.unit) for each in broken.values()} == {(1, "rows of RankingEvent")}
