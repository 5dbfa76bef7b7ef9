"""What the server alone takes for the two writes that no program can leave out: the backfill's UPDATE, the events' COPY.

Each round finds what the first one found: signals without a model version in a table without a dead row, or a RankingEvent
table without the shadow users' rows; then a checkpoint. Getting there is not timed. Beside the floors stands what else a
night asks of the server: the DELETE, and the checksum that is read back.

    python -m benchmarks.floors [--database-url URL] [--scale 1] [--rounds 5] [--save]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import polars as pl

import etl
from benchmarks.measure import side_by_side, timed
from benchmarks.surroundings import (
    PREFIX,
    SHADOW,
    circumstances,
    fresh_database,
    keep,
    reset_signals,
    server,
    tidy,
    variant,
    variants_table,
)
from etl.commands import database
from etl.errors import EtlError
from etl.load import copy as load
from etl.postgres.connection import connect, transaction
from etl.postgres.ddl import Naming
from etl.postgres.scope import Scope
from etl.postgres.url import parse_url
from etl.settings.model import load_settings

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
    """The shadow users' ranking events as they stand there, as a frame that COPY takes."""
    with connect(parse_url(url, {})) as connection:
        return connection.fetch_frame(f'SELECT * FROM "RankingEvent" WHERE "userId" IN ({SHADOW})')


def backfill(url: str) -> float:
    """Seconds of the single UPDATE and its COMMIT, with everything to backfill."""
    reset_signals(url)
    with connect(parse_url(url, {})) as connection:
        return timed(lambda: _in_transaction(connection, lambda: load.backfill(connection, SCOPE)))


def copy(url: str, events: pl.DataFrame) -> float:
    """Seconds of COPY BINARY of the ready rows and its COMMIT, into the table emptied of them, with the schema's indexes."""
    with connect(parse_url(url, {})) as connection:
        connection.execute(_EMPTY)
        tidy(url)
        write = partial(load.copy_rows, connection, SCOPE, "RankingEvent", events)
        return timed(lambda: _in_transaction(connection, write))


def delete(url: str) -> float:
    """Seconds of the DELETE of a night's events, which is rolled back."""
    tidy(url)
    with connect(parse_url(url, {})) as connection, transaction(connection, commit=False):
        return timed(lambda: connection.execute(_EMPTY))


def checksum(url: str) -> float:
    """Seconds of reading back count and checksum of the events."""
    with connect(parse_url(url, {})) as connection:
        return timed(lambda: connection.fetch_rows(_CHECKSUM))


def _in_transaction(connection: Any, work: Callable[[], object]) -> None:
    with transaction(connection):
        work()


def measure(url: str, rounds: int) -> dict[str, Any]:
    """Time the floors. The database holds a synthetic world, on which a night has run."""
    events = ready_events(url)
    seconds = side_by_side(
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
        "made_with": circumstances(url),
        "rows": {UPDATE: signals, COPY: events.height},
        "variants": {name: variant(each) for name, each in seconds.items()},
        "targets": [],
    }


def markdown(results: dict[str, Any]) -> str:
    """The seconds of each floor, and its rows."""
    rows = ", ".join(f"{name}: {count:,} rows" for name, count in results["rows"].items())
    return variants_table(results["variants"]) + f"\n{rows}.\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors", description="What the server alone takes.")
    parser.add_argument("--database-url", help="a server where databases may be created (default: the embedded one)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthetic world")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/floors.json and .md")
    given = parser.parse_args(arguments)
    try:
        with (
            server(given.database_url) as url_of,
            fresh_database(url_of, "floors") as url,
            tempfile.TemporaryDirectory(prefix="bpr-floors-") as out,
        ):
            database.synth(load_settings({"database_url": url, "scale": given.scale}, {}))
            etl.run(load_settings({"database_url": url, "out": out}, {}))
            results = measure(url, given.rounds) | {"scale": given.scale}
    except EtlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(markdown(results), end="")
    if given.save:
        head = f"# What the server alone takes, at scale {given.scale:g}\n\n`python -m benchmarks.floors --save`."
        keep("floors", results, head, markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
