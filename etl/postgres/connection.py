"""One connection to the database: queries, COPY, BEGIN and COMMIT, and server errors translated to `EtlError`s.

Nothing is set for a session, because behind a pooler the session goes to other clients. Settings are set per transaction.
In every transaction the search_path is `pg_catalog, pg_temp`, so that our function, operator and type names never resolve to
objects that another role has created in the application's schemas. Where the settings hold SQL of their own, the
application's schema is searched last. Only statements that write run under the role's own
search_path, because the application's triggers rely on it. Such statements qualify every name, operators included.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import adbc_driver_postgresql
import polars as pl
import pyarrow as pa
from adbc_driver_manager import (
    INGEST_OPTION_MODE_APPEND,
    INGEST_OPTION_MODE_CREATE,
    AdbcConnection,
    AdbcDatabase,
    AdbcStatement,
    StatementOptions,
)
from adbc_driver_manager import Error as DriverError

# Not the driver's `dbapi`, which imports pyarrow.dataset for 0.03 s, but what it is made of: a call that Ctrl-C ends, and a
# reader whose errors have an SQLSTATE.
from adbc_driver_manager._lib import _blocking_call
from adbc_driver_manager._reader import AdbcRecordBatchReader

from etl.errors import ConnectError, DataError, EtlError, SchemaError, SettingsError
from etl.postgres.naming import quote_identifier, quote_literal
from etl.postgres.url import ConnectionTarget
from etl.runtime.cancellation import CancelToken

T = TypeVar("T", AdbcStatement, AdbcRecordBatchReader)

OLDEST = 14
"""The oldest supported major version of PostgreSQL."""

_ENCODINGS = ("UTF8", "SQL_ASCII")  # SQL_ASCII as far as its content is UTF-8: the server verifies it when we read

# The driver's built-in type table. The driver misreads the server's table when quote_all_identifiers is on and then returns
# every value as bytes. Our queries cast to types that the built-in table has. This also saves reading pg_attribute.
_DRIVER = {"adbc.postgresql.type_resolver_mode": "builtin"}

_PATH = ("pg_catalog", "pg_temp")
PIN_SEARCH_PATH = f"SET LOCAL search_path = {', '.join(_PATH)}"
PINNED_OPTIONS = f"-c search_path={','.join(_PATH)}"
_MARK = "bpr_etl.session"
"""A setting without meaning. A session that has it received our startup packet, so no pooler is in between."""

_SYNCHRONOUS_COMMIT = (
    "CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END"
)
_TRANSACTION_SETTINGS = {
    "client_encoding": "UTF8",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "DateStyle": "ISO, YMD",
    "TimeZone": "UTC",
}
# The server checks every two seconds whether the client is still connected (Linux only), so that the long query of a killed
# run ends and releases its locks.
_CLIENT_CHECK = "CASE WHEN version() LIKE '%linux%' THEN set_config('client_connection_check_interval', '2s', true) END"
# With `replica`, neither foreign keys nor ordinary triggers fire, and a run could leave references to rows that are gone.
_REPLICATION_ROLE = (
    "CASE WHEN current_setting('session_replication_role') = 'replica' "
    "THEN set_config('session_replication_role', 'origin', true) END"
)
TRANSACTION_SETTINGS = ", ".join(
    [
        *(f"set_config('{name}', '{value}', true)" for name, value in _TRANSACTION_SETTINGS.items()),
        _CLIENT_CHECK,
        _REPLICATION_ROLE,
    ]
)
"""SQL that sets, for the open transaction, what determines how our SQL is read and how values are printed."""

_ROLLBACK_ATTEMPTS = 3
"""A short statement_timeout can cancel a ROLLBACK, after which the transaction is still open."""

_REFUSED_OPTIONS = re.compile(r"option|startup parameter|configuration parameter", re.IGNORECASE)


class ConflictError(EtlError):
    """A concurrent write conflicted with this transaction (SQLSTATE 40001, 40P01), on a standby one of the primary.

    Trying the whole again may succeed.
    """

    exit_code = 3


class Connection:
    """One ADBC connection, in autocommit until `begin`.

    Every method raises a subclass of EtlError with the server's primary message, never with the row that it is about.
    `direct` is True if the server process itself received our startup packet: then no pooler is in between and the session is
    ours alone. It is False if that is unknown.
    """

    def __init__(self, address: ConnectionTarget, stop: CancelToken) -> None:
        self.address, self.stop = address, stop
        self.name = f"bpr-etl:{uuid.uuid4().hex[:12]}"
        self._closing, self._closed = threading.Lock(), False
        self._in_transaction = False
        self._open: list[Any] = []
        with self._mapped_errors():
            self._database, self._connection = _open(address, self.name, stop)
        try:
            mark, path, encoding, version, number = self._read_session()
            require_supported(encoding, version, number)
        except EtlError:
            self.close()
            raise
        self.direct = mark == self.name
        self.pin_search_path = PIN_SEARCH_PATH
        """SQL that pins the search_path for the open transaction."""
        # pg_catalog is searched first unless a path says otherwise. No other schema may come before it.
        path = ",".join(name for name in path.split(",") if name.strip(' "') != "pg_catalog")
        self.restore_path = f"set_config('search_path', {quote_literal(path)}, true)"
        """SQL that gives the open transaction the role's own search_path."""

    def _read_session(self) -> tuple[Any, ...]:
        """Return the session's mark and search_path, and the server's encoding, version and version number.

        Asked in a transaction: outside of one a pooler may switch the server process between two messages.
        """
        with self._mapped_errors():
            self._connection.set_autocommit(False)
        row = self.fetch_rows(
            f"SELECT pg_catalog.current_setting('{_MARK}', true), pg_catalog.current_setting('search_path'), "
            "pg_catalog.current_setting('server_encoding'), pg_catalog.current_setting('server_version'), "
            "pg_catalog.current_setting('server_version_num')::pg_catalog.int8"
        )[0]
        self.rollback()
        return row

    def fetch_rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a small query as Python values."""
        return list(zip(*(column.to_pylist() for column in self._fetch(sql).columns), strict=True))

    def fetch_int(self, sql: str) -> int:
        """Return the single number that a query yields."""
        return int(self.fetch_rows(sql)[0][0])

    def fetch_frame(self, sql: str) -> pl.DataFrame:
        """Return the rows of a query as a frame. The query must cast enums to text and numerics to int8."""
        return pl.DataFrame(self._fetch(sql)).rechunk()

    def iter_frames(self, sql: str) -> Iterator[pl.DataFrame]:
        """Yield the rows of a query in batches as the driver fetches them. Memory does not grow with the result."""
        with self._results(sql) as (_, reader):
            yield from map(pl.DataFrame, reader)

    def execute(self, sql: str) -> int:
        """Run a statement that writes. Returns the number of affected rows, -1 if the server reports none.

        It runs under the role's own search_path, so it must qualify all names, operators too: `OPERATOR(pg_catalog.=)`.
        """
        with self._own_path():
            return self._execute(sql)

    def copy(self, schema: str, table: str, rows: pa.Table | pa.RecordBatchReader) -> int:
        """Send rows by binary COPY into the table's columns of the same names. Returns the number of rows sent."""
        with self._own_path():
            return self._ingest(
                table, rows, INGEST_OPTION_MODE_APPEND, **{StatementOptions.INGEST_TARGET_DB_SCHEMA.value: schema}
            )

    def copy_temporary(self, table: str, rows: pa.Table) -> int:
        """Send rows by binary COPY into a new temporary table. Returns the number of rows sent."""
        return self._ingest(table, rows, INGEST_OPTION_MODE_CREATE, **{StatementOptions.INGEST_TEMPORARY.value: "true"})

    def begin(self, mode: str) -> None:
        """Begin a transaction with the modes of SET TRANSACTION, and set what `TRANSACTION_SETTINGS` says.

        Its application_name is `name`, by which other sessions find it. COMMIT waits until it is on disk even if the role's
        `synchronous_commit` is off, because snapshots are published after it.
        """
        with self._mapped_errors():
            self._connection.set_autocommit(False)
        self._execute(f"SET TRANSACTION {mode}")
        self._execute(self.pin_search_path)
        self.fetch_rows(
            f"SELECT set_config('application_name', {quote_literal(self.name)}, true), {_SYNCHRONOUS_COMMIT}, "
            f"{TRANSACTION_SETTINGS}"
        )
        self._in_transaction = True

    def search_last(self, schema: str) -> None:
        """Search a schema for names that SQL of the settings does not qualify, in this transaction and those to come."""
        self.pin_search_path = f"{PIN_SEARCH_PATH}, {quote_identifier(schema)}"
        self._execute(self.pin_search_path)

    def prepare_commit(self) -> tuple[str | None, int]:
        """Set what COMMIT needs. Returns the transaction's id, None if it wrote nothing, and the server's process id.

        Deferred triggers of the application fire in COMMIT and need the role's search_path. A trigger that fired earlier may
        have changed synchronous_commit.
        """
        xid, process, *_ = self.fetch_rows(
            f"SELECT pg_current_xact_id_if_assigned()::text, pg_backend_pid(), {_SYNCHRONOUS_COMMIT}, {self.restore_path}"
        )[0]
        return xid, int(process)

    def commit(self) -> None:
        """Commit and return to autocommit. After a ConnectError the outcome is unknown: `transaction` looks it up."""
        with self._mapped_errors():
            self._connection.commit()
            self._connection.set_autocommit(True)
            self._in_transaction = False

    def cancel(self) -> None:
        """Cancel the statement that the connection waits for, if it is open. Can be called from any thread."""
        with self._closing:
            if not self._closed:
                self._connection.cancel()

    def rollback(self) -> None:
        """Roll back the open transaction, if any, and return to autocommit. Never raises: a lost connection rolls back."""
        self._in_transaction = False
        for _ in range(_ROLLBACK_ATTEMPTS):
            with suppress(DriverError):
                self._connection.rollback()
                break
        with suppress(DriverError):
            self._connection.set_autocommit(True)

    def close(self) -> None:
        """Close the connection. The server rolls back an open transaction and releases the session's locks."""
        with self._closing, suppress(DriverError, RuntimeError):
            self._closed = True
            for each in reversed(self._open):
                with suppress(DriverError):
                    each.close()
            self._connection.close()
            self._database.close()

    def _execute(self, sql: str) -> int:
        with self._statement() as statement:
            statement.set_sql_query(sql)
            stream, rows = _blocking_call(statement.execute_query, (), {}, statement.cancel)
            stream.release()
            return int(rows)

    def _fetch(self, sql: str) -> pa.Table:
        with self._results(sql) as (statement, reader):
            return _blocking_call(reader.read_all, (), {}, statement.cancel)

    @contextmanager
    def _results(self, sql: str) -> Iterator[tuple[AdbcStatement, AdbcRecordBatchReader]]:
        """Run a query for a block that reads its rows. Yields the statement and the reader."""
        with self._statement() as statement:
            statement.set_sql_query(sql)
            stream, _ = _blocking_call(statement.execute_query, (), {}, statement.cancel)
            with self._kept(AdbcRecordBatchReader._import_from_c(stream.address)) as reader:  # noqa: SLF001
                yield statement, reader

    @contextmanager
    def _statement(self, table: str | None = None) -> Iterator[AdbcStatement]:
        with self._mapped_errors(table), self._kept(AdbcStatement(self._connection)) as statement:
            yield statement

    @contextmanager
    def _kept(self, resource: T) -> Iterator[T]:
        """Close a resource after the block, or before the connection: the driver keeps a connection open that has some."""
        self._open.append(resource)
        try:
            yield resource
        finally:
            resource.close()
            self._open.remove(resource)

    def _ingest(self, table: str, rows: pa.Table | pa.RecordBatchReader, mode: str, **options: str) -> int:
        """Send rows by binary COPY into a table. Returns their number."""
        named = {StatementOptions.INGEST_TARGET_TABLE.value: table, StatementOptions.INGEST_MODE.value: mode}
        with self._statement(None if StatementOptions.INGEST_TEMPORARY.value in options else table) as statement:
            statement.set_options(**named, **options)
            statement.bind_stream(rows)
            return int(_blocking_call(statement.execute_update, (), {}, statement.cancel))

    @contextmanager
    def _own_path(self) -> Iterator[None]:
        """Run a block of the open transaction under the role's own search_path."""
        if not self._in_transaction:
            yield
            return
        self.fetch_rows(f"SELECT {self.restore_path}")
        yield
        self._execute(self.pin_search_path)

    @contextmanager
    def _mapped_errors(self, table: str | None = None) -> Iterator[None]:
        self.stop.raise_if_cancelled()
        try:
            yield
        except DriverError as error:
            self.stop.raise_if_cancelled()
            raise _map_error(error, self.address, table) from None


def _open(address: ConnectionTarget, mark: str, stop: CancelToken) -> tuple[AdbcDatabase, AdbcConnection]:
    """Open a connection whose session has the setting `_MARK` = `mark`, unless a pooler drops startup options.

    The driver first opens a connection of its own and runs `SELECT version()` there. That is resolved by the search_path, so
    this connection has it pinned in its startup options. The second connection must show the role's own search_path. Poolers
    refuse startup options or drop them. If they are refused, both connections are opened without.
    """
    # The role, the database, the environment or the URL may set another encoding. The driver always assumes UTF-8.
    always = {"client_encoding": "UTF8", **({"password": secret} if (secret := address.new_password(stop)) else {})}
    plain = address.libpq_with(**always)
    pinned, marked = (
        plain if options is None else address.libpq_with(**always, options=f"{options} {more}".strip())
        for options, more in ((address.options or "", PINNED_OPTIONS), (address.options, f"-c {_MARK}={mark}"))
    )
    try:
        database = adbc_driver_postgresql.connect(pinned, db_kwargs=_DRIVER)
    except DriverError as error:
        if not _REFUSED_OPTIONS.search(str(error)):
            raise
        marked = plain
        database = adbc_driver_postgresql.connect(plain, db_kwargs=_DRIVER)
    try:
        database.set_options(uri=marked)
        return database, AdbcConnection(database)
    except BaseException:
        database.close()
        raise


@contextmanager
def connect(address: ConnectionTarget, stop: CancelToken | None = None) -> Iterator[Connection]:
    """Open a connection for a block. When `stop` is cancelled, the statement that it waits for is cancelled.

    Raises ConnectError if the server can't be reached or refuses the login, SchemaError if it is not supported,
    CancelledError.
    """
    stop = stop or CancelToken()
    connection = Connection(address, stop)
    try:
        with stop.on_cancel(connection.cancel):
            yield connection
    finally:
        connection.close()


def require_supported(encoding: str, version: str, number: int) -> None:
    """Raise SchemaError if the server is older than OLDEST or the database's encoding is not UTF-8."""
    if number < OLDEST * 10_000:
        raise SchemaError(
            f"The server is PostgreSQL {version}, and bpr-etl needs {OLDEST} or newer. Upgrade the server."
        )
    if encoding not in _ENCODINGS:
        raise SchemaError(
            f"The database's encoding is {encoding}, and bpr-etl needs UTF8: its orders and checksums are of UTF-8 bytes. "
            "Copy the database into one that was created with ENCODING 'UTF8'."
        )


# --- errors ---------------------------------------------------------------------------------------------------------

_DIRECT_URL = "Give the direct URL instead (DIRECT_URL, or port 5432)."
TRANSACTION_POOLER = (
    "The connection goes through a transaction pooler, and a run needs one server process from its lock to its COMMIT "
    f"({{first}}). {_DIRECT_URL}"
)
_REFERENCED = (
    "The database refused a row{place}: {first}. Nothing was written. `bpr-etl schema check` lists the foreign keys "
    "that point at the tables which a run writes."
)
_SCHEMA_MISFIT = "The schema does not fit: {first}. See `bpr-etl schema check`."
_ERROR_TEXTS: dict[type[EtlError], dict[str, str]] = {
    ConnectError: {
        "08001": "Cannot reach the database: {first}. Check that the server runs, and the URL.",
        "25006": "The server takes no writes: {first}. Connect to the primary, not to a standby.",
        "25P03": "The server ended the connection: {first}. Raise idle_in_transaction_session_timeout for this role.",
        "25P04": "The server ended the connection: {first}. Raise transaction_timeout for this role.",
        "26000": TRANSACTION_POOLER,
        "42501": "The role lacks a privilege: {first}. Grant it, or connect as another role.",
        "42P05": TRANSACTION_POOLER,
        "53100": "The server's disk is full: {first}. Make room there.",
        "53300": "The server has no connection left: {first}. Try again later, or raise its limit.",
        "55P03": "A lock was not granted in time: {first}. Run again at a quieter time.",
        "57014": "The server cancelled the query: {first}. Raise statement_timeout, or run at a quieter time.",
        "57P03": "The server takes no connections yet: {first}. Try again when it is ready.",
        "57P05": "The server ended the connection: {first}. Raise idle_session_timeout for this role.",
        "08": "The connection to the database was lost: {first}.",
        "28": "The database refuses the login: {first}. Check user, password and pg_hba.conf.",
        "3D": "The database refuses the login: {first}. Check the URL's database.",
        "53": "The server is out of resources: {first}. Try again later.",
        "57": "The server ended the connection: {first}. Try again when it is back.",
        "POOLING": TRANSACTION_POOLER,
        "POOLER": f"A pooler between bpr-etl and the server refuses what is needed: {{first}}. {_DIRECT_URL}",
        "TLS": "The encrypted connection failed: {first}. Check sslmode, sslrootcert and the server's TLS.",
    },
    SettingsError: {
        "NAMELESS": "The database URL names no user, and this process has no name to take: {first}. Name one in it.",
        "URI": "The database's address is wrong: {first}. Correct it.",
    },
    SchemaError: {"42": _SCHEMA_MISFIT, "3F": _SCHEMA_MISFIT},
    DataError: {
        "23001": _REFERENCED,
        "23503": _REFERENCED,
        "23505": (
            "The database refused a row{place}: {first}. Nothing was written. A row of another user, or one that a trigger "
            "made, has the same key: see whose it is, and give it another."
        ),
        "54000": (
            "The data exceed a limit of the server{place}: {first}. Nothing was written. Shorten the id, or the value in "
            "personaSeed."
        ),
        "22": "The database refused a value{place}: {first}. Nothing was written.",
        "23": "The database refused a row{place}: {first}. Nothing was written.",
        "54": "The data exceed a limit of the server{place}: {first}. Nothing was written.",
        "P0": "A trigger or function of the database refused{place}: {first}. Nothing was written.",
    },
}
_MESSAGES = {state: (kind, text) for kind, texts in _ERROR_TEXTS.items() for state, text in texts.items()}
"""By SQLSTATE, or by its class (two characters), or by one of the names that `_STATES` adds."""

_RETRIABLE = ("40", "55", "58", "XX")
"""Classes of errors without a message of their own that may be gone at the next try."""
_RETRY = (ConnectError, "The server failed (SQLSTATE {state}): {first}. Run again; if it stays, see the server's log.")
_REFUSED = (DataError, "The server refused (SQLSTATE {state}){place}: {first}. Nothing was written.")

_RECOVERY_CONFLICT = "conflict with recovery"
_STANDBY_CANCELLED = (
    "The standby ended the reading, because changes of the primary had to be applied that remove rows which it still needed "
    "({first}). Raise max_standby_streaming_delay there, set hot_standby_feedback = on, or read from the primary."
)

# Poolers report errors without an SQLSTATE of their own.
_POOLER_STATES = (
    (r"statement pooling|prepared statement .* (does not|already) exist", "POOLING"),
    (r"query_wait_timeout|max_client_conn|startup parameter|server_login_retry", "POOLER"),
)
# What libpq says about an address without having tried it; the server's own words begin with FATAL.
_MALFORMED_ADDRESS = (
    r"\A(?!.*FATAL:).*((?:in|invalid) URI|percent-encoded|unexpected spaces|connection option|invalid port number|"
    r"invalid \S+ value|could not match \d+ |definition of service|service file)"
)
# libpq gives no SQLSTATE if a connection or a transaction can't be opened.
_STATES = (
    (_MALFORMED_ADDRESS, "URI"),
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


def _map_error(error: DriverError, address: ConnectionTarget, table: str | None = None) -> EtlError:
    """Translate a driver's error by its SQLSTATE into the kind that says what a caller can do.

    The server's DETAIL is dropped, because it holds row values. `table` is the table written to, for errors that name none.
    """
    details = {_decode(key): _decode(value) for key, value in getattr(error, "details", None) or []}
    if table is not None:
        details.setdefault("PG_DIAG_TABLE_NAME", table)
    first = address.redact(details.get("PG_DIAG_MESSAGE_PRIMARY") or _primary_message(str(error)))
    sqlstate = getattr(error, "sqlstate", None)
    # With 40001 or, where the session was ended or rows were being sent, without SQLSTATE.
    if _RECOVERY_CONFLICT in first:
        return ConflictError(_STANDBY_CANCELLED.format(first=first))
    state = _match(_POOLER_STATES, first) or sqlstate or _match(_STATES, first) or "08001"
    if state in {"40001", "40P01"}:
        return ConflictError(f"Another transaction changed the same rows at the same time ({first}).")
    place = "".join(
        f" ({word} {details[key]})"
        for key, word in (("PG_DIAG_TABLE_NAME", "table"), ("PG_DIAG_COLUMN_NAME", "column"))
        if key in details
    )
    if state == "URI":  # without the value: in an address that can be read in two ways, it may be a piece of a password
        first = re.sub(r"""(value|number|token|URI|found in):? "[^"]*\"""", r"\1", first)
    known = _MESSAGES.get(state) or _MESSAGES.get(state[:2])
    kind, text = known or (_RETRY if state[:2] in _RETRIABLE else _REFUSED)
    message = text.format(first=first.rstrip(".?"), place=place, state=state)
    if address.pooler_hint and kind is not DataError and _DIRECT_URL not in message:
        message += f" A transaction pooler may be in the way ({address.pooler_hint}): give the direct URL (DIRECT_URL)."
    return kind(message)


def _match(states: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((state for pattern, state in states if re.search(pattern, text)), None)


def _decode(text: str | bytes) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _primary_message(text: str) -> str:
    """Return the server's or libpq's message in one line, without the driver's prefix, the query and the row."""
    text = re.split(r"Query was:|DETAIL:", text)[0].replace("[libpq] ", "")
    text = re.sub(
        r"^([A-Z_]+: )?(Failed to ([a-z ]+|\w+ query '.*?'): )?(Execution error \[\w+\]: )?((FATAL|ERROR):  )?",
        "",
        text,
        flags=re.DOTALL,
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # A name may stand for several hosts. A server that answered and refused says more than one that did not answer.
    answered = [line for line in lines if re.search(r"FATAL:|SSL|certificate|encryption", line)]
    return next(iter(answered or lines), "no reason was given")
