"""The database: connection, errors in plain words, lock, transaction, exported snapshot, retry.

ADBC writes and reads on the one connection that holds the lock and the transaction. Bulk reads go through connectorx on
connections of its own, pinned to the snapshot that this transaction exports (DESIGN, trap 4).

Nothing is set on a session: it may be a pooler's, and another client's in a moment. What is set is a transaction's. In every
transaction the search_path is `pg_catalog, pg_temp`, so that a name of ours never means a function, an operator or a type that
somebody has put into a schema of the application. Only statements that write run under the role's own search_path, for the sake
of the application's triggers: such a statement qualifies all that it names, operators too.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

import adbc_driver_postgresql
import polars as pl
import pyarrow as pa
from adbc_driver_manager import AdbcConnection
from adbc_driver_manager import dbapi as adbc_errors
from adbc_driver_postgresql import dbapi as adbc

from etl.errors import ConnectError, DataError, EtlError, LockedError, SchemaError, SettingsError
from etl.postgres.ddl import quote_literal
from etl.postgres.url import ConnectionTarget
from etl.runtime.cancellation import POLL_SECONDS, CancelToken

log = logging.getLogger(__name__)
T = TypeVar("T")
_Frames = dict[str, pl.DataFrame]

OLDEST = 14
"""The oldest major release of PostgreSQL that is supported."""

_ENCODINGS = ("UTF8", "SQL_ASCII")  # the latter as far as what it holds is UTF-8: the server looks whether it is

# The driver's own table of types instead of the server's, which it misreads with quote_all_identifiers on: then every value
# is bytes. Casts in the queries see to it that no other types are read. It also saves reading all of pg_attribute at connect.
_DRIVER = {"adbc.postgresql.type_resolver_mode": "builtin"}

_TRANSACTION_SETTINGS = {
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "DateStyle": "ISO, YMD",
    "TimeZone": "UTC",
}
"""Settings that change what texts mean or look like, as our SQL and the checksums need them, for each transaction alone."""

RETRIES = 5
"""How many times a night is tried in all, when others' writes keep getting in its way (SQLSTATE 40001)."""

READ_CONNECTIONS = 2
"""How many connections read at once. More does not pay on two cores: the server has to produce the rows, too."""


POOL_SECONDS = 3.0
"""How long a pooler may take to give a second session, before its only server connection counts as ours."""

SETTLE_SECONDS = 60.0
"""How long a lost COMMIT's outcome is asked for, before it counts as unknown."""


class ConflictError(EtlError):
    """Somebody else's write got in the way (40001, 40P01): nothing is wrong, try the whole again."""

    exit_code = 3


class Connection:
    """One ADBC connection, in autocommit until `begin`.

    Every method raises a kind of EtlError, with the server's own first line and never the row that it complains about.
    `direct` says that the server process itself has heard our startup packet: no pooler stands between, and the session is
    ours alone. It is False, too, where nobody can tell.
    """

    def __init__(self, address: ConnectionTarget, stop: CancelToken) -> None:
        self.address, self.stop = address, stop
        self.name = f"bpr-etl:{uuid.uuid4().hex[:12]}"
        self._closing, self._closed = threading.Lock(), False
        self._within = False
        with self._mapped_errors():
            self._connection = _open(address, self.name)
        try:
            heard, self._path, encoding, version, number = self._look()
            require_supported(encoding, version, number)
        except EtlError:
            self.close()
            raise
        self.direct = heard == self.name

    def _look(self) -> tuple[str | None, str, str, str, int]:
        """What the session has heard at its startup, its search_path, the server's encoding and version.

        In a transaction, since a pooler may take another server process between two messages outside of one.
        """
        with self._mapped_errors():
            self._connection.adbc_connection.set_autocommit(False)
        heard, path, *server = self.fetch_rows(
            f"SELECT pg_catalog.current_setting('{_MARK}', true), pg_catalog.current_setting('search_path'), "
            "pg_catalog.current_setting('server_encoding'), pg_catalog.current_setting('server_version'), "
            "pg_catalog.current_setting('server_version_num')::pg_catalog.int8"
        )[0]
        self.rollback()
        # pg_catalog comes first where a path does not say otherwise; nobody's functions may come before the server's.
        path = ",".join(name for name in path.split(",") if name.strip(' "') != "pg_catalog")
        return heard, path, *server

    def fetch_rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a small query, as Python values."""
        with self._mapped_errors(), self._connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def fetch_int(self, sql: str) -> int:
        """What a query gives that gives one whole number."""
        return int(self.fetch_rows(sql)[0][0])

    def fetch_frame(self, sql: str) -> pl.DataFrame:
        """The rows of a query as a frame. Cast enums to text and numerics to int8 in the query: Arrow has no such types."""
        with self._mapped_errors(), self._connection.cursor() as cursor:
            cursor.execute(sql)
            return _frame(cursor.fetch_arrow_table())

    def iter_frames(self, sql: str) -> Iterator[pl.DataFrame]:
        """The rows of a query, some at a time: memory follows what the driver fetches at once, not the result."""
        with self._mapped_errors(), self._connection.cursor() as cursor:
            cursor.execute(sql)
            for batch in cursor.fetch_record_batch():
                yield _frame(batch)

    def execute(self, sql: str) -> int:
        """Run a statement that writes and returns no rows; gives how many it touched, -1 where the server does not say.

        It runs under the role's own search_path: it must name schemas and `OPERATOR(pg_catalog.=)` itself.
        """
        with self._own_path():
            return self._statement(sql)

    def copy(self, schema: str, table: str, rows: pa.Table | pa.RecordBatchReader) -> int:
        """COPY rows into a table by binary COPY; the columns' names are the table's. Gives the count that went over."""
        with self._own_path(), self._mapped_errors(table), self._connection.cursor() as cursor:
            return int(cursor.adbc_ingest(table, rows, mode="append", db_schema_name=schema))

    def copy_temporary(self, table: str, rows: pa.Table) -> int:
        """COPY rows into a new temporary table of this session."""
        with self._mapped_errors(), self._connection.cursor() as cursor:
            return int(cursor.adbc_ingest(table, rows, mode="create", temporary=True))

    def begin(self, mode: str) -> None:
        """Open a transaction; `mode` as in SQL's SET TRANSACTION.

        It bears `name`, so that it can be found among the server's. Its COMMIT waits until it is on disk, whatever the role's
        `synchronous_commit` says: what is published afterwards is in the database after a crash, too. Raises ConnectError where
        it is to write and can't.
        """
        with self._mapped_errors():
            self._connection.adbc_connection.set_autocommit(False)
        self._statement(f"SET TRANSACTION {mode}")
        self._statement(_PIN)
        self.fetch_rows(
            f"SELECT set_config('application_name', {quote_literal(self.name)}, true), {_ON_DISK}, "
            f"set_config('client_encoding', 'UTF8', true), {_settings()}, {_CLIENT_CHECK}"
        )
        if "READ ONLY" not in mode and (obstacle := no_writes(self)):
            raise ConnectError(" ".join(obstacle))
        self._within = True

    def commit(self) -> None:
        """Commit, and go back to autocommit. Whether it happened is never guessed: where the reply is lost, it is looked up.

        Raises ConnectError when it did not happen, and when nobody can say; StoppedError when an end was asked for before.
        """
        # The application's deferred triggers fire in COMMIT; one that fired before may have changed what COMMIT waits for.
        xid, process, *_ = self.fetch_rows(
            f"SELECT pg_current_xact_id_if_assigned()::text, pg_backend_pid(), {_ON_DISK}, {self._path_again()}"
        )[0]
        self.stop.begin_critical()
        try:
            with self._mapped_errors():
                self._connection.adbc_connection.commit()
                self._connection.adbc_connection.set_autocommit(True)
                self._within = False
        except EtlError as error:
            # Nothing was written; or the server itself refused, and a refused COMMIT is a ROLLBACK.
            if xid is None or not isinstance(error, ConnectError):
                raise
            _verify_commit(self, str(xid), int(process), error)

    def cancel(self) -> None:
        """Have the server cancel what this connection waits for, if it is open. From any thread."""
        with self._closing:
            if not self._closed:
                self._connection.adbc_cancel()

    def rollback(self) -> None:
        """Roll back what is open, if anything is, and go back to autocommit. A lost connection has rolled back already."""
        self._within = False
        with suppress(adbc_errors.Error):
            self._connection.adbc_connection.rollback()
        with suppress(adbc_errors.Error):
            self._connection.adbc_connection.set_autocommit(True)

    def close(self) -> None:
        """Close the connection; the server rolls back and unlocks what was open."""
        with self._closing, suppress(adbc_errors.Error, RuntimeError):
            self._closed = True
            self._connection.close()

    def _statement(self, sql: str) -> int:
        with self._mapped_errors(), self._connection.cursor() as cursor:
            cursor.execute(sql)
            return int(cursor.rowcount)

    def _path_again(self) -> str:
        """SQL that gives the open transaction the role's own search_path."""
        return f"set_config('search_path', {quote_literal(self._path)}, true)"

    @contextmanager
    def _own_path(self) -> Iterator[None]:
        """The role's own search_path for the length of a block of the open transaction."""
        if not self._within:
            yield
            return
        self.fetch_rows(f"SELECT {self._path_again()}")
        yield
        self._statement(_PIN)

    @contextmanager
    def _mapped_errors(self, table: str | None = None) -> Iterator[None]:
        self.stop.raise_if_cancelled()
        try:
            yield
        except adbc_errors.Error as error:
            self.stop.raise_if_cancelled()  # it was cancelled
            raise _map_error(error, self.address, table) from None
        except (pa.ArrowException, OSError) as error:  # rows that are being fetched fail with what Arrow makes of it
            self.stop.raise_if_cancelled()
            if "[libpq]" not in str(error):
                raise
            raise _map_error(error, self.address, table) from None


_PATH = ("pg_catalog", "pg_temp")
_PIN = f"SET LOCAL search_path = {', '.join(_PATH)}"
_PINNED = f"-c search_path={','.join(_PATH)}"
_MARK = "bpr_etl.session"
"""A setting that means nothing: whether the session has it tells who has heard our startup packet."""

_ON_DISK = (
    "CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END"
)
_CLIENT_CHECK = "CASE WHEN version() LIKE '%linux%' THEN set_config('client_connection_check_interval', '2s', true) END"
"""SQL that has the server look every two seconds whether this client is still there, where the server can (on Linux).

A killed run's long query ends by it, and its locks with it.
"""

_NO_OPTIONS = re.compile(r"option|startup parameter|configuration parameter", re.IGNORECASE)


def _open(address: ConnectionTarget, mark: str) -> adbc.Connection:
    """A connection whose session says `mark` where no pooler is between.

    The driver first asks about types, on a connection of its own, with operators that go by the search_path: there it is pinned
    from the start. A pooler refuses such startup options, or does not pass them on; then both connections go without.
    """
    # The role, the database, the environment or the URL may ask for another encoding; the driver takes bytes for UTF-8.
    plain = address.libpq_with(client_encoding="UTF8")
    pinned, marked = (
        plain if options is None else address.libpq_with(client_encoding="UTF8", options=f"{options} {more}".strip())
        for options, more in ((address.options or "", _PINNED), (address.options, f"-c {_MARK}={mark}"))
    )
    try:
        database = adbc_driver_postgresql.connect(pinned, db_kwargs=_DRIVER)
    except adbc_errors.Error as error:
        if not _NO_OPTIONS.search(str(error)):
            raise
        marked = plain
        database = adbc_driver_postgresql.connect(plain, db_kwargs=_DRIVER)
    try:
        database.set_options(uri=marked)
        connection = AdbcConnection(database)
    except BaseException:
        database.close()
        raise
    return adbc.Connection(database, connection, autocommit=True)


@contextmanager
def connect(address: ConnectionTarget, stop: CancelToken | None = None) -> Iterator[Connection]:
    """A connection for the length of a block; what it waits for is cancelled when an end is asked for.

    Raises ConnectError when the server can't be reached or refuses us, StoppedError.
    """
    stop = stop or CancelToken()
    connection = Connection(address, stop)
    try:
        with stop.on_cancel(connection.cancel):
            yield connection
    finally:
        connection.close()


def _verify_commit(connection: Connection, xid: str, process: int, error: EtlError) -> None:
    """Return where a COMMIT that failed has happened all the same. Raises ConnectError where it has not, or nobody can say.

    PostgreSQL remembers what became of a transaction (pg_xact_status); ours may be open still, where the server has not
    noticed that we are gone: then its session is ended first.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        status = None
        with (
            suppress(EtlError),
            connect(connection.address) as another,
            transaction(another, read_only=True, commit=False),
        ):
            ended = another.fetch_rows(
                f"SELECT pg_xact_status({quote_literal(xid)}::xid8), (SELECT count(pg_terminate_backend(pid)) "
                f"FROM pg_stat_activity WHERE pid = {process} AND application_name = {quote_literal(connection.name)})"
            )
            status = ended[0][0]
        if status == "committed":
            log.warning("The reply to COMMIT was lost (%s); the server says that it was done.", error)
            return
        if status == "aborted":
            raise ConnectError(f"{error} The server says that COMMIT was not done: nothing was written. Run again.")
        if time.monotonic() > deadline:
            raise ConnectError(
                f"{error} That was in the middle of COMMIT, and for {SETTLE_SECONDS:g} s the server could not say whether "
                "it was done. Nothing was published; run again when the server is back: that mends either case."
            )
        time.sleep(POLL_SECONDS)


def require_supported(encoding: str, version: str, number: int) -> None:
    """Raise SchemaError where the server is older than what is supported, or the database's encoding is another one."""
    if number < OLDEST * 10_000:
        raise SchemaError(
            f"The server is PostgreSQL {version}, and bpr-etl needs {OLDEST} or newer. Upgrade the server."
        )
    if encoding not in _ENCODINGS:
        raise SchemaError(
            f"The database's encoding is {encoding}, and bpr-etl needs UTF8: its orders and checksums are of UTF-8 bytes. "
            "Copy the database into one that was created with ENCODING 'UTF8'."
        )


def no_writes(connection: Connection) -> tuple[str, str] | None:
    """Why this session's transactions can't write, and what to do; None where they can."""
    standby, read_only, role, database = connection.fetch_rows(
        "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool, "
        "quote_ident(current_user), quote_ident(current_database())"
    )[0]
    if standby:
        return (
            "The server is a standby and takes no writes.",
            "Connect to the primary (of several hosts in the URL, target_session_attrs=read-write finds it).",
        )
    if read_only:
        return (
            f"Transactions of the role {role} in the database {database} are read-only (default_transaction_read_only is on).",
            f"Where this job may write: ALTER ROLE {role} IN DATABASE {database} SET default_transaction_read_only = off.",
        )
    return None


def lock_key(schema: str) -> int:
    """The key of the advisory lock that a run of this schema holds."""
    return int.from_bytes(hashlib.sha256(f"bpr-etl\x00{schema}".encode()).digest()[:8], "big", signed=True)


@contextmanager
def advisory_lock(connection: Connection, schema: str, wait: float = 0.0) -> Iterator[int]:
    """Hold the session advisory lock of (database, schema), and give its key for `require_lock`.

    Taken before BEGIN, else the snapshot is older than the wait. Raises LockedError when another run holds it, and does
    so for longer than `wait` seconds; ConnectError behind a transaction pooler.

    Through any pooler the lock is only waited for here, and `require_lock` takes it for the transaction: a session that may be
    handed on must not keep it.
    """
    key = lock_key(schema)
    if goes_through_transaction_pooler(connection):
        raise ConnectError(_TRANSACTION_POOLER.format(first="it gives every transaction another server process"))
    if not connection.stop.poll(lambda: _take(connection, key) if connection.direct else _free(connection, key), wait):
        raise LockedError(
            f"Another bpr-etl run is at work on this database's schema {schema!r} (it holds the advisory lock {key})"
            f"{f', and did for {wait:g} s' if wait else ''}. Wait for it to end (--wait-lock), or end it."
        )
    try:
        yield key
    finally:
        if connection.direct:
            with suppress(EtlError):
                connection.fetch_rows(f"SELECT pg_catalog.pg_advisory_unlock({_int8(key)})")


def _take(connection: Connection, key: int, until: Literal["", "_xact"] = "") -> bool:
    return connection.fetch_rows(f"SELECT pg_catalog.pg_try_advisory{until}_lock({_int8(key)})") == [(True,)]


def _free(connection: Connection, key: int) -> bool:
    with transaction(connection, read_only=True, commit=False):
        return _take(connection, key, "_xact")


def _int8(number: int) -> str:
    """A number as SQL in which no operator is looked for, not even a minus."""
    return f"'{number}'::pg_catalog.int8"


def lock_predicate(key: int) -> str:
    """SQL that is true for a row of pg_locks which is about the advisory lock of this key."""
    high, low = (key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF
    return f"locktype = 'advisory' AND classid::int8 = {high} AND objid::int8 = {low} AND objsubid = 1"


def require_lock(connection: Connection, key: int) -> None:
    """Raise ConnectError unless the open transaction's own server process holds the lock.

    Behind a transaction pooler it may be another's: then the lock protects nothing. Raises LockedError where another run has
    taken it since `locked`, which only a pooler makes possible.
    """
    if not connection.direct and not _take(connection, key, "_xact"):
        raise LockedError(
            f"Another bpr-etl run has begun on this database and schema (it holds the advisory lock {key}). Run again when it "
            "is done."
        )
    held = connection.fetch_rows(
        f"SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND {lock_predicate(key)}"
    )
    if held != [(1,)]:
        raise ConnectError(_TRANSACTION_POOLER.format(first="the lock is held by another server process"))


def goes_through_transaction_pooler(connection: Connection) -> bool:
    """Whether a pooler gives every transaction of a connection another server process.

    A second session tells: where the two ever meet the same process, or one of them meets two, processes are shared. Where a
    pooler has no place for a second one while the first is at rest and can still go on, the first has its process for itself.
    """
    if connection.direct:
        return False
    found: queue.SimpleQueue[Connection | EtlError] = queue.SimpleQueue()
    done = threading.Event()

    def second() -> None:
        try:
            with connect(connection.address) as another:
                found.put(another)
                done.wait()
        except EtlError as error:
            found.put(error)

    # Nobody waits for this thread: the driver can't be called back from waiting for the pooler.
    threading.Thread(target=second, daemon=True, name="second session").start()
    try:
        try:
            other = found.get(timeout=POOL_SECONDS)
        except queue.Empty:
            _process(connection)  # where processes are shared, whoever came first is served first
            other = found.get(timeout=POLL_SECONDS)
        return isinstance(other, Connection) and _share_processes(connection, other)
    except queue.Empty:
        return False
    finally:
        done.set()


def _share_processes(one: Connection, other: Connection) -> bool:
    """Whether the transactions of two sessions meet each other's server processes, or several; whatever order a pool keeps."""
    met: dict[Connection, set[int]] = {one: set(), other: set()}

    def shared() -> bool:
        return bool(met[one] & met[other]) or max(map(len, met.values())) > 1

    for first, second in ((one, other), (other, one)) * 2:
        met[first].add(_process(first))
        with transaction(second, read_only=True, commit=False):
            met[second].add(second.fetch_int("SELECT pg_backend_pid()"))
            if shared():
                return True
            met[first].add(_process(first))
        if shared():
            return True
    return False


def _process(connection: Connection) -> int:
    """The server process that a transaction of this connection meets."""
    with transaction(connection, read_only=True, commit=False):
        return connection.fetch_int("SELECT pg_backend_pid()")


@contextmanager
def transaction(connection: Connection, *, read_only: bool = False, commit: bool = True) -> Iterator[None]:
    """A REPEATABLE READ transaction: COMMIT at the end of the block, ROLLBACK when it raises or when `keep` is False.

    From COMMIT on the run's `CancelToken` is shielded.
    """
    try:
        connection.begin("ISOLATION LEVEL REPEATABLE READ" + (" READ ONLY" if read_only else ""))
        yield
        if commit:
            connection.commit()
    except BaseException:
        connection.rollback()
        connection.stop.end_critical()
        raise
    if not commit:
        connection.rollback()


def ensure_tables_not_rewritten(connection: Connection, tables: Iterable[str]) -> None:
    """Raise ConflictError where a table was rewritten, emptied or replaced since the open transaction's snapshot.

    ALTER TABLE and TRUNCATE are not bound by snapshots: who looks at such a table later sees no rows, where there are many.
    `tables` are quoted names. The snapshot's `relfilenode` is compared with the one in use now, which `pg_relation_filenode`
    tells; whoever has read or written the table holds it as it is until the transaction ends, so this comes last.
    """
    names = ", ".join(f"({quote_literal(name)})" for name in tables)
    moved = connection.fetch_rows(
        f"WITH RECURSIVE part(name, oid) AS (SELECT v.name, to_regclass(v.name)::oid FROM (VALUES {names}) v(name) "
        "UNION ALL SELECT part.name, i.inhrelid FROM part JOIN pg_catalog.pg_inherits i ON i.inhparent = part.oid) "
        "SELECT DISTINCT part.name FROM part LEFT JOIN pg_catalog.pg_class c ON c.oid = part.oid "
        "WHERE c.oid IS NULL OR NULLIF(c.relfilenode, 0) IS DISTINCT FROM NULLIF(pg_relation_filenode(c.oid), 0) ORDER BY 1"
    )
    if moved:
        raise ConflictError(
            f"{', '.join(name for (name,) in moved)} {'was' if len(moved) == 1 else 'were'} rewritten, emptied or replaced in "
            "the middle of this run (by a migration?)."
        )


@contextmanager
def check_not_rewritten(connection: Connection, tables: Sequence[str]) -> Iterator[None]:
    """Raise ConflictError in place of the block's DataError where one of the tables was rewritten: it looked empty then."""
    try:
        yield
    except DataError:
        try:
            ensure_tables_not_rewritten(connection, tables)
        except ConflictError:
            raise
        except EtlError:  # the transaction has failed on the server: nothing can be asked of it
            log.debug("Whether tables were rewritten could not be asked.", exc_info=True)
        raise


def retry_on_conflict(attempt: Callable[[], T], sleep: Callable[[float], None]) -> tuple[T, int]:
    """Do `attempt` until no serialisation failure ends it, RETRIES times at most; gives its result and the retries.

    Raises ConflictError when every attempt was in somebody's way.
    """
    for number in range(RETRIES):
        try:
            return attempt(), number
        except ConflictError as error:
            if number == RETRIES - 1:
                raise ConflictError(f"{error} Tried {RETRIES} times; run it again at a quieter time.") from None
            log.warning("%s Nothing was written; trying the whole again (%d of %d).", error, number + 2, RETRIES)
            sleep(0.1 * 2**number)
    raise AssertionError  # pragma: no cover - the loop returns or raises


class PendingReads:
    """Named queries that are being read on connections of their own, while the connection can do something else."""

    def __init__(
        self, connection: Connection, queries: Mapping[str, str], frames: Future[_Frames] | None, obstacle: str | None
    ) -> None:
        self._connection, self._queries, self._frames, self._obstacle = connection, queries, frames, obstacle

    def result(self) -> dict[str, pl.DataFrame]:
        """Their rows. Where connectorx can't express the connection, or failed, they are read now, on the connection itself."""
        obstacle = self._obstacle
        if self._frames is not None:
            try:
                return self._frames.result()
            # PanicException, which connectorx's Rust side raises, is no Exception.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                    raise
                self._connection.stop.raise_if_cancelled()
                told = self._connection.address.redact(str(error)) or type(error).__name__  # before it is cut
                obstacle = told.splitlines()[0][:200]
        log.info("Reading through ADBC, since connectorx can't: %s.", obstacle)
        return {name: self._connection.fetch_frame(sql) for name, sql in self._queries.items()}


@contextmanager
def read_in_background(connection: Connection, queries: Mapping[str, str]) -> Iterator[PendingReads]:
    """Begin to read named queries under the snapshot of the connection's open transaction, several at a time.

    Through connectorx; where that can't be, through ADBC when the result is asked for, and one log line says so.
    """
    tls = connection.fetch_rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
    name = f"{connection.name}:reading"
    url = connection.address.connectorx_url(tls=tls, name=name, options=_PINNED)
    if url is None or not connection.direct:
        yield PendingReads(
            connection,
            queries,
            None,
            connection.address.connectorx_unsupported_reason or "a pooler may have no further sessions",
        )
        return
    snapshot = connection.fetch_rows("SELECT pg_export_snapshot()")[0][0]
    with (
        connection.stop.on_cancel(lambda: _end_sessions(connection.address, name)),
        ThreadPoolExecutor(1, thread_name_prefix="reading") as aside,
    ):
        frames = aside.submit(_read_connectorx, connection.address, url, queries, snapshot)
        try:
            yield PendingReads(connection, queries, frames, None)
        except BaseException:
            if not frames.done():  # what it waits for is wanted no more
                with suppress(EtlError):
                    _end_sessions(connection.address, name)
            raise


def _settings() -> str:
    """SQL that makes the settings of `_TRANSACTION_SETTINGS`, for the open transaction alone."""
    return ", ".join(
        f"set_config({quote_literal(name)}, {quote_literal(value)}, true)"
        for name, value in _TRANSACTION_SETTINGS.items()
    )


def _end_sessions(address: ConnectionTarget, name: str) -> None:
    """End the sessions that bear a name: connectorx can't be told to stop, its server processes can."""
    with connect(address) as connection, transaction(connection, read_only=True, commit=False):
        connection.fetch_rows(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = {quote_literal(name)}"
        )


class OrderedWorker:
    """Work that is done behind the caller's back, in the order given, one after the other. See `behind`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._waiting: list[Future[Any]] = []

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have it done after all that was given before; not at all where some of that failed."""
        before = self._waiting[-1] if self._waiting else None

        def in_turn() -> T:
            if before is not None:
                before.result()
            return work()

        future = self._pool.submit(in_turn)
        self._waiting.append(future)
        return future

    def wait(self) -> None:
        """Until all is done. Raises what the first failure raised."""
        while self._waiting:
            self._waiting.pop(0).result()


@contextmanager
def ordered_worker() -> Iterator[OrderedWorker]:
    """A thread of its own for the length of a block, for the server's work: it takes as long as ours, and on other cores.

    When the block ends early, what has not begun is left, and what has is waited for.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
    try:
        yield OrderedWorker(pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_connectorx(address: ConnectionTarget, url: str, queries: Mapping[str, str], snapshot: str) -> _Frames:
    with connect(address):  # where no connection is to be had, connectorx would try for half a minute and more
        pass
    import connectorx  # noqa: PLC0415 - only here, so that a machine without a wheel for it can still read by ADBC

    pinned = [
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        f"SET TRANSACTION SNAPSHOT {quote_literal(snapshot)}",
        _PIN,
        f"SELECT {_settings()}, {_CLIENT_CHECK}",
    ]

    def read(sql: str) -> pl.DataFrame:
        table = connectorx.read_sql(url, sql, protocol="binary", return_type="arrow", pre_execution_query=pinned)
        return _frame(table)

    with ThreadPoolExecutor(READ_CONNECTIONS, thread_name_prefix="connectorx") as pool:
        return dict(zip(queries, pool.map(read, queries.values()), strict=True))


def _frame(table: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    if not isinstance(frame, pl.DataFrame):  # pragma: no cover - a table always becomes a frame
        raise TypeError
    return frame.rechunk()


_DIRECT_URL = "Give the direct URL instead (DIRECT_URL, or port 5432)."
_TRANSACTION_POOLER = (
    "The connection goes through a transaction pooler, and a run needs one server process from its lock to its COMMIT "
    f"({{first}}). {_DIRECT_URL}"
)
_POOLERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"statement pooling|prepared statement .* (does not|already) exist"), _TRANSACTION_POOLER),
    (
        re.compile(r"query_wait_timeout|max_client_conn|startup parameter|server_login_retry"),
        f"A pooler between bpr-etl and the server refuses what is needed: {{first}}. {_DIRECT_URL}",
    ),
)
"""What poolers say in their own name; they have no SQLSTATEs of their own."""

_REFERENCED = (
    DataError,
    (
        "The database refused a row{place}: {first}. Nothing was written. `bpr-etl schema check` lists the foreign keys "
        "that point at the tables which a run writes."
    ),
)
_MESSAGES = {
    "23001": _REFERENCED,
    "23503": _REFERENCED,
    "26000": (ConnectError, _TRANSACTION_POOLER),
    "42P05": (ConnectError, _TRANSACTION_POOLER),
    "42501": (ConnectError, "The role lacks a privilege: {first}. Grant it, or connect as another role."),
    "TLS": (
        ConnectError,
        "No encrypted connection comes about: {first}. Check sslmode, sslrootcert and the server's TLS.",
    ),
    "NAMELESS": (
        SettingsError,
        "The database URL names no user, and this process has no name to take: {first}. Name one in it.",
    ),
    "URI": (SettingsError, "The database's address is wrong: {first}. Correct it."),
    "08001": (ConnectError, "Cannot reach the database: {first}. Check that the server runs, and the URL."),
    "53100": (ConnectError, "The server's disk is full: {first}. Make room there."),
    "53300": (ConnectError, "The server has no connection left: {first}. Try again later, or raise its limit."),
    "57014": (
        ConnectError,
        "The server cancelled the query: {first}. Raise statement_timeout, or run at a quieter time.",
    ),
    "57P03": (ConnectError, "The server takes no connections yet: {first}. Try again when it is ready."),
    "57P05": (ConnectError, "The server ended the connection: {first}. Raise idle_session_timeout for this role."),
    "55P03": (ConnectError, "A lock was not to be had in time: {first}. Run again at a quieter time."),
    "25P03": (
        ConnectError,
        "The server ended the connection: {first}. Raise idle_in_transaction_session_timeout for this role.",
    ),
    "25P04": (ConnectError, "The server ended the connection: {first}. Raise transaction_timeout for this role."),
    "54000": (
        DataError,
        "The data passes a limit of the server{place}: {first}. Nothing was written. Shorten what an id or personaSeed says.",
    ),
    "25006": (ConnectError, "The server takes no writes: {first}. Connect to the primary, not to a standby."),
}
_BY_CLASS = {
    "08": (ConnectError, "The connection to the database was lost: {first}."),
    "28": (ConnectError, "The database refuses the login: {first}. Check user, password and pg_hba.conf."),
    "3D": (ConnectError, "The database refuses the login: {first}. Check the URL's database."),
    "53": (ConnectError, "The server is out of resources: {first}. Try again later."),
    "57": (ConnectError, "The server ended the connection: {first}. Try again when it is back."),
    "42": (SchemaError, "The schema does not fit: {first}. See `bpr-etl schema check`."),
    "3F": (SchemaError, "The schema does not fit: {first}. See `bpr-etl schema check`."),
    "22": (DataError, "The database refused a value{place}: {first}. Nothing was written."),
    "23": (DataError, "The database refused a row{place}: {first}. Nothing was written."),
    "54": (DataError, "The data passes a limit of the server{place}: {first}. Nothing was written."),
    "P0": (DataError, "A trigger or function of the database refused{place}: {first}. Nothing was written."),
}

_RETRIABLE = ("40", "55", "58", "XX")
"""Classes of errors without a sentence of their own that may be gone at the next try."""
_RETRY = (ConnectError, "The server failed (SQLSTATE {state}): {first}. Run again; if it stays, see the server's log.")
_REFUSED = (DataError, "The server refused (SQLSTATE {state}){place}: {first}. Nothing was written.")


def _map_error(error: Exception, address: ConnectionTarget, table: str | None = None) -> EtlError:
    """One kind of error per thing a caller can do, from the SQLSTATE; the DETAIL, which holds row values, is left out.

    `table` is the one that was written to, where the server does not name it.
    """
    details = {_decoded(key): _decoded(value) for key, value in getattr(error, "details", None) or []}
    if table is not None:
        details.setdefault("PG_DIAG_TABLE_NAME", table)
    first = address.redact(details.get("PG_DIAG_MESSAGE_PRIMARY") or _primary_message(str(error)))
    # Arrow has no SQLSTATE for what the server said while rows were fetched.
    state = getattr(error, "sqlstate", None) or _state_of(
        first, "08001" if isinstance(error, adbc_errors.Error) else "XX000"
    )
    if state in {"40001", "40P01"}:
        return ConflictError(f"Somebody else changed the same rows at the same time ({first}).")
    place = "".join(
        f" ({word} {details[key]})"
        for key, word in (("PG_DIAG_TABLE_NAME", "table"), ("PG_DIAG_COLUMN_NAME", "column"))
        if key in details
    )
    if state == "URI":  # without the value: where an address can be read in two ways, it may be a piece of a password
        first = re.sub(r"""(value|number|token|URI|found in):? "[^"]*\"""", r"\1", first)
    pooler = next(((ConnectError, said) for words, said in _POOLERS if words.search(first)), None)
    known = pooler or _MESSAGES.get(state) or _BY_CLASS.get(state[:2])
    kind, text = known or (_RETRY if state[:2] in _RETRIABLE else _REFUSED)
    message = text.format(first=first.rstrip(".?"), place=place, state=state)
    if address.pooler_hint and kind is not DataError and _DIRECT_URL not in message:
        message += f" A transaction pooler may be in the way ({address.pooler_hint}): give the direct URL (DIRECT_URL)."
    return kind(message)


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


_STATES = tuple(
    (re.compile(words), state)
    for words, state in (
        (r"local user with ID \d+ does not exist", "NAMELESS"),
        (r"statement timeout", "57014"),
        (r"lock timeout", "55P03"),
        (r"idle-in-transaction timeout", "25P03"),
        (r"transaction timeout", "25P04"),
        (r"idle-session timeout", "57P05"),
        (r"terminating connection due to", "57P01"),
        (r"too many (clients|connections)|connection slots are reserved|no more connections allowed", "53300"),
        (r"the database system is |is not currently accepting connections", "57P03"),
        (r"permission denied for database", "42501"),
        (r"no password supplied|role .* does not exist|pg_hba\.conf", "28000"),
        (r"authentication failed|is not permitted to log in", "28000"),
        (r"database .* does not exist", "3D000"),
        (
            r"^(server closed the connection|SSL SYSCALL error|SSL connection has been closed|could not (send|receive))",
            "08006",
        ),
        (r"SSL|certificate", "TLS"),
    )
)
# What libpq says of an address without having tried it.
_MALFORMED = re.compile(
    r"(?:in|invalid) URI|percent-encoded|unexpected spaces|connection option|invalid port number|invalid \S+ value|"
    r"could not match \d+ |definition of service|service file"
)


def _state_of(first: str, otherwise: str) -> str:
    """The SQLSTATE that words stand for: libpq gives none where a connection or a transaction does not come about."""
    if _MALFORMED.search(first) and "FATAL:" not in first:
        return "URI"
    return next((state for words, state in _STATES if words.search(first)), otherwise)


def _primary_message(text: str) -> str:
    """The libpq message itself: no status word, no query, no row, one line."""
    text = re.split(r"Query was:|DETAIL:", text)[0].replace("[libpq] ", "")
    text = re.sub(
        r"^([A-Z_]+: )?(Failed to ([a-z ]+|\w+ query '.*?'): )?(Execution error \[\w+\]: )?((FATAL|ERROR):  )?",
        "",
        text,
        flags=re.DOTALL,
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # A name may stand for several hosts and addresses: one that answered, and said no, tells more than one where nobody was.
    answered = [line for line in lines if re.search(r"FATAL:|SSL|certificate|encryption", line)]
    return next(iter(answered or lines), "no reason was given")
