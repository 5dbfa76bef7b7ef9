"""Others at work: an application that writes all the time, a second run, a migration in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

import etl
from etl.errors import LockedError
from etl.pipeline import database, guards
from etl.postgres.connection import ConflictError, connect
from etl.postgres.transaction import advisory_lock
from etl.postgres.url import target_of
from etl.runtime.cancellation import CancelledError, CancelToken
from etl.snapshots.reading.snapshot import LATEST
from etl.snapshots.validation import validate_snapshot
from tests.faults.application import Application
from tests.faults.nights import keep_newest


def real_people(url: str) -> dict[str, str]:
    """A digest of the rows of the real users that were there from the beginning."""
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(
                f"""SELECT count(*)::text || coalesce(md5(string_agg(x::text, '|' ORDER BY x::text COLLATE "C")), '')
                FROM "{table}" x JOIN "User" w ON w."id" = x."{owner}"
                WHERE NOT starts_with(w."email", 'shadow-') AND NOT starts_with(w."email", 'app-')"""
            ).fetchone()[0]
            for table, owner in (
                *(("User", "id"), ("Trip", "userId"), ("BehavioralSignal", "userId")),
                *(("PersonaDimension", "userId"), ("RankingEvent", "userId")),
            )
        }


@pytest.fixture
def peopled(small_world) -> str:
    """The small world, whose real users have persona and event rows of the application's own making, too."""
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """INSERT INTO "User" ("id", "email") SELECT 'real-' || n, 'person' || n || '@example.test' FROM generate_series(1, 9) n"""
        )
        connection.execute(
            """INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "source", "updatedAt")
            SELECT 'p' || u."id", u."id", 'pace_preference', 'slow', 'onboarding', now() FROM "User" u
            WHERE starts_with(u."email", 'person')"""
        )
        connection.execute(
            """INSERT INTO "BehavioralSignal" ("id", "userId", "signalType") SELECT 'g' || u."id", u."id",
            (SELECT "signalType" FROM "BehavioralSignal" LIMIT 1) FROM "User" u WHERE starts_with(u."email", 'person')"""
        )
        connection.execute(
            """INSERT INTO "RankingEvent" ("id", "userId", "tripId", "dayNumber", "modelName", "modelVersion", "surface")
            SELECT 'e' || u."id", u."id", 'trip' || u."id", 1, 'llm_ranker', '0.0.9', 'itinerary' FROM "User" u
            WHERE starts_with(u."email", 'person')"""
        )
    return small_world


def test_an_application_writes_all_the_time(peopled, settings_for, tmp_path, effort, tally):
    """Nights one after the other: each is of one moment, whole, and touches nobody else; conflicts are retried."""
    url, people = peopled, real_people(peopled)
    seconds = effort(4, 600)
    etl.run(settings_for(url, seed=0))
    nights = retries = gave_up = 0
    began = time.monotonic()
    with Application(url) as application:
        while time.monotonic() - began < seconds and not application.failures:
            try:
                report = etl.run(settings_for(url, seed=nights % 3))
            except ConflictError:
                gave_up += 1
                continue
            nights += 1
            retries += report.retries
            assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []
            keep_newest(tmp_path / "out")
    lasted = time.monotonic() - began
    assert application.failures == []
    assert application.done["read"]
    assert nights > 0
    assert gave_up <= nights / 2
    assert real_people(url) == people
    with psycopg.connect(url) as connection:
        touched = connection.execute(
            """SELECT count(*) FROM "BehavioralSignal" s JOIN "User" u ON u."id" = s."userId"
            WHERE starts_with(u."email", 'app-') AND s."modelVersion" IS NOT NULL"""
        ).fetchone()[0]
        assert touched == 0, "signals of the application's own users got a model version"
    etl.run(settings_for(url))
    assert database.validate_database(settings_for(url)).broken == []
    tally("seconds of an application's load", lasted)
    tally("nights under an application's load", nights)
    tally("nights that gave up after five conflicts", gave_up)
    tally("conflicts retried under load", retries)
    tally("transactions of the application", application.done.total() - application.done["read"])
    tally("looks of a reader at the tables", application.done["read"])


def test_a_second_run_is_refused_at_once(small_world, settings_for, tmp_path):
    settings = settings_for(small_world)
    with connect(target_of(settings)) as holder, advisory_lock(holder, "public"):
        began = time.monotonic()
        with pytest.raises(LockedError, match="advisory lock"):
            etl.run(settings)
        assert time.monotonic() - began < settings.max_wait / 60
    assert not (tmp_path / "out" / LATEST).exists()


def test_a_second_run_waits_when_it_is_told_to(small_world, settings_for):
    """It begins when the first one has let go: its snapshot is taken then, not before the wait."""
    settings = settings_for(small_world, wait_lock=True, allow_empty=True)
    with connect(target_of(settings)) as holder:
        done: list[etl.RunResult] = []
        with advisory_lock(holder, "public"):
            waiting = threading.Thread(target=lambda: done.append(etl.run(settings)))
            waiting.start()
            waiting.join(1.0)
            assert waiting.is_alive()
            with psycopg.connect(small_world) as connection:
                connection.execute("""DELETE FROM "BehavioralSignal" """)
                connection.execute("""UPDATE "Trip" SET "city" = 'Nowhere' """)
        waiting.join(60)
    assert done[0].retries == 0
    assert done[0].counts["ranking_events"] == 0


def test_a_run_waits_only_for_so_long(small_world, settings_for, tmp_path):
    settings = settings_for(small_world, wait_lock=True, max_wait=0.5)
    with (
        connect(target_of(settings)) as holder,
        advisory_lock(holder, "public"),
        pytest.raises(LockedError, match=r"after 0\.5 s"),
    ):
        etl.run(settings)
    assert not (tmp_path / "out" / LATEST).exists()


def test_waiting_ends_when_an_end_is_asked_for(small_world, settings_for):
    settings, stop = settings_for(small_world, wait_lock=True), CancelToken()
    with connect(target_of(settings)) as holder, advisory_lock(holder, "public"):
        threading.Timer(0.3, stop.cancel).start()
        with pytest.raises(CancelledError):
            etl.run(settings, stop=stop)


def test_two_runs_for_one_folder_wait_in_turn(small_world, make_database, settings_for, tmp_path):
    """Of two databases: the folder has a lock, too, and LATEST is the one that came last."""
    other = make_database(small_world)
    reports: list[etl.RunResult] = []
    threads = [
        threading.Thread(target=lambda url=url: reports.append(etl.run(settings_for(url, wait_lock=True))))
        for url in (small_world, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(reports) == 2
    names = sorted(Path(report.snapshot).name for report in reports)
    assert (tmp_path / "out" / LATEST).read_text() == names[-1]


MIGRATIONS = {
    "a column gets another type": 'ALTER TABLE "ItinerarySlot" ALTER COLUMN "activityNodeId" TYPE varchar(200)',
    "a table is made anew": 'CREATE TABLE copy (LIKE "ItinerarySlot" INCLUDING ALL); INSERT INTO copy SELECT * FROM "ItinerarySlot"; '
    'ALTER TABLE "ItinerarySlot" RENAME TO gone; ALTER TABLE copy RENAME TO "ItinerarySlot"',
    "the nodes are rewritten": 'ALTER TABLE "ActivityNode" ALTER COLUMN "name" TYPE varchar(300)',
    "the events are emptied": 'TRUNCATE "RankingEvent"',
}


@pytest.fixture
def migrate_once(small_world, monkeypatch) -> Callable[[str], None]:
    """Has statements run by somebody else as soon as the first attempt's snapshot is taken."""

    def arm(statements: str) -> None:
        original, done = guards.check_scope, []

        def meddling(*arguments):
            original(*arguments)
            if not done:
                done.append(True)
                with psycopg.connect(small_world) as connection:
                    connection.execute(statements)

        for module in ("run", "export"):
            monkeypatch.setattr(f"etl.pipeline.{module}.check_scope", meddling)

    return arm


@pytest.mark.parametrize("name", MIGRATIONS)
def test_a_migration_between_the_snapshot_and_the_reading(small_world, settings_for, migrate_once, tally, name):
    """Who looks at a rewritten table under an older snapshot finds it empty; the run notices, and begins again."""
    migrate_once(MIGRATIONS[name])
    report = etl.run(settings_for(small_world))
    assert report.retries == 1
    assert database.validate_database(settings_for(small_world)).broken == []
    again = etl.run(settings_for(small_world, skip_unchanged=True))
    assert again.snapshot is None, "the first night was of another moment"
    tally("migrations in mid-run")


def test_a_migration_that_adds_a_column_is_no_matter(small_world, settings_for, migrate_once):
    migrate_once('ALTER TABLE "ItinerarySlot" ADD COLUMN "note" text DEFAULT \'x\'')
    assert etl.run(settings_for(small_world)).retries == 0


def test_an_export_notices_a_migration_too(small_world, settings_for, migrate_once):
    etl.run(settings_for(small_world))
    migrate_once('ALTER TABLE "RankingEvent" ALTER COLUMN "surface" TYPE varchar(60)')
    report = etl.export(settings_for(small_world))
    assert report.retries == 1
    assert sum(report.counts["published"]["events"].values()) > 0
