"""All tables are read as of one moment, whatever others write meanwhile."""

from __future__ import annotations

import threading

import psycopg

import etl
from etl.extract import reader as extract
from etl.pipeline import run as pipeline
from etl.postgres.bulk_read import read_in_background
from etl.postgres.scope import Scope, resolve_scope
from etl.postgres.url import target_of
from etl.transform.buckets import open_spill
from etl.transform.schemas import Slots


class Writer(threading.Thread):
    """An application that moves whole trips between two days, one transaction each, until told to stop.

    A trip's slots are all on the day that is a whole hundred, plus the trip's generation; and every transaction moves all
    trips of a user at once, so at any single moment all of a user's slots are of one generation.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.stop, self.moves = url, threading.Event(), 0

    def run(self) -> None:
        with psycopg.connect(self.url) as connection:
            while not self.stop.is_set():
                self.moves += 1
                connection.execute('UPDATE "ItinerarySlot" SET "dayNumber" = "dayNumber" + 100')
                connection.execute("""UPDATE "Trip" SET "startDate" = "startDate" - interval '100 days'""")
                connection.commit()


def test_the_result_is_the_state_at_some_single_moment(small_world, settings_for):
    """Days go up by 100 as starts go down by 100 days, so an event's date never moves, unless two moments were mixed."""
    settings = settings_for(small_world)
    etl.run(settings)
    with psycopg.connect(small_world) as connection:
        dates = """SELECT array_agg("createdAt" ORDER BY "tripId", "dayNumber") FROM "RankingEvent" WHERE "userId" IN
            (SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-'))"""
        expected = connection.execute(dates).fetchone()
    writer = Writer(small_world)
    writer.start()
    try:
        moves = []
        for _ in range(5):
            before = writer.moves
            etl.run(settings)
            moves.append(writer.moves - before)
            with psycopg.connect(small_world) as connection:
                assert connection.execute(dates).fetchone() == expected
    finally:
        writer.stop.set()
        writer.join()
    assert max(moves) > 1, "the writer must have written in the middle of a run"


def test_rows_written_after_the_snapshot_are_not_seen(small_world, settings_for, tmp_path):
    """A delete between BEGIN and the reads, on other connections, is invisible: they read under the exported snapshot."""
    settings = settings_for(small_world)
    address = target_of(settings)
    with pipeline.connect(address) as connection:
        scope, _ = resolve_scope(connection, settings, "public", writes=False)
        assert isinstance(scope, Scope)
        with pipeline.transaction(connection, read_only=True, commit=False):
            slots = connection.fetch_int(
                'SELECT count(*) FROM public."ItinerarySlot" s JOIN public."Trip" t ON t."id" = s."tripId" '
                """JOIN public."User" u ON u."id" = t."userId" WHERE starts_with(u."email", 'shadow-')"""
            )
            with psycopg.connect(small_world) as other:
                other.execute('DELETE FROM "BehavioralSignal"')
                other.execute('DELETE FROM "ItinerarySlot"')
            with (
                open_spill(tmp_path, 1, Slots.create_empty()) as held,
                read_in_background(connection, extract.source_queries(scope)) as reads,
            ):
                rejected = extract.RejectedRows()
                source = extract.extract_source(connection, scope, reads, held, rejected, lambda _rows: None)
                read = source.slots_of(0).height
    assert read == slots > 1000
