"""A run on unchanged data leaves the database's files, counters and log as they are."""

from __future__ import annotations

import time

import psycopg
import pytest

import etl
from tests.states import database_state

TABLES = ("PersonaDimension", "RankingEvent", "BehavioralSignal", "ModelRegistry")


def counters(url: str) -> dict[str, tuple[int, ...]]:
    """Rows inserted, updated and deleted since the database was made, by the server's statistics.

    Dead rows, which come from the latter two, are not counted: autovacuum may remove them meanwhile.
    """
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        rows = connection.execute(
            "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relname = ANY(%s)",
            (list(TABLES),),
        ).fetchall()
    return {name: counts for name, *counts in rows}


def log_position(url: str) -> int:
    with psycopg.connect(url) as connection:
        return int(connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()[0])


def versions(url: str) -> list[tuple[str, ...]]:
    """Every row's place and writer."""
    with psycopg.connect(url) as connection:
        return [
            row
            for table in TABLES
            for row in connection.execute(
                f'SELECT "id", ctid::text, xmin::text FROM "{table}" ORDER BY "id"'
            ).fetchall()
        ]


def settle(url: str) -> None:
    """What autovacuum does in the meantime."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"VACUUM {', '.join(chr(34) + table + chr(34) for table in TABLES)}")
        if connection.info.server_version < 150000:
            time.sleep(1)  # its statistics are collected by another process, which hears of them later


def test_nothing_is_written(small_world, settings_for):
    """No row, no dead row, next to no log; replacing them all writes a hundred times as much and more."""
    etl.run(settings_for(small_world))
    settle(small_world)
    rows, before, logged = versions(small_world), counters(small_world), []
    for _ in range(4):  # the log is the whole server's: at one of these moments nothing else writes to it
        began = log_position(small_world)
        again = etl.run(settings_for(small_world))
        logged.append(log_position(small_world) - began)
    assert again.committed
    assert again.counts["written"]["RankingEvent"]["unchanged"] == again.counts["ranking_events"]
    assert versions(small_world) == rows
    assert counters(small_world) == before
    began = log_position(small_world)
    etl.run(settings_for(small_world, write="replace"))
    assert min(logged) <= 0.01 * (log_position(small_world) - began)
    assert versions(small_world) != rows


def test_a_trip_that_changed_touches_its_own_rows(small_world, settings_for):
    """One slot more: one event is written anew, and nothing else."""
    etl.run(settings_for(small_world))
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """UPDATE "ItinerarySlot" SET "status" = (enum_range(NULL::"SlotStatus"))[1] WHERE "id" = (
            SELECT s."id" FROM "ItinerarySlot" s JOIN "Trip" t ON t."id" = s."tripId" JOIN "User" u ON u."id" = t."userId"
            WHERE starts_with(u."email", 'shadow-') AND s."status" = 'confirmed' ORDER BY s."id" LIMIT 1)"""
        )
    before = versions(small_world)
    result = etl.run(settings_for(small_world))
    assert result.counts["written"] == {
        "PersonaDimension": {"inserted": 0, "deleted": 0, "unchanged": result.counts["persona_rows"]},
        "RankingEvent": {"inserted": 1, "deleted": 1, "unchanged": result.counts["ranking_events"] - 1},
    }
    assert len(set(versions(small_world)) - set(before)) == 1


@pytest.mark.parametrize("write", ["changes", "replace"])
def test_a_dry_run_says_what_it_would_write(small_world, settings_for, write):
    rows = database_state(small_world)
    result = etl.run(settings_for(small_world, dry_run=True, write=write))
    assert result.counts["written"]["RankingEvent"] == {
        "inserted": result.counts["ranking_events"],
        "deleted": 0,
        "unchanged": 0,
    }
    assert database_state(small_world) == rows


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "RESTRICT", "NO ACTION"])
def test_rows_that_refer_to_ours_survive(small_world, settings_for, action):
    """Whatever a foreign key would do when the rows it refers to are deleted: they are not."""
    etl.run(settings_for(small_world))
    with psycopg.connect(small_world) as connection:
        for table in ("PersonaDimension", "RankingEvent"):
            connection.execute(f'CREATE TABLE of_{table} ("row" text REFERENCES "{table}"("id") ON DELETE {action})')
            connection.execute(f'INSERT INTO of_{table} SELECT "id" FROM "{table}"')
        of_ours = connection.execute(
            'SELECT (SELECT count("row") FROM of_RankingEvent), count("row") FROM of_PersonaDimension'
        )
        referring = of_ours.fetchone()
    assert etl.run(settings_for(small_world)).committed
    with psycopg.connect(small_world) as connection:
        found = connection.execute(
            'SELECT (SELECT count("row") FROM of_RankingEvent), count("row") FROM of_PersonaDimension'
        )
        assert found.fetchone() == referring


def test_rows_of_a_partitioned_table_are_found_in_their_partition(small_world, settings_for):
    """Two rows of different partitions may have the same place in theirs."""
    with psycopg.connect(small_world) as connection:
        connection.execute('ALTER TABLE "RankingEvent" RENAME TO old')
        connection.execute(
            'CREATE TABLE "RankingEvent" (LIKE old INCLUDING DEFAULTS, PRIMARY KEY ("id")) PARTITION BY HASH ("id")'
        )
        for n in range(3):
            connection.execute(
                f'CREATE TABLE part{n} PARTITION OF "RankingEvent" FOR VALUES WITH (MODULUS 3, REMAINDER {n})'
            )
        connection.execute("DROP TABLE old")
    etl.run(settings_for(small_world))
    rows = database_state(small_world)
    with psycopg.connect(small_world) as connection:
        changed = connection.execute(
            """UPDATE part1 SET "latencyMs" = 1 WHERE "dayNumber" = 2 RETURNING "id" """
        ).fetchall()
        connection.execute('DELETE FROM part2 WHERE "dayNumber" = 1')
    before = versions(small_world)
    again = etl.run(settings_for(small_world))
    assert database_state(small_world) == rows
    assert again.counts["written"]["RankingEvent"]["deleted"] == len(changed) > 0
    kept = {version for version in before if (version[0],) not in changed}
    assert kept <= set(versions(small_world))
