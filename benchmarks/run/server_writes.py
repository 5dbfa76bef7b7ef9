"""Times what the server alone takes for the writes of a run: the UPDATE of the backfill and the COPY of the events.

No program that writes these rows can be faster, so these times are lower bounds. Also timed: the DELETE, and the checksum
that is read back. Each round starts from the same state (signals without a model version in a table without dead rows, or a
RankingEvent table without the shadow users' rows), then a checkpoint. Restoring that state is not timed.

    python -m benchmarks.run.server_writes [--database-url URL] [--scale 1] [--rounds 5] [--save]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import polars as pl

import etl
from benchmarks.harness.command import command_parser, present, with_exit_codes
from benchmarks.harness.database import PREFIX, SHADOW, fresh_database, reset_signals, server, vacuum
from benchmarks.harness.measure import interleave, seconds_of
from benchmarks.harness.results import environment, variant_entry, variants_table
from etl.load import copy as load
from etl.pipeline import database
from etl.postgres.connection import connect
from etl.postgres.naming import Naming
from etl.postgres.scope import Scope
from etl.postgres.transaction import transaction
from etl.postgres.url import parse_url
from etl.settings.sources import load_settings

SCOPE = Scope(Naming("model"), PREFIX)
"""Whose rows, in the databases that are made here."""

UPDATE, COPY, DELETE, CHECKSUM = "UPDATE floor", "COPY floor", "DELETE of the events", "checksum of the events"

_EMPTY = f'DELETE FROM "RankingEvent" WHERE "userId" IN ({SHADOW})'
# The same work as the check after COPY: every column of every row, as text, through MD5.
_CHECKSUM = f"""
SELECT count(*), sum(('x' || substr(md5(concat_ws(chr(31), "id", "userId", "tripId", COALESCE("sessionId", chr(2)),
  "dayNumber"::text, "modelName", "modelVersion", array_to_string("candidateIds", chr(30)),
  array_to_string("rankedIds", chr(30)), array_to_string("selectedIds", chr(30)), "surface",
  COALESCE("shadowModelName", chr(2)), COALESCE("shadowModelVersion", chr(2)), COALESCE("shadowRankedIds"::text, chr(2)),
  "latencyMs"::text, (extract(epoch FROM "createdAt") * 1000000)::int8::text)), 1, 8))::bit(32)::int8)::int8
FROM "RankingEvent" WHERE "userId" IN ({SHADOW})
"""


def ready_events(url: str) -> pl.DataFrame:
    """Return the shadow users' ranking events in the database, as a frame for COPY."""
    with connect(parse_url(url, {})) as connection:
        return connection.fetch_frame(f'SELECT * FROM "RankingEvent" WHERE "userId" IN ({SHADOW})')


def backfill(url: str) -> float:
    """Return the seconds of the single UPDATE and its COMMIT, with everything to backfill."""
    reset_signals(url)
    with connect(parse_url(url, {})) as connection:
        return seconds_of(
            lambda: _in_transaction(
                connection, lambda: load.backfill(connection, SCOPE, load.pending_signals(connection, SCOPE))
            )
        )


def copy(url: str, events: pl.DataFrame) -> float:
    """Return the seconds of COPY BINARY of these rows and its COMMIT, into the emptied table with the schema's indexes."""
    with connect(parse_url(url, {})) as connection:
        connection.execute(_EMPTY)
        vacuum(url)
        write = partial(load.copy_rows, connection, SCOPE, "RankingEvent", events)
        return seconds_of(lambda: _in_transaction(connection, write))


def delete(url: str) -> float:
    """Return the seconds of the DELETE of a run's events, which is rolled back."""
    vacuum(url)
    with connect(parse_url(url, {})) as connection, transaction(connection, commit=False):
        return seconds_of(lambda: connection.execute(_EMPTY))


def checksum(url: str) -> float:
    """Return the seconds of reading back count and checksum of the events."""
    with connect(parse_url(url, {})) as connection:
        return seconds_of(lambda: connection.fetch_rows(_CHECKSUM))


def _in_transaction(connection: Any, work: Callable[[], object]) -> None:
    with transaction(connection):
        work()


def measure(url: str, rounds: int) -> dict[str, Any]:
    """Time all writes. The database holds a synthetic world on which a run was made."""
    events = ready_events(url)
    seconds = interleave(
        {
            UPDATE: partial(backfill, url),
            COPY: partial(copy, url, events),
            DELETE: partial(delete, url),
            CHECKSUM: partial(checksum, url),
        },
        rounds,
    )
    with connect(parse_url(url, {})) as connection:
        signals = connection.fetch_rows(
            f'SELECT count(*) FROM "BehavioralSignal" WHERE "userId" IN ({SHADOW}) '
            f"AND \"modelVersion\" = '{load.BACKFILL_VERSION}'"
        )[0][0]
    if not ready_events(url).sort("id").equals(events.sort("id")):
        raise RuntimeError("The rows that COPY wrote are not those that it was given.")
    return {
        "made_with": environment(url),
        "rows": {UPDATE: signals, COPY: events.height},
        "variants": {name: variant_entry(each) for name, each in seconds.items()},
        "targets": [],
    }


def markdown(results: dict[str, Any]) -> str:
    """Format the seconds of each write, and its rows."""
    rows = ", ".join(f"{name}: {count:,} rows" for name, count in results["rows"].items())
    return variants_table(results["variants"]) + f"\n{rows}.\n"


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = command_parser("run.server_writes", "What the server alone takes.", database=True)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthetic world")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    with (
        server(given.database_url) as url_of,
        fresh_database(url_of, "server_writes") as url,
        tempfile.TemporaryDirectory(prefix="bpr-floors-") as out,
    ):
        database.synth(load_settings({"database_url": url, "scale": given.scale}, {}))
        etl.run(load_settings({"database_url": url, "out": out}, {}))
        results = measure(url, given.rounds) | {"scale": given.scale}
    head = f"# What the server alone takes, at scale {given.scale:g}\n\n`python -m benchmarks server_writes --save`."
    return present("server_writes", results, head, markdown(results), save=given.save)


if __name__ == "__main__":
    sys.exit(main())
