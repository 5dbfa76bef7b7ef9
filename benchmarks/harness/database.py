"""Databases for benchmarks: the server, a new database per measurement, and its state between rounds."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from etl.errors import SettingsError
from etl.postgres import embedded
from etl.postgres.connection import connect
from etl.postgres.naming import quote_identifier
from etl.postgres.transaction import transaction
from etl.postgres.url import parse_url

PREFIX, SEED = "shadow-", 0
"""Prefix and seed of all measured runs: the defaults."""


SHADOW = f'SELECT u."id" FROM "User" u WHERE starts_with(u."email", \'{PREFIX}\')'
"""The shadow users' ids, in the databases that are made here (tables named by model)."""


@contextmanager
def server(database_url: str | None) -> Iterator[Callable[[str], str]]:
    """Yield a function from a database's name (empty: the first one to connect to) to its URL on the server to use.

    That is the one of `database_url`, or the embedded one, which is stopped at the end if it was not running before.
    """
    if database_url is not None:
        yield lambda name: _with_database(database_url, name)
        return
    with embedded.shared_server(embedded.default_data_dir(os.environ)) as started:
        yield lambda name: started.url(name) if name else started.url()


def _with_database(url: str, name: str) -> str:
    """Return the URL with another database name."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise SettingsError("--database-url must look like postgresql://user:password@host:5432/database.")
    address, question, query = rest.partition("?")
    return f"{scheme}://{address.partition('/')[0]}/{name}{question}{query}" if name else url


@contextmanager
def fresh_database(url_of: Callable[[str], str], label: str) -> Iterator[str]:
    """Yield the URL of a new database, and drop it at the end. Its name is unique, so no other database is dropped."""
    name = f"rd_bpr_etl_{label}_{uuid.uuid4().hex[:8]}"
    address = parse_url(url_of(""), {})
    with connect(address) as connection:
        connection.execute(f"CREATE DATABASE {quote_identifier(name)}")
    try:
        yield url_of(name)
    finally:
        with connect(address) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(name)} WITH (FORCE)")


def vacuum(url: str) -> None:
    """Do what autovacuum does between two runs, and a checkpoint: each round starts from the same state."""
    with connect(parse_url(url, {})) as connection:
        connection.execute('VACUUM (ANALYZE) "PersonaDimension", "RankingEvent"')
        connection.execute("CHECKPOINT")


def reset_signals(url: str) -> None:
    """Restore the state of a first run: everything to backfill, in a table and indexes that grew row by row.

    Neither after VACUUM, which leaves room for new versions on their own page, nor after VACUUM FULL, which packs the
    indexes so tightly that every page splits, does the UPDATE cost what it costs the first time.
    """
    names = '"id", "userId", "tripId", "slotId", "activityNodeId", "signalType"'
    with connect(parse_url(url, {})) as connection, transaction(connection):
        connection.execute(
            f'CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT {names}, CASE WHEN "userId" NOT IN ({SHADOW}) '
            'THEN "modelVersion" END AS "modelVersion" FROM "BehavioralSignal" ORDER BY ctid'
        )
        connection.execute('TRUNCATE "BehavioralSignal"')
        connection.execute(f'INSERT INTO "BehavioralSignal" ({names}, "modelVersion") SELECT * FROM kept')
    with connect(parse_url(url, {})) as connection:
        connection.execute('VACUUM (ANALYZE) "BehavioralSignal"')
    vacuum(url)
