"""Bulk reads through connectorx, on connections of its own that see the snapshot which the open transaction exports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import polars as pl

from etl.errors import EtlError
from etl.postgres.connection import PINNED_OPTIONS, TRANSACTION_SETTINGS, Connection, connect
from etl.postgres.naming import quote_literal
from etl.postgres.transaction import transaction
from etl.postgres.url import ConnectionTarget

log = logging.getLogger(__name__)
_Frame = Future[pl.DataFrame]

READ_CONNECTIONS = 2
"""Number of connections that read at once. More is not faster on two cores, because the server has to produce the rows."""


class BackgroundReads:
    """Named queries that are read on other connections while the connection itself can be used.

    Where `read` is None, they are read through the connection when their result is asked for; `reason` says why.
    """

    def __init__(self, connection: Connection, read: Callable[[str], _Frame] | None, reason: str = "") -> None:
        self._connection, self._read, self._reason = connection, read, reason
        self._queries: dict[str, str] = {}
        self._frames: dict[str, _Frame] = {}

    def begin(self, queries: Mapping[str, str]) -> None:
        """Begin to read queries, in their order, after those that were begun before."""
        self._queries |= queries
        if self._read is not None:
            self._frames |= {name: self._read(sql) for name, sql in queries.items()}

    def result(self, name: str) -> pl.DataFrame:
        """Wait for the rows of a query. Each can be asked for once, so that they are freed when the caller is done with them.

        If connectorx can't be used or failed, they are read now through the connection.
        """
        reason = self._reason
        if name in self._frames:
            try:
                self._frames[name].exception()  # waits; until it is done, it counts as active
                return self._frames.pop(name).result()
            # connectorx's Rust code raises PanicException, which is not an Exception.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                    raise
                self._connection.stop.raise_if_cancelled()
                text = self._connection.address.redact(str(error)) or type(error).__name__  # redacted before it is cut
                reason = text.splitlines()[0][:200]
        if self._read is not None or self._reason:  # said once
            log.info("Reading through ADBC, since connectorx can't: %s.", reason)
            self._read, self._reason = None, ""
        return self._connection.fetch_frame(self._queries[name])

    @property
    def active(self) -> bool:
        """Whether a query is being read, or waits for its turn."""
        return not all(frame.done() for frame in list(self._frames.values()))  # other threads ask


@contextmanager
def read_in_background(connection: Connection, queries: Mapping[str, str]) -> Iterator[BackgroundReads]:
    """Begin to read named queries under the snapshot of the connection's open transaction, several at a time.

    Where connectorx can't be used they are read through ADBC when the result is asked for, and a log line says why.
    """
    tls = connection.fetch_rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
    name = f"{connection.name}:reading"
    address = connection.address
    url = address.connectorx_url(
        tls=tls, name=name, options=PINNED_OPTIONS, password=address.new_password(connection.stop)
    )
    if url is None or not connection.direct:
        reads = BackgroundReads(
            connection, None, address.connectorx_unsupported_reason or "a pooler may have no further sessions"
        )
        reads.begin(queries)
        yield reads
        return
    snapshot = connection.fetch_rows("SELECT pg_export_snapshot()")[0][0]
    with ThreadPoolExecutor(READ_CONNECTIONS, thread_name_prefix="connectorx") as pool:
        reachable = pool.submit(_connect_once, address)
        read = partial(_read_connectorx, connection, url, snapshot, reachable)
        reads = BackgroundReads(connection, lambda sql: pool.submit(read, sql))
        with connection.stop.on_cancel(lambda: _end_sessions(address, name) if reads.active else None):
            reads.begin(queries)
            try:
                yield reads
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if reads.active:  # their rows are not needed any more, and leaving the pool waits for them
                    with suppress(EtlError):
                        _end_sessions(address, name)
                raise


def _end_sessions(address: ConnectionTarget, name: str) -> None:
    """End the sessions with this application_name: connectorx can't be cancelled, its server processes can."""
    with connect(address) as connection, transaction(connection, read_only=True):
        connection.fetch_rows(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = {quote_literal(name)}"
        )


def _connect_once(address: ConnectionTarget) -> None:
    """Fail at once if no connection is available: connectorx would retry for half a minute."""
    with connect(address):
        pass


def _read_connectorx(
    connection: Connection, url: str, snapshot: str, reachable: Future[None], sql: str
) -> pl.DataFrame:
    reachable.result()
    import connectorx  # noqa: PLC0415 - only here, so that a machine without a wheel for it can still read by ADBC

    pinned = [
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        f"SET TRANSACTION SNAPSHOT {quote_literal(snapshot)}",
        connection.pin_search_path,
        f"SELECT {TRANSACTION_SETTINGS}",
    ]
    table = connectorx.read_sql(url, sql, protocol="binary", return_type="arrow", pre_execution_query=pinned)
    return pl.DataFrame(table).rechunk()
