"""The nightly job on a real server: what it writes, what it leaves alone, and that it does so again and again."""

from __future__ import annotations

import contextlib
from pathlib import Path

import polars as pl
import psycopg
import pytest

import etl
from etl.errors import ConnectError, LockedError
from etl.pipeline import database
from etl.pipeline import run as pipeline
from etl.postgres.url import target_of
from etl.snapshots.validation import validate_snapshot
from tests.states import data_files, database_state, real_state


def scalar(url: str, sql: str) -> object:
    with psycopg.connect(url) as connection:
        return connection.execute(sql).fetchone()[0]


SHADOW = """(SELECT "id" FROM "User" WHERE "email" LIKE 'shadow-%')"""


def test_the_counts_of_the_design_hold(small_world, settings_for):
    """8 persona rows per user with a seed, one event per trip-day, 2 registry rows, a version on every shadow signal."""
    etl.run(settings_for(small_world))
    with_seed = scalar(
        small_world,
        f"""SELECT count(DISTINCT "userId") FROM "Trip" WHERE jsonb_typeof("personaSeed") = 'object' AND "userId" IN {SHADOW}""",
    )
    assert with_seed > 15
    assert scalar(small_world, f'SELECT count(*) FROM "PersonaDimension" WHERE "userId" IN {SHADOW}') == 8 * with_seed
    days = scalar(
        small_world,
        f"""SELECT count(*) FROM (SELECT DISTINCT s."tripId", s."dayNumber" FROM "ItinerarySlot" s JOIN "Trip" t ON t."id" = s."tripId"
        WHERE t."userId" IN (SELECT "userId" FROM "PersonaDimension") AND t."userId" IN {SHADOW}) d""",
    )
    assert scalar(small_world, f'SELECT count(*) FROM "RankingEvent" WHERE "userId" IN {SHADOW}') == days
    assert scalar(small_world, 'SELECT count(*) FROM "ModelRegistry"') == 2
    assert (
        scalar(
            small_world,
            f'SELECT count(*) FROM "BehavioralSignal" WHERE "modelVersion" IS NULL AND "userId" IN {SHADOW}',
        )
        == 0
    )
    assert database.validate_database(settings_for(small_world)).broken == []


def test_a_second_run_changes_no_row_and_no_byte(small_world, settings_for):
    first = etl.run(settings_for(small_world))
    rows = database_state(small_world)
    second = etl.run(settings_for(small_world))
    assert database_state(small_world) == rows
    assert data_files(second.snapshot) == data_files(first.snapshot)
    assert second.snapshot != first.snapshot


def test_rows_of_others_are_untouched(small_world, settings_for):
    before = real_state(small_world)
    assert all(not digest.startswith("0:") for digest in before.values()), (
        "the world must have rows that could be touched"
    )
    etl.run(settings_for(small_world))
    assert real_state(small_world) == before


def test_no_statement_reads_a_table_once_per_row_of_another(small_world, settings_for):
    """With statistics of the state before a run, the server takes what the run has just written for a handful of rows.

    In the second run no signal is left to backfill, but real users' have no version either.
    """
    for _ in range(2):
        with psycopg.connect(small_world, autocommit=True) as connection:
            connection.execute("ANALYZE")
            connection.execute("SELECT pg_stat_reset()")
        etl.run(settings_for(small_world))
        with psycopg.connect(
            small_world
        ) as connection:  # the run's processes have ended, and so have sent their counts
            scans = dict(
                connection.execute("SELECT relname, seq_scan FROM pg_stat_user_tables WHERE schemaname = 'public'")
            )
        assert scans["User"] > 0
        # There are 6,000 signals; for a hundred rows this may be the right plan.
        assert max(scans.values()) < 1_000, scans


def test_a_registered_model_is_left_as_it_is(small_world, settings_for):
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """INSERT INTO "ModelRegistry" ("id", "modelName", "modelVersion", "stage", "modelType", "updatedAt")
            VALUES ('mine', 'llm_ranker', '0.1.0', 'staging', 'other', '2020-01-01')"""
        )
    etl.run(settings_for(small_world))
    assert (
        scalar(small_world, """SELECT "id" || "stage" FROM "ModelRegistry" WHERE "modelName" = 'llm_ranker'""")
        == "minestaging"
    )
    assert scalar(small_world, 'SELECT count(*) FROM "ModelRegistry"') == 2


@pytest.mark.parametrize("audience", ["shadow", "real", "all"])
def test_export_gives_what_run_published(small_world, settings_for, audience):
    ran = etl.run(settings_for(small_world, audience=audience))
    before = database_state(small_world)
    exported = etl.export(settings_for(small_world, audience=audience))
    assert data_files(exported.snapshot) == data_files(ran.snapshot)
    assert database_state(small_world) == before
    users = pl.read_parquet(Path(ran.snapshot) / "users.parquet")
    where = {"shadow": "", "real": "NOT ", "all": "true OR "}[audience]
    assert (
        users.height
        == scalar(small_world, f"""SELECT count(*) FROM "User" WHERE {where}starts_with("email", 'shadow-')""")
        > 10
    )


def test_the_manifest_accounts_for_every_positive(small_world, settings_for):
    report = etl.run(settings_for(small_world, min_catalog=73))
    published = report.counts["published"]
    assert published["positives"] + sum(published["positives_left_out"].values()) == report.counts["positives"]
    assert published["positives_left_out"]["small_catalog"] > 0
    events = pl.read_parquet(Path(report.snapshot) / "events" / "**" / "*.parquet", hive_partitioning=False)
    assert events["selected_ids"].list.len().sum() == report.counts["positives"]


def test_a_damaged_snapshot_is_found_out(small_world, settings_for):
    snapshot = Path(etl.run(settings_for(small_world)).snapshot)
    users = snapshot / "users.parquet"
    users.write_bytes(users.read_bytes()[:-1] + b"x")
    (snapshot / "stray").write_text("x")
    broken = {finding.law: finding.detail for finding in validate_snapshot(snapshot) if finding.broken}
    assert broken == {
        "every file is in the manifest": "stray",
        "every file has the rows, bytes and SHA-256 of the manifest": "users.parquet",
    }
    with pytest.raises(ConnectError, match="no snapshot"):
        validate_snapshot(snapshot / "events")


def test_validate_says_which_law_is_broken(small_world, settings_for):
    etl.run(settings_for(small_world))
    breaks = {
        "both models": """DELETE FROM "ModelRegistry" WHERE "modelName" = 'bpr'""",
        "every shadow signal": f"""UPDATE "BehavioralSignal" SET "modelVersion" = NULL WHERE "id" =
            (SELECT min("id") FROM "BehavioralSignal" WHERE "userId" IN {SHADOW})""",
        "eight dimensions": f"""DELETE FROM "PersonaDimension" WHERE "id" = (SELECT min("id") FROM "PersonaDimension"
            WHERE "dimension" = 'trip_count' AND "userId" IN {SHADOW})""",
        "confidence says": f"""UPDATE "PersonaDimension" SET "confidence" = 0.5 WHERE "userId" IN {SHADOW}""",
        "every trip-day": f"""DELETE FROM "RankingEvent" WHERE "id" = (SELECT min("id") FROM "RankingEvent" WHERE "userId" IN {SHADOW})""",
        "its trip's day": f"""UPDATE "RankingEvent" SET "createdAt" = "createdAt" + interval '1 day' WHERE "userId" IN {SHADOW}""",
        "in slot order": f"""UPDATE "RankingEvent" SET "selectedIds" = '{{x}}' WHERE "userId" IN {SHADOW}""",
        "in id order": f"""UPDATE "RankingEvent" SET "candidateIds" = "candidateIds"[2:] WHERE "userId" IN {SHADOW}""",
        "nothing else": f"""UPDATE "RankingEvent" SET "rankedIds" = "rankedIds"[2:] WHERE "userId" IN {SHADOW}""",
        "falls with affinity": f"""UPDATE "RankingEvent" r SET "rankedIds" =
            (SELECT array_agg(x ORDER BY n DESC) FROM unnest(r."rankedIds") WITH ORDINALITY u(x, n)) WHERE "userId" IN {SHADOW}""",
        "one ranking per city": f"""UPDATE "RankingEvent" SET "rankedIds" = "candidateIds" WHERE "dayNumber" = 1 AND "userId" IN {SHADOW}""",
    }
    for law, sql in breaks.items():
        with psycopg.connect(small_world) as connection:
            connection.execute("CREATE SCHEMA IF NOT EXISTS kept")
            for table in ("ModelRegistry", "BehavioralSignal", "PersonaDimension", "RankingEvent"):
                connection.execute(f'CREATE TABLE kept."{table}" AS TABLE "{table}"')
            connection.execute(sql)
        broken = [finding.law for finding in database.validate_database(settings_for(small_world)).broken]
        assert any(law in name for name in broken), (law, broken)
        with psycopg.connect(small_world) as connection:
            for table in ("ModelRegistry", "BehavioralSignal", "PersonaDimension", "RankingEvent"):
                connection.execute(f'DELETE FROM "{table}"')
                connection.execute(f'INSERT INTO "{table}" SELECT * FROM kept."{table}"')
            connection.execute("DROP SCHEMA kept CASCADE")
    assert database.validate_database(settings_for(small_world)).broken == []


def test_the_validation_query_without_rows_is_a_finding(database_url, settings_for):
    database.apply_schema(settings_for(database_url))
    etl.run(settings_for(database_url, allow_empty=True))
    broken = [finding.law for finding in database.validate_database(settings_for(database_url)).broken]
    assert broken == ["the design's validation query returns rows"]


def test_an_empty_database_publishes_an_empty_snapshot_where_that_is_meant(database_url, settings_for):
    database.apply_schema(settings_for(database_url))
    report = etl.run(settings_for(database_url, allow_empty=True))
    assert report.counts["ranking_events"] == 0
    assert pl.read_parquet(Path(report.snapshot) / "users.parquet").height == 0
    assert all(finding.broken == 0 for finding in validate_snapshot(Path(report.snapshot)))


def test_two_runs_at_once_on_a_database(small_world, settings_for, tmp_path):
    settings = settings_for(small_world)
    before = database_state(small_world)
    with (
        pipeline.connect(target_of(settings)) as other,
        pipeline.advisory_lock(other, "public"),
        pytest.raises(LockedError, match="Another bpr-etl run"),
    ):
        etl.run(settings_for(small_world, out=str(tmp_path / "elsewhere")))
    assert database_state(small_world) == before


def test_a_pooler_that_takes_the_lock_elsewhere_is_named(small_world, settings_for, monkeypatch):
    """As behind a transaction pooler: the lock was taken, by another server process than the transaction's."""
    before = database_state(small_world)
    monkeypatch.setattr(pipeline, "advisory_lock", lambda *_: contextlib.nullcontext(12345))
    with pytest.raises(ConnectError, match="transaction pooler"):
        etl.run(settings_for(small_world))
    assert database_state(small_world) == before


def test_a_seed_changes_ids_and_ties_but_not_who_likes_what(small_world, settings_for):
    one, two = (Path(etl.run(settings_for(small_world, seed=seed)).snapshot) for seed in (0, 1))
    first, second = (
        pl.read_parquet(path / "events" / "**" / "*.parquet", hive_partitioning=False).sort("trip_id", "day_number")
        for path in (one, two)
    )
    assert first["selected_ids"].to_list() == second["selected_ids"].to_list()
    assert not set(first["event_id"]) & set(second["event_id"])
    assert first["ranked_ids"].to_list() != second["ranked_ids"].to_list()
