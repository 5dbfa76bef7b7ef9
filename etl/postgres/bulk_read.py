"""Bulk reads through connectorx, on connections of its own that see the snapshot which the open transaction exports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial

import polars as pl

from etl.errors import EtlError
from etl.postgres.connection import PINNED_OPTIONS, TRANSACTION_SETTINGS, Connection, connect
from etl.postgres.naming import quote_literal
from etl.postgres.transaction import transaction
from etl.postgres.url import ConnectionTarget

log = logging.getLogger(__name__)
_Frames = dict[str, pl.DataFrame]

READ_CONNECTIONS = 2
"""Number of connections that read at once. More is not faster on two cores, because the server has to produce the rows."""


@contextmanager
def read_in_background(connection: Connection, queries: Mapping[str, str]) -> Iterator[Callable[[], _Frames]]:
    """Begin to read named queries under the snapshot of the connection's open transaction, several at a time.

    Yields a function that returns the rows by query name. Where connectorx can't be used or fails, it reads them through ADBC
    when it is called, and a log line says why.
    """
    tls = connection.fetch_rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
    name = f"{connection.name}:reading"
    address = connection.address

    @cache
    def read_now(reason: str) -> _Frames:
        log.info("Reading through ADBC, since connectorx can't: %s.", reason)
        return {name: connection.fetch_frame(sql) for name, sql in queries.items()}

    url = address.connectorx_url(
        tls=tls, name=name, options=PINNED_OPTIONS, password=address.new_password(connection.stop)
    )
    if url is None or not connection.direct:
        yield partial(read_now, address.connectorx_unsupported_reason or "a pooler may have no further sessions")
        return
    snapshot = connection.fetch_rows("SELECT pg_export_snapshot()")[0][0]
    with (
        connection.stop.on_cancel(lambda: _end_sessions(address, name)),
        ThreadPoolExecutor(1, thread_name_prefix="reading") as pool,
    ):
        frames = pool.submit(_read_connectorx, connection, url, queries, snapshot)

        def result() -> _Frames:
            try:
                return frames.result()
            # connectorx's Rust code raises PanicException, which is not an Exception.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                    raise
                connection.stop.raise_if_cancelled()
                text = address.redact(str(error)) or type(error).__name__  # redacted before it is cut
                return read_now(text.splitlines()[0][:200])

        try:
            yield result
        except BaseException:
            if not frames.done():  # its rows are not needed any more, and leaving the pool waits for it
                with suppress(EtlError):
                    _end_sessions(address, name)
            raise


def _end_sessions(address: ConnectionTarget, name: str) -> None:
    """End the sessions with this application_name: connectorx can't be cancelled, its server processes can."""
    with connect(address) as connection, transaction(connection, read_only=True):
        connection.fetch_rows(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = {quote_literal(name)}"
        )


def _read_connectorx(connection: Connection, url: str, queries: Mapping[str, str], snapshot: str) -> _Frames:
    # Fails at once if no connection is available; connectorx would retry for half a minute.
    with connect(connection.address):
        pass
    import connectorx  # noqa: PLC0415 - only here, so that a machine without a wheel for it can still read by ADBC

    pinned = [
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        f"SET TRANSACTION SNAPSHOT {quote_literal(snapshot)}",
        connection.pin_search_path,
        f"SELECT {TRANSACTION_SETTINGS}",
    ]

    def read(sql: str) -> pl.DataFrame:
        table = connectorx.read_sql(url, sql, protocol="binary", return_type="arrow", pre_execution_query=pinned)
        return pl.DataFrame(table).rechunk()

    with ThreadPoolExecutor(READ_CONNECTIONS, thread_name_prefix="connectorx") as pool:
        return dict(zip(queries, pool.map(read, queries.values()), strict=True))
