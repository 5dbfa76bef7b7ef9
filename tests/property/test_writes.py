"""What stands in the tables before a run decides nothing: both ways of writing end in the oracle's rows, and equal rows stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import psycopg
import pytest

import etl
from etl.errors import DataError
from etl.load import changes
from etl.settings.sources import load_settings
from tests.property import oracle
from tests.property.dense import dense_settings, dense_world
from tests.property.in_database import Databases, written
from tests.property.test_night import BUCKETS, MODEL, as_given, by_id, rows_are_the_oracle_s

TABLES = {"PersonaDimension": "personas", "RankingEvent": "events"}
WAYS = ("changes", "replace")


@pytest.fixture(scope="session")
def databases(make_database) -> Databases:
    return Databases(make_database)


def versions(url: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Where each row's version stands and who wrote it, by table and id."""
    with psycopg.connect(url) as connection:
        return {
            table: {
                id_: (place, writer)
                for id_, place, writer in connection.execute(f'SELECT "id", ctid::text, xmin::text FROM "{table}"')
            }
            for table in TABLES
        }


CHANGES: dict[str, dict[str, tuple[str, ...]]] = {
    "PersonaDimension": {
        "value": ("'x'", "''", "\"value\" || ' '"),
        "confidence": ("0.5", "'NaN'", "'-0'", "'infinity'", '"confidence" + 1e-16'),
        "source": ("'x'", "E'\\x02'"),
        "createdAt": (
            "'infinity'",
            "'-infinity'",
            "\"createdAt\" + interval '1 ms'",
            "'0044-03-15 BC'",
            "'10000-01-01'",
        ),
        "updatedAt": ("'infinity'", "\"updatedAt\" - interval '1 ms'"),
    },
    "RankingEvent": {
        "tripId": ("'x'",),
        "dayNumber": ('"dayNumber" + 100', "-1"),
        "modelName": ("'x'",),
        "modelVersion": ("''",),
        "surface": ("'x'",),
        "sessionId": ("''", "'x'"),
        "shadowModelName": ("'x'",),
        "shadowModelVersion": ("''",),
        "shadowRankedIds": ("'{}'", "'{x}'", '"rankedIds"'),
        "latencyMs": ("NULL", "0"),
        "createdAt": ("'infinity'", "\"createdAt\" + interval '1 ms'"),
        **{
            name: (
                "NULL",
                "'{}'",
                "'{\"\"}'",
                f"""array_append("{name}", NULL)""",
                f"""array_prepend(NULL, "{name}")""",
                f"""ARRAY["{name}", "{name}"]""",
                f"""array_append("{name}", '')""",
                f"""ARRAY(SELECT v FROM unnest("{name}") WITH ORDINALITY u(v, n) ORDER BY n DESC)""",
                f"""('[0:' || cardinality("{name}") - 1 || ']=' || "{name}"::text)::text[]""",
                f"""ARRAY[array_to_string("{name}", E'\\x1e')]""",
            )
            for name in ("candidateIds", "rankedIds", "selectedIds")
        },
    },
}
"""What a hand may do to each column of a row, as SQL."""

SHADOW = """"userId" IN (SELECT "id" FROM "User" WHERE starts_with("email", '{prefix}'))"""


def changed(url: str, table: str, column: str, sql: str, where: str) -> set[str]:
    """Change a column of some of the rows. Returns the ids of those that are other rows then, to the server's own eyes."""
    with psycopg.connect(url) as connection:
        before = dict(connection.execute(f'SELECT "id", x::text FROM "{table}" x').fetchall())
        connection.execute(f'UPDATE "{table}" x SET "{column}" = {sql} WHERE {where}')
        after = connection.execute(f'SELECT "id", x::text FROM "{table}" x').fetchall()
    return {id_ for id_, row in after if before[id_] != row}


def dense(number: int) -> tuple[oracle.World, oracle.Settings]:
    return dense_world(number), replace(dense_settings(number), audience="shadow")


class Night:
    """Runs over one world in a database, both ways, with any number of buckets."""

    def __init__(self, databases: Databases, number: int, folder: str) -> None:
        self.world, self.options = dense(number)
        self.number, self.folder = number, folder
        self.url = databases.holding(self.world)
        self.after = oracle.after_run(self.world, self.options, MODEL)
        self.prefix = self.options.shadow_prefix.replace("'", "''")

    def run(self, write: str, **options: Any) -> etl.RunResult:
        given = as_given(self.options) | {"write": write, "buckets": BUCKETS[self.number % len(BUCKETS)]} | options
        return etl.run(load_settings({"database_url": self.url, "out": f"{self.folder}/out", **given}, {}))

    def require_rows(
        self, result: etl.RunResult, before: dict[str, dict[str, tuple[str, str]]], other: set[str]
    ) -> None:
        """The rows are the oracle's. With `changes`, every row that stood there as it should is the same version."""
        rows_are_the_oracle_s(self.url, self.after)
        now = versions(self.url)
        for table, rows in TABLES.items():
            shadow = oracle.shadow_users(self.world, self.options)
            meant = {row.id for row in getattr(self.after, rows) if row.user_id in shadow}
            same = {id_ for id_ in meant if now[table][id_] == before[table].get(id_)}
            stood = {id_ for id_ in meant if id_ in before[table]} - other
            assert same == stood, table
            counts = result.counts["written"][table]
            assert counts["unchanged"] == len(stood)
            assert counts["inserted"] == len(meant) - len(stood)


@pytest.fixture
def night_of(databases, tmp_path):
    return lambda number: Night(databases, number, str(tmp_path))


@pytest.mark.parametrize("number", range(8))
def test_the_same_again_touches_no_row(night_of, number):
    night = night_of(number)
    first = night.run(WAYS[number % 2])
    rows_are_the_oracle_s(night.url, night.after)
    before = versions(night.url)
    again = night.run("changes")
    night.require_rows(again, before, set())
    assert versions(night.url) == before
    for counts in again.counts["written"].values():
        assert counts["inserted"] == counts["deleted"] == 0
    replaced = night.run("replace")
    assert [each["unchanged"] for each in replaced.counts["written"].values()] == [0, 0]
    rows_are_the_oracle_s(night.url, night.after)
    assert first.counts["published"] == again.counts["published"] == replaced.counts["published"]


def batched(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """The items, some at a time."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def cases() -> list[tuple[str, str, str]]:
    return [
        (table, column, sql)
        for table, columns in CHANGES.items()
        for column, values in columns.items()
        for sql in values
    ]


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("part", range(6))
def test_rows_changed_by_hand_are_repaired(night_of, part, write):
    """Each column, by each kind of value, three at a time. With `changes`, the rows that are not changed stay."""
    night = night_of(part)
    night.run("replace")
    touched = 0
    for three in batched(cases()[part::6], 3):
        other: set[str] = set()
        for place, (table, column, sql) in enumerate(three):
            where = f'hashtext("id") & 3 = {place} AND {SHADOW.format(prefix=night.prefix)}'
            other |= changed(night.url, table, column, sql, where)
        touched += len(other)
        before = versions(night.url)
        result = night.run(write)
        deleted = sum(each["deleted"] for each in result.counts["written"].values())
        if write == "replace":
            rows_are_the_oracle_s(night.url, night.after)
            assert deleted > len(other)
        else:
            night.require_rows(result, before, other)
            assert deleted == len(other)
    assert touched > 0


FOREIGN = {
    "PersonaDimension": """INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "updatedAt")
        SELECT 'hand-' || d.n || u."id", u."id", 'of another ' || d.n, 'x', now()
        FROM "User" u, generate_series(1, 2) d(n) WHERE starts_with(u."email", '{prefix}')""",
    "RankingEvent": """INSERT INTO "RankingEvent" ("id", "userId", "tripId", "dayNumber", "modelName", "modelVersion", "surface")
        SELECT 'hand-' || d.n || u."id", u."id", 'gone', d.n, 'another', '1', 'search'
        FROM "User" u, generate_series(1, 2) d(n) WHERE starts_with(u."email", '{prefix}')""",
}


def missing(night: Night, cursor: psycopg.Connection) -> None:
    for table in TABLES:
        cursor.execute(f'DELETE FROM "{table}" WHERE hashtext("id") % 3 = 0 AND {SHADOW.format(prefix=night.prefix)}')


def none(night: Night, cursor: psycopg.Connection) -> None:
    for table in TABLES:
        cursor.execute(f'DELETE FROM "{table}" WHERE {SHADOW.format(prefix=night.prefix)}')


def foreign(night: Night, cursor: psycopg.Connection) -> None:
    for sql in FOREIGN.values():
        cursor.execute(sql.format(prefix=night.prefix))


def renamed(night: Night, cursor: psycopg.Connection) -> None:
    """The right rows under other ids: a persona row stands in the way of its own unique key."""
    for table in TABLES:
        cursor.execute(f"""UPDATE "{table}" SET "id" = 'hand-' || "id" WHERE hashtext("id") % 2 = 0
            AND {SHADOW.format(prefix=night.prefix)}""")


def swapped(night: Night, cursor: psycopg.Connection) -> None:
    """Ids that moved round among the rows: every row's id stands in another's way."""
    for table in TABLES:
        shadow = SHADOW.format(prefix=night.prefix)
        cursor.execute(
            f"""CREATE TEMP TABLE turned ON COMMIT DROP AS SELECT "id", COALESCE(lead("id") OVER w, first_value("id") OVER w)
            AS other FROM "{table}" WHERE {shadow} WINDOW w AS (ORDER BY hashtext("id"), "id")"""
        )
        cursor.execute(f"""UPDATE "{table}" SET "id" = 'away-' || "id" WHERE {shadow}""")
        cursor.execute(f"""UPDATE "{table}" x SET "id" = t.other FROM turned t WHERE x."id" = 'away-' || t."id" """)
        cursor.execute("DROP TABLE turned")


def doubled(night: Night, cursor: psycopg.Connection) -> None:
    """The same events under a second id, as a run that did not clear the table would leave them."""
    shadow = SHADOW.format(prefix=night.prefix)
    cursor.execute(f'CREATE TEMP TABLE twice ON COMMIT DROP AS SELECT * FROM "RankingEvent" WHERE {shadow}')
    cursor.execute("""UPDATE twice SET "id" = 'twice-' || "id" """)
    cursor.execute('INSERT INTO "RankingEvent" SELECT * FROM twice')


STATES = {each.__name__: each for each in (missing, none, foreign, renamed, swapped, doubled)}


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("number", [1, 4])
def test_any_earlier_state_ends_in_the_oracle_s_rows(night_of, number, state, write):
    night = night_of(number)
    night.run("replace")
    good = oracle_rows(night)
    with psycopg.connect(night.url) as connection:
        STATES[state](night, connection)
    before = versions(night.url)
    other = {
        id_ for table in TABLES for id_, row in rows_as_text(night.url, table).items() if good[table].get(id_) != row
    }
    result = night.run(write)
    if write == "replace":
        rows_are_the_oracle_s(night.url, night.after)
    else:
        night.require_rows(result, before, other)


def rows_as_text(url: str, table: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute(f'SELECT "id", x::text FROM "{table}" x').fetchall())


def oracle_rows(night: Night) -> dict[str, dict[str, str]]:
    return {table: rows_as_text(night.url, table) for table in TABLES}


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("number", range(6))
def test_another_seed_before_ends_in_the_oracle_s_rows(night_of, number, write):
    """All ids differ; the earlier rows are gone."""
    night = night_of(number)
    night.run(WAYS[number % 2], seed=night.options.seed + 1)
    result = night.run(write)
    personas, events, *_ = written(night.url)
    assert (personas, events) == (by_id(night.after.personas), by_id(night.after.events))
    assert [each["unchanged"] for each in result.counts["written"].values()] == [0, 0]


@pytest.mark.parametrize("state", ["missing", "renamed", "swapped"])
def test_rows_that_are_mostly_new_are_not_held_back(night_of, monkeypatch, state):
    """With several buckets, from the one on by which nearly none of the rows stand there: as where there are millions."""
    monkeypatch.setattr(changes, "FEW", 3)
    monkeypatch.setattr(changes, "MOSTLY_NEW", 0.1)
    for number in (0, 2, 3):
        night = night_of(number)
        night.run("replace", buckets=1)
        with psycopg.connect(night.url) as connection:
            STATES[state](night, connection)
        night.run("changes", buckets=7)
        rows_are_the_oracle_s(night.url, night.after)


def test_where_the_personas_are_new_events_are_not_compared(night_of, monkeypatch):
    """As with another seed: to compare them would take longer than to replace them."""
    monkeypatch.setattr(changes, "FEW", 3)
    night = night_of(0)
    night.run("replace", seed=night.options.seed + 1)
    result = night.run("changes")
    personas, events = (each["deleted"] for each in result.counts["written"].values())
    assert events > 3
    assert (result.get_step("compare").rows, result.get_step("delete").rows) == (personas, personas + events)
    assert written(night.url)[:2] == (by_id(night.after.personas), by_id(night.after.events))


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("table", TABLES)
def test_an_id_that_a_real_user_s_row_has_is_refused(night_of, table, write):
    """The run fails with a sentence, and the real user's row stays as it is."""
    night = night_of(2)
    night.run("replace")
    with psycopg.connect(night.url) as connection:
        connection.execute("""INSERT INTO "User" ("id", "email") VALUES ('a real one', 'real@example.test')""")
        connection.execute(
            f"""UPDATE "{table}" SET "userId" = 'a real one' WHERE "id" =
            (SELECT min("id") FROM "{table}" WHERE {SHADOW.format(prefix=night.prefix)})"""
        )
    rows = {name: rows_as_text(night.url, name) for name in TABLES}
    before = versions(night.url)
    with pytest.raises(DataError, match=rf"table {table}.*A row of another user"):
        night.run(write)
    assert versions(night.url) == before
    assert {name: rows_as_text(night.url, name) for name in TABLES} == rows
