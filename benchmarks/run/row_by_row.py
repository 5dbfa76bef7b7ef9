"""The work of a run as application code does it: a SELECT per user and per trip, an INSERT per row.

An independent implementation in plain Python, in one transaction. It writes the same rows as `run` and publishes nothing.
The same statements are played by psycopg and, if installed, by asyncpg. Timed by `benchmarks.run.run`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.harness.database import SHADOW
from benchmarks.run.reference import events, hash64, personas, row_id, top_candidates
from etl.load.copy import BACKFILL_VERSION, REGISTRY

Statement = tuple[str, tuple[Any, ...]]
Script = Generator[Statement, list[Any], None]
"""What an application does: statements with their parameters, each answered by its rows."""

USERS = f"{SHADOW} ORDER BY 1"
CATEGORIES = 'SELECT unnest(enum_range(NULL::"ActivityCategory"))::text'
NODES = 'SELECT "id", "city", "category"::text FROM "ActivityNode" WHERE "status" <> \'archived\''
TRIPS_OF_USER = (
    'SELECT "id", "city", "startDate", "createdAt", "personaSeed"::text FROM "Trip" WHERE "userId" = $1 '
    'ORDER BY "createdAt", "id" COLLATE "C"'
)
SLOTS_OF_TRIP = (
    'SELECT "activityNodeId", "dayNumber", "status"::text FROM "ItinerarySlot" WHERE "tripId" = $1 '
    'ORDER BY "dayNumber", "sortOrder", "id" COLLATE "C"'
)
AFFINITIES_OF_USER = (
    'SELECT "value" FROM "PersonaDimension" WHERE "userId" = $1 AND "dimension" = \'category_affinities\''
)
PERSONA = (
    'INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "confidence", "source", "updatedAt", '
    '"createdAt") VALUES ($1, $2, $3, $4, $5, $6, $7, $8)'
)
EVENT = (
    'INSERT INTO "RankingEvent" ("id", "userId", "tripId", "dayNumber", "modelName", "modelVersion", "candidateIds", '
    '"rankedIds", "selectedIds", "surface", "latencyMs", "createdAt") '
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
)
SINCE = f'SELECT min("createdAt") FROM "Trip" WHERE "userId" IN ({SHADOW})'
REGISTER = (
    'INSERT INTO "ModelRegistry" ("id", "modelName", "modelVersion", "stage", "modelType", "description", "createdAt", '
    '"updatedAt") VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT ("modelName", "modelVersion") DO NOTHING'
)
BACKFILL = (
    f'UPDATE "BehavioralSignal" SET "modelVersion" = \'{BACKFILL_VERSION}\' '
    f'WHERE "userId" IN ({SHADOW}) AND "modelVersion" IS NULL'
)


def run_script() -> Script:
    """Yield the statements of one run, for the open transaction of a driver."""
    users = [user for (user,) in (yield USERS, ())]
    known = {category for (category,) in (yield CATEGORIES, ())}
    cities: dict[str, list[tuple[str, str, int]]] = {}
    for node, city, category in (yield NODES, ()):
        cities.setdefault(city, []).append((node, category, hash64(node)))
    since = (yield SINCE, ())[0][0]
    for name, version, *rest in REGISTRY:
        yield REGISTER, (row_id("model_registry", name, version), name, version, *rest, since, since)
    yield f'DELETE FROM "PersonaDimension" WHERE "userId" IN ({SHADOW})', ()
    trips: dict[str, list[Any]] = {}
    for user in users:
        trips[user] = yield TRIPS_OF_USER, (user,)
        for row in personas(user, trips[user], known):
            yield PERSONA, row
    yield f'DELETE FROM "RankingEvent" WHERE "userId" IN ({SHADOW})', ()
    for user in users:
        found = yield AFFINITIES_OF_USER, (user,)
        if found:
            yield from _events_of_user(user, json.loads(found[0][0]), trips[user], cities)
    yield BACKFILL, ()


def _events_of_user(
    user: str, affinities: dict[str, float], trips: Sequence[Any], cities: dict[str, list[tuple[str, str, int]]]
) -> Script:
    """Yield a SELECT of slots per trip and an INSERT per day."""
    tops: dict[str, list[str]] = {}  # by city, whatever the number of trips
    for trip, city, start, _, _ in trips:
        if city not in tops:
            tops[city] = top_candidates(user, affinities, cities.get(city, ()))
        slots = yield SLOTS_OF_TRIP, (trip,)
        for row in events(user, (trip, start), slots, tops[city]):
            yield EVENT, row


def with_psycopg(url: str, script: Callable[[], Script] = run_script) -> None:
    """Play a script with psycopg, which prepares frequent statements."""
    with psycopg.connect(url, cursor_factory=psycopg.RawCursor) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with connection.cursor() as cursor:
            playing, rows = script(), None
            try:
                while True:
                    sql, parameters = playing.send(rows) if rows is not None else next(playing)
                    cursor.execute(sql, parameters)
                    rows = cursor.fetchall() if cursor.description else []
            except StopIteration:
                pass


def with_asyncpg(url: str, script: Callable[[], Script] = run_script) -> None:
    """Play a script with asyncpg, which prepares and caches all statements."""
    asyncio.run(_with_asyncpg(url, script))


async def _with_asyncpg(url: str, script: Callable[[], Script]) -> None:
    import asyncpg  # noqa: PLC0415 - it may be missing

    # Not the URL itself: asyncpg does not look for the socket's folder in it when there is a host, too.
    said = conninfo_to_dict(url)
    named = {
        "host": said.get("host"),
        "port": said.get("port"),
        "user": said.get("user"),
        "password": said.get("password"),
    }
    connection = await asyncpg.connect(**{k: v for k, v in named.items() if v}, database=said["dbname"])
    try:
        async with connection.transaction(isolation="repeatable_read"):
            playing, rows = script(), None
            try:
                while True:
                    sql, parameters = playing.send(rows) if rows is not None else next(playing)
                    rows = await connection.fetch(sql, *parameters)
            except StopIteration:
                pass
    finally:
        await connection.close()


def drivers() -> dict[str, Callable[[str], None]]:
    """The installed drivers, each with the function that plays the run."""
    there: dict[str, Callable[[str], None]] = {"row by row, psycopg": with_psycopg}
    if importlib.util.find_spec("asyncpg") is None:
        print("asyncpg is not installed: that variant is skipped.", file=sys.stderr)
        return there
    return there | {"row by row, asyncpg": with_asyncpg}


Rows = list[tuple[Any, ...]]


def written(url: str) -> tuple[Rows, Rows]:
    """Every column of the shadow users' PersonaDimension and RankingEvent rows, sorted by id."""
    with psycopg.connect(url) as connection:
        personas, events = (
            connection.execute(
                f'SELECT * FROM "{table}" WHERE "userId" IN ({SHADOW}) ORDER BY "id" COLLATE "C"'
            ).fetchall()
            for table in ("PersonaDimension", "RankingEvent")
        )
    return personas, events


def require_equal(ours: tuple[Rows, Rows], theirs: tuple[Rows, Rows], who: str) -> None:
    """Raise RuntimeError with the first difference if the rows differ."""
    for table, mine, other in zip(("PersonaDimension", "RankingEvent"), ours, theirs, strict=True):
        if mine != other:
            first = next((pair for pair in zip(mine, other, strict=False) if pair[0] != pair[1]), ("fewer", "more"))
            raise RuntimeError(f"{who} gives other rows of {table}: {len(mine)} and {len(other)}; first {first}.")
