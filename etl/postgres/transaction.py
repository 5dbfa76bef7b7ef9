"""Transactions: REPEATABLE READ, the advisory lock, retries, and looking up a COMMIT whose reply was lost."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, TypeVar

from etl.errors import ConnectError, DataError, EtlError, LockedError
from etl.postgres.connection import TRANSACTION_POOLER, ConflictError, Connection, connect
from etl.postgres.naming import quote_literal
from etl.runtime.cancellation import POLL_SECONDS

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRIES = 5
"""How many times a run is tried in all when concurrent writes conflict with it (SQLSTATE 40001)."""

POOL_SECONDS = 3.0
"""How long to wait for a second session before the pooler is taken to have only one server connection, ours."""

SETTLE_SECONDS = 60.0
"""How long the outcome of a lost COMMIT is looked up before it counts as unknown."""


@contextmanager
def transaction(connection: Connection, *, read_only: bool = False, commit: bool = True) -> Iterator[None]:
    """Run a block in a REPEATABLE READ transaction. Rolls back if the block raises, and if it is read-only or not to commit.

    From COMMIT on, the connection's `CancelToken` can't be cancelled. Raises ConnectError if the session is read-only and the
    transaction is not, if COMMIT was not done, and if its outcome can't be found out; CancelledError.
    """
    try:
        connection.begin("ISOLATION LEVEL REPEATABLE READ" + (" READ ONLY" if read_only else ""))
        if not read_only:
            _require_writable(connection)
        yield
        if commit and not read_only:
            _commit(connection)
    except BaseException:
        connection.rollback()
        connection.stop.end_critical()
        raise
    if read_only or not commit:
        connection.rollback()


def _require_writable(connection: Connection) -> None:
    if reason := read_only_reason(connection):
        raise ConnectError(" ".join(reason))


def _commit(connection: Connection) -> None:
    xid, process = connection.prepare_commit()
    connection.stop.begin_critical()
    try:
        connection.commit()
    except ConnectError as error:  # any other error is the server's refusal, and a refused COMMIT is a ROLLBACK
        if xid is None:  # nothing was written
            raise
        _verify_commit(connection, xid, process, error)


def _verify_commit(connection: Connection, xid: str, process: int, error: ConnectError) -> None:
    """Return if a COMMIT that failed was done. Raises ConnectError if it was not, or if the server can't say.

    The server knows the outcome of a transaction (pg_xact_status). If it has not noticed that we are gone, the transaction is
    still open: its session is ended first.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        status = None
        with (
            suppress(EtlError),
            connect(connection.address) as another,
            transaction(another, read_only=True),
        ):
            status = another.fetch_rows(
                f"SELECT pg_xact_status({quote_literal(xid)}::xid8), (SELECT count(pg_terminate_backend(pid)) "
                f"FROM pg_stat_activity WHERE pid = {process} AND application_name = {quote_literal(connection.name)})"
            )[0][0]
        if status == "committed":
            log.warning("The reply to COMMIT was lost (%s); the server says that it was done.", error)
            return
        if status == "aborted":
            raise ConnectError(f"{error} The server says that COMMIT was not done: nothing was written. Run again.")
        if time.monotonic() > deadline:
            raise ConnectError(
                f"{error} The connection was lost during COMMIT, and for {SETTLE_SECONDS:g} s the server could not be asked "
                "for its outcome. Nothing was published. Run again when the server is back; this is safe in either case."
            )
        time.sleep(POLL_SECONDS)


def read_only_reason(connection: Connection) -> tuple[str, str] | None:
    """Return why this session's transactions can't write and what to do, None if they can."""
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


def is_open(connection: Connection) -> bool:
    """Return whether the server still answers a connection: it may have ended the session."""
    with suppress(EtlError), transaction(connection, read_only=True):
        return True
    return False


def retry_on_conflict(attempt: Callable[[], T], sleep: Callable[[float], None]) -> tuple[T, int]:
    """Call `attempt` until it raises no ConflictError, at most RETRIES times. Returns its result and the number of retries.

    Raises ConflictError if every attempt did.
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


# --- tables that are rewritten during a run -------------------------------------------------------------------------


def ensure_tables_not_rewritten(connection: Connection, tables: Iterable[str]) -> None:
    """Raise ConflictError if a table was rewritten, emptied or replaced since the open transaction's snapshot.

    ALTER TABLE and TRUNCATE do not respect snapshots: a table read after them looks empty. `tables` are quoted names. The
    snapshot's `relfilenode` is compared with the current one (`pg_relation_filenode`). Call this last: a table that the
    transaction has read or written is locked against rewriting until it ends.
    """
    names = ", ".join(f"({quote_literal(name)})" for name in tables)
    rewritten = connection.fetch_rows(
        f"WITH RECURSIVE part(name, oid) AS (SELECT v.name, to_regclass(v.name)::oid FROM (VALUES {names}) v(name) "
        "UNION ALL SELECT part.name, i.inhrelid FROM part JOIN pg_catalog.pg_inherits i ON i.inhparent = part.oid) "
        "SELECT DISTINCT part.name FROM part LEFT JOIN pg_catalog.pg_class c ON c.oid = part.oid "
        "WHERE c.oid IS NULL OR NULLIF(c.relfilenode, 0) IS DISTINCT FROM NULLIF(pg_relation_filenode(c.oid), 0) ORDER BY 1"
    )
    if rewritten:
        raise ConflictError(
            f"{', '.join(name for (name,) in rewritten)} {'was' if len(rewritten) == 1 else 'were'} rewritten, emptied or "
            "replaced in the middle of this run (by a migration?)."
        )


@contextmanager
def check_not_rewritten(connection: Connection, tables: Sequence[str]) -> Iterator[None]:
    """Replace a DataError of the block by ConflictError if one of the tables was rewritten, because it looked empty then."""
    try:
        yield
    except DataError:
        try:
            ensure_tables_not_rewritten(connection, tables)
        except ConflictError:
            raise
        except EtlError:  # the transaction has failed on the server, which answers nothing more
            log.debug("Could not find out whether tables were rewritten.", exc_info=True)
        raise


# --- the lock -------------------------------------------------------------------------------------------------------


def lock_key(schema: str) -> int:
    """Return the key of the advisory lock of runs on this schema."""
    return int.from_bytes(hashlib.sha256(f"bpr-etl\x00{schema}".encode()).digest()[:8], "big", signed=True)


def lock_predicate(key: int) -> str:
    """Return SQL that is true for the rows of pg_locks about the advisory lock with this key."""
    high, low = (key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF
    return f"locktype = 'advisory' AND classid::int8 = {high} AND objid::int8 = {low} AND objsubid = 1"


@contextmanager
def advisory_lock(connection: Connection, schema: str, wait: float = 0.0) -> Iterator[int]:
    """Hold the session advisory lock of (database, schema) for a block. Yields its key for `require_lock`.

    It must be taken before BEGIN, else the snapshot is older than the end of the wait. Through a pooler, which may hand the
    session to another client, the lock is only waited for here, and `require_lock` takes it for the transaction.

    Raises LockedError if another run holds the lock for longer than `wait` seconds, ConnectError behind a transaction pooler.
    """
    key = lock_key(schema)
    if goes_through_transaction_pooler(connection):
        raise ConnectError(TRANSACTION_POOLER.format(first="it gives every transaction another server process"))
    if not connection.stop.poll(
        lambda: _take(connection, key) if connection.direct else _is_free(connection, key), wait
    ):
        raise LockedError(
            f"Another bpr-etl run is at work on this database's schema {schema!r} (it holds the advisory lock {key})"
            f"{f', and still was after {wait:g} s' if wait else ''}. Wait for it to end (--wait-lock), or end it."
        )
    try:
        yield key
    finally:
        if connection.direct:
            with suppress(EtlError):
                connection.fetch_rows(f"SELECT pg_catalog.pg_advisory_unlock('{key}'::pg_catalog.int8)")


def _take(connection: Connection, key: int, until: Literal["", "_xact"] = "") -> bool:
    # A quoted number: outside of a transaction even a minus sign would be looked up in the search_path.
    return connection.fetch_rows(f"SELECT pg_catalog.pg_try_advisory{until}_lock('{key}'::pg_catalog.int8)") == [
        (True,)
    ]


def _is_free(connection: Connection, key: int) -> bool:
    with transaction(connection, read_only=True):
        return _take(connection, key, "_xact")


def require_lock(connection: Connection, key: int) -> None:
    """Raise ConnectError unless the open transaction's own server process holds the lock.

    Behind a transaction pooler another process may hold it, and then it protects nothing. Raises LockedError if another run
    took it after `advisory_lock`, which is possible only through a pooler.
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
        raise ConnectError(TRANSACTION_POOLER.format(first="the lock is held by another server process"))


# --- poolers --------------------------------------------------------------------------------------------------------


def goes_through_transaction_pooler(connection: Connection) -> bool:
    """Return whether a pooler gives every transaction of a connection another server process.

    A second session is opened to find out. Processes are shared if both sessions ever meet the same process, or one of them
    meets two. If the pooler can't give a second session while the first is idle and usable, the first has its process alone.
    """
    if connection.direct:
        return False
    opened: queue.SimpleQueue[Connection | EtlError] = queue.SimpleQueue()
    done = threading.Event()

    def open_second() -> None:
        try:
            with connect(connection.address) as second:
                opened.put(second)
                done.wait()
        except EtlError as error:
            opened.put(error)

    # This thread is never joined: the driver can't be interrupted while it waits for the pooler.
    threading.Thread(target=open_second, daemon=True, name="second session").start()
    try:
        try:
            second = opened.get(timeout=POOL_SECONDS)
        except queue.Empty:
            _process(connection)  # where processes are shared, requests are served in order
            second = opened.get(timeout=POLL_SECONDS)
        return isinstance(second, Connection) and _share_processes(connection, second)
    except queue.Empty:
        return False
    finally:
        done.set()


def _share_processes(one: Connection, other: Connection) -> bool:
    """Return whether transactions of two sessions meet the same server process, or those of one meet several."""
    met: dict[Connection, set[int]] = {one: set(), other: set()}

    def shared() -> bool:
        return bool(met[one] & met[other]) or max(map(len, met.values())) > 1

    # One after the other, and one within the other, in both orders: a pool may hand out its processes in any order.
    for first, second in ((one, other), (other, one)) * 2:
        met[first].add(_process(first))
        with transaction(second, read_only=True):
            met[second].add(second.fetch_int("SELECT pg_backend_pid()"))
            if shared():
                return True
            met[first].add(_process(first))
        if shared():
            return True
    return False


def _process(connection: Connection) -> int:
    """Return the id of the server process that a transaction of this connection meets."""
    with transaction(connection, read_only=True):
        return connection.fetch_int("SELECT pg_backend_pid()")
