"""How rows come in: connectorx where it can, ADBC where it can't, and nothing that is garbage."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import psycopg
import pytest

import etl
from etl.errors import DataError
from etl.pipeline.database import validate_database
from etl.postgres import bulk_read as database
from etl.settings.sources import load_settings
from tests.states import data_files


def test_connectorx_and_adbc_read_the_same(small_world, tmp_path, caplog):
    """PGAPPNAME is libpq's alone: where it could matter, connectorx is not asked."""
    caplog.set_level(logging.INFO)
    given = {"database_url": small_world}
    fast = etl.run(load_settings(given | {"out": str(tmp_path / "a")}, {}))
    assert not [record for record in caplog.records if "ADBC" in record.message]
    slow = etl.run(load_settings(given | {"out": str(tmp_path / "b")}, {"PGOPTIONS": "-c application_name=x"}))
    said = [record.message for record in caplog.records if "ADBC" in record.message]
    assert len(said) == 1
    assert "PGOPTIONS" in said[0]
    assert data_files(fast.snapshot) == data_files(slow.snapshot)


def test_a_panic_of_connectorx_is_no_end(small_world, tmp_path, caplog, monkeypatch):
    class Panic(BaseException):
        """As its Rust side raises: no Exception."""

    def panic(*_):
        raise Panic("called Option::unwrap() on a None value")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(database, "_read_connectorx", panic)
    report = etl.run(load_settings({"database_url": small_world, "out": str(tmp_path / "out")}, {}))
    assert report.committed
    assert "called Option::unwrap()" in caplog.text


def test_libpq_s_words_are_an_address_too(small_world, tmp_path):
    parts = urlsplit(small_world)
    if "host=" not in parts.query:
        pytest.skip("the server is not on a unix socket")
    words = f"host={parts.query.split('host=')[1]} dbname={parts.path[1:]} user={parts.username}"
    assert etl.run(load_settings({"database_url": words, "out": str(tmp_path / "out")}, {})).committed


def test_dates_that_no_frame_can_hold_are_counted_and_cost_nobody_else(small_world, settings_for):
    shadow = """(SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-'))"""
    with psycopg.connect(small_world) as connection:
        trips = connection.execute(
            f"""SELECT t."id" FROM "Trip" t WHERE t."userId" IN {shadow} AND t."userId" IN
            (SELECT "userId" FROM "Trip" WHERE jsonb_typeof("personaSeed") = 'object') ORDER BY t."id" LIMIT 5"""
        ).fetchall()
        dates = ["infinity", "-infinity", "10000-01-01", "0044-03-15 BC", "294276-12-31"]
        for (trip,), date in zip(trips, dates, strict=True):
            connection.execute('UPDATE "Trip" SET "startDate" = %s WHERE "id" = %s', (date, trip))
        lost = connection.execute(
            """SELECT count(*) FROM (SELECT DISTINCT "tripId", "dayNumber" FROM "ItinerarySlot" WHERE "tripId" = ANY (%s)) d""",
            ([trip for (trip,) in trips],),
        ).fetchone()[0]
    report = etl.run(settings_for(small_world))
    assert report.counts["days_without_event"]["date_out_of_range"] == lost > 5
    assert validate_database(settings_for(small_world)).broken == []


def test_an_infinite_creation_date_gives_no_seed(small_world, settings_for):
    with psycopg.connect(small_world) as connection:
        connection.execute("""UPDATE "Trip" SET "createdAt" = 'infinity'""")
    report = etl.run(settings_for(small_world, allow_empty=True))
    assert report.counts["persona_rows"] == report.counts["ranking_events"] == 0
    broken = [finding.law for finding in validate_database(settings_for(small_world)).broken]
    assert broken == ["the design's validation query returns rows"]


def test_a_day_number_beyond_all_calendars(small_world, settings_for):
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """UPDATE "ItinerarySlot" SET "dayNumber" = CASE "dayNumber" WHEN 1 THEN 2147483647 WHEN 2 THEN -2147483648 ELSE 0 END"""
        )
    report = etl.run(settings_for(small_world))
    assert report.counts["days_without_event"]["date_out_of_range"] > 0
    assert report.counts["ranking_events"] > 0
    assert validate_database(settings_for(small_world)).broken == []


@pytest.mark.parametrize("prefix", ["shadow_", "%", "shadow-%", "Shadow-", "\\", "'"])
def test_no_character_of_the_prefix_is_a_wildcard(small_world, settings_for, prefix):
    with psycopg.connect(small_world) as connection:
        expected = connection.execute(
            'SELECT count(*) FROM "User" WHERE starts_with("email", %s)', (prefix,)
        ).fetchone()[0]
        everybody = connection.execute('SELECT count(*) FROM "User"').fetchone()[0]
    report = etl.run(settings_for(small_world, shadow_prefix=prefix, allow_empty=True))
    assert report.counts["shadow_users"] == expected < everybody


def test_orphans_are_nobody_s(small_world, settings_for):
    """Without foreign keys: a trip whose user is gone, slots whose trip is gone, nodes that are gone, signals of nobody."""
    with psycopg.connect(small_world) as connection:
        for table, name in connection.execute(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'f'"
        ).fetchall():
            connection.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')
        shadow = """SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-') ORDER BY "id" """
        connection.execute(f'DELETE FROM "User" WHERE "id" IN ({shadow} LIMIT 3)')
        connection.execute(
            f'DELETE FROM "Trip" WHERE "id" IN (SELECT min("id") FROM "Trip" WHERE "userId" IN ({shadow}) GROUP BY "userId")'
        )
        connection.execute(
            """DELETE FROM "ActivityNode" WHERE "id" IN (SELECT "id" FROM "ActivityNode" WHERE "city" = 'New York' LIMIT 9)"""
        )
        orphans = connection.execute(
            """SELECT count(*) FROM "BehavioralSignal" WHERE "modelVersion" IS NULL AND "userId" NOT IN (SELECT "id" FROM "User")"""
        ).fetchone()[0]
    report = etl.run(settings_for(small_world))
    assert report.counts["ranking_events"] > 100
    assert validate_database(settings_for(small_world)).broken == []
    items = pl.read_parquet(Path(report.snapshot) / "items.parquet")
    gone = items.filter(pl.col("status") == "gone")
    assert 0 < gone.height <= 9
    assert gone["city"].is_null().all()
    with psycopg.connect(small_world) as connection:
        left = connection.execute('SELECT count(*) FROM "BehavioralSignal" WHERE "modelVersion" IS NULL').fetchone()[0]
    assert left >= orphans > 0


def test_an_event_whose_trip_is_gone_is_counted_and_not_exported(small_world, settings_for):
    etl.run(settings_for(small_world))
    with psycopg.connect(small_world) as connection:
        lost = connection.execute(
            """UPDATE "RankingEvent" SET "tripId" = 'gone' WHERE "dayNumber" = 1 AND "userId" IN
            (SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-'))"""
        ).rowcount
    exported = etl.export(settings_for(small_world))
    assert exported.counts["events_left_out"] == {"trip_gone": lost, "date_out_of_range": 0}
    assert lost > 10


def test_rows_of_users_who_are_gone_and_items_that_are_gone_are_counted(small_world, settings_for):
    """Whose they were nobody can say any more, so they are in no scope; that they are there is said."""
    etl.run(settings_for(small_world))
    with psycopg.connect(small_world) as connection:
        connection.execute('ALTER TABLE "Trip" DROP CONSTRAINT "Trip_userId_fkey"')
        connection.execute('ALTER TABLE "ItinerarySlot" DROP CONSTRAINT "ItinerarySlot_activityNodeId_fkey"')
        trips = connection.execute(
            """UPDATE "Trip" SET "userId" = 'nobody' WHERE "id" IN (SELECT "id" FROM "Trip" ORDER BY "id" LIMIT 3)"""
        ).rowcount
        events = connection.execute(
            """UPDATE "RankingEvent" SET "userId" = 'nobody' WHERE "id" IN
            (SELECT "id" FROM "RankingEvent" ORDER BY "id" LIMIT 5)"""
        ).rowcount
        connection.execute("""UPDATE "ItinerarySlot" SET "activityNodeId" = 'gone' WHERE "dayNumber" = 1""")
    exported = etl.export(settings_for(small_world))
    assert exported.counts["set_aside"]["events"] == {"user_is_gone": events}
    with psycopg.connect(small_world) as connection:
        connection.execute("""DELETE FROM "RankingEvent" WHERE "userId" = 'nobody'""")
    report = etl.run(settings_for(small_world))
    assert report.counts["set_aside"]["trips"] == {"user_is_gone": trips}
    assert report.counts["published"]["items_gone"] == 1


def test_no_shadow_users_are_a_warning_where_that_is_meant(small_world, settings_for):
    nobody = {"shadow_prefix": "nobody-", "shadow_domain": "example.test", "dry_run": True}
    report = etl.run(settings_for(small_world, **nobody, expect_users="0"))
    assert any("begins with 'nobody-' and ends with @example.test" in warning for warning in report.warnings)


def test_null_arrays_and_null_elements_of_others_events(small_world, settings_for):
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """UPDATE "RankingEvent" SET "candidateIds" = NULL, "selectedIds" = ARRAY[NULL, 'x', 'x', 'y']"""
        )
    exported = etl.export(settings_for(small_world, audience="real", small_catalog="keep", allow_empty=True))
    events = pl.read_parquet(Path(exported.snapshot) / "events" / "**" / "*.parquet", hive_partitioning=False)
    assert events["candidate_ids"].list.len().sum() == 0
    assert events["selected_ids"].to_list() == [["x", "y"]] * events.height
    assert sum(exported.counts["published"]["triples"].values()) == 0
    assert exported.counts["published"]["positives_left_out"]["no_negatives"] == 2 * events.height


def test_a_persona_value_beyond_the_index_is_a_clear_error(small_world, settings_for):
    """A btree row holds some 2,700 bytes; random text does not compress."""
    long = "".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(100))
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """UPDATE "Trip" SET "personaSeed" = jsonb_set("personaSeed", '{pace}', to_jsonb(%s::text))
            WHERE jsonb_typeof("personaSeed") = 'object'""",
            (long,),
        )
    with pytest.raises(DataError, match="exceed a limit") as refused:
        etl.run(settings_for(small_world))
    assert long[:20] not in str(refused.value)


def test_an_event_on_somebody_else_s_trip_is_shown_that_trip_s_day(small_world, settings_for):
    """The slots are looked up by the events' trips, not by whose trips they are."""
    with psycopg.connect(small_world) as connection:
        moved = connection.execute(
            """UPDATE "RankingEvent" SET "dayNumber" = 1, "selectedIds" = '{}', "tripId" =
            (SELECT min(t."id") FROM "Trip" t JOIN "User" u ON u."id" = t."userId" WHERE starts_with(u."email", 'shadow-'))
            WHERE "userId" NOT IN (SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-'))"""
        ).rowcount
    settings = settings_for(small_world, audience="real", allow_empty=True)
    ran, exported = etl.run(settings), etl.export(settings)
    assert data_files(ran.snapshot) == data_files(exported.snapshot)
    events = pl.read_parquet(Path(exported.snapshot) / "events" / "**" / "*.parquet", hive_partitioning=False)
    assert events.height == moved
    assert events["shown_ids"].list.len().min() > 0


def test_a_row_that_breaks_its_contract_is_set_aside_and_counted(small_world, settings_for):
    """Trips without a city, where a looser schema allows them: no events, but they count as trips."""
    with psycopg.connect(small_world) as connection:
        connection.execute('ALTER TABLE "Trip" ALTER COLUMN "city" DROP NOT NULL')
        user, trips = connection.execute(
            """SELECT t."userId", count(*) FROM "Trip" t JOIN "User" u ON u."id" = t."userId"
            WHERE starts_with(u."email", 'shadow-') AND jsonb_typeof(t."personaSeed") = 'object' GROUP BY 1 ORDER BY 2 DESC, 1"""
        ).fetchone()
        connection.execute('UPDATE "Trip" SET "city" = NULL WHERE "userId" = %s', (user,))
    report = etl.run(settings_for(small_world))
    assert report.counts["set_aside"] == {"trips": {"city nullability": trips}}
    with psycopg.connect(small_world) as connection:
        rows = connection.execute(
            'SELECT "dimension", "value" FROM "PersonaDimension" WHERE "userId" = %s', (user,)
        ).fetchall()
        events = connection.execute('SELECT count(*) FROM "RankingEvent" WHERE "userId" = %s', (user,)).fetchone()
    assert len(rows) == 8
    assert dict(rows)["trip_count"] == ("frequent" if trips > 3 else "returning")
    assert events == (0,)
